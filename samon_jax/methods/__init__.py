"""Methods of the family, one file each, and the one that a config's fields describe.

A new method is one file, which declares a `MEMBER`, and its line in `MEMBERS`.
"""

from typing import Any

import jax
import optax

from samon_jax._fields import Field
from samon_jax._passes.collectives import pmean
from samon_jax._passes.m_sharpness import sharing_of, vary
from samon_jax.errors import UserError
from samon_jax.masks import Mask, no_norm, only_norm
from samon_jax.methods import esam, gsam, looksam, sam, single_pass, ssam_d, ssam_f
from samon_jax.methods._recipe import Fields, Member, Recipe, Setting, check_conflicts, check_ranges
from samon_jax.methods.method import (
    PLAIN,
    RENEW,
    REUSE,
    SHARP,
    Gradient,
    LearningRate,
    LossesFn,
    Method,
    Now,
)
from samon_jax.methods.sam import NO_PERTURBATION, mean_of

__all__ = [
    "FIELDS",
    "MEMBERS",
    "NO_PERTURBATION",
    "PLAIN",
    "RENEW",
    "REUSE",
    "SHARP",
    "Gradient",
    "LearningRate",
    "LossesFn",
    "Member",
    "Method",
    "Now",
    "changes",
    "check",
    "describe",
    "from_fields",
]

PyTree = Any

# In the order in which they change the recipe: masks of single entries act on ε as ESAM thins it.
MEMBERS: tuple[Member, ...] = (
    sam.MEMBER,
    gsam.MEMBER,
    esam.MEMBER,
    ssam_f.MEMBER,
    ssam_d.MEMBER,
    looksam.MEMBER,
    single_pass.MEMBER,
)
FIELDS: dict[str, Field] = {
    name: field for member in MEMBERS for name, field in member.fields.items()
}


def check(
    fields: Fields,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    num_devices: int = 1,
    learning_rate: LearningRate | None = None,
    trainable: Mask | None = None,
    prefix: str = "sam.",
) -> None:
    """Checks ranges and combinations without building anything.

    Args:
      fields: every name of `FIELDS`.
      epochs: of the run; None leaves the epochs of the perturbation unchecked.
      batch_size: examples of a step over all devices; None leaves `m` unchecked.
      num_devices: devices that share a batch.
      learning_rate: of the run, which a `rho_min` must be able to follow; None leaves that
        unchecked.
      trainable: `samon_jax.no_norm`, `samon_jax.only_norm` or None, as trained.
      prefix: of the fields' names in messages.

    Raises:
      UserError: the first field that is not allowed, with its value and what is.

    Example:
      >>> values = {name: field.default for name, field in FIELDS.items()}
      >>> check(values | {"rho": -1.0})
      Traceback (most recent call last):
        ...
      samon_jax.errors.UserError: sam.rho=-1.0 is not allowed; it must be a finite number >= 0
    """
    check_ranges(MEMBERS, fields, prefix)
    if fields["variant"] == NO_PERTURBATION:
        return
    check_conflicts(MEMBERS, fields, prefix)
    try:
        sam.check_epochs(fields, epochs)
        sam.check_eta(fields)
        gsam.check_radius_falls(fields, learning_rate)
    except UserError as error:  # it begins with the name of a field
        raise UserError(f"{prefix}{error}") from None
    if fields["m"] and batch_size is not None:
        sharing_of(fields["m"], batch_size // num_devices, num_devices, f"{prefix}m")
    _check_trainable(fields, trainable, prefix)


def from_fields(
    fields: Fields,
    *,
    epochs: int,
    steps_per_epoch: int,
    learning_rate: LearningRate | None = None,
    trainable: Mask | None = None,
    axis_name: str | None = None,
    prefix: str = "sam.",
) -> Method:
    """The method that fields describe.

    Runs that differ in nothing but seed and ρ share its programs: both are data, see `Now`. With
    `rho_min` the radius follows the learning rate instead, and `now.rho` is not read.

    Args:
      fields: every name of `FIELDS`.
      epochs: of the run.
      steps_per_epoch: steps in one of them.
      learning_rate: of the run; needed with `rho_min`.
      trainable: mask of the parameters that are trained, `samon_jax.no_norm`,
        `samon_jax.only_norm` or None for all. The others are not perturbed either.
      axis_name: mapped axis over devices, if any.
      prefix: of the fields' names in messages.

    Returns:
      The method. Its losses and auxes are a device's own, and so are its gradients unless it
      `averages`.

    Raises:
      UserError: a field is not allowed.

    Example:
      >>> import jax, jax.numpy as jnp, samon_jax as samon
      >>> values = {name: field.default for name, field in FIELDS.items()}
      >>> values |= {"variant": "sam", "mask": "all", "rho": 0.5}
      >>> method = from_fields(values, epochs=1, steps_per_epoch=10)
      >>> def losses_fn(params, batch, train=True):
      ...     return (params["w"] * batch - 1) ** 2, ()
      >>> params, now = {"w": jnp.ones(())}, Now(seed=0, rho=0.5, step=0)
      >>> state = method.init(params, now)
      >>> found = method.gradient(losses_fn, params, state, jnp.array([3.0]), now, method.kind(0))
      >>> float(found.loss), float(found.grads["w"])  # 2 * 3 * (1.5 * 3 - 1)
      (4.0, 21.0)
    """
    rate = learning_rate
    if rate is None and fields.get("rho_min") is not None:
        rate = LearningRate(optax.constant_schedule(0.0), 0.0, 0.0)  # there is none to follow
    check(fields, epochs=epochs, learning_rate=rate, trainable=trainable, prefix=prefix)
    if fields["variant"] == NO_PERTURBATION:
        return _plain(axis_name)
    setting = Setting(epochs, steps_per_epoch, rate, trainable, axis_name)
    recipe = sam.plain_sam(fields, setting)
    for member in MEMBERS:
        if member.used(fields):
            recipe = member.build(recipe, fields, setting)
    return _cook(recipe, fields, setting, prefix)


def changes(fields: Fields, *, epochs: int, batch_size: int | None) -> list[str]:
    """What a method does unlike plain SAM of its variant, mask and radius, one entry each.

    Args:
      fields: every name of `FIELDS`.
      epochs: of the run.
      batch_size: examples of a step; None where steps differ in them.
    """
    if fields["variant"] == NO_PERTURBATION:
        return []
    found = [text for m in MEMBERS if m.used(fields) for text in m.describe(fields)]
    if fields["m"] and (batch_size is None or fields["m"] < batch_size):
        found.append(f"m = {fields['m']}")
    start, stop = fields["start"], fields["stop"] or epochs
    if (start, stop) != (0, epochs):
        found.append(f"perturbed in epochs {start} to {stop}")
    return found


def describe(fields: Fields, *, epochs: int, batch_size: int | None) -> str:
    """The method in one line, with every setting that is not the default.

    Args:
      fields: every name of `FIELDS`.
      epochs: of the run.
      batch_size: examples of a step; None where steps differ in them.

    Example:
      >>> values = {name: field.default for name, field in FIELDS.items()}
      >>> describe(values | {"gsam_alpha": 0.4}, epochs=200, batch_size=128)
      'layerwise_l2, only_norm, ρ = 0.2, GSAM with α = 0.4'
    """
    if fields["variant"] == NO_PERTURBATION:
        return "no perturbation"
    first = [fields["variant"], fields["mask"], f"ρ = {fields['rho']:g}"]
    return ", ".join([*first, *changes(fields, epochs=epochs, batch_size=batch_size)])


def _check_trainable(fields: Fields, trainable: Mask | None, prefix: str) -> None:
    """Raises a UserError where what is not trained leaves nothing to perturb."""
    mask, sparse = fields["mask"], fields["sparse"]
    if trainable is no_norm and mask.startswith("only_norm"):
        raise UserError(
            f"{prefix}mask={mask!r} is not allowed with fix_norm=True: the norm parameters are "
            "fixed, so nothing would be perturbed"
        )
    if trainable is only_norm and mask == "no_norm":
        raise UserError(
            f"{prefix}mask={mask!r} is not allowed with train_only_norm=True: only norm parameters "
            "are trained, so nothing would be perturbed"
        )
    if trainable is not None and sparse != "none":
        frozen = "fix_norm" if trainable is no_norm else "train_only_norm"
        raise UserError(
            f"{frozen}=True is not allowed with {prefix}sparse={sparse!r}: its sparsity counts all "
            "parameters, fixed ones included"
        )


def _plain(axis_name: str | None) -> Method:
    """No perturbation at all."""

    def gradient(
        losses_fn: LossesFn, params: PyTree, state: PyTree, batch: PyTree, now: Now, kind: str
    ) -> Gradient:
        return _plain_gradient(losses_fn, params, state, batch, axis_name, average=False)

    return Method(lambda params, now: (), gradient, lambda step: PLAIN, (PLAIN,))


def _cook(recipe: Recipe, fields: Fields, setting: Setting, prefix: str) -> Method:
    """The method of a finished recipe."""
    perturbed = setting.perturbed_epochs(fields)
    first = perturbed.start * setting.steps_per_epoch

    def init(params: PyTree, now: Now) -> PyTree:
        try:
            return recipe.init(recipe.ascent(now), params)
        except UserError as error:
            raise UserError(f"{prefix}mask={fields['mask']!r} is not allowed: {error}") from None

    def gradient(
        losses_fn: LossesFn, params: PyTree, state: PyTree, batch: PyTree, now: Now, kind: str
    ) -> Gradient:
        if kind == PLAIN:
            axis_name, average = setting.axis_name, recipe.averages
            return _plain_gradient(losses_fn, params, state, batch, axis_name, average)
        fn = recipe.passes[kind](losses_fn, recipe.ascent(now), recipe.options)
        (loss, aux), grads, state = fn(params, state, batch)
        clean, sharp = aux if recipe.options.aux_from == "both" else (aux, aux)
        return Gradient(loss, clean, sharp, grads, state)

    def kind(step: int) -> str:
        if step // setting.steps_per_epoch not in perturbed:
            return PLAIN
        return recipe.due(step - first)

    always = len(perturbed) == setting.epochs
    kinds = (*(() if always else (PLAIN,)), *recipe.passes)
    return Method(init, gradient, kind, kinds, recipe.period, recipe.averages)


def _plain_gradient(
    losses_fn: LossesFn,
    params: PyTree,
    state: PyTree,
    batch: PyTree,
    axis_name: str | None,
    average: bool,
) -> Gradient:
    """The gradient at w of the mean loss, averaged over the devices or not; the state stays."""
    if axis_name is not None:
        params = jax.tree.map(lambda leaf: vary(leaf, axis_name), params)
    (loss, aux), grads = jax.value_and_grad(mean_of(losses_fn), has_aux=True)(params, batch)
    if axis_name is not None and average:
        grads = pmean(grads, axis_name)
    return Gradient(loss, aux, aux, grads, state)
