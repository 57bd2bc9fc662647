"""Table 3: Vision Transformers on CIFAR-10 and CIFAR-100, both with AutoAugment."""

import functools

from samon_jax.paper import recipes
from samon_jax.paper.grid import Label, Table, label
from samon_jax.paper.tables import variants

_TABLE_3 = {
    "CIFAR-10": """
        AdamW         | 89.19±0.2 90.34±0.0
        SAM           | 88.92±0.0 92.22±0.1 90.81±0.2 92.71±0.0
        el. ℓ2        | 90.02±0.2 92.52±0.3 92.40±0.4 93.97±0.2
        el. ℓ2 orig.  | 90.22±0.2 92.68±0.2 92.05±0.3 94.01±0.5
        el. ℓ∞        | 89.82±0.3 92.66±0.2 90.76±0.6 93.68±0.2
        Fisher        | 89.08±0.1 92.03±0.2 91.13±0.2 92.49±0.1
        layer. ℓ2     | 89.51±0.4 93.08±0.2 91.21±0.1 94.02±0.1""",
    "CIFAR-100": """
        AdamW         | 63.79±0.0 64.37±0.2
        SAM           | 64.70±0.4 69.84±0.2 66.58±0.3 69.13±0.3
        el. ℓ2        | 65.74±0.6 71.09±0.1 66.98±0.0 70.31±0.2
        el. ℓ2 orig.  | 65.81±0.6 71.25±0.3 67.23±0.2 70.42±0.5
        el. ℓ∞        | 65.11±0.3 68.11±0.7 66.55±0.1 69.19±0.1
        Fisher        | 64.70±0.4 69.55±0.8 66.59±0.5 69.30±0.4
        layer. ℓ2     | 65.30±0.6 69.66±0.1 67.39±0.4 70.04±0.2""",
}


def tables() -> tuple[Table, ...]:
    """Table 3."""
    cells = [
        cell
        for data, text in _TABLE_3.items()
        for cell in variants.cells(
            text, ("ViT-T", "ViT-S"), functools.partial(_labels, data), data=data
        )
    ]
    title = "Vision Transformers on CIFAR-10 and CIFAR-100"
    return (Table("table3", title, tuple(cells), (recipes.STD_NOTE,)),)


def _labels(
    data: str, variant: tuple[str, ...], model: str, mask: tuple[str, ...]
) -> tuple[Label, Label]:
    return label(variant), label((data, recipes.DATA[data]), model, mask)
