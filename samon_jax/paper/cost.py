"""What it costs to re-run a table: operations by XLA's count of a forward pass."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from samon_jax import data, models
from samon_jax.paper.grid import Cell, Table
from samon_jax.paper.runs import cell_config, radii
from samon_jax.workdir.progress import say

# Examples of a data set that a run trains on and that every epoch evaluates.
SIZES = {
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000),
    "imagenet2012": (1_281_167, 50_000),
}
_EXA, _TEN_TERA_HOURS = 1e18, 1e13 * 3600


@dataclasses.dataclass(frozen=True)
class Cost:
    """The runs of some cells.

    Attributes:
      runs: number of runs.
      operations: floating-point operations, multiply and add counted as two.
    """

    runs: int = 0
    operations: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.runs + other.runs, self.operations + other.operations)


@functools.cache
def forward_operations(model: str, num_classes: int, side: int = 32) -> float:
    """Floating-point operations of one forward pass of one image.

    XLA counts them in the program as it is handed over; nothing is compiled or computed.

    Args:
      model: a name that `samon_jax.models.create` knows.
      num_classes: number of logits.
      side: of the image, which has three channels.
    """
    module = models.create(model, num_classes)
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    variables = jax.eval_shape(
        functools.partial(module.init, train=False), jax.random.key(0), images
    )
    forward = jax.jit(functools.partial(module.apply, train=False))
    cost: Any = forward.lower(variables, images).cost_analysis()
    return float(cost["flops"])


def step_factor(fields: Mapping[str, Any]) -> float:
    """Operations of a training step in forward passes of its batch.

    The base optimizer takes 3: the forward pass and two products of its size, for the gradients of
    activations and of weights. SAM does that twice. The first pass of SAM-ON lacks the products for
    the weights; if it perturbs only the norms of the last k of three stages, which cost about
    the same, both passes share the rest of the forward pass. Where only norm parameters are
    trained, no pass has products for weights.

    Args:
      fields: of a config, as in `Cell.fields`.

    Example:
      >>> step_factor({"sam.variant": "sam", "sam.mask": "only_norm"})
      5.0
    """
    gradient = 2.0 if fields.get("train_only_norm") else 3.0
    if fields["sam.variant"] == "none" or fields.get("sam.direction", "gradient") != "gradient":
        return gradient
    mask = fields["sam.mask"]
    if mask.startswith("only_norm"):
        stages = {"only_norm_in:stage3": 1, "only_norm_in:stage[23]": 2}.get(mask, 3)
        return gradient + 2 * stages / 3
    return 2 * gradient


def run_operations(table: Table, cell: Cell, epochs: int | None = None) -> float:
    """Floating-point operations of one run: all steps and an evaluation per epoch."""
    config = cell_config(cell, 0.0, 0, epochs)
    if table.forward_operations is not None:
        trained, evaluated = table.forward_operations(cell)
    else:
        images = data.describe(config)
        forward = forward_operations(config.model, images.num_classes, images.image_shape[0])
        train_examples, test_examples = SIZES[config.data.name]
        train_examples = config.data.part or train_examples
        trained = train_examples // config.batch_size * config.batch_size * forward
        evaluated = (config.data.held_back or test_examples) * forward
    return config.epochs * (trained * step_factor(cell.fields) + evaluated)


def cell_cost(
    table: Table, cell: Cell, epochs: int | None, *, seeds: int | None = None, search: bool
) -> Cost:
    """The runs of a cell; without `search`, none where ρ is not known.

    Args:
      table: of the cell.
      cell: of the table.
      epochs: None = those of the paper.
      seeds: runs per cell; None = as the table says.
      search: whether radii are searched.
    """
    seeds = seeds or cell.seeds or table.seeds
    if cell.searches_unasked and cell.chosen_by is not None:
        runs = len(cell.rho.values) + seeds - (cell.chosen_by.fields == cell.fields)
    elif cell.rho.kind == "search":
        runs = len(cell.rho.values) + seeds - 1 if search else 0
    else:
        runs = len(radii(cell)) * seeds
    return Cost(runs, runs * run_operations(table, cell, epochs) if runs else 0.0)


def listing(tables: Sequence[Table], *, seeds: int | None, epochs: int | None) -> str:
    """What there is, and what it costs, as a text table.

    Args:
      tables: to be listed.
      seeds: runs per cell; None = as each table says.
      epochs: None = those of the paper.
    """
    names = {(c.fields.get("model"), c.fields.get("data.name")) for t in tables for c in t.cells}
    say(f"counting the operations of {len(names)} networks ...")
    lines = [
        f"{'':<13} {'':>5}  {'without --search':^22}  {'with --search':^29}",
        f"{'name':<13} {'cells':>5}  {'runs':>5} {'EFLOP':>7} {'hours':>8}  "
        f"{'runs':>5} {'EFLOP':>7} {'hours':>8}         what",
    ]
    for table in tables:
        # Cells that differ only in what is measured share their runs.
        cells = {(tuple(sorted(c.fields.items())), c.rho): c for c in table.cells}.values()
        costs = [
            sum((cell_cost(table, c, epochs, seeds=seeds, search=search) for c in cells), Cost())
            for search in (False, True)
        ]
        shown = "  ".join(
            f"{cost.runs:>5} {cost.operations / _EXA:>7.3g} "
            f"{cost.operations / _TEN_TERA_HOURS:>8.3g}"
            for cost in costs
        )
        lines.append(f"{table.name:<13} {len(table.cells):>5}  {shown}         {table.title}")
    lines.append(
        "hours: of a device that does 10 TFLOP/s all the time. Runs that tables in one work "
        "directory have in common are trained once."
    )
    return "\n".join(lines)
