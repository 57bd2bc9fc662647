"""The study: which runs choose ρ, how many seeds there are, and its curves."""

import json

import numpy as np
import pytest

from samon_jax.drawing import budgets
from samon_jax.paper import curves
from samon_jax.paper.catalog import find
from samon_jax.paper.cost import Cost, cell_cost, forward_operations, run_operations
from samon_jax.paper.reproduce import cell_result
from samon_jax.paper.results import markdown
from samon_jax.paper.runs import Finished, cell_config


def study():
    (table,) = find("study")
    return table, {cell.row.text: cell for cell in table.cells}


class Runs:
    """Finished runs by (row, ρ, seed): accuracy on held-back, perhaps on test images.

    Args:
      directory: of their work directories.
    """

    def __init__(self, directory):
        self.directory, self.runs = directory, {}

    def add(self, cell, rho, seed, held_back, test=None):
        directory = self.directory / f"{rho}-{seed}"
        directory.mkdir(exist_ok=True)
        if test is not None:
            (directory / "measured.json").write_text(json.dumps({"accuracy": test}))
        summary = {"test_accuracy": held_back, "flops_per_step": 2e12}
        self.runs[cell.row.text, rho, seed] = Finished(seed, directory, summary)

    def seeds(self, table, cell):
        return range(cell.seeds)

    def error(self, cell, rho, seed):
        return ""

    def find(self, cell, rho, seed):
        run = self.runs.get((cell.row.text, rho, seed))
        return run if run is not None and run.knows(cell.metric) else None


def test_held_back_images_choose_the_radius_and_test_images_do_not(tmp_path):
    table, cells = study()
    cell, runs = cells["SAM-ON"], Runs(tmp_path)
    for rho, accuracy in ((0.5, 0.3), (1, 0.4)):
        runs.add(cell, rho, 0, accuracy)
    result = cell_result(table, cell, runs)
    assert (result.state, result.chosen) == ("not finished", None)
    assert result.reason == "ρ is chosen first, of 0.5, 1, 2"
    runs.add(cell, 2, 0, 0.2, test=0.9)
    result = cell_result(table, cell, runs)
    assert (result.state, result.chosen) == ("not finished", 1)
    for seed in range(5):
        runs.add(cell, 1, seed, 0.4, test=0.5 + seed / 100)
    result = cell_result(table, cell, runs)
    assert (result.state, result.chosen) == ("finished", 1)
    assert result.reason == "best accuracy on held-back images of seed 0 among 3 values of ρ"
    assert [run.value(cell.metric) for run in result.runs[1]] == pytest.approx([50, 51, 52, 53, 54])
    text = markdown(table, [result], epochs=None, seeds=3)
    assert "| SAM-ON | WRN-10-2 | 1 | 52.00 ± 1.58 | – | 5 | finished" in text
    assert "papers report" not in text


def test_every_row_differs_from_sgd_in_its_method_alone():
    _, cells = study()
    sgd = cells["SGD"].fields
    for cell in cells.values():
        other = {k for k in cell.fields if cell.fields[k] != sgd.get(k)}
        assert all(k.startswith("sam.") for k in other) or cell.row.text.startswith("SGD,")
        data = cell_config(cell, 0.1, 0).data
        assert (data.part, data.held_back) == (5_000, 2_000)
        assert cell.chosen_by is None or cell.chosen_by.fields == cell.fields
    assert cells["SGD, 1.67 times the epochs"].fields["epochs"] == round(5 / 3 * sgd["epochs"])


def test_cost_counts_the_part_and_the_runs_that_choose():
    table, cells = study()
    sgd, on = cells["SGD"], cells["SAM-ON in one pass, average"]
    assert run_operations(table, sgd) == run_operations(table, on)
    assert cell_cost(table, sgd, None, search=False).runs == 5
    assert cell_cost(table, on, None, search=False) == Cost(5, 5 * run_operations(table, on))
    # Forward once to evaluate, three times for a step; 39 steps an epoch.
    expected = 24 * (3 * 39 * 128 + 2_000) * forward_operations("wrn-10-2-stem2", 100, 32)
    assert run_operations(table, sgd) == expected


def test_curves(tmp_path, monkeypatch):
    _, cells = study()
    cell = cells["SGD"]
    runs = []
    for seed in range(2):
        run = Finished(seed, tmp_path / str(seed), {"flops_per_step": 2e12})
        run.directory.mkdir()
        rest = {"seconds": 1.0, "train_loss": 1.0, "examples_per_second": None}
        lines = [
            {"epoch": e, "step": 78 * e, "test_accuracy": (e + seed) / 10} | rest for e in (1, 2)
        ]
        (run.directory / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        runs.append(run)
    result = curves.Result(cell, {0.0: runs}, 0.0, "finished")
    held_back = cells["SAM-ON"].chosen_by.metric
    curve = curves.over_epochs(result, held_back)
    np.testing.assert_allclose(curve.values, [[10, 20], [20, 30]])
    assert curve.per_epoch == 78 * 2e12
    # A finished run whose records are damaged has no curve, and the others have theirs.
    (tmp_path / "1/metrics.jsonl").write_text("{}")
    curve = curves.over_epochs(result, held_back)
    np.testing.assert_allclose(curve.values, [[10, 20]])
    empty = curves.Result(cells["SAM-ON"], {}, None, "not finished")
    assert curves.over_epochs(empty, held_back) is None
    drawn = {}
    monkeypatch.setattr(
        budgets, "draw", lambda found, path, labels: drawn.update({path.name: (found, labels)})
    )
    curves.draw([result, empty], tmp_path / "study.md", of=held_back)
    ((epochs, _), (operations, labels)) = drawn["study-epochs.png"], drawn["study-operations.png"]
    np.testing.assert_allclose(epochs[0].x, [1, 2])
    np.testing.assert_allclose(operations[0].x, [156, 312])
    assert labels[0] == "operations of training (TFLOP)"


def test_picture(tmp_path):
    curve = budgets.Curve("SGD", np.arange(1, 4), np.array([[1.0, 2, 3], [2, 3, 5]]), 7.0)
    path = tmp_path / "picture.png"
    budgets.draw([curve, curve.scaled(2)], path, labels=("epoch", "accuracy"))
    assert path.read_bytes().startswith(b"\x89PNG")
