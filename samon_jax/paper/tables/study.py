"""Our own study: what SAM-ON is worth on few real images, at equal epochs and at equal operations.

It is none of the papers' tables, and small enough for two cores of a CPU: 5,000 of CIFAR-100's
training images, 50 of each class, drawn once; all 10,000 test images; WRN-10-2 with a stem of
stride 2, without augmentation, so that the network sees the same images again and again.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

from samon_jax.paper import curves, recipes
from samon_jax.paper.grid import NO_RHO, Cell, Metric, Rho, Table, label

Fields = dict[str, Any]

NAME = "study"
EPOCHS = 24
# A step of SAM-ON costs 5/3 of a step of SGD.
SAME_OPERATIONS_AS_SAM_ON = EPOCHS * 5 // 3
# Seeds of the rows that the claim rests on, and of the others.
MANY, FEW = 5, 3

_TRAINED, _HELD_BACK = 5_000, 2_000
_BASE: Fields = {
    "data.name": "cifar100",
    "data.part": _TRAINED,
    "data.held_back": _HELD_BACK,
    "data.crop_padding": 0,
    "data.flip": False,
    "model": "wrn-10-2-stem2",
    "epochs": EPOCHS,
    "num_devices": 1,
    "checkpoint.every_epochs": 12,
}


def accuracy_on_test_images(directory: Path) -> float:
    """Test accuracy of a finished run that was watched on held-back images, after its last step."""
    from samon_jax.training.reading import evaluate_checkpoint

    return evaluate_checkpoint(directory, "last", {"data.held_back": 0})["test_accuracy"]


_ACCURACY = Metric("accuracy", "test accuracy (%)", 0.01, accuracy_on_test_images)
# What a run calls its test images are those held back, if there are any.
_HELD_BACK_ACCURACY = Metric("test_accuracy", "accuracy on held-back images (%)", 0.01)
# Curves of what is measured after every epoch.
_draw = functools.partial(curves.draw, of=_HELD_BACK_ACCURACY)

_WIDE, _ALL = (0.5, 1, 2), (0.05, 0.1, 0.2)


class _Row(NamedTuple):
    """A method: name, how one may type it, fields, radii tried, seeds."""

    name: str
    typed: str
    fields: Fields
    radii: tuple[float, ...]
    seeds: int


def _on(variant: str = "sam", **further: Any) -> Fields:
    fields = {name.replace("__", "."): value for name, value in further.items()}
    return recipes.perturbed(variant, "only_norm") | fields


# In the order in which they are trained.
_ROWS = (
    _Row("SGD", "sgd", recipes.plain(), (), MANY),
    _Row("SAM-ON", "only_norm", _on(), _WIDE, MANY),
    _Row("SAM-all", "all", recipes.perturbed("sam", "all"), _ALL, MANY),
    _Row(
        "SGD, 1.67 times the epochs",
        "longer",
        recipes.plain() | {"epochs": SAME_OPERATIONS_AS_SAM_ON},
        (),
        MANY,
    ),
    _Row(
        "SAM-ON in one pass, average", "average", _on(sam__direction="average"), (0.2, 0.5, 1), FEW
    ),
    _Row("SAM-ON in one pass, momentum", "momentum", _on(sam__direction="momentum"), _WIDE, FEW),
    _Row("SAM-ON in one pass, previous", "previous", _on(sam__direction="previous"), _WIDE, FEW),
    _Row("SAM-ON, last stage", "stage3", _on(sam__mask="only_norm_in:stage3"), _WIDE, FEW),
    _Row("SAM-ON, last two stages", "stage23", _on(sam__mask="only_norm_in:stage[23]"), _WIDE, FEW),
    _Row("SAM-ON, el. ℓ∞", "elementwise_linf", _on("elementwise_linf"), (0.05, 0.1, 0.2), FEW),
    _Row("SAM-ON, layer. ℓ2", "layerwise_l2", _on("layerwise_l2"), (0.1, 0.2, 0.5), FEW),
    _Row("SAM-ON, m = 32", "m32", _on(sam__m=32), _WIDE, FEW),
    _Row("no-norm", "no_norm", recipes.perturbed("sam", "no_norm"), _ALL, FEW),
)

_NOTES = (
    "50 training images of each class, drawn with data.part_seed = 0, without augmentation; all "
    "10,000 test images; batches of 128, m = 128 where nothing else is said; the optimizer, its "
    "schedule and label smoothing are those of the papers (A.1)",
    f"the best of three ρ on {_HELD_BACK:,} further training images, seed 0; the curves are of "
    "these images too",
    f"SGD is also given {SAME_OPERATIONS_AS_SAM_ON} epochs instead of {EPOCHS}, the operations of "
    "SAM-ON",
)


def tables() -> tuple[Table, ...]:
    """The study."""
    title = f"What SAM-ON is worth on {_TRAINED:,} images of CIFAR-100, WRN-10-2"
    return (
        Table(
            NAME,
            title,
            tuple(map(_cell, _ROWS)),
            _NOTES,
            FEW,
            pictures=_draw,
        ),
    )


def _cell(of: _Row) -> Cell:
    rho = Rho("search", of.radii, "our grid") if of.radii else NO_RHO
    row, column, fields = label((of.name, of.typed)), label("WRN-10-2"), _BASE | of.fields
    # The run that is chosen is also the first of the seeds, so that none is trained twice.
    chooses = Cell(row, column, fields, rho, None, _HELD_BACK_ACCURACY, of.seeds)
    chosen_by = chooses if of.radii else None
    return dataclasses.replace(chooses, metric=_ACCURACY, chosen_by=chosen_by)
