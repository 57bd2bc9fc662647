"""GSAM: descend on the perturbed loss and close the gap between the two (Zhuang et al. 2022)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from samon_jax._fields import Field, optional
from samon_jax._passes.trees import dot, scale_and_norm, widen
from samon_jax.errors import UserError
from samon_jax.methods._recipe import Conflict, Fields, Member, Recipe, Setting
from samon_jax.methods.method import LearningRate, Now
from samon_jax.perturbation import RADIUS

PyTree = Any


def gsam(alpha: float) -> Callable[[PyTree, PyTree], PyTree]:
    """The descent direction of GSAM, for `value_and_grad(..., combine=gsam(alpha))`.

    With g the gradient at w and g' the one at w + ε, g is split into a part along g' and a part g⊥
    orthogonal to it; the descent direction is g' - α g⊥, which lowers the perturbed loss as SAM
    does and, in addition, the surrogate gap L(w + ε) - L(w). It needs the whole gradient at w, so a
    step costs twice that of SGD even if ε moves the norms only.

    Args:
      alpha: α >= 0; 0 is SAM. Zhuang et al. use 0.1 to 0.4 for ViTs.

    Returns:
      A function of the gradients at w and at w + ε to the descent direction.

    Raises:
      UserError: alpha is negative, infinite or NaN.

    Example:
      >>> import jax.numpy as jnp, samon_jax as samon
      >>> samon.gsam(0.5)({"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([3.0, 0.0])})["w"].tolist()
      [3.0, -1.0]

    References:
      Zhuang et al. 2022, Surrogate Gap Minimization Improves Sharpness-Aware Training, algorithm 1.
    """
    FIELDS["gsam_alpha"].check("alpha", alpha)

    def combine(clean: PyTree, perturbed: PyTree) -> PyTree:
        wide = jax.tree.map(widen, perturbed)
        scale, norm = scale_and_norm(jax.tree.leaves(wide))
        unit = jax.tree.map(lambda sharp: sharp / scale / jnp.where(norm > 0, norm, 1), wide)
        along = dot(clean, unit)

        def descend(g: jax.Array, sharp: jax.Array, u: jax.Array) -> jax.Array:
            return (sharp - alpha * (g - along * u)).astype(sharp.dtype)

        return jax.tree.map(descend, clean, perturbed, unit)

    return combine


def gsam_rho(
    learning_rate: optax.Schedule,
    *,
    rho_max: float,
    rho_min: float,
    lr_max: float,
    lr_min: float = 0.0,
) -> optax.Schedule:
    """GSAM's radius, which follows the learning rate from ρ_max down to ρ_min.

    Args:
      learning_rate: schedule of the base optimizer.
      rho_max: ρ where the learning rate is `lr_max`.
      rho_min: ρ where it is `lr_min`, <= `rho_max`.
      lr_max: largest learning rate.
      lr_min: smallest learning rate, < `lr_max`.

    Returns:
      A schedule ρ_min + (ρ_max - ρ_min) (lr - lr_min) / (lr_max - lr_min), for
      `perturbation(rho=...)`.

    Raises:
      UserError: the ranges are empty or negative.

    References:
      Zhuang et al. 2022, section 4.2 and algorithm 1.
    """
    if not 0 <= rho_min <= rho_max:
        raise UserError(
            f"rho_min={rho_min} and rho_max={rho_max} must satisfy 0 <= rho_min <= rho_max"
        )
    if not lr_min < lr_max:
        raise UserError(f"lr_min={lr_min} must be smaller than lr_max={lr_max}")

    def schedule(count: Any) -> jax.Array:
        position = (learning_rate(count) - lr_min) / (lr_max - lr_min)
        return jnp.asarray(rho_min + (rho_max - rho_min) * position)

    return schedule


FIELDS = {
    "rho_min": Field(
        None,
        optional(RADIUS),
        "None = constant radius; else it follows the learning rate, from rho at the largest one to "
        "rho_min at the smallest (GSAM, Zhuang et al. 2022, section 4.2).",
    ),
    "gsam_alpha": Field(
        0.0,
        RADIUS,
        "GSAM (Zhuang et al. 2022): weight of the part of the clean gradient that is orthogonal to "
        "the perturbed one; 0 = SAM.",
    ),
}


def check_radius_falls(fields: Fields, learning_rate: LearningRate | None) -> None:
    """Raises a UserError where `rho_min` cannot be followed; None leaves the schedule unchecked."""
    if fields["rho_min"] is None:
        return
    any_schedule = LearningRate(optax.constant_schedule(0.0), 0.0, 1.0)
    falling_radius(fields, any_schedule if learning_rate is None else learning_rate)


def falling_radius(fields: Fields, learning_rate: LearningRate | None) -> optax.Schedule:
    """The radius after so many steps of a run; unperturbed ones count too.

    Args:
      fields: complete; `rho_min` is not None.
      learning_rate: of the run.

    Raises:
      UserError: `rho_min` exceeds `rho`, or the learning rate is constant.
    """
    rho, rho_min = fields["rho"], fields["rho_min"]
    if rho_min > rho:
        raise UserError(f"rho_min={rho_min} is not allowed; it must be at most rho={rho}")
    if learning_rate is None or not learning_rate.lowest < learning_rate.highest:
        raise UserError(
            f"rho_min={rho_min} is not allowed: rho follows the learning rate, which does not fall"
        )
    schedule = gsam_rho(
        learning_rate.schedule,
        rho_max=rho,
        rho_min=rho_min,
        lr_max=learning_rate.highest,
        lr_min=learning_rate.lowest,
    )
    return lambda step: jnp.asarray(schedule(step), jnp.float32)


def _build(recipe: Recipe, fields: Fields, setting: Setting) -> Recipe:
    if fields["rho_min"] is not None:
        radius, ascent = falling_radius(fields, setting.learning_rate), recipe.ascent

        def with_radius(now: Now) -> optax.GradientTransformation:
            return ascent(now._replace(rho=radius(now.step)))

        recipe = recipe._replace(ascent=with_radius)
    if fields["gsam_alpha"] > 0:
        options = dataclasses.replace(recipe.options, combine=gsam(fields["gsam_alpha"]))
        recipe = recipe._replace(options=options)
    return recipe


def _describe(fields: Fields) -> list[str]:
    falls, alpha = fields["rho_min"] is not None, fields["gsam_alpha"]
    falling = [f"ρ falls to {fields['rho_min']}"] if falls else []
    return falling + ([f"GSAM with α = {alpha:g}"] if alpha > 0 else [])


MEMBER = Member(
    fields=FIELDS,
    used=lambda fields: fields["gsam_alpha"] > 0 or fields["rho_min"] is not None,
    build=_build,
    describe=_describe,
    conflicts=[
        Conflict(
            "gsam_alpha", "ascent_fraction", "the two gradients would belong to different examples"
        )
    ],
)
