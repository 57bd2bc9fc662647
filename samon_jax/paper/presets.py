"""The values of ρ that the papers tried and chose.

Sources: Table 7 (what was tried on CIFAR), Table 8 (ImageNet) and appendix B.2 (SSAM) of the SAM-ON
paper; Table 4 of the workshop paper before it, whose bold values say what was chosen. Table 7
marks its choices too, but only in print: they are not known here.
"""

import dataclasses

from samon_jax.errors import UserError
from samon_jax.perturbation import VARIANTS

DATASETS = ("cifar10", "cifar100")
# The values printed in bold in Table 4 of the workshop paper: (CIFAR-10, CIFAR-100) for ResNets.
# Where it has none in bold, or two (Fisher, all), there is no entry.
PUBLISHED_RHO: dict[tuple[str, str], tuple[float | None, float | None]] = {
    ("sam", "all"): (0.1, 0.1),
    ("sam", "only_norm"): (0.5, 1.0),
    ("elementwise_l2", "all"): (2.0, 1.0),
    ("elementwise_l2", "only_norm"): (3.0, 2.5),
    ("elementwise_l2_orig", "all"): (0.5, None),
    ("elementwise_l2_orig", "only_norm"): (0.5, 1.0),
    ("elementwise_linf", "all"): (0.005, 0.01),
    ("elementwise_linf", "only_norm"): (0.025, 0.05),
    ("layerwise_l2", "all"): (0.025, 0.01),
    ("layerwise_l2", "only_norm"): (0.25, 0.2),
    ("fisher", "only_norm"): (0.1, 0.1),
}


def _read(text: str) -> dict[tuple[str, ...], tuple[tuple[float, ...], ...]]:
    """What each line is about, to the numbers of its columns."""
    lines = (line.split("|") for line in text.strip().splitlines())
    return {
        tuple(about.split()): tuple(tuple(map(float, column.split())) for column in columns)
        for about, *columns in lines
    }


# Table 7: CIFAR-10, ResNets | CIFAR-100, ResNets | CIFAR-10 and -100, ViTs.
# For Fisher and ViTs the paper prints "0.05,5 0.1, 0.5, 1,5". Read as a list in which the first 5
# is a misprint, for 5 is at its end as well, this is what its CIFAR-10 column says.
SEARCH_SPACE = _read("""
    sam                 all       | 0.05 0.1 0.25 | 0.05 0.1 0.5 1 | 0.025 0.05 0.1 0.25 0.5
    sam                 only_norm | 0.1 0.5 1 | 0.1 0.5 1 5 | 1 2.5 5 10 25
    elementwise_l2      all       | 0.5 1 2 3 5 | 0.5 1 2.5 5 10 | 0.5 1 2.5 5 10
    elementwise_l2      only_norm | 0.5 1 2 3 5 | 0.5 1 2.5 5 10 | 1 2.5 5 10 25
    elementwise_l2_orig all       | 0.1 0.5 1 5 10 | 0.5 1 2.5 5 | 0.5 1 2.5 5 10
    elementwise_l2_orig only_norm | 0.1 0.5 1 5 10 | 0.5 1 2.5 5 | 1 2.5 5 10 25
    elementwise_linf    all       | 0.001 0.005 0.01 0.05 | 0.001 0.005 0.01 0.05 | \
                                    0.0005 0.001 0.0025 0.005 0.01
    elementwise_linf    only_norm | 0.01 0.025 0.05 0.1 | 0.01 0.05 0.1 0.5 | \
                                    0.025 0.05 0.1 0.25 0.5
    layerwise_l2        all       | 0.005 0.01 0.025 0.05 0.1 | 0.001 0.01 0.05 0.1 | \
                                    0.001 0.0025 0.005 0.01 0.025
    layerwise_l2        only_norm | 0.05 0.1 0.25 0.5 1 | 0.1 0.2 0.5 1 | 0.05 0.1 0.25 0.5 1
    fisher              all       | 0.05 0.1 0.5 1 5 | 0.05 0.1 0.5 1 | 0.05 0.1 0.5 1 5
    fisher              only_norm | 0.1 0.5 1 5 10 | 0.1 0.5 1 5 10 | 0.1 0.5 1 5 10
""")

# Appendix B.2, CIFAR-10 and CIFAR-100: "optimal performance for SSAM".
SSAM_RHO = (0.1, 0.2)


@dataclasses.dataclass(frozen=True)
class Preset:
    """What the papers say about one ρ.

    Attributes:
      rho: the value they report results for, or None if they do not say which it is.
      space: the values they tried, ascending.
      source: where they say so.
    """

    rho: float | None
    space: tuple[float, ...]
    source: str


@dataclasses.dataclass(frozen=True)
class ImageNetRecipe:
    """One of the three parts of Table 8.

    Attributes:
      epochs: "train epochs"; warm-up is part of them, cool-down comes on top, as in timm.
      warmup_epochs: of the learning rate.
      cooldown_epochs: at the lowest learning rate.
      batch_size: examples per step over all devices.
      m: examples that share one perturbation.
      lr: largest learning rate of the cosine.
      weight_decay: weight decay.
    """

    epochs: int
    warmup_epochs: int
    cooldown_epochs: int
    batch_size: int
    m: int
    lr: float
    weight_decay: float


# Table 8. Augmentation is "inception-style", images are 224x224, learning rates decay by a cosine.
IMAGENET = {
    "resnet-50": ImageNetRecipe(90, 3, 10, 512, 64, 0.2, 1e-4),
    "vit-s": ImageNetRecipe(300, 10, 0, 128, 128, 1e-3, 0.1),  # ViT-S/32 from scratch
    # ViT-S pretrained on ImageNet-21k, appendix B.3
    "vit-s-finetuned": ImageNetRecipe(9, 1, 0, 896, 128, 0.017, 1e-4),
}
# Table 8: the values reported and discarded, of SGD, but "vit-s" of AdamW and "vit-s-lion" of Lion.
_IMAGENET_RHO = _read("""
    resnet-50       sam              all       | 0.05
    resnet-50       elementwise_l2   all       | 1
    resnet-50       elementwise_l2   only_norm | 1
    resnet-50       elementwise_linf all       | 0.001 0.01
    resnet-50       elementwise_linf only_norm | 0.005 0.05
    resnet-50       layerwise_l2     all       | 0.005 0.05
    resnet-50       layerwise_l2     only_norm | 0.05 0.5
    vit-s           sam              all       | 1 0.05 0.1 0.5 2
    vit-s           sam              only_norm | 15 10 20
    vit-s-lion      sam              all       | 1 0.5 2
    vit-s-lion      sam              only_norm | 10 5 20
    vit-s-finetuned sam              all       | 0.01 0.1 0.001
    vit-s-finetuned sam              only_norm | 0.1 0.01 1
    vit-s-finetuned elementwise_l2   all       | 0.1 0.01 1
    vit-s-finetuned elementwise_l2   only_norm | 1 0.1 10
    vit-s-finetuned elementwise_linf all       | 1e-4 1e-3 1e-5
    vit-s-finetuned elementwise_linf only_norm | 1e-2 1e-3 1e-1
    vit-s-finetuned layerwise_l2     all       | 1e-3 1e-2 1e-4
    vit-s-finetuned layerwise_l2     only_norm | 1e-3 1e-2 1e-1
""")


def published_rho(dataset: str, variant: str, mask: str) -> float:
    """The ρ that the papers report results for, of ResNets.

    Args:
      dataset: "cifar10" or "cifar100".
      variant: name of a SAM variant.
      mask: "all", "only_norm", or `only_norm_in:<regex>`, for which it is that of "only_norm":
        Figure 3 of the SAM-ON paper perturbs parts of the norm layers with the same variant.

    Raises:
      UserError: the papers mark none.

    Example:
      >>> published_rho("cifar100", "layerwise_l2", "only_norm")
      0.2
    """
    known_mask = _without_regex(mask)
    rho = PUBLISHED_RHO.get((variant, known_mask), (None, None))[DATASETS.index(dataset)]
    if rho is None:
        raise UserError(
            f"rho is missing: the papers mark no value for dataset={dataset}, variant={variant}, "
            f"mask={mask}; add rho=<number> to the options"
        )
    return rho


def preset(dataset: str, architecture: str, variant: str, mask: str) -> Preset:
    """One ρ where the papers say which they used, and what they tried.

    Fisher-SAM is a special case. The workshop paper marks ρ = 0.1 for its SAM-ON on ResNets, which
    is what `published_rho` gives; the SAM-ON paper searched again over other values, and its
    accuracies differ (WRN-28 on CIFAR-100: 84.01 instead of 83.37), so its ρ is not known.

    Args:
      dataset: "cifar10", "cifar100" or "imagenet".
      architecture: on CIFAR "resnet" (all networks with BatchNorm) or "vit"; on ImageNet
        "resnet-50", "vit-s", "vit-s-lion" or "vit-s-finetuned".
      variant: name of a SAM variant, or "ssam_f" or "ssam_d" for ResNets on CIFAR.
      mask: "all", "only_norm", `only_norm_in:<regex>` (as "only_norm"), or "no_norm" on CIFAR,
        for which the paper gives no values of its own: those of "all".

    Returns:
      The preset; its `rho` is None where only the search space is known.

    Raises:
      UserError: the papers have nothing there; the message says where they have.

    Example:
      >>> preset("cifar10", "resnet", "sam", "only_norm").rho
      0.5
      >>> preset("cifar10", "vit", "sam", "only_norm")
      Preset(rho=None, space=(1.0, 2.5, 5.0, 10.0, 25.0), source='Table 7')
    """
    if dataset == "imagenet":
        return _imagenet_preset(architecture, variant, mask)
    _one_of("dataset", dataset, (*DATASETS, "imagenet"))
    _one_of("architecture", architecture, ("resnet", "vit"))
    _one_of("variant", variant, (*VARIANTS, "ssam_f", "ssam_d"))
    known_mask = _without_regex(mask)
    if variant in ("ssam_f", "ssam_d"):
        if architecture != "resnet" or mask != "all":
            raise UserError(
                f"the papers have no rho of {variant} for architecture={architecture!r}, "
                f"mask={mask!r}; they have one for architecture='resnet', mask='all'"
            )
        rho = SSAM_RHO[DATASETS.index(dataset)]
        return Preset(rho, (rho,), "appendix B.2")
    _one_of("mask", known_mask, ("all", "only_norm", "no_norm"))
    column = 2 if architecture == "vit" else DATASETS.index(dataset)
    space = SEARCH_SPACE[variant, "all" if known_mask == "no_norm" else known_mask][column]
    if known_mask == "no_norm":
        return Preset(None, space, "Table 7, the values of all")
    chosen = None
    if architecture == "resnet" and variant != "fisher":
        chosen = PUBLISHED_RHO[variant, known_mask][column]
    if chosen is None:
        return Preset(None, space, "Table 7")
    return Preset(chosen, space, "Table 4 of the workshop paper")


def _imagenet_preset(architecture: str, variant: str, mask: str) -> Preset:
    _one_of("architecture", architecture, (*dict.fromkeys(a for a, _, _ in _IMAGENET_RHO),))
    if (architecture, variant, mask) not in _IMAGENET_RHO:
        known = [f"{v} {m}" for a, v, m in _IMAGENET_RHO if a == architecture]
        raise UserError(
            f"the papers have no rho for architecture={architecture!r} with variant={variant!r}, "
            f"mask={mask!r} on ImageNet; they have: {', '.join(known)}"
        )
    (tried,) = _IMAGENET_RHO[architecture, variant, mask]
    return Preset(tried[0], tuple(sorted(tried)), "Table 8")


def _without_regex(mask: str) -> str:
    return mask.partition(":")[0].replace("only_norm_in", "only_norm")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(
            f"the papers have no preset for {name}={value!r}; choose one of {', '.join(allowed)}"
        )
