"""The one pass of an ascent whose ε is known before the loss is."""

from typing import Any

import jax
import jax.numpy as jnp

from samon_jax._checks import SinglePass
from samon_jax._passes.calls import Leaves
from samon_jax._passes.collectives import pmean
from samon_jax._passes.footprint import footprint
from samon_jax._passes.m_sharpness import AxisName
from samon_jax._passes.parts import Parts
from samon_jax._passes.two_passes import move

PyTree = Any


def one_pass(
    parts: Parts, ascent: SinglePass, ascent_state: PyTree, axis_name: AxisName | None
) -> tuple[jax.Array, PyTree, Leaves, PyTree]:
    """Computes ε, then loss and gradient at w + ε, then the new state.

    Args:
      parts: of the batch, which all share this ε; no leaf is copied.
      ascent: transform.
      ascent_state: the same on every device; the averaged gradient renews it, so it stays so.
      axis_name: mapped axis over devices, if any.

    Returns:
      Loss and aux at w + ε; the gradient there, averaged over the devices; the state of the ascent
      after the step.
    """
    call = parts.call
    moves = footprint(ascent, ascent_state, call.params).moves
    nothing = jax.tree.map(jnp.zeros_like, call.params)
    epsilon, _ = ascent.update(nothing, ascent_state, call.params)
    moved = move(call.leaves, call.treedef.flatten_up_to(epsilon), moves)

    def mean_loss(leaves: Leaves) -> tuple[jax.Array, PyTree]:
        losses, aux = parts.losses(leaves)
        return losses.mean(), aux

    (loss, aux), grads = jax.value_and_grad(mean_loss, has_aux=True)(moved)
    if axis_name is not None:
        grads = pmean(grads, axis_name)
    _, state = ascent.update(call.treedef.unflatten(grads), ascent_state, call.params)
    return loss, aux, grads, state
