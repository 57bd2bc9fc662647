"""Sharpness-aware training in JAX that perturbs only the normalization layers (SAM-ON)."""

from samon_jax.errors import UserError
from samon_jax.esam import StochasticState, esam, stochastic_perturbation
from samon_jax.gradient import value_and_grad
from samon_jax.gsam import gsam, gsam_rho
from samon_jax.labels import (
    all_params,
    label_params,
    no_norm,
    only_norm,
    only_norm_in,
    random_mask,
)
from samon_jax.looksam import LookSam, LookSamState, looksam
from samon_jax.module_labels import label_module
from samon_jax.optimizer import SamState, sam
from samon_jax.perturbation import (
    STATIC_ARGS,
    VARIANTS,
    PerturbationState,
    perturbation,
    variant,
)
from samon_jax.sparse import SparseState, fisher_information, ssam_d, ssam_f, top_mask

__all__ = [
    "STATIC_ARGS",
    "VARIANTS",
    "LookSam",
    "LookSamState",
    "PerturbationState",
    "SamState",
    "SparseState",
    "StochasticState",
    "UserError",
    "all_params",
    "esam",
    "fisher_information",
    "gsam",
    "gsam_rho",
    "label_module",
    "label_params",
    "looksam",
    "no_norm",
    "only_norm",
    "only_norm_in",
    "perturbation",
    "random_mask",
    "sam",
    "ssam_d",
    "ssam_f",
    "stochastic_perturbation",
    "top_mask",
    "value_and_grad",
    "variant",
]
