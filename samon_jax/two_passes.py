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
    fixed = [i for i, moved in enumerate(moves) if not moved]
    staged = _stage(loss_fn, leaves, moves, reuse_prefix)

    def prefix(fixed_leaves: Leaves) -> tuple[Leaves, Leaves]:
        return staged.prefix(_replace(leaves, fixed, fixed_leaves))

    flowing, pull_prefix, constant = jax.vjp(prefix, [leaves[i] for i in fixed], has_aux=True)

    def gradient(
        leaves: Leaves, wanted: list[int], scale: float
    ) -> tuple[jax.Array, PyTree, Leaves]:
        """Losses, aux, and the gradient of `scale` times their sum, 0 for unwanted leaves."""
        through_prefix = not set(fixed).isdisjoint(wanted)

        def suffix(wanted_leaves: Leaves, flowing: Leaves) -> tuple[jax.Array, PyTree]:
            return staged.suffix(_replace(leaves, wanted, wanted_leaves), flowing, constant)

        inputs = [leaves[i] for i in wanted]
        grads = [jnp.zeros_like(leaf) for leaf in leaves]
        if not through_prefix:
            losses, pull, aux = jax.vjp(lambda x: suffix(x, flowing), inputs, has_aux=True)
            (found,) = pull(jnp.full_like(losses, scale))
            return losses, aux, _replace(grads, wanted, found)
        losses, pull, aux = jax.vjp(suffix, inputs, flowing, has_aux=True)
        found, found_flowing = pull(jnp.full_like(losses, scale))
        grads = _replace(grads, wanted, found)
        (found_fixed,) = pull_prefix(found_flowing)
        for i, more in zip(fixed, found_fixed, strict=True):
            if i in wanted:
                grads[i] = grads[i] + more
        return losses, aux, grads

    everything = list(range(len(leaves)))
    wanted = [i for i, read in enumerate(reads) if read] if any(moves) else everything
    losses, aux, clean_grads = gradient(leaves, wanted, 1.0)
    epsilon, state = ascend(clean_grads)
    average = 1 / losses.size
    if not any(moves):
        grads = [g * average for g in clean_grads]
        return Passes(losses, (aux, aux), clean_grads, grads, state)
    perturbed = [
        (leaf + step).astype(leaf.dtype) if moved else leaf
        for leaf, step, moved in zip(leaves, epsilon, moves, strict=True)
    ]
    _, perturbed_aux, grads = gradient(perturbed, everything, average)
    return Passes(losses, (aux, perturbed_aux), clean_grads, grads, state)


class _Staged(NamedTuple):
    """A loss as `suffix(leaves, *prefix(leaves))`.

    Attributes:
      prefix: the leaves to interface values that gradients flow through, and the constant ones.
      suffix: leaves and interface values to losses and aux.
    """

    prefix: Callable[[Leaves], tuple[Leaves, Leaves]]
    suffix: Callable[[Leaves, Leaves, Leaves], tuple[jax.Array, PyTree]]


def _stage(loss_fn: LossFn, leaves: Leaves, moves: list[bool], reuse_prefix: bool) -> _Staged:
    found = None
    if reuse_prefix and any(moves):
        closed_jaxpr, shapes = jax.make_jaxpr(loss_fn, return_shape=True)(leaves)
        found = split(closed_jaxpr, moves)
    if found is None:
        return _Staged(lambda leaves: ([], []), lambda leaves, *_: loss_fn(leaves))
    parts, outputs = found, jax.tree.structure(shapes)

    def prefix(leaves: Leaves) -> tuple[Leaves, Leaves]:
        values = list(zip(parts.prefix(leaves), parts.differentiable, strict=True))
        return [v for v, flows in values if flows], [v for v, flows in values if not flows]

    def suffix(leaves: Leaves, flowing: Leaves, constant: Leaves) -> tuple[jax.Array, PyTree]:
        sources = {True: iter(flowing), False: iter(constant)}
        interface = [next(sources[flows]) for flows in parts.differentiable]
        return jax.tree.unflatten(outputs, parts.suffix(leaves, interface))

    return _Staged(prefix, suffix)


def _replace(values: Sequence[Any], indices: Sequence[int], new: Sequence[Any]) -> list[Any]:
    result = list(values)
    for i, value in zip(indices, new, strict=True):
        result[i] = value
    return result
