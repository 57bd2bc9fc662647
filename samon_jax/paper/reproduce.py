"""The command that re-runs tables and figures of the papers."""

import contextlib
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from samon_jax.errors import UserError
from samon_jax.paper import results
from samon_jax.paper.catalog import find
from samon_jax.paper.cost import listing
from samon_jax.paper.grid import Cell, Table
from samon_jax.paper.pictures import draw
from samon_jax.paper.results import Result
from samon_jax.paper.runs import Finished, Runs, radii, suffix
from samon_jax.paper.smoke import Smoke, processes, quick_compilation
from samon_jax.workdir import files
from samon_jax.workdir.lock import locked
from samon_jax.workdir.progress import say

# The cells to re-run, by table.
Selection = list[tuple[Table, tuple[Cell, ...]]]


@dataclasses.dataclass(frozen=True)
class Request:
    """What to re-run.

    Attributes:
      table: "1", "table1", "figure3", "all", ...
      rows: names of rows; none = all.
      columns: names of columns; none = all.
      seeds: runs per cell; None = as the paper.
      epochs: None = as the paper.
      scale: "full", or "smoke" to prove that everything runs.
      search: also train cells whose ρ the papers do not tell, with all values they tried.
    """

    table: str
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    seeds: int | None = None
    epochs: int | None = None
    scale: str = "full"
    search: bool = False

    def selected(self) -> Selection:
        """The cells to re-run, by table.

        Raises:
          UserError: there is no such table, row or column.
        """
        tables = find(self.table)
        if len(tables) > 1 and (self.rows or self.columns):
            raise UserError("--rows and --columns need one --table, not all of them")
        return [(table, table.select(self.rows, self.columns)) for table in tables]


def run_command(given: Mapping[str, Any], workdirs: Sequence[Path]) -> None:
    """What main.py does in mode "reproduce".

    Args:
      given: arguments of `Request`, and "list" to show what there is instead.
      workdirs: one work directory; none for the list.

    Raises:
      UserError: as `reproduce`.
    """
    given = dict(given)
    listed = given.pop("list", False)
    request = Request(**({"table": "all"} | given))
    if listed:
        say(listing(find(request.table), seeds=request.seeds, epochs=request.epochs))
    else:
        reproduce(request, workdirs[0])


def reproduce(request: Request, directory: Path) -> None:
    """Trains the chosen cells, or proves that they run, and writes the tables.

    A run goes to `<table>/<row>/<column>/rho<ρ>/seed<k>`. Finished runs are not repeated, others
    continue. After every cell, `<table>.md`, .json and .png show what there is of all cells so far.
    With another number of epochs than the paper's, all names end in `-epochs<n>`, so that runs
    and tables of several lengths may lie in one work directory.

    Args:
      request: what to re-run.
      directory: work directory.

    Raises:
      UserError: the request is not possible, another command works in the directory, or cells
        failed; the others are finished then.
    """
    selected = request.selected()
    with files.writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    with locked(directory, say):
        if request.scale == "smoke":
            failed, reports = _smoke(selected, directory)
        else:
            failed, reports = _train(selected, request, directory)
    if failed:
        raise UserError(
            f"{failed} of {sum(len(cells) for _, cells in selected)} cells failed; "
            f"{', '.join(map(str, reports))} say why"
        )


def cell_result(table: Table, cell: Cell, runs: Runs) -> Result:
    """What the runs say about a cell.

    Args:
      table: of the cell.
      cell: of the table.
      runs: finished and failed ones.
    """
    seeds = runs.seeds(table, cell)
    found, errors = _found(cell, runs, seeds)
    if cell.rho.kind == "search" and cell.chosen_by is None:
        return _searched(cell, found, errors, len(seeds), best_rho(cell, found, errors))
    if cell.chosen_by is not None:
        tried, failed = _found(cell.chosen_by, runs, range(1))
        best = best_rho(cell.chosen_by, tried, failed)
        return _searched(cell, found, failed | errors, len(seeds), best)
    complete = all(len(found.get(rho, ())) == len(seeds) for rho in radii(cell))
    state = "failed" if errors else "finished" if complete else "not finished"
    if cell.rho.kind == "sweep":
        return Result(cell, found, None, state, errors=errors)
    return Result(cell, found, radii(cell)[0], state, "".join(errors.values()), errors)


def _found(
    cell: Cell, runs: Runs, seeds: range
) -> tuple[dict[float, list[Finished]], dict[float, str]]:
    """The finished runs of a cell, and why others failed, by ρ."""
    found = {
        rho: [run for seed in seeds if (run := runs.find(cell, rho, seed))] for rho in radii(cell)
    }
    errors = {
        rho: next(filter(None, (runs.error(cell, rho, seed) for seed in seeds)), "")
        for rho in radii(cell)
    }
    return {rho: done for rho, done in found.items() if done}, {
        rho: error for rho, error in errors.items() if error
    }


def _searched(
    cell: Cell,
    found: Mapping[float, Sequence[Finished]],
    errors: Mapping[float, str],
    seeds: int,
    chosen: float | None,
) -> Result:
    """The result of a cell whose ρ is searched."""
    if len(errors) == len(cell.rho.values):
        return Result(cell, found, None, "failed", next(iter(errors.values())), errors)
    if chosen is None:
        tries = ", ".join(f"{rho:g}" for rho in cell.rho.values)
        unasked = cell.searches_unasked
        state = "not finished" if found or errors or unasked else "rho unknown"
        how = f"ρ is chosen first, of {tries}" if unasked else f"--search tries {tries}"
        return Result(cell, found, None, state, how, errors)
    if chosen in errors:
        return Result(cell, found, chosen, "failed", errors[chosen], errors)
    name = re.sub(r" \(.*", "", (cell.chosen_by or cell).metric.title)
    reason = f"best {name} of seed 0 among {len(cell.rho.values)} values of ρ"
    if errors:
        reason += f", of which {', '.join(f'{rho:g}' for rho in errors)} failed"
    state = "finished" if len(found.get(chosen, ())) == seeds else "not finished"
    return Result(cell, found, chosen, state, reason, errors)


def best_rho(
    cell: Cell, found: Mapping[float, Sequence[Finished]], errors: Mapping[float, str]
) -> float | None:
    """The ρ with the best result of the first seed, by its metric; the smallest of equal ones.

    Args:
      cell: whose ρ is searched.
      found: finished runs by ρ.
      errors: of runs that failed, by ρ.

    Returns:
      None until every ρ has been tried.
    """
    first = {rho: runs[0].value(cell.metric) for rho, runs in found.items() if runs[0].seed == 0}
    if not first or {*first, *errors} < {*cell.rho.values}:
        return None
    return max(first, key=lambda rho: (first[rho], -rho))


def _train(selected: Selection, request: Request, directory: Path) -> tuple[int, list[Path]]:
    runs = Runs(directory, request.epochs, request.seeds)
    failed, reports = 0, []
    for table, cells in selected:
        path = directory / f"{table.name}{suffix(request.epochs, *table.cells)}.md"
        _write(table, runs, request, path)
        bad = 0
        for number, cell in enumerate(cells, start=1):
            name = f"{table.name}, {cell.row.text}, {cell.column.text} ({number} of {len(cells)})"
            if cell_result(table, cell, runs).state == "finished":
                say(f"{name}: finished")
                continue
            if cell.rho.kind == "search" and not (request.search or cell.searches_unasked):
                say(f"{name}: rho unknown, left out; --search would try {len(radii(cell))} values")
                continue
            say(name)
            _train_cell(table, cell, runs)
            result = cell_result(table, cell, runs)
            if result.state == "failed":
                bad += 1
                say(f"{name}: failed: {next(iter(result.errors.values()))}")
            _write(table, runs, request, path)
        say(f"{table.name}: {path}")
        if bad:
            failed += bad
            reports.append(path)
    return failed, reports


def _train_cell(table: Table, cell: Cell, runs: Runs) -> None:
    """Trains what is missing of a cell."""
    seeds = runs.seeds(table, cell)
    if cell.rho.kind == "search":
        runs.finish(table, cell.chosen_by or cell, [(rho, 0) for rho in radii(cell)])
        best = cell_result(table, cell, runs).chosen
        if best is not None:
            runs.finish(table, cell, [(best, seed) for seed in seeds])
    else:
        for rho in radii(cell):
            runs.finish(table, cell, [(rho, seed) for seed in seeds])


def _write(table: Table, runs: Runs, request: Request, path: Path) -> None:
    found = [cell_result(table, cell, runs) for cell in table.cells]
    seeds = len(runs.seeds(table))
    files.write_text(path, results.markdown(table, found, epochs=request.epochs, seeds=seeds))
    files.write_json(
        path.with_suffix(".json"), results.to_json(table, found, epochs=request.epochs, seeds=seeds)
    )
    note = f" ({request.epochs} epochs)" if request.epochs else ""
    with files.writing(path.with_suffix(".png")):
        draw(table, found, path.with_suffix(".png"), note=note)
        if table.pictures is not None:
            table.pictures(found, path)


def _smoke(selected: Selection, directory: Path) -> tuple[int, list[Path]]:
    failed, reports = 0, []
    with quick_compilation(), contextlib.closing(Smoke(directory, processes())) as smoke:
        smoke.begin((table, cell) for table, cells in selected for cell in cells)
        for table, cells in selected:
            reasons = {}
            for cell in cells:
                reasons[cell.row.text, cell.column.text] = reason = smoke.prove(table, cell)
                say(f"{table.name}, {cell.row.text}, {cell.column.text}: {reason or 'ok'}")
            path = directory / f"{table.name}.smoke.md"
            files.write_text(path, results.smoke_markdown(table, reasons))
            bad = sum(map(bool, reasons.values()))
            say(f"{table.name}: {len(cells) - bad} of {len(cells)} cells are ok; {path}")
            if bad:
                failed += bad
                reports.append(path)
    return failed, reports
