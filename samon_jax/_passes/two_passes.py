"""The two passes of SAM, which share what the perturbation cannot reach."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from samon_jax._passes.calls import Leaves
from samon_jax._passes.prefix import split

PyTree = Any
LossFn = Callable[[Leaves], tuple[jax.Array, PyTree]]
Suffix = Callable[[Leaves, list[Any]], tuple[jax.Array, PyTree]]


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
    first_loss_fn: LossFn | None = None,
    second_loss_fn: Callable[[Leaves, PyTree, PyTree], tuple[jax.Array, PyTree]] | None = None,
) -> Passes:
    """Computes the gradient at w, ε from it, and the gradient at w + ε.

    Args:
      loss_fn: the leaves to losses, [] or [parts], and aux.
      leaves: the parameters w.
      moves: which leaves `ascend` perturbs.
      reads: of which leaves the gradient at w is needed.
      ascend: gradients at w to ε and the new state.
      reuse_prefix: compute what the moved leaves cannot reach only once.
      first_loss_fn: the loss of the first pass, if it sees other examples; nothing is shared then.
      second_loss_fn: the loss of the second pass, if it sees other examples, from the leaves w + ε
        and the aux of the first pass at w and of a forward pass of the same examples at w + ε.
    """
    if first_loss_fn is None and second_loss_fn is None and not any(moves):
        losses, aux, clean_grads = gradient(loss_fn, leaves, [True] * len(leaves))
        _, state = ascend(clean_grads)
        grads = [g / losses.size for g in clean_grads]
        return Passes(losses, (aux, aux), clean_grads, grads, state)

    prefix, suffix, first_suffix = stage(
        loss_fn, leaves, moves, reads, reuse_prefix and first_loss_fn is None
    )

    def perturbed_loss(leaves: Leaves) -> tuple[jax.Array, Passes]:
        """The second pass, with the first one inside: gradients flow through the second alone."""
        shared = prefix(leaves)
        held, held_shared = jax.lax.stop_gradient((leaves, shared))
        first = first_loss_fn or (lambda x: first_suffix(x, held_shared))
        losses, aux, clean_grads = gradient(first, held, reads)
        epsilon, state = ascend(clean_grads)
        moved = move(leaves, epsilon, moves)
        if second_loss_fn is None:
            perturbed_losses, perturbed_aux = suffix(moved, shared)
        else:
            _, seen = suffix(jax.lax.stop_gradient(moved), held_shared)
            perturbed_losses, perturbed_aux = second_loss_fn(moved, aux, seen)
        passes = Passes(losses, (aux, perturbed_aux), clean_grads, [], state)
        return perturbed_losses.mean(), passes

    grads, passes = jax.grad(perturbed_loss, has_aux=True)(leaves)
    return passes._replace(grads=grads)


def move(leaves: Leaves, epsilon: Leaves, moves: Sequence[bool]) -> Leaves:
    """Adds ε to w, in the dtypes of w; no gradient flows through ε."""
    return [
        (leaf + jax.lax.stop_gradient(step)).astype(leaf.dtype) if moves_it else leaf
        for leaf, step, moves_it in zip(leaves, epsilon, moves, strict=True)
    ]


def gradient(
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


def stage(
    loss_fn: LossFn, leaves: Leaves, moves: list[bool], reads: list[bool], reuse_prefix: bool
) -> tuple[Callable[[Leaves], list[Any]], Suffix, Suffix]:
    """Splits a loss into what the moved leaves cannot reach and the rest.

    Args:
      loss_fn: the leaves to losses and aux.
      leaves: the parameters.
      moves: which of them are perturbed.
      reads: of which of them a gradient is taken in the first pass.
      reuse_prefix: False leaves everything in the suffix.

    Returns:
      The prefix, from the leaves to what the moved ones cannot reach; the suffix, from the leaves
      and the values of the prefix to losses and aux, `loss_fn(leaves) == suffix(leaves,
      prefix(leaves))`; the same, and right for the gradient of every leaf whose gradient is read.
    """

    def whole(leaves: Leaves, shared: list[Any]) -> tuple[jax.Array, PyTree]:
        return loss_fn(leaves)

    found = None
    if reuse_prefix:
        closed_jaxpr, shapes = jax.make_jaxpr(loss_fn, return_shape=True)(leaves)
        found = split(closed_jaxpr, moves)
    if found is None:
        return lambda leaves: [], whole, whole
    parts, outputs = found, jax.tree.structure(shapes)

    def suffix(leaves: Leaves, shared: list[Any]) -> tuple[jax.Array, PyTree]:
        return jax.tree.unflatten(outputs, parts.suffix(leaves, shared))

    # Gradients of leaves that act through the prefix need a first pass of their own through it.
    inside_suffix = all(moved or not read for moved, read in zip(moves, reads, strict=True))
    return parts.prefix, suffix, suffix if inside_suffix else whole
