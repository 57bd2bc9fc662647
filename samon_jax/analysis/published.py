"""The papers' values for runs whose data set, architecture and variant are theirs."""

from typing import NamedTuple

from ml_collections import ConfigDict

from samon_jax.analysis.method import changes

SOURCE = "Müller et al. 2023, WRN-28-10 on CIFAR-100, mean of three runs"

# Columns of Tables 6, 14, 18 and 19: (variant, mask) of a run.
_COLUMNS = (
    ("none", None),
    ("sam", "all"),
    ("sam", "only_norm"),
    ("elementwise_linf", "all"),
    ("elementwise_linf", "only_norm"),
)


class SharpnessSetting(NamedTuple):
    """One row of a sharpness table.

    Attributes:
      kind: "worst", "one_step" or "average".
      norm: "l2" or "linf".
      radius: ρ.
      adaptive: T = |w|.
      logit_norm: logits are normalized first.
    """

    kind: str
    norm: str
    radius: float
    adaptive: bool
    logit_norm: bool


# Table 6 (its first three rows are also the upper half of Table 18), then Table 19.
_SHARPNESS: dict[SharpnessSetting, tuple[float, ...]] = {
    SharpnessSetting("worst", "linf", 0.003, True, True): (0.071, 0.048, 0.090, 0.048, 0.078),
    SharpnessSetting("worst", "linf", 0.005, True, True): (0.201, 0.139, 0.296, 0.124, 0.283),
    SharpnessSetting("worst", "linf", 0.007, True, True): (0.433, 0.309, 0.585, 0.255, 0.580),
    SharpnessSetting("one_step", "linf", 0.007, True, True): (0.117, 0.098, 0.170, 0.095, 0.142),
    SharpnessSetting("one_step", "linf", 0.01, True, True): (0.204, 0.183, 0.315, 0.170, 0.271),
    SharpnessSetting("one_step", "linf", 0.03, True, True): (0.809, 0.769, 0.843, 0.724, 0.834),
    SharpnessSetting("average", "l2", 0.005, False, False): (1.358, 0.515, 2.372, 0.569, 2.141),
    SharpnessSetting("average", "l2", 0.1, True, False): (0.042, 0.019, 0.022, 0.040, 0.019),
    SharpnessSetting("average", "linf", 0.01, False, False): (2.643, 1.264, 3.455, 1.304, 3.259),
    SharpnessSetting("average", "linf", 0.2, True, False): (0.078, 0.035, 0.034, 0.068, 0.031),
    SharpnessSetting("worst", "l2", 0.05, False, False): (0.501, 0.655, 0.701, 0.768, 0.313),
    SharpnessSetting("worst", "l2", 0.25, True, False): (0.065, 0.033, 0.037, 0.056, 0.062),
    SharpnessSetting("worst", "linf", 1e-5, False, False): (0.149, 0.055, 0.144, 0.050, 0.123),
    SharpnessSetting("worst", "linf", 0.004, True, False): (0.537, 0.262, 0.600, 0.255, 0.505),
}
SHARPNESS_SETTINGS = tuple(_SHARPNESS)

_FEATURE_RANK = (4004, 3798, 3728, 3613, 3725)  # Table 6, last row
_TEST_ACCURACY = (80.71, 83.11, 84.19, 83.25, 84.14)  # Table 6, first row, in percent
_ROBUST_ACCURACY = {  # Table 14, in percent; radii for images in [0, 1]
    ("l2", 0.1): (18.14, 28.14, 31.28, 30.33, 30.16),
    ("l2", 0.2): (2.33, 5.39, 6.62, 6.63, 6.10),
    ("linf", 1 / 255): (10.29, 17.96, 19.56, 20.69, 18.63),
    ("linf", 2 / 255): (0.67, 1.96, 2.16, 2.62, 2.05),
}


def column(config: ConfigDict) -> int | None:
    """Column of the papers' tables that a run belongs to, or None.

    Args:
      config: of the run. Data set, model and method must be the paper's; ρ is not compared, for
        the tables do not print it.
    """
    theirs = config.data.name == "cifar100" and config.model == "wrn-28-10"
    if not theirs or changes(config):
        return None
    variant = config.sam.variant
    key = (variant, None if variant == "none" else config.sam.mask)
    return _COLUMNS.index(key) if key in _COLUMNS else None


def sharpness(config: ConfigDict, setting: SharpnessSetting) -> float | None:
    """The value of Table 6, 18 or 19 in nats, or None."""
    return _pick(config, _SHARPNESS.get(setting))


def feature_rank(config: ConfigDict) -> float | None:
    """The last row of Table 6, or None."""
    return _pick(config, _FEATURE_RANK)


def test_accuracy(config: ConfigDict) -> float | None:
    """The first row of Table 6 as a share, or None."""
    return _pick(config, _TEST_ACCURACY, 0.01)


def robust_accuracy(config: ConfigDict, norm: str, radius: float) -> float | None:
    """The value of Table 14 as a share, or None."""
    return _pick(config, _ROBUST_ACCURACY.get((norm, radius)), 0.01)


def _pick(config: ConfigDict, row: tuple[float, ...] | None, unit: float = 1) -> float | None:
    index = column(config)
    return None if row is None or index is None else unit * row[index]
