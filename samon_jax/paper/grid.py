"""What a table or figure of the papers is made of: labels, cells and how ρ is chosen."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from samon_jax.errors import UserError
from samon_jax.paper.presets import Preset

# How a printed sign can be typed.
_TYPED = str.maketrans({"ℓ": "l", "∞": "inf", "₂": "2", "η": "eta", "ρ": "rho"})


class Published(NamedTuple):
    """A printed result.

    Attributes:
      mean: in the unit of its metric: percent for accuracies.
      std: standard deviation over runs, or None where only one number is printed.
    """

    mean: float
    std: float | None

    @classmethod
    def read(cls, text: str) -> "Published":
        """A number as it is printed.

        Example:
          >>> Published.read("72.8±0.3"), Published.read("77.05")
          (Published(mean=72.8, std=0.3), Published(mean=77.05, std=None))
        """
        mean, _, std = text.partition("±")
        return cls(float(mean), float(std) if std else None)


class Metric(NamedTuple):
    """What the number of a cell is.

    Attributes:
      name: its key in summary.json.
      title: what it is called in tables and pictures, with the unit.
      unit: what one of the title's units is; 0.01 for percent.
      measure: for what training does not measure: `measure(work directory of a finished run)`, in
        the unit of summary.json; called once, and kept beside the run.
    """

    name: str
    title: str
    unit: float = 1.0
    measure: Callable[[Path], float] | None = None


ACCURACY = Metric("test_accuracy", "test accuracy (%)", 0.01)


@dataclasses.dataclass(frozen=True)
class Label:
    """The name of a row or column.

    Attributes:
      parts: from general to special, each with the names that select it; the first is shown. The
        column of SAM-ON under RN-56 is `(("RN-56", "resnet-56b"), ("ON", "only_norm"))`.
    """

    parts: tuple[tuple[str, ...], ...]

    @property
    def text(self) -> str:
        """What is shown.

        Example:
          >>> Label((("RN-56",), ("ON", "only_norm"))).text
          'RN-56 ON'
        """
        return " ".join(names[0] for names in self.parts)

    def matches(self, selection: str) -> bool:
        """Whether a user who types `selection` means this label, among others.

        Any of the parts select it, alone or together in their order. Case does not matter, and the
        signs of the papers may be typed: l2 for ℓ2, linf for ℓ∞.

        Example:
          >>> label = Label((("RN-56",), ("ON", "only_norm")))
          >>> [label.matches(x) for x in ("rn-56", "only_norm", "RN-56 ON", "all")]
          [True, True, True, False]
        """
        forms = itertools.product(*(("", *names) for names in self.parts))
        return typed(selection) in {typed(" ".join(filter(None, form))) for form in forms} - {""}


def label(*parts: str | tuple[str, ...]) -> Label:
    """A label from its parts; a part with one name may be a plain string."""
    return Label(tuple((part,) if isinstance(part, str) else part for part in parts))


def typed(text: str) -> str:
    """A name as one may type it, in lower case.

    Example:
      >>> typed("layer. ℓ2")
      'layer. l2'
    """
    return " ".join(text.translate(_TYPED).lower().split())


@dataclasses.dataclass(frozen=True)
class Rho:
    """Which radii a cell is trained with.

    Attributes:
      kind: "none" for methods without perturbation; "known", one value that the papers give;
        "search", the values among which the papers chose, or ours where they name none; "sweep",
        values that are all results, as the points of a curve.
      values: of `sam.rho`, ascending.
      source: where they are from.
    """

    kind: Literal["none", "known", "search", "sweep"]
    values: tuple[float, ...] = ()
    source: str = ""


NO_RHO = Rho("none")


def rho_of(preset: Preset) -> Rho:
    """What a preset says: one value, or those to search among."""
    if preset.rho is None:
        return Rho("search", preset.space, preset.source)
    return Rho("known", (preset.rho,), preset.source)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One result of a table or one curve of a figure.

    Attributes:
      row: label of its row.
      column: label of its column.
      fields: of the config that differ from the default, as {"sam.mask": "all"}, but for the seed
        and `sam.rho`.
      rho: radii.
      published: printed result, or None where the papers only draw it.
      metric: what the result is; cells that differ only in it share their runs.
      seeds: number of runs; None = as the table says.
      chosen_by: for a ρ that is searched, the cell whose runs decide, with the first seed; None for
        this one. It is of no table: its runs are trained when they are needed.
    """

    row: Label
    column: Label
    fields: Mapping[str, Any]
    rho: Rho
    published: Published | None = None
    metric: Metric = ACCURACY
    seeds: int | None = None
    chosen_by: "Cell | None" = None

    @property
    def searches_unasked(self) -> bool:
        """Whether ρ is searched without --search: in studies of our own."""
        return self.chosen_by is not None and self.published is None


class StandIns(NamedTuple):
    """Fields that the smoke test of a table's cells sets, where it is not of CIFAR.

    Attributes:
      full: for the trace of the real step: {"data.name": ...}, a data set of noise.
      small: for the run of two steps besides, {"model": ...} of the same kind.
    """

    full: Mapping[str, Any]
    small: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the papers, or the data of a figure.

    Attributes:
      name: "table1", "figure3", ...
      title: what it shows, in a line.
      cells: in the order of the paper.
      notes: what the papers do not tell and is decided here.
      seeds: number of runs of each cell.
      kind: how it is drawn: "points", "sweep" (accuracy over ρ) or "lines" (over the number in the
        column's label).
      stand_ins: of the smoke test; None = as for networks of CIFAR.
      pictures: `pictures(results, path of the table's page)` draws further pictures of it.
      forward_operations: of a cell, floating-point operations of the forward passes over the
        training set and over what an epoch evaluates, apart; None = counted by XLA for images.
    """

    name: str
    title: str
    cells: tuple[Cell, ...]
    notes: tuple[str, ...] = ()
    seeds: int = 3
    kind: Literal["points", "sweep", "lines"] = "points"
    stand_ins: StandIns | None = None
    pictures: Callable[..., None] | None = None
    forward_operations: Callable[[Cell], tuple[float, float]] | None = None

    @property
    def ours(self) -> bool:
        """Whether the papers have no such table."""
        return not self.name.startswith(("table", "figure"))

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What its numbers are, in order."""
        return tuple(dict.fromkeys(cell.metric for cell in self.cells))

    def rows(self) -> tuple[Label, ...]:
        """The labels of the rows, in order."""
        return tuple(dict.fromkeys(cell.row for cell in self.cells))

    def columns(self) -> tuple[Label, ...]:
        """The labels of the columns; those that share their first parts stand together."""
        first: dict[tuple[tuple[str, ...], ...], int] = {}
        for cell in self.cells:
            for length in range(len(cell.column.parts)):
                first.setdefault(cell.column.parts[: length + 1], len(first))
        labels = dict.fromkeys(cell.column for cell in self.cells)
        return tuple(
            sorted(labels, key=lambda x: [first[x.parts[: i + 1]] for i in range(len(x.parts))])
        )

    def select(self, rows: Sequence[str], columns: Sequence[str]) -> tuple[Cell, ...]:
        """The cells in some rows and columns.

        Args:
          rows: names as in `Label.matches`; none = all rows.
          columns: the same of columns.

        Raises:
          UserError: a name selects nothing, or all of them together do.
        """
        for flag, names, labels in (
            ("rows", rows, self.rows()),
            ("columns", columns, self.columns()),
        ):
            for name in names:
                if not any(label.matches(name) for label in labels):
                    known = "; ".join(label.text for label in labels)
                    raise UserError(f"--{flag}={name} is not in {self.name}, which has: {known}")
        chosen = tuple(
            cell
            for cell in self.cells
            if (not rows or any(cell.row.matches(name) for name in rows))
            and (not columns or any(cell.column.matches(name) for name in columns))
        )
        if not chosen:
            raise UserError(
                f"--rows={','.join(rows)} and --columns={','.join(columns)} have no cell of "
                f"{self.name} in common"
            )
        return chosen
