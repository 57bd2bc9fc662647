"""SSAM-D: ε under a mask that drops its flattest entries and regrows others (Mi et al. 2022)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from samon_jax._checks import Ascent, check_inner
from samon_jax._fields import Field, integer, number
from samon_jax._passes.collectives import pmean
from samon_jax._passes.m_sharpness import AxisName
from samon_jax._passes.trees import flatten
from samon_jax.masks import SPARSITY
from samon_jax.methods import _sparse
from samon_jax.methods._recipe import Fields, Member, Recipe, Setting, keys_of
from samon_jax.methods._sparse import (
    SparseState,
    concatenate,
    initial_state,
    largest,
    masked_step,
    split_like,
)
from samon_jax.methods.method import Now

PyTree = Any


def ssam_d(
    ascent: optax.GradientTransformation,
    sparsity: float,
    key: jax.Array,
    *,
    total_updates: int,
    drop: float = 0.5,
    update_every: int = 1,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformation:
    """SSAM-D: the mask drops its flattest entries and regrows as many at random.

    Every `update_every` updates, the share `drop / 2 (1 + cos(π t / total_updates))` of the
    selected entries with the smallest |gradient| leaves the mask, and the same number of unselected
    ones, drawn uniformly, enters.

    It reads the gradients of all parameters, so that nothing is saved in the first pass, whatever
    the mask of `ascent`. With `m` parts of a batch, each follows its own gradients within the step;
    the mask that stays is that of their mean.

    Args:
      ascent: transform from gradients to ε of all parameters.
      sparsity: share of entries left unperturbed, in [0, 1).
      key: concrete `jax.random.key`.
      total_updates: T of the cosine, the updates of the whole training.
      drop: share dropped at the beginning, in [0, 1].
      update_every: updates between changes of the mask, >= 1.
      axis_name: mapped axis over devices. The gradient by which the mask changes is averaged over
        it, so that the mask, unlike ε, is the same on every device. With several devices it is
        needed: without it, the mask of each follows its own examples.

    Returns:
      An optax transform from gradients to ε.

    Raises:
      UserError: an argument is not allowed.

    References:
      Mi et al. 2022, algorithm 2 (SSAM-D).
    """
    check_inner(ascent)
    SPARSITY("sparsity", sparsity)
    FIELDS["drop"].check("drop", drop)
    integer(1)("total_updates", total_updates)
    integer(1)("update_every", update_every)

    def renew(grads: PyTree, state: SparseState) -> PyTree:
        if axis_name is not None:
            grads = pmean(grads, axis_name)
        progress = jnp.minimum(state.count / total_updates, 1)
        share = drop / 2 * (1 + jnp.cos(jnp.pi * progress))
        step_key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.count)
        return drop_and_regrow(state.mask, grads, share, step_key)

    def keep(grads: PyTree, state: SparseState) -> PyTree:
        if axis_name is not None:
            return state.mask
        # Each device's own where the gradients are, for both branches must give the same type.
        return jax.tree.map(lambda m, g: m & (jnp.zeros_like(g) == 0), state.mask, grads)

    def update(
        grads: PyTree, state: SparseState, params: PyTree | None = None
    ) -> tuple[PyTree, SparseState]:
        due = (state.count > 0) & (state.count % update_every == 0)
        mask = jax.lax.cond(due, renew, keep, grads, state)
        return masked_step(ascent, grads, state._replace(mask=mask), params)

    return Ascent(partial(initial_state, ascent, sparsity, key), update)


def drop_and_regrow(mask: PyTree, grads: PyTree, share: jax.Array, key: jax.Array) -> PyTree:
    """Exchanges a share of the selected entries; the number of selected entries stays the same.

    Args:
      mask: pytree of bool arrays.
      grads: pytree of arrays of the same shapes; the selected entries with the smallest magnitudes
        are dropped; NaN counts as infinite.
      share: float scalar in [0, 1]; `floor(share * selected)` entries are exchanged, at most as
        many as are unselected.
      key: `jax.random.key`, for the entries that enter.

    Returns:
      The new mask. An entry that was dropped does not enter again at once.
    """
    leaves, treedef = flatten(mask)
    selected = concatenate(leaves)
    size = jnp.abs(concatenate(treedef.flatten_up_to(grads))).astype(jnp.float32)
    size = jnp.where(jnp.isnan(size), jnp.inf, size)  # sorted as it is, it would come last
    held = selected.sum()
    exchanged = jnp.minimum(jnp.floor(share * held).astype(jnp.int32), selected.size - held)
    kept = largest(jnp.where(selected, size, -1), held - exchanged)
    lottery = jax.random.uniform(key, selected.shape)
    entered = largest(jnp.where(selected, -1, lottery), exchanged)
    return treedef.unflatten(split_like(kept | entered, leaves))


FIELDS = {
    **_sparse.FIELDS,
    "drop": Field(
        0.5,
        number(0, 1),
        "SSAM-D: share of the mask exchanged at first; falls along a cosine to 0.",
    ),
}


def _build(recipe: Recipe, fields: Fields, setting: Setting) -> Recipe:
    inner, steps = recipe.ascent, setting.steps_per_epoch

    def ascent(now: Now) -> optax.GradientTransformation:
        return ssam_d(
            inner(now),
            fields["sparsity"],
            keys_of(now)[1],
            total_updates=max(len(setting.perturbed_epochs(fields)) * steps, 1),
            drop=fields["drop"],
            update_every=fields["sparse_update_epochs"] * steps,
            axis_name=setting.axis_name,
        )

    return recipe._replace(ascent=ascent)


def _describe(fields: Fields) -> list[str]:
    drop = fields["drop"]
    default = drop == FIELDS["drop"].default
    return _sparse.describe(fields) + ([] if default else [f"drop {drop:g}"])


MEMBER = Member(
    fields=FIELDS,
    used=lambda fields: fields["sparse"] == "ssam_d",
    build=_build,
    describe=_describe,
)
