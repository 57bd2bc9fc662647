"""Sharpness-aware training in JAX that perturbs only the normalization layers (SAM-ON)."""

from samon_jax.errors import UserError
from samon_jax.labels import label_params
from samon_jax.masks import all_params, no_norm, only_norm, only_norm_in, random_mask
from samon_jax.methods._sparse import SparseState, top_mask
from samon_jax.methods.esam import StochasticState, esam, stochastic_perturbation
from samon_jax.methods.gsam import gsam, gsam_rho
from samon_jax.methods.looksam import LookSam, LookSamState, looksam
from samon_jax.methods.sam import value_and_grad
from samon_jax.methods.single_pass import SinglePassState, single_pass
from samon_jax.methods.ssam_d import ssam_d
from samon_jax.methods.ssam_f import fisher_information, ssam_f
from samon_jax.module_labels import label_module
from samon_jax.optimizer import SamState, sam
from samon_jax.perturbation import STATIC_ARGS, VARIANTS, PerturbationState, perturbation, variant

__all__ = [
    "STATIC_ARGS",
    "VARIANTS",
    "LookSam",
    "LookSamState",
    "PerturbationState",
    "SamState",
    "SinglePassState",
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
    "single_pass",
    "ssam_d",
    "ssam_f",
    "stochastic_perturbation",
    "top_mask",
    "value_and_grad",
    "variant",
]
