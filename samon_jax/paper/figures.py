"""The data of Figures 1-4, 6-8, 10 and 11 of the SAM-ON paper.

The papers draw these results and print none of them, but for the cells that stand in a table too.
"""

from collections.abc import Sequence

from samon_jax.paper import settings
from samon_jax.paper.grid import NO_RHO, Cell, Table, label
from samon_jax.paper.tables import RANDOM_NOTE, basic_results, percent, sparse_methods

# Ours: the text names 50 %, "medium to high" and 99.93 %.
SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.99, 0.9993)
# Ours: the text says "a range of batch-sizes and values of m".
BATCH_SIZES = (64, 128, 256, 512)
SMALLEST_M = 32
# Ours: the text names no rate.
DROPOUT_RATES = (0.05, 0.1, 0.2, 0.4)

_METHODS = (("SAM-all", "all"), ("SAM-ON", "only_norm"))
_SEVERAL_RUNS = "the papers do not say of how many runs a point is the mean; three here"


def figures() -> tuple[Table, ...]:
    """The data of all figures, in the order of the paper."""
    swept = (
        "no-norm is swept over the values of all; Table 7 has none for it",
        _SEVERAL_RUNS,
    )
    wrn = _sweep("WRN-28", tuple(settings.MASKS))
    vit = _sweep("ViT-S", tuple(settings.MASKS))
    return (
        Table(
            "figure1",
            "SAM variants over ρ, WRN-28 on CIFAR-100",
            wrn,
            ("the text does not say which variants of Figure 6 it shows; all here", *swept),
            kind="sweep",
        ),
        Table(
            "figure2",
            "SAM variants over ρ, ViT-S on CIFAR-100",
            vit,
            ("the text does not say which variants of Figure 7 it shows; all here", *swept),
            kind="sweep",
        ),
        Table(
            "figure3",
            "Norm layers of selected blocks, on CIFAR-100",
            _blocks(),
            ("runtimes are in the JSON file, in seconds and in operations per step",),
        ),
        Table(
            "figure4",
            "Sparse perturbations, ResNet-18 on CIFAR-10",
            _sparse("ssam_f"),
            (RANDOM_NOTE, "sparsities between 50 % and 99.93 % are our choice"),
        ),
        Table(
            "figure4right",
            "Batch sizes and m, WRN-28 on CIFAR-100",
            _batch_sizes(),
            (
                "batch sizes and m are our choice",
                "the text names no learning rate for other batch sizes; it is 0.1 throughout",
            ),
            kind="lines",
        ),
        Table("figure6", "All SAM variants over ρ, WRN-28 on CIFAR-100", wrn, swept, kind="sweep"),
        Table("figure7", "All SAM variants over ρ, ViT-S on CIFAR-100", vit, swept, kind="sweep"),
        Table(
            "figure8",
            "Sparse perturbations with SSAM-D, ResNet-18 on CIFAR-10",
            _sparse("ssam_f", "ssam_d"),
            (RANDOM_NOTE, "sparsities between 50 % and 99.93 % are our choice"),
        ),
        Table(
            "figure10",
            "Fixed norm parameters (fix-norm) beside SAM-all, WRN-28 on CIFAR-100",
            _sweep("WRN-28", ("all", "fix-norm")),
            ("fix-norm is swept over the values of all", _SEVERAL_RUNS),
            kind="sweep",
        ),
        Table(
            "figure11",
            "Weight decay, and dropout on norm layers, WRN-28 on CIFAR-100",
            _regularization(),
            ("the rates of dropout are our choice",),
        ),
    )


def _sweep(model: str, masks: Sequence[str]) -> tuple[Cell, ...]:
    base = settings.base("CIFAR-100", model)
    cells = []
    for variant, name in settings.VARIANTS.items():
        for mask in masks:
            known = settings.MASKS.get(mask, "all")
            fixed = {"fix_norm": True} if mask == "fix-norm" else {}
            cells.append(
                Cell(
                    label(settings.variant_part(variant)),
                    label(tuple(dict.fromkeys((mask, settings.MASKS.get(mask, mask))))),
                    base | settings.perturbed(name, known) | fixed,
                    settings.swept_rho("CIFAR-100", model, name, known),
                )
            )
    return tuple(cells)


def _blocks() -> tuple[Cell, ...]:
    cells = []
    for model in ("WRN-28", "RNxT"):
        sgd, all_, on = basic_results(model)
        base, row = settings.base("CIFAR-100", model), label(settings.model_part(model))
        cells.append(Cell(row, label(("SGD", "none")), base | settings.plain(), NO_RHO, sgd))
        for names, mask, published in (
            (("SAM-all", "all"), "all", all_),
            (("SAM-ON", "only_norm"), "only_norm", on),
            (("B3",), "only_norm_in:stage3", None),
            (("B2+B3",), "only_norm_in:stage[23]", None),
        ):
            rho = settings.known_rho("CIFAR-100", model, "sam", mask)
            fields = base | settings.perturbed("sam", mask)
            cells.append(Cell(row, label(names), fields, rho, published))
    return tuple(cells)


def _sparse(*methods: str) -> tuple[Cell, ...]:
    model, data = "ResNet-18", "CIFAR-10"
    fields = settings.base(data, model) | settings.plain()
    sgd = Cell(label(settings.model_part(model)), label(("SGD", "none")), fields, NO_RHO)
    return sparse_methods(model, data, SPARSITIES, {name: {} for name in methods}, first=[sgd])


def _batch_sizes() -> tuple[Cell, ...]:
    cells = []
    _, all_, on = basic_results("WRN-28")
    for batch_size in BATCH_SIZES:
        ms = [m for m in (SMALLEST_M << i for i in range(10)) if m <= batch_size]
        for m in ms:
            for method, mask in _METHODS:
                # Without m-sharpness at batch size 128, it is the cell of Table 1.
                published = {"all": all_, "only_norm": on}[mask]
                base = settings.base("CIFAR-100", "WRN-28")
                cells.append(
                    Cell(
                        label((f"bs={batch_size}", str(batch_size))),
                        label((method, mask), (f"m={m}", str(m))),
                        base
                        | settings.perturbed("sam", mask)
                        | {"batch_size": batch_size, "sam.m": 0 if m == batch_size else m},
                        settings.known_rho("CIFAR-100", "WRN-28", "sam", mask),
                        published if m == batch_size == 128 else None,
                    )
                )
    return tuple(cells)


def _regularization() -> tuple[Cell, ...]:
    base = settings.base("CIFAR-100", "WRN-28")
    sgd, all_, on = basic_results("WRN-28")
    cells = []
    for decay in ("all", "no_norm", "none"):
        row = label("weight decay", decay)
        own = base | {"optimizer.decay": decay}
        for names, mask, result in (
            (("SGD", "none"), None, sgd),
            (("SAM-all", "all"), "all", all_),
            (("SAM-ON", "only_norm"), "only_norm", on),
        ):
            if mask is None:
                method, rho = settings.plain(), NO_RHO
            else:
                method = settings.perturbed("sam", mask)
                rho = settings.known_rho("CIFAR-100", "WRN-28", "sam", mask)
            published = result if decay == "all" else None
            cells.append(Cell(row, label(names), own | method, rho, published))
    for rate in DROPOUT_RATES:
        row = label("dropout", percent(rate))
        fields = base | settings.plain() | {"norm_dropout": rate}
        cells.append(Cell(row, label(("SGD", "none")), fields, NO_RHO))
    return tuple(cells)
