"""The single runs behind a cell: their configs, directories and results; nothing is run twice."""

import contextlib
import dataclasses
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from samon_jax import methods
from samon_jax.errors import UserError
from samon_jax.paper.grid import ACCURACY, Cell, Label, Metric, Table, typed
from samon_jax.processes import failure
from samon_jax.training.config import check_identity, default_config, identity
from samon_jax.training.run import resolve
from samon_jax.training.sweep import at_once_pays, train_all
from samon_jax.workdir import files
from samon_jax.workdir.progress import say

MEASURED = "measured.json"  # beside summary.json: what was measured on a finished run


@dataclasses.dataclass(frozen=True)
class Finished:
    """A run that is complete.

    Attributes:
      seed: of the run.
      directory: its work directory.
      summary: its summary.json.
    """

    seed: int
    directory: Path
    summary: dict[str, Any]

    def knows(self, metric: Metric) -> bool:
        """Whether training, or `measure`, has left a number."""
        return self._number(metric) is not None

    def value(self, metric: Metric = ACCURACY) -> float:
        """A result after the last epoch, in the unit of its title; the test accuracy in percent.

        Raises:
          UserError: there is none.
        """
        number = self._number(metric)
        if number is None:
            raise UserError(f"{self.directory / files.SUMMARY} has no {metric.name}")
        return number / metric.unit

    def measure(self, metric: Metric) -> None:
        """Measures what training does not, and keeps it beside the run."""
        if metric.measure is not None and not self.knows(metric):
            say(f"{self.directory}: measuring {metric.title}")
            number = metric.measure(self.directory)
            files.write_json(self.directory / MEASURED, self._measured() | {metric.name: number})

    def _number(self, metric: Metric) -> float | None:
        known = self.summary if metric.measure is None else self._measured()
        number = known.get(metric.name)
        if not isinstance(number, int | float) or not math.isfinite(number):
            return None
        return float(number)

    def _measured(self) -> dict[str, Any]:
        try:
            known = files.read_json(self.directory / MEASURED)
        except UserError:  # damaged: it can be measured again
            known = None
        return known if isinstance(known, dict) else {}


def cell_config(cell: Cell, rho: float, seed: int, epochs: int | None = None) -> ConfigDict:
    """The config of one run of a cell.

    Args:
      cell: of a table.
      rho: radius; without meaning for methods without perturbation.
      seed: of the run.
      epochs: None = those of the paper.

    Returns:
      A complete config.

    Example:
      >>> from samon_jax.paper.catalog import find
      >>> config = cell_config(find("table1")[0].cells[3], rho=0.1, seed=2)
      >>> config.model, config.sam.variant, config.sam.mask, config.epochs
      ('resnet-56b', 'sam', 'all', 200)
    """
    config = default_config()
    # A checkpoint of a WRN-28-10 has 290 MB, and a table has hundreds of runs.
    config.checkpoint.keep = 1
    config.checkpoint.every_epochs = 5
    config.update_from_flattened_dict(dict(cell.fields))
    config.sam.rho = float(rho)
    config.seed = seed
    config.epochs = epochs or config.epochs
    config.num_devices = config.num_devices or _as_many_devices_as_fit(config)
    return config


def _as_many_devices_as_fit(config: ConfigDict) -> int:
    """Of all there are: 7 of 8 for Table 13, whose 896 examples are seven times its m of 128."""
    processes = jax.process_count()
    for count in range(jax.device_count(), processes, -processes):
        with contextlib.suppress(UserError):
            methods.check(dict(config.sam), batch_size=config.batch_size, num_devices=count)
            if config.batch_size % count == 0:
                return count
    return processes


def suffix(epochs: int | None, *cells: Cell) -> str:
    """What the names of runs and tables end in that do not have their own number of epochs.

    Args:
      epochs: that was asked for; None = those of the cells.
      *cells: of a table, or that of a run.

    Example:
      >>> from samon_jax.paper.catalog import find
      >>> cell = find("table1")[0].cells[0]  # 200 epochs
      >>> suffix(None, cell), suffix(200, cell), suffix(10, cell)
      ('', '', '-epochs10')
    """
    default = default_config().epochs
    own = {cell.fields.get("epochs", default) for cell in cells}
    return "" if epochs is None or own == {epochs} else f"-epochs{epochs}"


def cell_directory(
    table: Table, cell: Cell, rho: float, seed: int, epochs: int | None = None
) -> Path:
    """Where a run lies below the work directory.

    Example:
      >>> from samon_jax.paper.catalog import find
      >>> table = find("table1")[0]
      >>> cell_directory(table, table.cells[3], 0.1, 2).as_posix()
      'table1/basic-sam/rn-56-all/rho0.1/seed2'
    """
    return Path(
        table.name,
        _slug(cell.row),
        _slug(cell.column),
        f"rho{rho:g}",
        f"seed{seed}{suffix(epochs, cell)}",
    )


def radii(cell: Cell) -> tuple[float, ...]:
    """The values of ρ to train with; (0,) for methods without perturbation."""
    return cell.rho.values or (0.0,)


class Runs:
    """All finished runs below a work directory, and the means to finish more.

    A run that another table has finished already is read from there: WRN-28 with SAM-ON, say, is in
    Tables 1, 5 and 12 and Figures 1, 3, 6 and 11. A run whose files are damaged is named and counts
    as not finished.

    Args:
      directory: work directory of the command.
      epochs: None = those of the paper.
      seeds: number of runs of each cell; None = as the table says.
    """

    def __init__(self, directory: Path, epochs: int | None, seeds: int | None) -> None:
        self._directory = directory
        self._epochs = epochs
        self._seeds = seeds
        self._finished: dict[str, tuple[Path, dict[str, Any]]] = {}
        self._errors: dict[str, str] = {}
        self._identities: dict[tuple[int, float, int], str] = {}
        for path in sorted(directory.glob(f"*/*/*/rho*/seed*/{files.SUMMARY}")):
            try:
                config, summary = files.read_config(path.parent), files.read_summary(path.parent)
            except UserError as error:
                say(f"{error}; the run counts as not finished")
                continue
            if config is None or summary is None:
                continue
            try:
                check_identity(summary.get("identity"), identity(config), path)
            except UserError as error:
                say(f"{error}; the run counts as not finished")
            else:
                self._finished[_key(config)] = (path.parent, summary)

    def seeds(self, table: Table, cell: Cell | None = None) -> range:
        """The seeds of a cell, or of those that say nothing else."""
        return range(self._seeds or (cell and cell.seeds) or table.seeds)

    def find(self, cell: Cell, rho: float, seed: int) -> Finished | None:
        """The run of a cell, if it is finished and the cell's metric is known."""
        run = self._trained(cell, rho, seed)
        return run if run is not None and run.knows(cell.metric) else None

    def error(self, cell: Cell, rho: float, seed: int) -> str:
        """Why a run failed since this object was made; "" if it did not."""
        key = self._key(cell, rho, seed)
        return self._errors.get(key) or self._errors.get(key + cell.metric.name, "")

    def finish(self, table: Table, cell: Cell, wanted: Sequence[tuple[float, int]]) -> None:
        """Trains and measures what is missing, in the way that suits the device.

        A run that fails is remembered, see `error`, and the others go on all the same.

        Args:
          table: of the cell.
          cell: of the table.
          wanted: (rho, seed) of each run.
        """
        missing = [run for run in wanted if self.find(cell, *run) is None]
        damaged = cell.metric.measure is None
        untrained = [run for run in missing if damaged or self._trained(cell, *run) is None]
        for group in [untrained] if at_once_pays() else [[run] for run in untrained]:
            self._train(table, cell, group)
        for run in missing:
            try:
                if (trained := self._trained(cell, *run)) is not None:
                    trained.measure(cell.metric)
                    trained.value(cell.metric)
            except (UserError, jax.errors.JaxRuntimeError) as error:  # of this metric, not the run
                line = str(error)
                if not isinstance(error, UserError):
                    line = failure.one_line(error, cell_config(cell, *run, self._epochs))
                self._errors[self._key(cell, *run) + cell.metric.name] = line

    def _train(self, table: Table, cell: Cell, group: Sequence[tuple[float, int]]) -> None:
        configs = [cell_config(cell, *run, self._epochs) for run in group]
        folders = [
            self._directory / cell_directory(table, cell, *run, self._epochs) for run in group
        ]
        results: Sequence[dict[str, Any] | UserError]
        try:
            results = train_all(configs, folders)
        except jax.errors.JaxRuntimeError as error:
            results = [UserError(failure.one_line(error, configs[0]))] * len(group)
        for run, folder, result in zip(group, folders, results, strict=True):
            if isinstance(result, UserError):
                self._errors[self._key(cell, *run)] = str(result)
            else:
                self._finished[self._key(cell, *run)] = (folder, result)

    def _trained(self, cell: Cell, rho: float, seed: int) -> Finished | None:
        found = self._finished.get(self._key(cell, rho, seed))
        return None if found is None else Finished(seed, *found)

    def _key(self, cell: Cell, rho: float, seed: int) -> str:
        key = (id(cell), rho, seed)  # cells live as long as the catalog
        if key not in self._identities:
            self._identities[key] = _key(resolve(cell_config(cell, rho, seed, self._epochs)))
        return self._identities[key]


def _key(config: Any) -> str:
    """The identity of a run as text."""
    return json.dumps(identity(config), sort_keys=True)


def _slug(label: Label) -> str:
    return re.sub(r"[^a-z0-9._+=]+", "-", typed(label.text)).strip("-")
