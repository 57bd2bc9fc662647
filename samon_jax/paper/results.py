"""What became of the cells of a table, as Markdown and JSON beside the published numbers."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from samon_jax.paper.grid import Cell, Published, Table
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
      state: "finished", "not finished", "failed", "rho unknown", or "ok" of a smoke test.
      reason: why it failed, or what would have to be done.
    """

    cell: Cell
    runs: Mapping[float, Sequence[Finished]]
    chosen: float | None
    state: str
    reason: str = ""

    def lines(self) -> list[tuple[float | None, Published | None, int, str]]:
        """What is shown: (ρ or None, measured or None, number of seeds, published) per line."""
        published = show(self.cell.published)
        if self.cell.rho.kind == "sweep":
            return [
                (rho, measured(self.runs.get(rho, ())), len(self.runs.get(rho, ())), published)
                for rho in self.cell.rho.values
            ]
        found = self.runs.get(self.chosen, ()) if self.chosen is not None else ()
        rho = None if self.cell.rho.kind == "none" else self.chosen
        return [(rho, measured(found), len(found), published)]


def measured(runs: Sequence[Finished]) -> Published | None:
    """Mean and sample standard deviation of the test accuracies in percent; None without runs."""
    if not runs:
        return None
    values = [run.accuracy for run in runs]
    return Published(
        float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None
    )


def show(value: Published | None) -> str:
    """A result as the papers print it.

    Example:
      >>> show(Published(84.191, 0.2)), show(Published(78.75, None)), show(None)
      ('84.19 ± 0.20', '78.75', '–')
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
      The text of <table>.md.
    """
    lines = [f"# {heading(table)}", "", f"{table.title}. {PAPER}.", ""]
    paper_epochs = default_config().epochs
    differences = []
    if epochs not in (None, paper_epochs):
        differences.append(f"{epochs} epochs instead of {paper_epochs}")
    if seeds != table.seeds:
        differences.append(f"{seeds} seeds instead of {table.seeds}")
    if differences:
        lines += [f"**Not the paper's setting: {', '.join(differences)}.**", ""]
    lines += [
        "Test accuracy (%) after the last epoch, mean ± sample standard deviation over the seeds, "
        "beside what is published. Whether the papers report the last or the best epoch is not "
        "said.",
        "",
        "| row | column | ρ | measured | published | seeds | state |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for result in results:
        for rho, value, count, published in result.lines():
            shown = "–" if rho is None else f"{rho:g}"
            state = result.state + (f": {result.reason}" if result.reason else "")
            if result.cell.rho.kind == "sweep" and result.state == "not finished":
                state = "finished" if count >= seeds else "not finished"
            lines.append(
                f"| {result.cell.row.text} | {result.cell.column.text} | {shown} | {show(value)} "
                f"| {published} | {count} | {_escape(state)} |"
            )
    return "\n".join([*lines, "", *notes(table)]) + "\n"


def smoke_markdown(table: Table, reasons: Mapping[tuple[str, str], str]) -> str:
    """The table of a smoke test.

    Args:
      table: of the paper.
      reasons: by row and column, why a cell cannot run; "" if it can.
    """
    lines = [
        f"# {heading(table)}: smoke test",
        "",
        "Nothing here is a result: the training step of each cell was traced at its real size, and "
        "the smallest network of its family trained two steps on noise.",
        "",
        "| row | column | runs |",
        "|---|---|---|",
    ]
    for (row, column), reason in reasons.items():
        lines.append(f"| {row} | {column} | {_escape(f'no: {reason}') if reason else 'ok'} |")
    return "\n".join(lines) + "\n"


def to_json(
    table: Table, results: Sequence[Result], *, epochs: int | None, seeds: int
) -> dict[str, Any]:
    """The same with every run: its accuracy, duration and operations per step."""
    return {
        "table": table.name,
        "title": table.title,
        "source": PAPER,
        "epochs": epochs or default_config().epochs,
        "paper_epochs": default_config().epochs,
        "seeds": seeds,
        "notes": list(table.notes),
        "cells": [_cell_json(result) for result in results],
    }


def notes(table: Table) -> list[str]:
    """What the papers leave open, as a Markdown list."""
    return [f"- {note[0].upper()}{note[1:]}." for note in table.notes]


def heading(table: Table) -> str:
    """For example "Table 1" or "Figure 4right"."""
    kind = "Table" if table.name.startswith("table") else "Figure"
    return f"{kind} {table.name.removeprefix(kind.lower())}"


def _cell_json(result: Result) -> dict[str, Any]:
    cell = result.cell
    return {
        "row": cell.row.text,
        "column": cell.column.text,
        "settings": dict(cell.settings),
        "rho": {
            "kind": cell.rho.kind,
            "values": list(cell.rho.values),
            "source": cell.rho.source,
            "chosen": result.chosen if cell.rho.kind != "none" else None,
        },
        "published": None if cell.published is None else cell.published._asdict(),
        "state": result.state,
        "reason": result.reason,
        "measured": [
            {
                "rho": None if cell.rho.kind == "none" else rho,
                **(value._asdict() if (value := measured(runs)) else {}),
                "runs": [
                    {
                        "seed": run.seed,
                        "test_accuracy": run.accuracy,
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
