"""The two passes of SAM, which share what the perturbation cannot reach."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from samon_jax.prefix import split

PyTree = Any
Leaves = list[jax.Array]
LossFn = Callable[[Leaves], tuple[jax.Array, PyTree]]


class Passes(NamedTuple):
    """What the two passes give.

    Attributes:
      losses: at w, [] or [parts].
      aux: at w and at w + ε.
      clean_grads: gradient at w of the sum of the losses, 0 for leaves that were not asked for.
      grads: gradient at w + ε of the mean loss.
      state: of the ascent, after the step.
    """

    losses: jax.Array
    aux: tuple[PyTree, PyTree]
    clean_grads: Leaves
    grads: Leaves
    state: PyTree


def two_passes(
    loss_fn: LossFn,
    leaves: Leaves,
    moves: list[bool],
    reads: list[bool],
    ascend: Callable[[Leaves], tuple[Leaves, PyTree]],
    reuse_prefix: bool,
) -> Passes:
    """Computes the gradient at w, ε from it, and the gradient at w + ε.

    Args:
      loss_fn: the leaves to losses, [] or [parts], and aux.
      leaves: the parameters w.
      moves: which leaves `ascend` perturbs.
      reads: of which leaves the gradient at w is needed.
      ascend: gradients at w to ε and the new state.
      reuse_prefix: compute what the moved leaves cannot reach only once.
    """
    if not any(moves):
        losses, aux, clean_grads = _gradient(loss_fn, leaves, [True] * len(leaves))
        _, state = ascend(clean_grads)
        grads = [g / losses.size for g in clean_grads]
        return Passes(losses, (aux, aux), clean_grads, grads, state)

    prefix, suffix = _stage(loss_fn, leaves, moves, reuse_prefix)
    # Gradients of leaves that act through the prefix need a first pass of their own through it.
    inside_suffix = all(moved or not read for moved, read in zip(moves, reads, strict=True))

    def perturbed_loss(leaves: Leaves) -> tuple[jax.Array, Passes]:
        """The second pass, with the first one inside: gradients flow through the second alone."""
        shared = prefix(leaves)
        held, held_shared = jax.lax.stop_gradient((leaves, shared))
        first = (lambda x: suffix(x, held_shared)) if inside_suffix else loss_fn
        losses, aux, clean_grads = _gradient(first, held, reads)
        epsilon, state = ascend(clean_grads)
        moved = [
            (leaf + jax.lax.stop_gradient(step)).astype(leaf.dtype) if moves_it else leaf
            for leaf, step, moves_it in zip(leaves, epsilon, moves, strict=True)
        ]
        perturbed_losses, perturbed_aux = suffix(moved, shared)
        passes = Passes(losses, (aux, perturbed_aux), clean_grads, [], state)
        return perturbed_losses.mean(), passes

    grads, passes = jax.grad(perturbed_loss, has_aux=True)(leaves)
    return passes._replace(grads=grads)


def _gradient(
    loss_fn: LossFn, leaves: Leaves, wanted: Sequence[bool]
) -> tuple[jax.Array, PyTree, Leaves]:
    """Losses, aux, and the gradient of the losses' sum by the wanted leaves, else zeros."""
    chosen = [leaf for leaf, want in zip(leaves, wanted, strict=True) if want]

    def summed(chosen: Leaves) -> tuple[jax.Array, tuple[jax.Array, PyTree]]:
        rest = iter(chosen)
        full = [next(rest) if want else x for x, want in zip(leaves, wanted, strict=True)]
        losses, aux = loss_fn(full)
        return losses.sum(), (losses, aux)

    grads, (losses, aux) = jax.grad(summed, has_aux=True)(chosen)
    found = iter(grads)
    zeros = [next(found) if w else jnp.zeros_like(x) for x, w in zip(leaves, wanted, strict=True)]
    return losses, aux, zeros


def _stage(
    loss_fn: LossFn, leaves: Leaves, moves: list[bool], reuse_prefix: bool
) -> tuple[Callable[[Leaves], list[Any]], Callable[..., tuple[jax.Array, PyTree]]]:
    """The loss as `suffix(leaves, prefix(leaves))`, where the moved leaves cannot reach prefix."""
    found = None
    if reuse_prefix:
        closed_jaxpr, shapes = jax.make_jaxpr(loss_fn, return_shape=True)(leaves)
        found = split(closed_jaxpr, moves)
    if found is None:
        return lambda leaves: [], lambda leaves, shared: loss_fn(leaves)
    parts, outputs = found, jax.tree.structure(shapes)

    def suffix(leaves: Leaves, shared: list[Any]) -> tuple[jax.Array, PyTree]:
        return jax.tree.unflatten(outputs, parts.suffix(leaves, shared))

    return parts.prefix, suffix
