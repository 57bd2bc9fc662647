import shutil

import jax
import numpy as np
import pytest
import tiny

from samon_jax.errors import UserError
from samon_jax.methods import PLAIN, SHARP
from samon_jax.training import compare, loop, sweep
from samon_jax.training.journal import Journal
from samon_jax.training.reading import load_config
from samon_jax.training.run import set_up
from samon_jax.workdir import checkpoints, files

TIMES = ("seconds", "examples_per_second")
SEEDS = (3, 0, 7)


def configs(**fields):
    return [tiny.config(seed=seed, **fields) for seed in SEEDS]


def masked(**fields):
    """Runs that take a new Fisher mask before every epoch."""
    return configs(sam__mask="all", sam__sparse="ssam_f", sam__fisher_samples=64, **fields)


def folders(directory):
    return [directory / f"seed{seed}" for seed in SEEDS]


def untimed(record):
    return {key: value for key, value in record.items() if key not in TIMES}


def assert_same_but_for_rounding(one, other):
    """Two summaries."""
    assert one["identity"] == other["identity"]
    numbers = ({k: v for k, v in untimed(s).items() if k != "identity"} for s in (one, other))
    assert next(numbers) == pytest.approx(next(numbers), rel=1e-4)


def saved_leaves(config, directory):
    return jax.tree.leaves(tiny.final_state(set_up(config), directory))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Three seeds at once, and what was returned."""
    directory = tmp_path_factory.mktemp("together")
    return directory, sweep.train_together(masked(), folders(directory))


def feed(run, epochs=1):
    """Calls of one step each, over so many epochs of the run."""
    return [call for epoch in range(epochs) for call in run.calls(epoch, 0)]


@pytest.mark.parametrize(
    ("fields", "steps", "steps_per_call"),
    [
        ({"sam__mask": "all", "sam__m": 32, "sam__sparse": "ssam_d"}, 20, 20),
        pytest.param(
            {
                "optimizer__name": "adamw",
                "optimizer__lr": 1e-3,
                "optimizer__accumulate": 3,
                "sam__look_every": 3,
            },
            20,
            20,
            marks=pytest.mark.slow,
        ),
        # Convolutions with kernels of their own for every seed; no loop, which is slow on CPU.
        ({"model": "digits-resnet", "batch_size": 16, "sam__mask": "only_norm"}, 3, 1),
    ],
)
def test_three_seeds_at_once_are_three_runs(fields, steps, steps_per_call):
    """Parameters, running statistics, optimizer state and sums; ρ differs as well.

    Vectorized sums are added in another order, so every step differs by rounding of a few 1e-7 of
    the largest entries, which 20 steps of a training that has not diverged multiply by less than
    100. Seeds that were mixed up would differ by 0.1.
    """
    radii = (0.1, 0.2, 0.3)
    configurations = configs(steps_per_dispatch=steps_per_call, epochs=4, **fields)
    for config, rho in zip(configurations, radii, strict=True):
        config.sam.rho = rho
    runs = [set_up(config) for config in configurations]
    alone, count = [], 0
    for run in runs:
        state, losses, count = tiny.start(run), [], 0
        for call in feed(run, 2):
            if count >= steps:
                break
            program = run.programs.step(call.kind)
            state, metrics = program((state, run.resident), call.raw)
            losses += np.asarray(metrics.loss).tolist()
            count += call.steps
        alone.append((state, losses))

    singles = [run.initial_state() for run in runs]
    axes = sweep.seed_axes(singles[0])
    together = sweep.Together(runs, axes)
    state = together.devices.replicate(sweep.stack(singles))
    assert state.step.shape == ()
    losses, taken = [], 0
    for call in feed(together, 2):
        if taken >= steps:
            break
        program = together.programs.step(call.kind)
        state, metrics = program((state, together.resident), call.raw)
        assert metrics.loss.shape == (3, call.steps)
        losses.append(np.asarray(metrics.loss))
        taken += call.steps
    assert taken == count >= steps
    losses = np.concatenate(losses, axis=1)
    split = sweep.unstack(state, axes, 3)
    for index, (own, (expected, expected_losses)) in enumerate(zip(split, alone, strict=True)):
        assert jax.tree.structure(own) == jax.tree.structure(expected)
        for (path, leaf), other in zip(
            jax.tree.leaves_with_path(own), jax.tree.leaves(expected), strict=True
        ):
            largest = max(1.0, float(np.abs(np.asarray(other, np.float64)).max(initial=0)))
            np.testing.assert_allclose(
                leaf, other, rtol=0, atol=2e-5 * largest, err_msg=jax.tree_util.keystr(path)
            )
        assert int(own.step) == count
        assert int(own.seed) == SEEDS[index]
        np.testing.assert_allclose(losses[index], expected_losses, rtol=1e-4)
    for other in split[1:]:
        apart = jax.tree.map(lambda x, y: float(abs(x - y).max()), split[0].params, other.params)
        assert max(jax.tree.leaves(apart)) > 0.1


@pytest.mark.parametrize("kind", [SHARP, PLAIN])
def test_three_seeds_are_three_times_the_work(kind):
    runs = [set_up(config) for config in configs(model="digits-resnet", sam__mask="only_norm")]
    template = runs[0].template()
    together = sweep.Together(runs, sweep.seed_axes(template))

    def flops(run, state):
        raw = next(iter(run.calls(0, 0))).raw
        program = run.programs.step(kind)
        return program.lower((state, run.resident), raw).cost_analysis()["flops"]

    stacked = jax.eval_shape(sweep.stack, [template] * 3)
    assert flops(together, stacked) == pytest.approx(3 * flops(runs[0], template), rel=0.03)


def test_work_directories_are_as_if_trained_alone(finished, tmp_path):
    directory, summaries = finished
    loop.train(masked()[0], tmp_path)
    pictures = {"learning_curve.png", "norm_parameters.png"}  # that fixtures draw, and tests do not
    names = {path.name for path in tmp_path.iterdir()} | pictures
    for config, folder, summary in zip(masked(), folders(directory), summaries, strict=True):
        assert {path.name for path in folder.iterdir()} == names
        assert files.read_json(folder / "summary.json") == summary
        assert load_config(folder).seed == config.seed
        assert checkpoints.saved_steps(folder) == [11, 22]
        assert [r["step"] for r in files.read_metrics(folder)] == [11, 22]
    alone, ours = (files.read_json(d / "summary.json") for d in (tmp_path, folders(directory)[0]))
    assert list(ours) == list(alone)
    assert_same_but_for_rounding(ours, alone)
    for record, other in zip(
        files.read_metrics(folders(directory)[0]), files.read_metrics(tmp_path), strict=True
    ):
        assert untimed(record) == pytest.approx(untimed(other), rel=1e-4)
    # Seed 3, the first, and seed 7 are different runs.
    assert summaries[0]["test_loss"] != summaries[2]["test_loss"]


def test_finished_runs_are_left_alone(finished, capsys):
    directory, summaries = finished

    def times():
        return {f: f.stat().st_mtime_ns for f in sorted(directory.rglob("*")) if f.is_file()}

    before = times()
    assert sweep.train_together(masked(), folders(directory)) == summaries
    assert capsys.readouterr().out.count("is finished") == 3
    assert times() == before


def test_a_signal_saves_every_run_and_all_go_on_together(finished, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        tiny.signal_after(patch, 3 * 15)
        with pytest.raises(SystemExit) as stopped:
            sweep.train_together(masked(), folders(tmp_path))
    assert stopped.value.code == 143
    (step,) = {checkpoints.saved_steps(folder)[-1] for folder in folders(tmp_path)}
    assert 11 < step < 22
    with monkeypatch.context() as patch:
        patch.delattr(loop, "train")  # nothing is trained alone
        sweep.train_together(masked(), folders(tmp_path))
    assert f"seed 7: resuming after step {step} of 22" in capsys.readouterr().out
    for config, ours, other in zip(masked(), folders(tmp_path), folders(finished[0]), strict=True):
        for leaf, expected in zip(
            saved_leaves(config, ours), saved_leaves(config, other), strict=True
        ):
            np.testing.assert_array_equal(leaf, expected)
        assert [untimed(r) for r in files.read_metrics(ours)] == [
            untimed(r) for r in files.read_metrics(other)
        ]


def test_runs_at_different_steps_go_on_one_after_the_other(finished, tmp_path, capsys):
    """The first is finished, the second stands after one epoch, the third begins."""
    done, later, _ = folders(finished[0])
    first, second, third = folders(tmp_path)
    shutil.copytree(done, first)
    shutil.copytree(later, second)
    shutil.rmtree(second / "checkpoints" / "22")
    (second / "summary.json").unlink()
    summaries = sweep.train_together(masked(), [first, second, third])
    assert "do not stand at the same step" in capsys.readouterr().out
    for summary, expected in zip(summaries, finished[1], strict=True):
        assert_same_but_for_rounding(summary, expected)


def test_a_loss_that_is_not_finite_names_the_seed(tmp_path, monkeypatch):
    real = Journal.steps

    def poisoned(self, step, metrics):
        if step == 15 and self.run.config.seed == 0:
            metrics = metrics._replace(loss=metrics.loss * np.nan)
        real(self, step, metrics)

    monkeypatch.setattr(Journal, "steps", poisoned)
    with pytest.raises(UserError, match=r"^seed 0: loss is nan at step 15; checkpoint of step 11"):
        sweep.train_together(masked(), folders(tmp_path))
    for folder in folders(tmp_path):
        assert checkpoints.saved_steps(folder) == [11]
        assert len(files.read_metrics(folder)) == 1
        assert not (folder / "summary.json").exists()


def test_without_enough_memory_one_after_the_other(finished, tmp_path, monkeypatch, capsys):
    def too_large(inputs, raw):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(sweep._StackedPrograms, "step", lambda self, kind: too_large)
    summaries = sweep.train_together(masked(), folders(tmp_path))
    assert "3 runs at once need too much memory" in capsys.readouterr().out
    for summary, expected in zip(summaries, finished[1], strict=True):
        assert_same_but_for_rounding(summary, expected)


@pytest.mark.parametrize("at_once", [True, False])
def test_one_run_that_fails_does_not_stop_the_others(tmp_path, monkeypatch, at_once):
    """Its place in the results holds the error."""

    def alone(config, directory):
        if config.seed == 0:
            raise UserError("loss is nan")
        return {"seed": config.seed}

    def together(configs, directories):
        raise UserError("seed 0: loss is nan")

    monkeypatch.setattr(sweep.loop, "train", alone)
    monkeypatch.setattr(sweep, "train_together", together)
    monkeypatch.setattr(sweep, "at_once_pays", lambda: at_once)
    first, failed, last = sweep.train_all(configs(), folders(tmp_path))
    assert (first, last) == ({"seed": 3}, {"seed": 7})
    assert str(failed) == "loss is nan"


def test_configs_that_differ_in_something_else_are_refused(tmp_path):
    one, other, last = configs()
    other.optimizer.lr = 0.05
    with pytest.raises(UserError, match=r"optimizer\.lr is 0\.1 in one config and 0\.05 in ano"):
        sweep.train_together([one, other, last], folders(tmp_path))
    other.optimizer.lr, other.sam.rho, other.sam.rho_min = 0.1, 0.3, 0.0
    with pytest.raises(UserError, match=r"only differ in seed$"):
        sweep.train_together([other, last], folders(tmp_path)[:2])
    with pytest.raises(UserError, match="directories has 1 entries; there are 2 configs"):
        sweep.train_together([one, last], [tmp_path])
    with pytest.raises(UserError, match=r"names .* twice"):
        sweep.train_together([one, last], [tmp_path, tmp_path / "." / "x" / ".."])
    assert list(tmp_path.iterdir()) == []
    assert sweep.train_together([], []) == []


def test_compare_on_an_accelerator(tmp_path, monkeypatch):
    calls = []

    def pretend(configs, directories):
        calls.append([(c.sam.rho, c.seed, d) for c, d in zip(configs, directories, strict=True)])
        return [{"test_accuracy": c.sam.rho + c.seed / 10} for c in configs]

    monkeypatch.setattr(compare, "train_all", pretend)
    config = tiny.config(seed=1, compare__seeds=2)
    with config.unlocked():
        config.compare.methods.update({"a": {"rho": 0.25}, "b": {"rho": 0.5}})
    together_or_not = {}
    for at_once, count in ((True, 2), (False, 4)):
        monkeypatch.setattr(compare, "at_once_pays", lambda at_once=at_once: at_once)
        calls.clear()
        (tmp_path / str(at_once)).mkdir()
        together_or_not[at_once] = compare.compare(config, tmp_path / str(at_once))
        assert len(calls) == count
    assert calls[0] == [(0.25, 1, tmp_path / "False" / "a" / "seed1")]
    assert together_or_not[True] == together_or_not[False] == {"a": [0.35, 0.45], "b": [0.6, 0.7]}
