"""The perturbation that a config describes."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from ml_collections import ConfigDict, FrozenConfigDict

import samon_jax as samon
from samon_jax.errors import UserError
from samon_jax.training.config import NO_PERTURBATION


def make_mask(text: str) -> Callable[[Any], Any]:
    """The mask that `config.sam.mask` names.

    Args:
      text: "all", "only_norm", "no_norm", "only_norm_in:<regex>" or "random:<sparsity>". A random
        mask is the same for every seed of a run, so that all seeds share one compiled step.

    Returns:
      A function of the parameters to a pytree of bools.
    """
    name, _, argument = text.partition(":")
    if name == "only_norm_in":
        return samon.only_norm_in(argument)
    if name == "random":
        return samon.random_mask(jax.random.key(0), float(argument))
    return {"all": samon.all_params, "only_norm": samon.only_norm, "no_norm": samon.no_norm}[name]


def make_ascent(sam: ConfigDict | FrozenConfigDict) -> optax.GradientTransformation | None:
    """The ascent step of `config.sam`, or None for variant "none".

    Args:
      sam: the `sam` section of a config.

    Returns:
      An optax transform from gradients to ε, or None.

    Raises:
      UserError: `eta` is set for a variant that does not use it.
    """
    if sam.variant == NO_PERTURBATION:
        return None
    try:
        return samon.variant(sam.variant, sam.rho, mask=make_mask(sam.mask), eta=sam.eta)
    except UserError as error:  # names an argument, which is the field of the same name
        raise UserError(f"sam.{error}") from None
