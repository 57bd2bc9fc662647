"""Translation as a task: losses, methods, devices, runs from beginning to end."""

import functools
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samon_jax import methods, tasks
from samon_jax.data import make_source
from samon_jax.errors import UserError
from samon_jax.tasks.bleu import bleu, signatures
from samon_jax.tasks.translation import Translation, cross_entropy
from samon_jax.training import devices, loop, reading
from samon_jax.training.run import set_up
from tests.tasks import sentences


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAMON_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return sentences.write(tmp_path_factory.mktemp("text"), train=60, val=6, test=7)


@pytest.fixture(scope="module")
def run(folder):
    return set_up(sentences.config(folder))


@pytest.fixture(scope="module")
def variables(run):
    return dict(jax.jit(run.task.init)(jax.random.key(0)))


def first_batch(run, train=True):
    raw = next(iter(run.source.epoch(0, 0)))
    return run.task.prepare(jax.random.key(1) if train else None, raw, train)


def test_the_mean_over_rows_is_the_mean_over_sub_words(run, variables):
    batch = first_batch(run, train=False)
    losses, aux = run.task.losses(variables, batch, False)
    logits = run.task.model.apply(
        variables, batch.source, np.pad(batch.target[:, :-1], ((0, 0), (1, 0)), constant_values=2)
    )
    log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
    rows, places = np.nonzero(batch.target)
    expected = -log_p[rows, places, np.asarray(batch.target)[rows, places]]
    assert losses.mean() == pytest.approx(expected.mean(), abs=1e-5)
    assert int(aux.sums["tokens"]) == len(rows)
    right = log_p.argmax(-1)[rows, places] == np.asarray(batch.target)[rows, places]
    assert int(aux.sums["correct"]) == right.sum()


def test_label_smoothing_is_cross_entropy_with_a_mixture():
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(5, 7)).astype(np.float32), random.integers(0, 7, 5)
    mixture = 0.9 * np.eye(7)[labels] + 0.1 / 7
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    losses, correct = cross_entropy(jnp.asarray(logits), jnp.asarray(labels), 0.1)
    np.testing.assert_allclose(losses, -(mixture * log_p).sum(1), rtol=1e-5)
    np.testing.assert_array_equal(correct, logits.argmax(1) == labels)


def test_a_sentence_has_the_same_loss_in_every_batch_and_padding(run, variables):
    batch = first_batch(run)
    one = jax.jit(functools.partial(run.task.losses, train=True))
    whole = one(variables, batch)[0]
    padded = batch._replace(
        source=np.pad(batch.source, ((0, 0), (0, 3))), target=np.pad(batch.target, ((0, 0), (0, 2)))
    )
    np.testing.assert_allclose(one(variables, padded)[0], whole, atol=1e-5)
    half = jax.tree.map(lambda x: x[4:8], batch)
    np.testing.assert_allclose(one(variables, half)[0], whole[4:8], atol=1e-5)
    # Not because nothing is dropped.
    other = batch._replace(seeds=batch.seeds + 1)
    assert not np.allclose(one(variables, other)[0], whole, atol=1e-3)


def test_devices_do_not_change_the_loss(folder, run, variables):
    single = first_batch(run, train=False)
    expected = run.task.losses(variables, single, False)[0].mean()
    several = set_up(sentences.config(folder, num_devices=4))
    raw = next(iter(several.source.epoch(0, 0)))

    def step(variables, own):
        losses, _ = run.task.losses(variables, run.task.prepare(None, own, False), False)
        return jax.lax.pmean(losses.mean(), "batch")

    program = several.devices.compile(step)
    found = program(several.devices.replicate(variables), several.devices.shard(raw))
    assert float(found) == pytest.approx(float(expected), abs=1e-5)


def test_evaluation_on_several_devices_says_the_same(folder, run, variables):
    found = []
    for count in (1, 2):
        several = set_up(sentences.config(folder, num_devices=count))
        where = several.devices
        examples = several.source.evaluation("test")
        found.append(run.task.evaluate(where.replicate(variables), examples, where))
    assert set(found[0]) == {"test_bleu", "test_chrf", "test_loss", "test_accuracy"}
    assert found[0] == pytest.approx(found[1], abs=1e-5)


QUICK = ("only_norm", "decoder", "esam")  # the others compile for longer
METHODS = {
    "all": {"mask": "all"},
    "only_norm": {},
    "no_norm": {"mask": "no_norm"},
    "decoder": {"mask": "only_norm_in:decoder"},
    "random": {"mask": "random:0.5"},
    "elementwise": {"variant": "elementwise_l2", "m": 4},
    "fisher": {"variant": "fisher"},
    "gsam": {"gsam_alpha": 0.2},
    "esam": {"esam_beta": 0.6, "esam_gamma": 0.5},
    "looksam": {"look_every": 2},
    "ssam_d": {"sparse": "ssam_d", "mask": "all"},
    "ssam_f": {"sparse": "ssam_f", "mask": "all", "fisher_samples": 4},
    "single_pass": {"direction": "momentum"},
    "ascent_fraction": {"ascent_fraction": 0.5},
}


def test_no_method_is_missing():
    default = {key: field.default for key, field in methods.FIELDS.items()}
    for member in methods.MEMBERS:
        assert any(member.used(default | given) for given in METHODS.values()), member


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in METHODS]
)
def test_every_method_trains(name, run, variables):
    fields = {key: field.default for key, field in methods.FIELDS.items()}
    fields |= {"variant": "sam", "mask": "only_norm", "rho": 0.05} | METHODS[name]
    method = methods.from_fields(fields, steps_per_epoch=5, axis_name=None, **_context(run, fields))
    batch = first_batch(run)
    now = methods.method.Now(jnp.uint32(0), jnp.float32(0.05), jnp.int32(0))
    params = variables["params"]
    state = method.init(params, now)

    def losses_fn(params, batch, train=True):
        return run.task.losses({"params": params}, batch, train)

    step = jax.jit(functools.partial(method.gradient, losses_fn), static_argnames="kind")
    kind = method.kind(0)
    found = step(params, state, batch, now, kind=kind)
    plain = jax.grad(lambda params: losses_fn(params, batch)[0].mean())(params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found.grads))
    # The gradient at w + ε is another one, but not by much.
    ours, theirs = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
        for tree in (found.grads, plain)
    )
    assert not np.allclose(ours, theirs, atol=1e-6)
    assert ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs) > 0.5


def _context(run, fields):
    from samon_jax.training.config import method_context

    return method_context(run.config)


def test_both_passes_drop_the_same(run, variables):
    """With ρ = 0 the second pass is the first: its gradient is the plain one."""
    fields = {key: field.default for key, field in methods.FIELDS.items()}
    fields |= {"variant": "sam", "mask": "all", "rho": 1e-12, "reuse_prefix": False}
    method = methods.from_fields(fields, steps_per_epoch=5, **_context(run, fields))
    batch, params = first_batch(run), variables["params"]
    now = methods.method.Now(jnp.uint32(0), jnp.float32(1e-12), jnp.int32(0))

    def losses_fn(params, batch, train=True):
        return run.task.losses({"params": params}, batch, train)

    found = method.gradient(losses_fn, params, method.init(params, now), batch, now, method.kind(0))
    plain = jax.grad(lambda params: losses_fn(params, batch)[0].mean())(params)
    for ours, theirs in zip(*map(jax.tree.leaves, (found.grads, plain)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_run_from_beginning_to_end(folder, tmp_path, capsys, caplog, monkeypatch):
    config = sentences.config(folder, epochs=2, norm_dropout=0.1)
    summary = loop.train(config, tmp_path / "run")
    assert {"val_bleu", "val_chrf", "val_loss", "train_loss", "steps"} <= set(summary)
    records = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2]
    assert records[1]["train_loss"] < records[0]["train_loss"]
    assert (tmp_path / "run/vocabulary.model").is_file()

    metrics = reading.evaluate_checkpoint(tmp_path / "run", "best", split="test")
    assert set(metrics) == {"test_bleu", "test_chrf", "test_loss", "test_accuracy"}
    said = capsys.readouterr().out
    assert "tok:13a" in said
    assert "case:mixed" in said

    searched = []
    with monkeypatch.context() as patch:
        patch.setattr(Translation, "translate", lambda task, *_: searched.append(task.beam) or [])
        reading.translate(tmp_path / "run", [], overrides={"translation.beam": 4})
    assert searched == [4]
    with pytest.raises(UserError, match=r"translation\.beam=0 is not allowed"):
        reading.evaluate_checkpoint(tmp_path / "run", "best", {"translation.beam": 0})

    # To translate, neither the data nor the cache is needed.
    monkeypatch.setenv("SAMON_CACHE_DIR", str(tmp_path / "empty"))
    (tmp_path / "run/config.json").write_text(
        (tmp_path / "run/config.json").read_text().replace(str(folder), "/nowhere")
    )
    caplog.clear()
    lines = reading.translate(tmp_path / "run", ["a b c", "", "d " * 300, "j"])
    assert len(lines) == 4
    assert lines[1] == ""
    assert "1 lines are cut at translation.max_length=256" in caplog.text
    assert reading.translate(tmp_path / "run", []) == []


def test_data_that_changed_are_refused(folder, tmp_path):
    text = sentences.write(tmp_path / "text", train=40, val=3, test=3)
    greedy = {"translation__beam": 1}
    loop.train(sentences.config(text, **greedy), tmp_path / "run")
    (text / "train.en").write_text((text / "train.en").read_text().replace("a", "k"))
    (tmp_path / "run/summary.json").unlink()
    with pytest.raises(UserError, match=r"vocabulary\.model is not the one that belongs to the"):
        loop.train(sentences.config(text, log__every_seconds=5.0, **greedy), tmp_path / "run")
    with pytest.raises(UserError, match=r"with which the model was trained; is data\.dir the same"):
        reading.evaluate_checkpoint(tmp_path / "run", "newest")
    other = sentences.config(text, init_from=str(tmp_path / "run"), **greedy)
    with pytest.raises(UserError, match=r"does not hold the vocabulary\.model of this run's data"):
        loop.train(other, tmp_path / "other")
    for damaged in (b"damaged", b""):
        (tmp_path / "run/vocabulary.model").write_bytes(damaged)
        with pytest.raises(UserError, match=r"vocabulary\.model is no vocabulary of SentencePi"):
            reading.translate(tmp_path / "run", ["a"])


def test_a_run_starts_from_weights_of_the_same_vocabulary(folder, tmp_path, capsys):
    loop.train(sentences.config(folder, translation__beam=1), tmp_path / "run")
    config = sentences.config(folder, init_from=str(tmp_path / "run"), seed=5)
    started = set_up(config).initial_state().params
    trained = reading.read(tmp_path / "run").variables["params"]
    for ours, theirs in zip(*map(jax.tree.leaves, (started, trained)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert "all were taken as they are" in capsys.readouterr().out


def test_what_is_translated_is_in_lower_case_where_the_text_was(folder, run, variables):
    lower = set_up(sentences.config(folder, translation__lowercase=True)).task
    alone = devices.take(1)
    own = alone.replicate(variables)
    lines, lowered = ["A b C d", "j"], ["a b c d", "j"]
    expected = run.task.translate(own, lowered, alone)
    assert lower.translate(own, lines, alone) == lower.translate(own, lowered, alone) == expected
    assert run.task.translate(own, lines, alone) != expected


def test_a_translation_does_not_depend_on_its_neighbours(run, variables):
    """Nor on the padding that they bring: the untrained model talks until its limit."""
    alone = devices.take(1)
    own = alone.replicate(variables)
    (single,) = run.task.translate(own, ["a b"], alone)
    beside = run.task.translate(own, ["a b", "c d e f g h i j a b c"], alone)
    assert beside[0] == single


def test_models_and_data_that_do_not_fit(folder):
    with pytest.raises(UserError, match="model='resnet-18' is not allowed with task='translation'"):
        tasks.create(sentences.config(folder, model="resnet-18"))
    with pytest.raises(UserError, match=r"data\.name='text' is not allowed with task='classific"):
        tasks.create(sentences.config(folder, task="classification"))


def test_lines_from_standard_input_and_files(tmp_path, monkeypatch):
    class Stdin:
        buffer = io.BytesIO("ä\r\n\nb".encode())

    monkeypatch.setattr("sys.stdin", Stdin)
    assert reading.read_lines(None) == ["ä", "", "b"]
    (tmp_path / "bad").write_bytes(b"fine\n\xff")
    with pytest.raises(UserError, match="is not UTF-8: line 2"):
        reading.read_lines(str(tmp_path / "bad"))
    with pytest.raises(UserError, match="cannot be read: No such file"):
        reading.read_lines(str(tmp_path / "none"))


def test_bleu_of_a_known_pair():
    # Precisions 5/6, 4/5, 3/4, 2/3 and no brevity penalty: (1/3)^(1/4).
    score = bleu(["the cat sat on the mat"], ["the cat sat on the rug"]).score
    assert score == pytest.approx(100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25, abs=1e-6)
    assert signatures().startswith("BLEU: nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp")


@pytest.mark.slow
def test_reversal_is_learned(tmp_path, request):
    """95 % of the sentences to the letter, with SAM-ON."""
    jax.config.update("jax_disable_most_optimizations", False)
    folder = sentences.write(tmp_path / "text", train=4000, val=50, test=200)
    config = sentences.config(
        folder,
        model="transformer-tiny",
        epochs=12,
        translation__batch_tokens=1024,
        translation__beam=1,
        schedule__warmup_epochs=2.0,
        checkpoint__every_epochs=12,
    )
    loop.train(config, tmp_path / "run")
    said = reading.translate(tmp_path / "run", (folder / "test.de").read_text().splitlines())
    right = (folder / "test.en").read_text().splitlines()
    assert np.mean([a == b for a, b in zip(said, right, strict=True)]) >= 0.95


def test_the_task_says_what_it_is(run):
    assert isinstance(run.task, Translation)
    assert run.task.show({"bleu": 36.5, "chrf": 60.123}) == "BLEU 36.50, chrF 60.12"
    assert run.task.show({"accuracy": 0.5}) == "right sub-words 50.00 %"
    assert run.examples_per_step == pytest.approx(
        np.mean([len(x["weight"]) for x in run.source.epoch(0, 0)])
    )
    assert devices.take(1).count == 1


def test_what_sentences_have_no_use_for_is_refused(folder):
    with pytest.raises(UserError, match=r"data\.part=3 is not allowed with task='translation'"):
        set_up(sentences.config(folder, data__part=3))


def test_an_evaluation_may_have_any_number_of_devices(folder):
    """The rows of a batch are a multiple of both."""
    source = make_source(sentences.config(folder), devices=3)
    assert {len(raw["target"]) % 24 for raw in source.evaluation("val").batches} == {0}


def test_a_run_needs_the_split_that_it_is_measured_on(folder, tmp_path):
    few = sentences.write(tmp_path / "text", train=60, val=6)
    set_up(sentences.config(few))
    (few / "val.de").unlink()
    with pytest.raises(UserError, match=r"val\.de"):
        set_up(sentences.config(few))
