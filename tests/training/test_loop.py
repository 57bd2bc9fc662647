import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest
import tiny

from samon_jax import data
from samon_jax._fields import Field, number
from samon_jax.errors import UserError
from samon_jax.methods import PLAIN, SHARP
from samon_jax.training import journal, loop, optimizers, reading
from samon_jax.training import run as runs
from samon_jax.training.config import identity
from samon_jax.training.journal import Journal
from samon_jax.training.run import set_up
from samon_jax.workdir import checkpoints, files

TIMES = ("seconds", "examples_per_second")


def start_process(directory, moment="", **fields):
    command = [sys.executable, tiny.__file__, str(directory), moment, json.dumps(fields)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )


def run_process(directory, moment="", **fields):
    process = start_process(directory, moment, **fields)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def leaves_of(directory, config):
    run = set_up(config)
    return jax.tree.leaves(tiny.final_state(run, directory))


def assert_same_state(directory, other_directory, config=None):
    config = config or tiny.config()
    for one, other in zip(
        leaves_of(directory, config), leaves_of(other_directory, config), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def untimed(directory):
    return [
        {key: value for key, value in record.items() if key not in TIMES}
        for record in files.read_metrics(directory)
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted run on one device."""
    directory = tmp_path_factory.mktemp("finished")
    return directory, loop.train(tiny.config(), directory)


def test_workdir_of_a_run(finished):
    directory, summary = finished
    assert json.loads((directory / "summary.json").read_text()) == summary
    assert list(summary) == [
        "test_accuracy",
        "test_loss",
        "train_loss",
        "num_params",
        "num_norm_params",
        "steps",
        "seconds",
        "examples_per_second",
        "flops_per_step",
        "flops_per_step_base",
        "identity",
    ]
    assert summary["identity"] == identity(tiny.config())
    records = files.read_metrics(directory)
    assert [(r["epoch"], r["step"]) for r in records] == [(1, 11), (2, 22)]
    assert summary["test_accuracy"] == records[-1]["test_accuracy"]
    assert records[-1]["train_loss"] < records[0]["train_loss"]
    assert summary["steps"] == 22
    # stem 64*16, middle 16*16, head 16*10 + 10, and two norms with 16 scales and 16 biases each
    assert summary["num_norm_params"] == 2 * 2 * 16
    assert summary["num_params"] == 64 * 16 + 16 * 16 + 16 * 10 + 10 + 2 * 2 * 16
    assert summary["flops_per_step"] > summary["flops_per_step_base"] > 0
    for name in ("config.json", "learning_curve.png", "norm_parameters.png"):
        assert (directory / name).stat().st_size > 0
    assert checkpoints.saved_steps(directory) == [11, 22]


def test_accuracy_and_loss_are_those_of_the_saved_parameters(finished):
    """NumPy computes the network on all test images, one by one independent of batches."""
    directory, summary = finished
    run = set_up(tiny.config())
    state = tiny.final_state(run, directory)
    x = run.source.dataset.test.images / 255.0
    x = ((x - run.source.dataset.mean) / run.source.dataset.std).reshape(360, 64)
    for layer, norm in (("stem", "stage1_norm"), ("middle", "stage2_norm")):
        x = x @ state.params[layer]["kernel"]
        stats, affine = state.model_state["batch_stats"][norm], state.params[norm]
        x = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * affine["scale"] + affine["bias"]
        x = np.maximum(x, 0)
    logits = x @ state.params["head"]["kernel"] + state.params["head"]["bias"]
    labels = run.source.dataset.test.labels
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert summary["test_accuracy"] == pytest.approx((logits.argmax(1) == labels).mean())
    assert summary["test_loss"] == pytest.approx(-log_p[np.arange(360), labels].mean(), rel=1e-4)


def test_flops_agree_with_the_compiled_program(finished):
    _, summary = finished
    run = set_up(tiny.config())
    raw = tiny.first_calls(run)[0].raw
    for kind, field in ((SHARP, "flops_per_step"), (PLAIN, "flops_per_step_base")):
        lowered = run.programs.step(kind).lower((run.template(), run.resident), raw)
        flops = lowered.compile().cost_analysis()["flops"]
        assert summary[field] == pytest.approx(flops, rel=0.05)


def test_a_finished_run_started_again_changes_nothing(finished, capsys):
    directory, summary = finished
    before = {file: file.stat().st_mtime_ns for file in sorted(directory.rglob("*"))}
    assert loop.train(tiny.config(), directory) == summary
    assert "is finished" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in sorted(directory.rglob("*"))} == before


def test_another_config_is_refused(finished):
    directory, _ = finished
    with pytest.raises(UserError, match=r"sam\.rho: 0\.2 there, 0\.3 now"):
        loop.train(tiny.config(sam__rho=0.3), directory)


def test_the_same_config_gives_the_same_bits(finished, tmp_path):
    directory, _ = finished
    loop.train(tiny.config(), tmp_path)
    assert_same_state(directory, tmp_path)


@pytest.mark.parametrize(
    ("num_devices", "moments"),
    [
        # While the checkpoint of the first epoch is being written; in the second epoch; between the
        # metrics and the checkpoint of an epoch.
        (1, ["save:1", "dispatch:8", "metrics:2"]),
        # And after the last step.
        pytest.param(1, ["dispatch:5", "", "dispatch:12", "plots:1"], marks=pytest.mark.slow),
        pytest.param(8, ["save:1", "dispatch:8", ""], marks=pytest.mark.slow),
    ],
)
def test_killed_at_any_moment_a_run_ends_the_same(tmp_path, num_devices, moments):
    fields = {"num_devices": num_devices, "epochs": 3}
    config = tiny.config(**fields)
    loop.train(config, tmp_path / "reference")
    killed = tmp_path / "killed"
    for moment in moments:
        if not moment:  # one that nobody chose
            process = start_process(killed, **fields)
            delay = random.Random(0).uniform(0, 2)
            print(f"killed after {delay} s")
            time.sleep(delay)
            process.kill()
            process.communicate()
            continue
        code, out, err = run_process(killed, moment, **fields)
        assert code == -signal.SIGKILL, (moment, out, err)
    code, out, err = run_process(killed, **fields)
    assert (code, err) == (0, ""), out
    assert_same_state(tmp_path / "reference", killed, config)
    assert untimed(killed) == untimed(tmp_path / "reference")
    assert [record["epoch"] for record in untimed(killed)] == [1, 2, 3]


def test_sigterm_saves_in_the_middle_of_an_epoch(finished, tmp_path):
    code, out, err = run_process(tmp_path, "sigterm:15")
    assert (code, err) == (143, "")
    assert "SIGTERM: saved a checkpoint at step" in out
    step = checkpoints.saved_steps(tmp_path)[-1]
    assert 11 < step < 22
    loop.train(tiny.config(), tmp_path)
    directory, _ = finished
    assert_same_state(directory, tmp_path)
    assert untimed(tmp_path) == untimed(directory)


@pytest.mark.parametrize("count", [1, 11, 22])
def test_signal_in_process(tmp_path, monkeypatch, count):
    """Also at the first step, and at the last one of an epoch and of all: others may follow."""
    tiny.signal_after(monkeypatch, count, signal.SIGINT)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as stopped:
        loop.train(tiny.config(), tmp_path)
    assert stopped.value.code == 130
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.undo()
    loop.train(tiny.config(), tmp_path)
    assert [record["step"] for record in files.read_metrics(tmp_path)] == [11, 22]


def test_a_damaged_newest_checkpoint_costs_one_epoch(finished, tmp_path, capsys):
    directory, _ = finished
    save = checkpoints.Checkpoints.save

    def save_and_stop(self, step, *args):
        save(self, step, *args)
        if step == 22:
            raise SystemExit

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints.Checkpoints, "save", save_and_stop)
        with pytest.raises(SystemExit):
            loop.train(tiny.config(), tmp_path)
    damaged = tmp_path / "checkpoints" / "22" / "checksum" / "metadata"
    damaged.write_text("{")
    capsys.readouterr()
    loop.train(tiny.config(), tmp_path)
    out = capsys.readouterr().out
    assert "checkpoint of step 22" in out
    assert "using the one of step 11" in out
    assert (tmp_path / "unreadable_checkpoints" / "22" / "checksum" / "metadata").exists()
    assert untimed(tmp_path) == untimed(directory)


def test_the_only_checkpoint_damaged_starts_again_in_place(finished, tmp_path, capsys):
    directory, _ = finished
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal.Reporter, "epoch", lambda self, record: os.kill(os.getpid(), 15))
        with pytest.raises(SystemExit):
            loop.train(tiny.config(), tmp_path)
    assert checkpoints.saved_steps(tmp_path) == [11]
    (tmp_path / "checkpoints" / "11" / "checksum" / "metadata").write_text("{")
    capsys.readouterr()
    loop.train(tiny.config(), tmp_path)
    out = capsys.readouterr().out
    assert "step 11" in out
    assert "starting again from step 0" in out
    assert (tmp_path / "unreadable_checkpoints" / "11" / "checksum" / "metadata").exists()
    assert untimed(tmp_path) == untimed(directory)
    assert_same_state(directory, tmp_path)


@pytest.mark.parametrize("kept", [0, 1])
def test_a_missing_last_record_is_measured_again(finished, tmp_path, kept):
    """summary.json must not report the epoch before; the state holds all that is needed."""
    directory, summary = finished
    shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
    (tmp_path / "summary.json").unlink()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join(lines[:kept]))
    again = loop.train(tiny.config(), tmp_path)
    assert untimed(tmp_path) == untimed(directory)[1 - kept :]
    without_times = {key: value for key, value in summary.items() if key not in TIMES}
    assert {key: value for key, value in again.items() if key not in TIMES} == without_times


@pytest.fixture
def clock(monkeypatch):
    """Replaces the time by one in which every call of the training program takes two seconds."""
    now = [0.0]

    def step(programs, kind):
        def call(inputs, raw):
            now[0] += 2.0
            return program(inputs, raw)

        program = real(programs, kind)
        return call

    real = runs.Programs.step
    monkeypatch.setattr(runs.Programs, "step", step)
    monkeypatch.setattr(loop, "flops_of", lambda run: {})
    monkeypatch.setattr(loop, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    return now


def test_speed_and_seconds_also_over_an_interruption(clock, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal.Reporter, "epoch", lambda self, record: os.kill(os.getpid(), 15))
        with pytest.raises(SystemExit):
            loop.train(tiny.config(), tmp_path)
    clock[0] += 1000.0  # the time until somebody starts it again
    summary = loop.train(tiny.config(), tmp_path)
    records = files.read_metrics(tmp_path)
    assert [record["seconds"] for record in records] == [22.0, 44.0]
    assert [record["examples_per_second"] for record in records] == [64.0, 64.0]
    assert (summary["seconds"], summary["examples_per_second"]) == (44.0, 64.0)


def test_a_test_loss_that_is_not_finite_stops(tmp_path, monkeypatch):
    real = journal.measure
    monkeypatch.setattr(journal, "measure", lambda *args: real(*args) | {"test_loss": np.inf})
    with pytest.raises(UserError, match="test loss is inf at step 11; no checkpoint"):
        loop.train(tiny.config(), tmp_path)
    assert checkpoints.saved_steps(tmp_path) == []
    assert files.read_metrics(tmp_path) == []


def test_a_reader_that_went_away_does_not_stop_the_run(tmp_path):
    """As `| head -1`; the pipe is closed before the first line."""
    process = start_process(tmp_path)
    process.stdout.close()
    err = process.stderr.read()
    assert (process.wait(), err) == (0, "")
    assert (tmp_path / "summary.json").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("loss", r"loss is nan at step 15; checkpoint of step 11"),
        ("finite", r"a parameter or running statistic is not finite after step 15; checkpoint of"),
    ],
)
def test_numbers_that_are_not_finite_stop_and_keep_the_last_checkpoint(
    tmp_path, monkeypatch, changed, message
):
    real = Journal.steps

    def poisoned(self, step, metrics):
        if step == 15:
            value = metrics.loss * np.nan if changed == "loss" else ~metrics.finite
            metrics = metrics._replace(**{changed: value})
        real(self, step, metrics)

    monkeypatch.setattr(Journal, "steps", poisoned)
    with pytest.raises(UserError, match=message):
        loop.train(tiny.config(epochs=3), tmp_path)
    assert checkpoints.saved_steps(tmp_path) == [11]
    assert len(files.read_metrics(tmp_path)) == 1


def test_divergence_is_noticed(tmp_path):
    config = tiny.config(optimizer__lr=1e30, sam__variant="none")
    with pytest.raises(UserError, match=r"is (nan|inf) at step|not finite after step"):
        loop.train(config, tmp_path)
    assert checkpoints.saved_steps(tmp_path) == []
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.parametrize(
    ("sam", "perturbed"),
    [
        ({}, [0, 1, 2]),
        ({"sam__start": 1}, [1, 2]),
        ({"sam__stop": 2}, [0, 1]),
        ({"sam__start": 1, "sam__stop": 2}, [1]),
    ],
)
def test_epochs_that_are_perturbed(sam, perturbed):
    run = set_up(tiny.config(epochs=3, **sam))
    for epoch in range(3):
        kinds = {call.kind for call in run.calls(epoch, 0)}
        assert kinds == {SHARP if epoch in perturbed else PLAIN}


def test_start_epoch_uses_the_plain_gradient_before(finished, tmp_path):
    plain = loop.train(tiny.config(sam__variant="none"), tmp_path / "none")
    loop.train(tiny.config(sam__start=1), tmp_path / "late")
    none, late = (files.read_metrics(tmp_path / name) for name in ("none", "late"))
    always = files.read_metrics(finished[0])
    assert late[0]["train_loss"] == pytest.approx(none[0]["train_loss"], rel=1e-4)
    assert always[0]["train_loss"] != pytest.approx(none[0]["train_loss"], rel=1e-4)
    assert late[1]["train_loss"] != pytest.approx(none[1]["train_loss"], rel=1e-4)
    assert plain["flops_per_step"] == plain["flops_per_step_base"]


def test_several_steps_per_dispatch(finished, tmp_path):
    loop.train(tiny.config(steps_per_dispatch=11), tmp_path)
    together, single = (files.read_metrics(d)[-1] for d in (tmp_path, finished[0]))
    assert together["train_loss"] == pytest.approx(single["train_loss"], rel=1e-2)
    assert together["step"] == 22


def test_a_shorter_last_dispatch_also_after_an_interruption(tmp_path):
    """Of a method with a state of its own, too."""
    config = tiny.config(steps_per_dispatch=4, sam__direction="momentum")  # 4, 4 and 3 steps
    loop.train(config, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        tiny.signal_after(patch, 4, signal.SIGINT)  # 3 in the first epoch
        with pytest.raises(SystemExit):
            loop.train(config, tmp_path / "broken")
    assert checkpoints.saved_steps(tmp_path / "broken")[-1] == 11 + 8
    loop.train(config, tmp_path / "broken")
    assert_same_state(tmp_path / "whole", tmp_path / "broken", config)
    assert untimed(tmp_path / "whole") == untimed(tmp_path / "broken")


@pytest.fixture
def newer(monkeypatch):
    """A version with a field more, whose default changes nothing."""

    def add():
        fields = optimizers.FIELDS | {"nesterov": Field(0.0, number(), "a new one")}
        monkeypatch.setattr(optimizers, "FIELDS", fields)

    return add


def test_a_new_field_orphans_no_run(finished, tmp_path, newer, capsys):
    """A run of an earlier version is finished, can be evaluated, and goes on where it stopped."""
    directory, summary = finished
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal.Reporter, "epoch", lambda self, record: os.kill(os.getpid(), 15))
        with pytest.raises(SystemExit):
            loop.train(tiny.config(), tmp_path)
    newer()
    config = tiny.config()
    assert config.optimizer.nesterov == 0.0
    assert loop.train(config, directory) == summary
    assert "is finished" in capsys.readouterr().out
    metrics = reading.evaluate_checkpoint(directory, "newest")
    assert metrics["test_accuracy"] == summary["test_accuracy"]
    loop.train(config, tmp_path)
    assert "resuming after step 11" in capsys.readouterr().out
    assert untimed(tmp_path) == untimed(directory)
    assert reading.load_config(tmp_path).optimizer.nesterov == 0.0
    # With another value it is another run.
    config.optimizer.nesterov = 1.0
    with pytest.raises(UserError, match=r"optimizer\.nesterov: 0\.0 there, 1\.0 now"):
        loop.train(config, directory)


def test_results_of_another_config_are_refused(finished, tmp_path):
    """config.json was deleted: summary and checkpoint say themselves what they are of."""
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    other = tiny.config(sam__rho=0.3)
    (tmp_path / "config.json").unlink()
    with pytest.raises(
        UserError, match=r"summary\.json belongs to .* \(sam\.rho: 0\.2 there, 0\.3"
    ):
        loop.train(other, tmp_path)
    (tmp_path / "summary.json").unlink()
    with pytest.raises(UserError, match=r"checkpoints/22 belongs to .* \(sam\.rho: 0\.2 there"):
        loop.train(other, tmp_path)
    assert not (tmp_path / "config.json").exists()  # or the results would be this config's
    assert checkpoints.saved_steps(tmp_path) == [11, 22]
    assert not (tmp_path / "unreadable_checkpoints").exists()


def test_a_checkpoint_that_does_not_fit_is_an_error_and_stays(finished, tmp_path, monkeypatch):
    """The model of that name has changed since: nothing is moved, nothing starts again."""
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    (tmp_path / "summary.json").unlink()
    before = {file: file.stat().st_mtime_ns for file in sorted(tmp_path.rglob("*"))}

    class Wider(tiny.Tiny):
        @tiny.nn.compact
        def __call__(self, images, train):
            x = tiny.nn.Dense(8, name="stem")(images.reshape(len(images), -1))
            return tiny.nn.Dense(10)(tiny.nn.BatchNorm(not train, name="stage1_norm")(x))

    monkeypatch.setattr("samon_jax.models.create", lambda name, n, *, dtype: Wider(n))
    runs._programs.cache_clear()
    try:
        with pytest.raises(UserError, match=r"checkpoint of step 22 .* does not fit this run: "):
            loop.train(tiny.config(), tmp_path)
    finally:
        runs._programs.cache_clear()
    assert {file: file.stat().st_mtime_ns for file in sorted(tmp_path.rglob("*"))} == before


def test_evaluation_reads_no_training_split_and_builds_no_training_program(
    finished, monkeypatch, capsys
):
    directory, _ = finished

    def refuse(*args, **kwargs):
        raise AssertionError("evaluation needs no such thing")

    splits, (description, real) = [], data._READERS["digits"]

    def listen(path, split):
        splits.append(split)
        return real(path, split)

    monkeypatch.setitem(data.SETS, "digits", data.resident_set(description, listen))
    monkeypatch.setattr(runs.Programs, "step", refuse)
    monkeypatch.setattr("samon_jax.training.step.make_step", refuse)
    monkeypatch.setattr("samon_jax.methods.from_fields", refuse)
    for which in ("newest", "best"):
        metrics = reading.evaluate_checkpoint(directory, which)
    assert set(splits) == {"test"}
    assert metrics.keys() == {"test_accuracy", "test_loss"}
    assert capsys.readouterr().out.count("test accuracy") == 2
