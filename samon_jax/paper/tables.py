"""Tables 1, 3, 5, 10, 11, 12 and 17 of the SAM-ON paper: every printed number and its settings."""

from collections.abc import Iterator, Sequence

from samon_jax.paper import settings
from samon_jax.paper.grid import NO_RHO, Cell, Label, Published, Rho, Table, label, rho_of
from samon_jax.paper.presets import preset

_UNKNOWN_RHO = (
    "Table 7 marks the chosen rho in print only; those of ResNets are known from Table 4 of the "
    "workshop paper, except elementwise l2 orig. all on CIFAR-100 and Fisher-SAM, whose "
    "accuracies changed after it"
)
_RN_56 = (
    "RN-56 is trained as in the authors' code, with projection shortcuts (option B, resnet-56b)"
)
_BATCH = (
    "the batch size of networks with BatchNorm is 128, as in the work whose settings A.1 adopts"
)
_STD = "the papers do not say which standard deviation they print; here it is the sample's"

# One line per variant and one number per network and mask; of the base optimizer, per network.
_TABLE_1 = {
    "basic": """
        SGD           | 72.82±0.3 80.16±0.3 80.71±0.2
        SAM           | 75.07±0.6 75.58±0.4 81.79±0.4 82.22±0.2 83.11±0.3 84.19±0.2
        el. ℓ2        | 75.05±0.1 76.25±0.0 81.26±0.2 82.30±0.3 82.38±0.2 83.67±0.3
        el. ℓ2 orig.  | 75.54±0.7 76.07±0.2 82.15±0.3 81.90±0.4 83.67±0.1 83.53±0.2
        el. ℓ∞        | 75.36±0.1 76.10±0.2 81.02±0.6 82.38±0.3 83.25±0.2 84.14±0.2
        Fisher        | 75.01±0.4 75.65±0.1 81.55±0.2 82.21±0.2 83.37±0.1 84.01±0.1
        layer. ℓ2     | 74.63±0.1 76.03±0.3 81.66±0.2 82.52±0.2 83.23±0.2 84.05±0.2""",
    "+AA": """
        SGD           | 75.26±0.2 80.31±0.3 83.62±0.1
        SAM           | 76.33±0.3 76.02±0.3 82.33±0.5 83.19±0.2 85.30±0.1 85.42±0.1
        el. ℓ2        | 76.51±0.1 76.04±0.3 82.00±0.3 83.20±0.1 84.80±0.3 85.43±0.3
        el. ℓ2 orig.  | 76.49±0.2 76.58±0.4 82.78±0.1 82.87±0.3 85.25±0.4 85.41±0.1
        el. ℓ∞        | 74.89±0.4 76.19±0.4 82.33±0.1 83.11±0.2 85.28±0.1 85.46±0.1
        Fisher        | 76.67±0.1 76.25±0.2 82.56±0.3 83.28±0.4 85.09±0.3 85.35±0.1
        layer. ℓ2     | 76.23±0.5 76.93±0.4 82.61±0.3 83.32±0.2 85.32±0.3 85.95±0.1""",
}
_TABLE_10 = {
    "basic": """
        SGD           | 94.28±0.2 95.37±0.1 96.20±0.1
        SAM           | 94.94±0.1 95.18±0.1 96.35±0.2 96.48±0.1 97.08±0.1 97.10±0.0
        el. ℓ2        | 94.96±0.1 94.94±0.2 96.41±0.1 96.53±0.1 96.98±0.2 97.06±0.0
        el. ℓ2 orig.  | 95.14±0.1 95.21±0.1 96.40±0.1 96.41±0.1 97.10±0.1 97.07±0.1
        el. ℓ∞        | 94.93±0.1 94.96±0.0 96.06±0.2 96.22±0.1 96.95±0.2 97.00±0.1
        Fisher        | 95.01±0.1 95.03±0.1 96.31±0.0 96.55±0.0 96.95±0.0 97.13±0.1
        layer. ℓ2     | 94.95±0.2 95.07±0.1 96.07±0.3 96.46±0.1 97.02±0.0 96.96±0.1""",
    "+AA": """
        SGD           | 94.70±0.1 96.19±0.2 97.01±0.0
        SAM           | 95.25±0.1 95.40±0.1 96.98±0.1 97.22±0.3 97.57±0.1 97.58±0.0
        el. ℓ2        | 95.12±0.0 94.82±0.2 97.01±0.0 97.21±0.1 97.61±0.0 97.69±0.0
        el. ℓ2 orig.  | 95.39±0.1 95.60±0.1 97.24±0.0 97.33±0.1 97.60±0.0 97.56±0.0
        el. ℓ∞        | 95.12±0.1 95.48±0.3 96.70±0.2 96.91±0.2 97.52±0.1 97.62±0.1
        Fisher        | 95.19±0.0 95.38±0.1 96.77±0.0 97.24±0.1 97.53±0.0 97.65±0.1
        layer. ℓ2     | 95.43±0.3 95.28±0.1 96.80±0.1 96.88±0.1 97.60±0.0 97.48±0.1""",
}
# The halves of Table 3, "basic aug. + AA" both.
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
# fmt: off
_TABLE_11 = {
    "CIFAR-100": """
        SGD           | 75.44±0.2 74.43±0.4 73.40±0.2 77.00±0.2
        SAM           | 76.74±0.2 77.57±0.1 75.81±0.2 76.86±0.1 74.08±0.6 75.60±0.1 79.42±0.6 79.90±0.3
        el. ℓ2        | 76.65±0.1 77.49±0.1 75.95±0.2 76.45±0.2 74.72±0.2 75.12±0.1 78.90±0.2 79.83±0.3
        el. ℓ2 orig.  | 77.27±0.2 77.37±0.2 76.65±0.1 76.66±0.3 75.00±0.5 75.44±0.2 79.94±0.4 80.14±0.1
        el. ℓ∞        | 76.82±0.3 77.62±0.2 75.43±0.4 76.68±0.1 72.74±0.2 74.50±0.4 79.47±0.3 79.64±0.2
        Fisher        | 76.76±0.2 77.68±0.4 75.85±0.2 76.99±0.1 74.03±0.2 74.96±0.3 79.68±0.2 80.38±0.3
        layer. ℓ2     | 76.76±0.2 77.91±0.2 75.99±0.2 77.12±0.2 74.65±0.5 75.28±0.2 78.25±0.2 79.86±0.3""",  # noqa: E501
    "CIFAR-10": """
        SGD           | 94.29±0.0 93.85±0.3 93.82±0.0 94.51±0.1
        SAM           | 94.88±0.1 95.19±0.2 94.96±0.0 95.02±0.1 94.58±0.1 94.81±0.2 95.84±0.2 95.89±0.0
        el. ℓ2        | 94.97±0.1 95.08±0.0 95.01±0.1 95.02±0.1 94.68±0.0 94.99±0.1 95.76±0.2 95.86±0.2
        el. ℓ2 orig.  | 94.95±0.0 95.13±0.1 94.87±0.1 95.12±0.1 94.66±0.1 94.87±0.2 95.92±0.3 95.85±0.1
        el. ℓ∞        | 94.96±0.1 95.06±0.0 94.74±0.2 94.91±0.0 94.68±0.1 94.73±0.1 95.56±0.2 95.91±0.1
        Fisher        | 95.07±0.0 95.17±0.0 94.77±0.0 95.10±0.2 94.55±0.0 94.91±0.1 95.65±0.1 96.00±0.1
        layer. ℓ2     | 94.78±0.1 95.09±0.1 94.54±0.1 95.08±0.1 66.21±48.7 94.96±0.1 95.48±0.2 95.82±0.1""",  # noqa: E501
}
# fmt: on

# Tables 5 and 12, WRN-28 on CIFAR-100.
_SAM = Published(83.11, 0.3)
_SAM_ON = Published(84.19, 0.2)
_RANDOM = Published(80.97, 0.2)
_SSAM_F = {0.5: Published(83.94, 0.1), 0.9995: Published(83.14, 0.1)}
_SSAM_D = {0.5: Published(83.53, 0.1), 0.9995: Published(81.01, 0.1)}
SPARSITY_OF_ON = {"WRN-28": 0.9995, "ResNet-18": 0.9993}  # Tables 5 and 12, Figures 4 and 8

# Table 17: SGD, SAM rho = 0.01, SAM rho = 0.05.
_TABLE_17 = {"ResNet-101": (78.75, 78.63, 79.27), "WRN-28": (63.49, 64.48, 62.70)}


_RESNETS = ("RN-56", "RNxT", "WRN-28")


def basic_results(model: str) -> tuple[Published, Published, Published]:
    """SGD, SAM-all and SAM-ON of Table 1 with basic augmentation, which figures show again.

    Args:
      model: name of a network in Table 1.
    """
    found = {tuple(key): result for *key, result in _read(_TABLE_1["basic"], _RESNETS)}
    return found["SGD", model, "all"], found["SAM", model, "all"], found["SAM", model, "ON"]


def tables() -> tuple[Table, ...]:
    """All tables, in the order of the paper."""
    notes = (_UNKNOWN_RHO, _RN_56, _BATCH, _STD)
    return (
        Table(
            "table1",
            "ResNet-like models on CIFAR-100",
            tuple(_by_augmentation("CIFAR-100", _RESNETS, _TABLE_1)),
            notes,
        ),
        Table("table3", "Vision Transformers on CIFAR-10 and CIFAR-100", _table_3(), (_STD,)),
        Table(
            "table5",
            "Sparse perturbations, WRN-28 on CIFAR-100",
            sparse_methods("WRN-28", "CIFAR-100", (0.5, 0.9995), {"ssam_f": _SSAM_F}),
            (RANDOM_NOTE, _BATCH, _STD),
        ),
        Table(
            "table10",
            "ResNet-like models on CIFAR-10",
            tuple(_by_augmentation("CIFAR-10", _RESNETS, _TABLE_10)),
            notes,
        ),
        Table(
            "table11",
            "VGG and DenseNet on CIFAR-100 and CIFAR-10",
            _table_11(),
            (_UNKNOWN_RHO, "augmentation: basic; Table 11 does not say", _BATCH, _STD),
        ),
        Table(
            "table12",
            "Sparse perturbations with SSAM-D, WRN-28 on CIFAR-100",
            sparse_methods(
                "WRN-28", "CIFAR-100", (0.5, 0.9995), {"ssam_f": _SSAM_F, "ssam_d": _SSAM_D}
            ),
            (RANDOM_NOTE, _BATCH, _STD),
        ),
        Table(
            "table17",
            "Training only the BatchNorm layers, CIFAR-10",
            _table_17(),
            (
                "the paper prints no standard deviation; of how many runs its numbers are is "
                "not said",
                _BATCH,
            ),
        ),
    )


RANDOM_NOTE = "the papers name no rho of SAM-rand: to be searched among those of SAM all and SAM ON"


def sparse_methods(
    model: str,
    data: str,
    sparsities: Sequence[float],
    published: dict[str, dict[float, Published]],
    *,
    first: Sequence[Cell] = (),
) -> tuple[Cell, ...]:
    """The cells of Tables 5 and 12: SAM, SAM-ON, SAM-rand, and SSAM by sparsity.

    Args:
      model: name of the network.
      data: "CIFAR-10" or "CIFAR-100".
      sparsities: of SSAM.
      published: of "ssam_f" and "ssam_d"; a method that is no key has no cells.
      first: cells that come before.
    """
    base, row = settings.base(data, model), label(settings.model_part(model))
    in_table = data == "CIFAR-100"
    on = SPARSITY_OF_ON[model]

    def cell(column: Label, method: settings.Settings, rho: Rho, result: Published | None) -> Cell:
        return Cell(row, column, base | method, rho, result)

    cells = [*first]
    for name, mask, result in (("SAM", "all", _SAM), ("SAM-ON", "only_norm", _SAM_ON)):
        rho = settings.known_rho(data, model, "sam", mask)
        method = settings.perturbed("sam", mask)
        cells.append(cell(label((name, mask)), method, rho, result if in_table else None))
    cells.append(
        cell(
            label("SAM-rand", percent(on)),
            settings.perturbed("sam", f"random:{on}"),
            settings.random_mask_rho(data),
            _RANDOM if in_table else None,
        )
    )
    for name, results in published.items():
        rho = rho_of(preset(settings.DATA[data], "resnet", name, "all"))
        shown = {"ssam_f": "SSAM-F", "ssam_d": "SSAM-D"}[name]
        for sparsity in sparsities:
            column = label((shown, name), percent(sparsity))
            method = settings.ssam(name, sparsity)
            cells.append(cell(column, method, rho, results.get(sparsity)))
    return tuple(cells)


def percent(share: float) -> str:
    """A sparsity as the paper writes it.

    Example:
      >>> percent(0.9995)
      '99.95%'
    """
    return f"{100 * share:.4g}%"


def _by_augmentation(data: str, models: Sequence[str], blocks: dict[str, str]) -> Iterator[Cell]:
    """Tables 1 and 10: rows are (augmentation, variant), columns (network, mask)."""
    for augmentation, text in blocks.items():
        for variant, model, mask, result in _read(text, models):
            base = settings.base(data, model, auto_augment=augmentation == "+AA")
            yield _variant_cell(
                label(augmentation, _row(variant)),
                label(settings.model_part(model), settings.mask_part(mask)),
                (base, data, model, variant, mask),
                result,
            )


def _table_3() -> tuple[Cell, ...]:
    return tuple(
        _variant_cell(
            label(_row(variant)),
            label((data, settings.DATA[data]), model, settings.mask_part(mask)),
            (settings.base(data, model), data, model, variant, mask),
            result,
        )
        for data, text in _TABLE_3.items()
        for variant, model, mask, result in _read(text, ("ViT-T", "ViT-S"))
    )


def _table_11() -> tuple[Cell, ...]:
    return tuple(
        _variant_cell(
            label((data, settings.DATA[data]), _row(variant)),
            label(model, settings.mask_part(mask)),
            (settings.base(data, model), data, model, variant, mask),
            result,
        )
        for data, text in _TABLE_11.items()
        for variant, model, mask, result in _read(
            text, ("VGG-13", "VGG-16", "VGG-19", "DenseNet-100")
        )
    )


def _table_17() -> tuple[Cell, ...]:
    cells = []
    for model, (sgd, *sam) in _TABLE_17.items():
        row = label(settings.model_part(model))
        base = settings.base("CIFAR-10", model) | {"train_only_norm": True}
        plain = base | settings.plain()
        cells.append(Cell(row, label(("SGD", "none")), plain, NO_RHO, Published(sgd, None)))
        for value, result in zip((0.01, 0.05), sam, strict=True):
            column = label("SAM", f"ρ={value}")
            rho = Rho("known", (value,), "Table 17")
            method = base | settings.perturbed("sam", "all")
            cells.append(Cell(row, column, method, rho, Published(result, None)))
    return tuple(cells)


def _row(variant: str) -> tuple[str, ...]:
    if variant in settings.VARIANTS:
        return settings.variant_part(variant)
    return (variant, "none")


def _variant_cell(
    row: Label,
    column: Label,
    method: tuple[settings.Settings, str, str, str, str],
    result: Published,
) -> Cell:
    base, data, model, variant, mask = method
    if variant not in settings.VARIANTS:  # the base optimizer
        return Cell(row, column, base | settings.plain(), NO_RHO, result)
    name = settings.VARIANTS[variant]
    fields = base | settings.perturbed(name, settings.MASKS[mask])
    rho = settings.known_rho(data, model, name, settings.MASKS[mask])
    return Cell(row, column, fields, rho, result)


def _read(text: str, models: Sequence[str]) -> Iterator[tuple[str, str, str, Published]]:
    """(variant, network, mask, result) of a block above; the base optimizer counts as "all"."""
    for line in text.strip().splitlines():
        variant, numbers = (part.strip() for part in line.split("|"))
        results = [Published(*map(float, number.split("±"))) for number in numbers.split()]
        masks = ("all",) if len(results) == len(models) else ("all", "ON")
        places = [(model, mask) for model in models for mask in masks]
        for (model, mask), result in zip(places, results, strict=True):
            yield variant, model, mask, result
