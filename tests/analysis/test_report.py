import dataclasses
import io
import json
import re
import shutil

import jax
import numpy as np
import pytest

from samon_jax import models
from samon_jax.analysis import markdown, measure, report, trained
from samon_jax.data.dataset import Dataset
from samon_jax.errors import UserError
from samon_jax.training import loop
from samon_jax.workdir import files
from tests.training import tiny

SIZES = measure.Sizes(
    sharpness_examples=64,
    m=32,
    steps=2,
    samples=2,
    attack_examples=40,
    attack_steps=2,
    rank_examples=50,
    surface_examples=32,
    surface_points=3,
)


def only_sharpness(run, sizes, bar):
    rows = measure.sharpness_of(run, sizes, lambda text: None)
    return {"sharpness": rows, "robustness": [], "feature_rank": {}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A tiny run of one epoch, and one that starts from another seed."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "create", tiny.create)
        patch.setenv("TFDS_DATA_DIR", str(folder / "data"))
        # Runs that differ in their seed share their compiled programs.
        loop.train(tiny.config(epochs=1), folder / "one")
        loop.train(tiny.config(epochs=1, seed=1), folder / "two")
        yield folder


@pytest.fixture(scope="module")
def written(runs):
    path = report.analyze([runs / "one", runs / "two"], sizes=SIZES)
    return path, path.read_text(), json.loads((path.parent / "report.json").read_text())


def test_report_lies_in_the_first_work_directory(runs, written):
    path, text, _ = written
    assert path == runs / "one" / "analysis" / "report.md"
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert len(pictures) == 4
    for picture in pictures:
        assert (path.parent / picture).read_bytes().startswith(b"\x89PNG")
    assert not list(path.parent.glob(".*"))


def test_report_names_no_path_of_this_machine(runs, written):
    path, text, _ = written
    for content in (text, (path.parent / "report.json").read_text()):
        assert str(runs) not in content
        assert str(runs.parent) not in content


def test_markdown_and_json_hold_the_same_numbers(written):
    _, text, record = written
    assert [run["name"] for run in record["runs"]] == ["one", "two"]
    assert len(record["runs"][0]["sharpness"]) == len(measure.SHARPNESS_DEFINITIONS) == 14
    assert len(record["runs"][0]["robustness"]) == 4 + 3 + 5
    for run in record["runs"]:
        assert f"{100 * run['test_accuracy']:.2f}" in text
        for row in run["sharpness"]:
            assert f"{row['value']:.4f}" in text
            assert row["examples"] == 64
            assert row["paper"] is None
        for row in run["robustness"]:
            assert f"{100 * row['accuracy']:.1f} ({row['robust']}/40)" in text
        assert run["feature_rank"]["examples"] == 50
        assert 0 < run["norm_share"]["sam"] < 1
    assert "no run has the settings of one of theirs" in text
    assert "evaluation mode" in text


def test_accuracy_is_that_of_the_run(runs, written):
    for name, run in zip(("one", "two"), written[2]["runs"], strict=True):
        summary = files.read_json(runs / name / "summary.json")
        assert run["test_accuracy"] == pytest.approx(summary["test_accuracy"], abs=1e-6)


def test_numbers_do_not_change_when_repeated_with_a_bar(runs, written, tmp_path, monkeypatch):
    bars = []

    class Bar(report.tqdm):
        def __init__(self, **options):
            bars.append(self)
            super().__init__(**options | {"disable": False, "file": io.StringIO()})

    monkeypatch.setattr(report, "tqdm", Bar)
    path = report.analyze([runs / "two"], tmp_path / "other" / "place", sizes=SIZES)
    (again,) = json.loads((path.parent / "report.json").read_text())["runs"]
    first = written[2]["runs"][1]
    for key in ("sharpness", "robustness", "feature_rank", "norm_share", "mean_magnitude"):
        assert again[key] == first[key]
    assert bars[0].n == bars[0].total > 40  # as many parts as were announced


def test_names_are_unique(runs, tmp_path):
    shutil.copytree(runs / "two", tmp_path / "one")
    loaded = trained.load_all([runs / "one", tmp_path / "one"])
    assert [run.name for run in loaded] == [f"{runs.name}/one", f"{tmp_path.name}/one"]


def test_examples_are_drawn_without_repetition(runs):
    (run,) = trained.load_all([runs / "two"])
    images, labels = run.subset("train", 5000)
    assert len(labels) == run.num_train == 1437  # all there are
    assert len(np.unique(images.reshape(1437, -1), axis=0)) > 1400
    few, _ = run.subset("train", 10)
    assert np.array_equal(few, images[:10])


def test_a_run_without_a_checkpoint_is_an_error(runs, tmp_path):
    shutil.copytree(runs / "two", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(UserError, match="holds no checkpoint yet"):
        report.analyze([tmp_path / "run"], sizes=SIZES)
    with pytest.raises(UserError, match=r"holds no run: config\.json is missing"):
        report.analyze([tmp_path / "nothing"], sizes=SIZES)
    with pytest.raises(UserError, match="--workdir is missing"):
        report.analyze([], sizes=SIZES)
    with pytest.raises(UserError, match="--workdir=two is given twice"):
        report.analyze([runs / "two", runs / "two"], sizes=SIZES)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        report.analyze([runs / "two"], tmp_path / "file" / "out", sizes=SIZES)


def test_logits_of_nan_name_the_run(runs, monkeypatch, tmp_path):
    load = trained.load_all

    def broken(*args, **kwargs):
        one, two = load(*args, **kwargs)
        params = jax.tree.map(lambda leaf: leaf * np.nan, two.params)
        return [one, dataclasses.replace(two, params=params)]

    monkeypatch.setattr(report, "load_all", broken)
    monkeypatch.setattr(report, "_record", only_sharpness)
    with pytest.raises(UserError, match=r"^two: the loss at the weights is nan; sharpness needs"):
        report.analyze([runs / "one", runs / "two"], tmp_path, sizes=SIZES)


def test_printed_values_appear_in_brackets(written):
    run = written[2]["runs"][0]
    first = measure.SHARPNESS_DEFINITIONS[0]
    printed = measure.Printed("Table 1", 0.8071, {first: 0.071}, {("l2", 0.1): 0.1814}, 4004.0)
    text = markdown.write([report.beside(run, printed)], SIZES, "newest")
    assert f"{run['sharpness'][0]['value']:.4f} [0.0710]" in text
    assert text.count("[80.71]") == text.count("[18.1]") == text.count("[4,004]") == 1
    assert "one: Table 1" in text
    assert len(re.findall(r"\d \[", text)) == 4


class Words:
    """A task without images."""

    name, score, metrics = "words", "test_bleu", ("test_bleu", "test_loss")

    def evaluate(self, variables, examples, devices, prefix):
        return {f"{prefix}bleu": 34.5, f"{prefix}loss": float(len(variables) > 0)}

    def show(self, metrics):
        return f"BLEU {metrics['bleu']:.1f}"


def test_what_makes_no_sense_for_a_task_is_left_out_by_name(runs, monkeypatch, tmp_path):
    (run,) = trained.load_all([runs / "two"])
    words = dataclasses.replace(run, name="words run", task=Words())
    monkeypatch.setattr(report, "load_all", lambda *args, **kwargs: [words])
    text = report.analyze([runs / "two"], tmp_path, sizes=SIZES).read_text()
    assert "| words run | digits | tiny |" in text
    assert "| BLEU 34.5 |" in text
    assert "Left out for words run (task words): sharpness, the share of ε on norm layers" in text
    assert "need logits; adversarial robustness" in text
    assert re.findall("^## .*", text, re.M) == ["## Weights"]
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "norm_parameters.png",
        "magnitudes.png",
    }
    with pytest.raises(UserError, match="task='words' has no images"):
        words.images  # noqa: B018


def test_reading_a_run_reads_no_training_set(runs, monkeypatch):
    reads = []
    split = Dataset.split
    monkeypatch.setattr(
        Dataset, "split", lambda self, name: reads.append(name) or split(self, name)
    )
    (run,) = trained.load_all([runs / "two"])
    assert reads == []
    assert run.metrics["test_accuracy"] > 0
    assert reads == ["test"]
