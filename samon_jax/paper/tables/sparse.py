"""Tables 5 and 12, Figures 4 (left) and 8: SAM-ON beside sparse perturbations."""

from collections.abc import Mapping, Sequence

from samon_jax.paper import recipes
from samon_jax.paper.grid import NO_RHO, Cell, Label, Published, Rho, Table, label, rho_of
from samon_jax.paper.presets import preset
from samon_jax.paper.tables.resnets import basic_results

# Beside the results of Table 1.
_RANDOM = Published(80.97, 0.2)
_SSAM_F = {0.5: Published(83.94, 0.1), 0.9995: Published(83.14, 0.1)}
_SSAM_D = {0.5: Published(83.53, 0.1), 0.9995: Published(81.01, 0.1)}
_SPARSITY_OF_ON = {"WRN-28": 0.9995, "ResNet-18": 0.9993}

# Ours: the text on the figures names 50 %, "medium to high" and 99.93 %.
_SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.99, 0.9993)

_RANDOM_NOTE = (
    "the papers name no rho of SAM-rand: to be searched among those of SAM all and SAM ON"
)


def tables() -> tuple[Table, ...]:
    """Both tables and both figures."""
    notes = (_RANDOM_NOTE, recipes.BATCH_NOTE, recipes.STD_NOTE)
    figure_notes = (_RANDOM_NOTE, "sparsities between 50 % and 99.93 % are our choice")
    return (
        Table(
            "table5",
            "Sparse perturbations, WRN-28 on CIFAR-100",
            _of_table({"ssam_f": _SSAM_F}),
            notes,
        ),
        Table(
            "table12",
            "Sparse perturbations with SSAM-D, WRN-28 on CIFAR-100",
            _of_table({"ssam_f": _SSAM_F, "ssam_d": _SSAM_D}),
            notes,
        ),
        Table(
            "figure4",
            "Sparse perturbations, ResNet-18 on CIFAR-10",
            _of_figure("ssam_f"),
            figure_notes,
        ),
        Table(
            "figure8",
            "Sparse perturbations with SSAM-D, ResNet-18 on CIFAR-10",
            _of_figure("ssam_f", "ssam_d"),
            figure_notes,
        ),
    )


def percent(share: float) -> str:
    """A sparsity as the paper writes it.

    Example:
      >>> percent(0.9995)
      '99.95%'
    """
    return f"{100 * share:.4g}%"


def _of_table(methods: Mapping[str, Mapping[float, Published]]) -> tuple[Cell, ...]:
    _, sam, sam_on = basic_results("WRN-28")
    return _cells("WRN-28", "CIFAR-100", (0.5, 0.9995), methods, (sam, sam_on, _RANDOM))


def _of_figure(*methods: str) -> tuple[Cell, ...]:
    model, data = "ResNet-18", "CIFAR-10"
    fields = recipes.base(data, model) | recipes.plain()
    sgd = Cell(label(recipes.model_part(model)), label(("SGD", "none")), fields, NO_RHO)
    return (sgd, *_cells(model, data, _SPARSITIES, {name: {} for name in methods}))


def _cells(
    model: str,
    data: str,
    sparsities: Sequence[float],
    methods: Mapping[str, Mapping[float, Published]],
    printed: Sequence[Published | None] = (None, None, None),
) -> tuple[Cell, ...]:
    """SAM, SAM-ON, SAM-rand, and SSAM by sparsity.

    Args:
      model: name of the network.
      data: "CIFAR-10" or "CIFAR-100".
      sparsities: of SSAM.
      methods: "ssam_f" or "ssam_d" to what is printed of it by sparsity.
      printed: of SAM, SAM-ON and SAM-rand.
    """
    base, row = recipes.base(data, model), label(recipes.model_part(model))
    on = _SPARSITY_OF_ON[model]
    cells = []

    def add(column: Label, method: recipes.Fields, rho: Rho, result: Published | None) -> None:
        cells.append(Cell(row, column, base | method, rho, result))

    for name, mask, result in (("SAM", "all", printed[0]), ("SAM-ON", "only_norm", printed[1])):
        rho = recipes.known_rho(data, model, "sam", mask)
        add(label((name, mask)), recipes.perturbed("sam", mask), rho, result)
    random = recipes.perturbed("sam", f"random:{on}")
    add(label("SAM-rand", percent(on)), random, recipes.random_mask_rho(data), printed[2])
    for name, results in methods.items():
        rho = rho_of(preset(recipes.DATA[data], "resnet", name, "all"))
        shown = {"ssam_f": "SSAM-F", "ssam_d": "SSAM-D"}[name]
        for sparsity in sparsities:
            column = label((shown, name), percent(sparsity))
            add(column, recipes.ssam(name, sparsity), rho, results.get(sparsity))
    return tuple(cells)
