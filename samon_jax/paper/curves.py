"""What runs reach over time: a metric against epochs and against operations."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from samon_jax.drawing import budgets
from samon_jax.drawing.budgets import Curve
from samon_jax.errors import UserError
from samon_jax.paper.grid import Metric
from samon_jax.paper.results import Result
from samon_jax.workdir import files


def draw(results: Sequence[Result], path: Path, *, of: Metric) -> None:
    """Draws `<name>-epochs.png` and `<name>-operations.png` beside a table's page.

    Args:
      results: of the table; what has no finished run is left out.
      path: of the table's page.
      of: what is measured after every epoch.
    """
    found = [curve for result in results if (curve := over_epochs(result, of)) is not None]
    if not found:
        return
    for axis, curves in (
        ("epochs", found),
        ("operations", [curve.scaled(curve.per_epoch / 1e12) for curve in found]),
    ):
        unit = "epoch" if axis == "epochs" else "operations of training (TFLOP)"
        budgets.draw(curves, path.with_name(f"{path.stem}-{axis}.png"), labels=(unit, of.title))


def over_epochs(result: Result, metric: Metric) -> Curve | None:
    """A metric after every epoch, of the runs of a cell with the chosen ρ; None without any.

    Runs that another call trains at this moment are not looked at, nor those whose records are not
    all there: a table does not need them.
    """
    runs = result.runs.get(result.chosen, ()) if result.chosen is not None else ()
    lines, per_epoch = [], []
    for run in runs:
        records: list[dict[str, Any]] = []
        with contextlib.suppress(UserError):
            records = files.read_metrics(run.directory)
        line = [r[metric.name] / metric.unit for r in records if metric.name in r]
        if line and len(line) == records[-1]["epoch"]:
            lines.append(line)
            steps = records[-1]["step"] / records[-1]["epoch"]
            per_epoch.append(steps * float(run.summary.get("flops_per_step") or np.nan))
    if not lines:
        return None
    length = min(map(len, lines))
    values = np.array([line[:length] for line in lines])
    name = result.cell.row.text
    return Curve(name, np.arange(1, length + 1), values, float(np.mean(per_epoch)))
