"""Pictures of tables and figures: what was measured beside what is published."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samon_jax.analysis import figures
from samon_jax.paper.grid import Published, Table
from samon_jax.paper.results import Result, heading, measured


def draw(table: Table, results: Sequence[Result], path: Path, *, note: str = "") -> None:
    """Draws a table as points, or a figure as curves.

    Args:
      table: of the paper.
      results: one per cell; what was not measured is left out.
      path: of the .png file.
      note: added to the title.
    """
    panels = _panels(table, results)
    height = 3.4
    if table.kind == "points":
        height = 1.6 + 0.32 * max(len(labels) for _, labels in panels)
    columns = 2 if len(panels) == 4 else min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = figures.new(max(1 + 4.2 * columns, 7.5), height * rows + 0.4)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    painter = {"points": _points, "sweep": _curves, "lines": _curves}[table.kind]
    names = dict.fromkeys(name for _, labels in panels for _, name, _ in labels)
    series = {name: number for number, name in enumerate(names)}
    for axes, (title, labels) in zip(grid.flat, panels, strict=False):
        painter(table, axes, labels, series)
        axes.set_title(title)
        figures.tidy(axes)
    handles = {
        text: handle
        for axes in grid.flat
        for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if handles:
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False
        )
    figure.suptitle(f"{heading(table)}: {table.title}{note}")
    figures.save(figure, path)


# (label on the axis, name of the series, its result)
_Entries = list[tuple[str, str, Result]]


def _panels(table: Table, results: Sequence[Result]) -> list[tuple[str, _Entries]]:
    """What stands in each picture: its title, and (place, series, result) of each cell."""
    panels: dict[str, _Entries] = {}
    by_row = table.kind != "points" or len(table.rows()) <= 2
    for result in results:
        row, column = result.cell.row, result.cell.column
        *general, last = (names[0] for names in column.parts)
        if table.kind == "lines":
            entry = (row.text, (last, " ".join(general), result))
        elif table.kind == "sweep":
            entry = (row.text, ("", column.text, result))
        elif by_row:
            entry = (row.text, (column.text, "", result))
        else:
            entry = (" ".join(general), (row.text, last, result))
        panels.setdefault(entry[0], []).append(entry[1])
    return list(panels.items())


def _points(table: Table, axes: Any, entries: _Entries, series: dict[str, int]) -> None:
    places = list(dict.fromkeys(place for place, _, _ in entries))
    for place, name, result in entries:
        color = figures.color(1 + series[name])
        y = places.index(place) + 0.22 * (series[name] - (len(series) - 1) / 2)
        for value, style, dy, kind in (
            (result.cell.published, {"fmt": "s", "mfc": "white", "alpha": 0.7}, -0.07, "published"),
            (_shown(result), {"fmt": "o"}, 0.07, "measured"),
        ):
            if value is not None:
                text = f"{name} {kind}".strip()
                axes.errorbar(
                    value.mean, y + dy, xerr=value.std, color=color, ms=4, label=text, **style
                )
    axes.set_yticks(range(len(places)), places)
    axes.set_ylim(len(places) - 0.5, -0.5)
    axes.set_xlabel("test accuracy (%)")


def _curves(table: Table, axes: Any, entries: _Entries, series: dict[str, int]) -> None:
    curves: dict[str, list[tuple[float, Published]]] = {}
    for place, name, result in entries:
        color = figures.color(1 + series[name])
        if table.kind == "sweep":
            found = [(rho, measured(runs)) for rho, runs in result.runs.items()]
        else:
            found = [(_number(place), _shown(result))]
        curves.setdefault(name, []).extend((x, value) for x, value in found if value is not None)
        if result.cell.published is not None:
            mean, std = result.cell.published
            text = f"{name} published"
            axes.errorbar(
                _number(place), mean, std, fmt="s", mfc="white", color=color, ms=5, label=text
            )
    for name, points in curves.items():
        if points:
            points = sorted(points)
            axes.errorbar(
                [x for x, _ in points],
                [value.mean for _, value in points],
                [value.std or 0.0 for _, value in points],
                fmt="o-",
                color=figures.color(1 + series[name]),
                ms=4,
                label=f"{name} measured",
            )
    axes.set_xscale("log")
    ticks = sorted({x for points in curves.values() for x, _ in points})
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks], rotation=45 if len(ticks) > 5 else 0)
    axes.minorticks_off()
    axes.set_xlabel("ρ" if table.kind == "sweep" else "m")
    axes.set_ylabel("test accuracy (%)")


def _shown(result: Result) -> Published | None:
    return measured(result.runs.get(result.chosen, ())) if result.chosen is not None else None


def _number(text: str) -> float:
    found = re.search(r"[\d.]+", text)
    return float(found[0]) if found else 0.0
