"""The study of translation: what chooses ρ, that no run is trained twice, and that it goes on."""

import shutil

import pytest

from samon_jax.paper import reproduce
from samon_jax.paper.catalog import find
from samon_jax.paper.cost import cell_cost
from samon_jax.paper.reproduce import Request
from samon_jax.paper.runs import MEASURED, cell_config
from samon_jax.training import loop, reading
from samon_jax.training.journal import claim
from samon_jax.workdir import files

VALIDATION = {("only_norm", 0.05): 30, ("only_norm", 0.15): 31, ("only_norm", 0.5): 37}
VALIDATION |= {("all", 0.05): 30, ("all", 0.1): 36}


@pytest.fixture
def done(monkeypatch):
    """Replaces training and testing by formulas; returns (mask, ρ, seed) of either, in order."""
    trained, tested = [], []

    def of(config):
        method = config.sam.mask if config.sam.variant != "none" else "adamw"
        return method, config.sam.rho, config.seed

    def train(config, directory):
        claim(directory, config)
        trained.append(of(config))
        summary = {"val_bleu": VALIDATION.get(of(config)[:2], 34.0), "seconds": 1.0, "steps": 1}
        files.write_json(directory / files.SUMMARY, summary)
        record = {"epoch": 1, "step": 1, "train_loss": 1.0, "seconds": 1.0}
        record |= {"examples_per_second": None}
        files.append_metrics(directory, record | {"val_bleu": summary["val_bleu"]})
        return summary

    def evaluate(directory, which, overrides):
        config = reading.load_config(directory)
        tested.append((*of(config), which, overrides.get("translation.beam")))
        return {"test_bleu": 40.0 + config.seed}

    monkeypatch.setattr(loop, "train", train)
    monkeypatch.setattr(reading, "evaluate_checkpoint", evaluate)
    return trained, tested


def test_the_study_goes_on_from_copied_runs(done, tmp_path, monkeypatch):
    trained, tested = done
    first = tmp_path / "first"
    reproduce.reproduce(Request("translation-study", seeds=1), first)
    grid = [("only_norm", rho, 0) for rho in (0.05, 0.15, 0.5)]
    grid += [("all", rho, 0) for rho in (0.05, 0.1)]
    assert trained == [("adamw", 0.0, 0), *grid]
    chosen = [("adamw", 0.0, 0), ("only_norm", 0.5, 0), ("all", 0.1, 0)]
    assert tested == [(*run, "best", 5) for run in chosen]  # the test set chooses nothing
    assert (first / "translation-study-epochs.png").is_file()
    text = (first / "translation-study.md").read_text()
    assert "**Not the study's setting: 1 seeds instead of 3.**" in text

    # Elsewhere, without checkpoints: summaries and what was measured are enough.
    kept = shutil.ignore_patterns("checkpoints", "tensorboard", "*.png")
    shutil.copytree(first, tmp_path / "second", ignore=kept)
    assert len(list(tmp_path.glob(f"second/*/*/*/*/*/{MEASURED}"))) == 3
    del trained[:], tested[:]
    reproduce.reproduce(Request("translation-study"), tmp_path / "second")
    assert trained == [(method, rho, seed) for method, rho, _ in chosen for seed in (1, 2)]
    assert [test[:3] for test in tested] == trained
    text = (tmp_path / "second/translation-study.md").read_text()
    assert "\nBLEU, mean ± sample standard deviation over the seeds.\n" in text
    assert "| SAM-ON | Multi30k | 0.5 | 41.00 ± 1.00 | – | 3 | finished: best BLEU on the" in text
    del trained[:]
    reproduce.reproduce(Request("translation-study"), tmp_path / "second")
    assert trained == []


def test_table_16_chooses_on_the_validation_set_when_asked(done, tmp_path):
    trained, tested = done
    reproduce.reproduce(Request("16", seeds=2), tmp_path)
    assert trained == [("adamw", 0.0, 0), ("adamw", 0.0, 1)]
    assert "--search tries 0.05, 0.1, 0.2, 0.5" in (tmp_path / "table16.md").read_text()
    del trained[:], tested[:]
    reproduce.reproduce(Request("16", seeds=2, search=True), tmp_path)
    expected = []
    for mask, best in (("all", 0.1), ("only_norm", 0.5)):
        expected += [(mask, rho, 0) for rho in (0.05, 0.1, 0.2, 0.5)] + [(mask, best, 1)]
    assert trained == expected
    chosen = [(mask, rho, s) for mask, rho in (("all", 0.1), ("only_norm", 0.5)) for s in (0, 1)]
    assert [test[:3] for test in tested] == chosen
    del trained[:]
    reproduce.reproduce(Request("16", seeds=2, rows=("Transformer",)), tmp_path)  # as it stands
    assert trained == []


def test_settings():
    (table,) = find("translation study")
    adamw, on, everything = table.cells
    config = cell_config(on, 0.5, 3)
    assert (config.translation.beam, config.checkpoint.every_epochs) == (1, 1)
    for cell in (on, everything):
        assert cell.chosen_by is not None
        assert cell.chosen_by.fields == cell.fields  # so that they share runs
        other = {k for k, v in cell.fields.items() if adamw.fields.get(k) != v}
        assert all(name.startswith("sam.") for name in other)
        assert cell_cost(table, cell, None, search=False).runs == len(cell.rho.values) + 2
