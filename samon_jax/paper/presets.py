"""The values of ρ that the papers tried and chose.

Sources: Table 7 (what was tried on CIFAR), Table 8 (ImageNet) and appendix B.2 (SSAM) of the SAM-ON
paper; Table 4 of the workshop paper before it, whose bold values say what was chosen. Table 7
marks its choices too, but only in print: they are not known here.
"""

import dataclasses

from samon_jax.errors import UserError

DATASETS = ("cifar10", "cifar100")
VARIANTS: tuple[str, ...] = (
    "sam",
    "elementwise_l2",
    "elementwise_l2_orig",
    "elementwise_linf",
    "fisher",
    "layerwise_l2",
)

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

# Table 7: (CIFAR-10, ResNets), (CIFAR-100, ResNets), (CIFAR-10 and -100, ViTs).
_Space = tuple[float, ...]
SEARCH_SPACE: dict[tuple[str, str], tuple[_Space, _Space, _Space]] = {
    ("sam", "all"): (
        (0.05, 0.1, 0.25),
        (0.05, 0.1, 0.5, 1),
        (0.025, 0.05, 0.1, 0.25, 0.5),
    ),
    ("sam", "only_norm"): ((0.1, 0.5, 1), (0.1, 0.5, 1, 5), (1, 2.5, 5, 10, 25)),
    ("elementwise_l2", "all"): ((0.5, 1, 2, 3, 5), (0.5, 1, 2.5, 5, 10), (0.5, 1, 2.5, 5, 10)),
    ("elementwise_l2", "only_norm"): (
        (0.5, 1, 2, 3, 5),
        (0.5, 1, 2.5, 5, 10),
        (1, 2.5, 5, 10, 25),
    ),
    ("elementwise_l2_orig", "all"): (
        (0.1, 0.5, 1, 5, 10),
        (0.5, 1, 2.5, 5),
        (0.5, 1, 2.5, 5, 10),
    ),
    ("elementwise_l2_orig", "only_norm"): (
        (0.1, 0.5, 1, 5, 10),
        (0.5, 1, 2.5, 5),
        (1, 2.5, 5, 10, 25),
    ),
    ("elementwise_linf", "all"): (
        (0.001, 0.005, 0.01, 0.05),
        (0.001, 0.005, 0.01, 0.05),
        (0.0005, 0.001, 0.0025, 0.005, 0.01),
    ),
    ("elementwise_linf", "only_norm"): (
        (0.01, 0.025, 0.05, 0.1),
        (0.01, 0.05, 0.1, 0.5),
        (0.025, 0.05, 0.1, 0.25, 0.5),
    ),
    ("layerwise_l2", "all"): (
        (0.005, 0.01, 0.025, 0.05, 0.1),
        (0.001, 0.01, 0.05, 0.1),
        (0.001, 0.0025, 0.005, 0.01, 0.025),
    ),
    ("layerwise_l2", "only_norm"): (
        (0.05, 0.1, 0.25, 0.5, 1),
        (0.1, 0.2, 0.5, 1),
        (0.05, 0.1, 0.25, 0.5, 1),
    ),
    # For ViTs the paper prints "0.05,5 0.1, 0.5, 1,5". Read as a list in which the first 5 is a
    # misprint, for 5 is at its end as well, this is what its CIFAR-10 column says.
    ("fisher", "all"): ((0.05, 0.1, 0.5, 1, 5), (0.05, 0.1, 0.5, 1), (0.05, 0.1, 0.5, 1, 5)),
    ("fisher", "only_norm"): ((0.1, 0.5, 1, 5, 10), (0.1, 0.5, 1, 5, 10), (0.1, 0.5, 1, 5, 10)),
}

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
      rho: (base optimizer, variant, mask) to (reported, discarded...), in the order of the table.
    """

    epochs: int
    warmup_epochs: int
    cooldown_epochs: int
    batch_size: int
    m: int
    lr: float
    weight_decay: float
    rho: dict[tuple[str, str, str], tuple[float, ...]]


# Table 8. Augmentation is "inception-style", images are 224x224, learning rates decay by a cosine.
IMAGENET: dict[str, ImageNetRecipe] = {
    "resnet-50": ImageNetRecipe(
        epochs=90,
        warmup_epochs=3,
        cooldown_epochs=10,
        batch_size=512,
        m=64,
        lr=0.2,
        weight_decay=0.0001,
        rho={
            ("sgd", "sam", "all"): (0.05,),
            ("sgd", "elementwise_l2", "all"): (1,),
            ("sgd", "elementwise_l2", "only_norm"): (1,),
            ("sgd", "elementwise_linf", "all"): (0.001, 0.01),
            ("sgd", "elementwise_linf", "only_norm"): (0.005, 0.05),
            ("sgd", "layerwise_l2", "all"): (0.005, 0.05),
            ("sgd", "layerwise_l2", "only_norm"): (0.05, 0.5),
        },
    ),
    "vit-s": ImageNetRecipe(  # ViT-S/32 from scratch
        epochs=300,
        warmup_epochs=10,
        cooldown_epochs=0,
        batch_size=128,
        m=128,
        lr=0.001,
        weight_decay=0.1,
        rho={
            ("adamw", "sam", "all"): (1, 0.05, 0.1, 0.5, 2),
            ("adamw", "sam", "only_norm"): (15, 10, 20),
            ("lion", "sam", "all"): (1, 0.5, 2),
            ("lion", "sam", "only_norm"): (10, 5, 20),
        },
    ),
    "vit-s-finetuned": ImageNetRecipe(  # ViT-S pretrained on ImageNet-21k, appendix B.3
        epochs=9,
        warmup_epochs=1,
        cooldown_epochs=0,
        batch_size=896,
        m=128,
        lr=0.017,
        weight_decay=0.0001,
        rho={
            ("sgd", "sam", "all"): (0.01, 0.1, 0.001),
            ("sgd", "sam", "only_norm"): (0.1, 0.01, 1),
            ("sgd", "elementwise_l2", "all"): (0.1, 0.01, 1),
            ("sgd", "elementwise_l2", "only_norm"): (1, 0.1, 10),
            ("sgd", "elementwise_linf", "all"): (1e-4, 1e-3, 1e-5),
            ("sgd", "elementwise_linf", "only_norm"): (1e-2, 1e-3, 1e-1),
            ("sgd", "layerwise_l2", "all"): (1e-3, 1e-2, 1e-4),
            ("sgd", "layerwise_l2", "only_norm"): (1e-3, 1e-2, 1e-1),
        },
    ),
}


def published_rho(dataset: str, variant: str, mask: str) -> float:
    """The ρ that the papers report results for, of ResNets.

    Args:
      dataset: "cifar10" or "cifar100".
      variant: name of a SAM variant.
      mask: "all", "only_norm", or "only_norm_in:<regex>", for which it is that of "only_norm":
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
      mask: "all", "only_norm", "only_norm_in:<regex>" (as "only_norm"), or "no_norm" on CIFAR,
        for which the paper gives no values of its own: those of "all".

    Returns:
      The preset; its `rho` is None where only the search space is known.

    Raises:
      UserError: the papers have nothing there; the message says where they have.

    Example:
      >>> preset("cifar10", "resnet", "sam", "only_norm").rho
      0.5
      >>> preset("cifar10", "vit", "sam", "only_norm")
      Preset(rho=None, space=(1, 2.5, 5, 10, 25), source='Table 7')
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
    architectures = ("resnet-50", "vit-s", "vit-s-lion", "vit-s-finetuned")
    _one_of("architecture", architecture, architectures)
    recipe = IMAGENET["vit-s" if architecture == "vit-s-lion" else architecture]
    optimizer = {"vit-s": "adamw", "vit-s-lion": "lion"}.get(architecture, "sgd")
    tried = recipe.rho.get((optimizer, variant, mask))
    if tried is None:
        known = [f"{v} {m}" for o, v, m in recipe.rho if o == optimizer]
        raise UserError(
            f"the papers have no rho for architecture={architecture!r} with variant={variant!r}, "
            f"mask={mask!r} on ImageNet; they have: {', '.join(known)}"
        )
    return Preset(tried[0], tuple(sorted(tried)), "Table 8")


def _without_regex(mask: str) -> str:
    return mask.partition(":")[0].replace("only_norm_in", "only_norm")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(
            f"the papers have no preset for {name}={value!r}; choose one of {', '.join(allowed)}"
        )
