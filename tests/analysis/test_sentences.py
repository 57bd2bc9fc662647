"""The report on a run that translates: what is measured, what is left out, what is shown."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samon_jax as samon
from samon_jax import tasks
from samon_jax.analysis import losses, markdown, measure, report, sentences, trained
from samon_jax.data.text_vocabulary import BOS
from samon_jax.training import loop
from tests.tasks import sentences as made_up

SIZES = measure.Sizes(
    m=8,
    steps=2,
    samples=2,
    surface_points=3,
    sharpness_sentences=16,
    surface_sentences=8,
    shown_sentences=2,
)

SECTIONS = ["## Translations", "## Sharpness", "## Weights", "## Loss around the weights"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("translation")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAMON_CACHE_DIR", str(folder / "cache"))
        yield made_up.write(folder / "text", train=60, val=3, test=4)


@pytest.fixture(scope="module")
def run(text):
    """A model as it begins."""
    config = made_up.config(text)
    task = tasks.create(config)
    params = jax.jit(task.init)(jax.random.key(0))["params"]
    return trained.Trained("run", config, 0, task, params, {})


def test_the_loss_of_sentences_is_the_mean_over_sub_words(run):
    inputs, labels = run.examples("train", 12)
    assert inputs.shape == (12, 2, labels.shape[1])
    real = labels != losses.IGNORED
    assert (inputs[:, 1, 0] == BOS).all()
    shifted = np.where(real, labels, 0)[:, :-1]
    np.testing.assert_array_equal(inputs[:, 1, 1:], shifted)
    logits = run.apply(run.params, inputs)
    log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
    expected = -log_p[(*np.nonzero(real), labels[real])].mean()
    found = losses.cross_entropy(logits, jnp.asarray(labels)).mean()
    assert float(found) == pytest.approx(expected, abs=1e-5)
    # The sub-words are those of pairs of the training text, the longest of which are left out.
    pairs = dict(
        zip(*(run.task.vocabulary.decode(x) for x in (inputs[:, 0], shifted)), strict=True)
    )
    assert len(pairs) == 12
    for source, target in pairs.items():
        assert target.split() == source.split()[::-1]


def test_normalized_losses_of_sentences_ignore_padding():
    random = np.random.default_rng(0)
    logits = random.normal(size=(2, 3, 5)).astype(np.float32)
    labels = np.array([[1, 4, losses.IGNORED], [2, losses.IGNORED, losses.IGNORED]])
    found = losses.normalized_cross_entropy(jnp.asarray(logits), jnp.asarray(labels)).mean()
    real = labels != losses.IGNORED
    flat = losses.normalized_cross_entropy(jnp.asarray(logits[real]), jnp.asarray(labels[real]))
    assert float(found) == pytest.approx(float(flat.mean()), abs=1e-6)


def test_attention_is_a_distribution_over_the_source(run):
    found = sentences.attention(run.task, run.params, "a b c", "c b a")
    assert found.weights.shape == (len(found.said), len(found.source))
    assert "".join(found.source).startswith("▁a")
    assert found.source[-1] == found.said[-1] == "</s>"
    np.testing.assert_allclose(found.weights.sum(1), 1, atol=1e-5)
    other = sentences.attention(run.task, run.params, "j b c", "c b a")
    assert not np.allclose(found.weights, other.weights, atol=1e-4)


def test_what_is_shown_and_left_out():
    weights = dict.fromkeys(("conv", "norm_scale", "norm_bias", "linear"))
    record = {"task": "translation", "data": "text", "model": "toy", "method": "sgd", "epochs": 1}
    record |= {"step": 5, "result": "BLEU 1.00", "mean_magnitude": weights, "surface_examples": 4}
    record["test_accuracy"] = 0.25
    record |= {"matches_paper": False, "wanted": {"sharpness": 9, "surface": 4}}
    record |= {"norm_parameters_share": 0.1, "norm_share": dict.fromkeys(samon.VARIANTS, 0.2)}
    row = measure.SHARPNESS_DEFINITIONS[0]._asdict() | {"value": 0.5, "examples": 8, "paper": None}
    said = {"source": "a | b", "reference": "b a"}
    records = [
        record | {"name": name, "sharpness": [row], "translations": [said | {"said": text}]}
        for name, text in (("one", "b"), ("two", "a"))
    ]
    text = markdown.write(records, SIZES, "best")
    assert re.findall("^## .*", text, re.M) == SECTIONS
    assert "Left out for two (task translation): adversarial robustness, as only images can" in text
    assert "; feature rank, which is" in text
    assert text.count("BLEU 1.00") == 2  # the accuracy of sub-words is not what counts
    assert "test accuracy" not in text
    shown = "| source | a \\| b |\n| reference | b a |\n| one | b |\n| two | a |"
    assert f"|  |  |\n| --- | --- |\n{shown}" in text
    assert "8 training examples (the data set does not hold 9) (sentences: without" in text
    assert "Loss on 4 training examples along" in text


@pytest.mark.slow
def test_a_report_measures_what_makes_sense(text, tmp_path, monkeypatch):
    few = tuple(x for x in measure.SHARPNESS_DEFINITIONS if x.kind != "worst" or x.radius == 0.25)
    monkeypatch.setattr(measure, "SHARPNESS_DEFINITIONS", few[::3])
    loop.train(made_up.config(text, translation__beam=1), tmp_path / "run")
    path = report.analyze([tmp_path / "run"], sizes=SIZES)
    text = path.read_text()
    (record,) = json.loads((path.parent / "report.json").read_text())["runs"]
    assert re.findall("^## .*", text, re.M) == SECTIONS
    assert "16 training examples (sentences: without the longest 5%" in text
    for row in record["sharpness"]:
        assert row["examples"] == 16
        assert f"{row['value']:.4f}" in text
    assert 0 < record["norm_share"]["sam"] < 1
    assert len(record["translations"]) == 2
    for row in record["translations"]:
        assert row["reference"].split() == row["source"].split()[::-1]
        assert f"| source | {row['source']} |" in text
        assert f"| run | {row['said']} |" in text
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert "attention.png" in pictures
    for picture in pictures:
        assert (path.parent / picture).read_bytes().startswith(b"\x89PNG")
