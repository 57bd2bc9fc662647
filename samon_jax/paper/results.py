"""What became of the cells of a table, as Markdown and JSON beside the published numbers."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from samon_jax.paper.grid import ACCURACY, Cell, Metric, Published, Table
from samon_jax.paper.runs import Finished
from samon_jax.training.config import default_config

PAPER = "Müller et al. 2023, Normalization Layers Are All That Sharpness-Aware Minimization Needs"


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of one cell.

    Attributes:
      cell: of the table.
      runs: finished runs by ρ.
      chosen: the ρ of the result; None for a sweep, or where it is not known yet.
      state: "finished", "not finished", "failed" or "rho unknown".
      reason: why it failed, how ρ was found, or what would have to be done.
      errors: why runs failed, by ρ.
    """

    cell: Cell
    runs: Mapping[float, Sequence[Finished]]
    chosen: float | None
    state: str
    reason: str = ""
    errors: Mapping[float, str] = dataclasses.field(default_factory=dict)

    def lines(self, seeds: int) -> Sequence[tuple[float | None, Sequence[Finished], str]]:
        """What is shown: one line, or one for each ρ of a sweep.

        Args:
          seeds: number of runs of each cell.

        Returns:
          ρ, or None; the runs that were measured; the state in words.
        """
        if self.cell.rho.kind != "sweep":
            state = self.state + (f": {self.reason}" if self.reason else "")
            rho = None if self.cell.rho.kind == "none" else self.chosen
            if self.chosen is None:
                return [(None, (), state)]
            return [(rho, self.runs.get(self.chosen, ()), state)]
        lines = []
        for rho in self.cell.rho.values:
            runs, error = self.runs.get(rho, ()), self.errors.get(rho)
            state = "finished" if len(runs) >= seeds else "not finished"
            lines.append((rho, runs, f"failed: {error}" if error else state))
        return lines


def measured(runs: Sequence[Finished], metric: Metric = ACCURACY) -> Published | None:
    """Mean and sample standard deviation of a result; None without runs."""
    if not runs:
        return None
    values = [run.value(metric) for run in runs]
    return Published(
        float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None
    )


def show(value: Published | None) -> str:
    """A result as the papers print it.

    Example:
      >>> show(Published(71.234, 0.2)), show(Published(70.5, None)), show(None)
      ('71.23 ± 0.20', '70.50', '–')
    """
    if value is None:
        return "–"
    return f"{value.mean:.2f}" + ("" if value.std is None else f" ± {value.std:.2f}")


def markdown(table: Table, results: Sequence[Result], *, epochs: int | None, seeds: int) -> str:
    """The table as Markdown, with an honest header.

    Args:
      table: of the paper.
      results: one per cell.
      epochs: that were asked for; None = those of the paper.
      seeds: that were asked for.

    Returns:
      The text of `<table>.md`.
    """
    source = "." if table.ours else f". {PAPER}."
    lines = [f"# {heading(table)}", "", f"{table.title}{source}", ""]
    paper_epochs, whose = _epochs(table), "study's" if table.ours else "paper's"
    differences = []
    if epochs not in (None, paper_epochs):
        differences.append(f"{epochs} epochs instead of {paper_epochs}")
    if seeds != table.seeds:
        differences.append(f"{seeds} seeds instead of {table.seeds}")
    if differences:
        lines += [f"**Not the {whose} setting: {', '.join(differences)}.**", ""]
    numbers = ", ".join(metric.title for metric in table.metrics)
    lines += [
        f"{numbers[0].upper()}{numbers[1:]}"
        + (" after the last epoch" if any(m.measure is None for m in table.metrics) else "")
        + ", mean ± sample standard deviation over the seeds"
        + (
            "."
            if table.ours
            else ", beside what is published. Whether the papers report the last "
            "or the best epoch is not said."
        ),
        "",
        "| row | column | ρ | measured | published | seeds | state |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for result in results:
        for rho, runs, state in result.lines(seeds):
            shown = "–" if rho is None else f"{rho:g}"
            cell = result.cell
            value, printed = show(measured(runs, cell.metric)), show(cell.published)
            lines.append(
                f"| {cell.row.text} | {cell.column.text} | {shown} | {value} | {printed} "
                f"| {len(runs)} | {_escape(state)} |"
            )
    return "\n".join([*lines, "", *notes(table)]) + "\n"


def smoke_markdown(table: Table, reasons: Mapping[tuple[str, str], str]) -> str:
    """The table of a smoke test: its rows and columns, with a mark in every cell.

    Args:
      table: of the paper.
      reasons: by row and column, why a cell cannot run; "" if it can. What was not tried has no
        entry.

    Returns:
      The text of `<table>.smoke.md`.
    """
    columns = [label.text for label in table.columns()]
    lines = [
        f"# {heading(table)}: smoke test",
        "",
        "Nothing here is a result: the training step of each cell was traced at its real size, and "
        "a small network of the same kind trained two steps on noise.",
        "",
        f"| | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    cells = {(cell.row.text, cell.column.text) for cell in table.cells}
    for row in (label.text for label in table.rows()):
        marks = []
        for column in columns:
            reason = reasons.get((row, column))
            mark = "not tried" if (row, column) in cells else ""
            marks.append(mark if reason is None else "**no**" if reason else "ok")
        lines.append(f"| {row} | {' | '.join(marks)} |")
    failed = [f"- {' '.join(place)}: {reason}" for place, reason in reasons.items() if reason]
    return "\n".join([*lines, *([""] if failed else []), *failed]) + "\n"


def to_json(
    table: Table, results: Sequence[Result], *, epochs: int | None, seeds: int
) -> dict[str, Any]:
    """The same with every run: its accuracy, duration and operations per step."""
    return {
        "table": table.name,
        "title": table.title,
        "source": None if table.ours else PAPER,
        "epochs": epochs or _epochs(table),
        "paper_epochs": _epochs(table),
        "seeds": seeds,
        "notes": list(table.notes),
        "cells": [_cell_json(result) for result in results],
    }


def notes(table: Table) -> list[str]:
    """What the papers leave open, as a Markdown list."""
    return [f"- {note[0].upper()}{note[1:]}." for note in table.notes]


def heading(table: Table) -> str:
    """What the paper calls it.

    Example:
      >>> from samon_jax.paper.catalog import find
      >>> [heading(*find(name)) for name in ("1", "fig4right")]
      ['Table 1', 'Figure 4 (right)']
    """
    match = re.fullmatch(r"(table|figure)(\d+)(\D*)", table.name)
    if match is None:
        return table.name[0].upper() + table.name[1:]
    kind, number, half = match.groups()
    return f"{kind.capitalize()} {number}" + (f" ({half})" if half else "")


def _epochs(table: Table) -> int:
    """Of the runs of its first cell."""
    return int(table.cells[0].fields.get("epochs", default_config().epochs))


def _cell_json(result: Result) -> dict[str, Any]:
    cell = result.cell
    return {
        "row": cell.row.text,
        "column": cell.column.text,
        "settings": dict(cell.fields),
        "rho": {
            "kind": cell.rho.kind,
            "values": list(cell.rho.values),
            "source": cell.rho.source,
            "chosen": result.chosen if cell.rho.kind != "none" else None,
        },
        "published": None if cell.published is None else cell.published._asdict(),
        "state": result.state,
        "reason": result.reason,
        "errors": {f"{rho:g}": error for rho, error in result.errors.items()},
        "measured": [
            {
                "rho": None if cell.rho.kind == "none" else rho,
                **(value._asdict() if (value := measured(runs, cell.metric)) else {}),
                "runs": [
                    {
                        "seed": run.seed,
                        cell.metric.name: run.value(cell.metric),
                        "seconds": run.summary.get("seconds"),
                        "flops_per_step": run.summary.get("flops_per_step"),
                        "flops_per_step_base": run.summary.get("flops_per_step_base"),
                        "directory": run.directory.as_posix(),
                    }
                    for run in runs
                ],
            }
            for rho, runs in result.runs.items()
        ],
    }


def _escape(text: str) -> str:
    return text.replace("|", "\\|")
