"""Sparse SAM: ε under a mask of single entries that changes during training (Mi et al. 2022).

ε is normalized by the whole gradient and masked afterwards, unlike `perturbation(mask=...)`, where
the norm runs over the selected entries. The number of selected entries is exact.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from samon_jax.errors import UserError
from samon_jax.m_sharpness import AxisName
from samon_jax.trees import flatten, widen

PyTree = Any


class SparseState(NamedTuple):
    """State of `ssam_f` and `ssam_d`.

    Attributes:
      count: int32 scalar, the number of updates so far.
      key: raw key data, from which the mask is drawn.
      mask: pytree of bool arrays with the parameters' shapes, True where ε may differ from 0.
      ascent_state: state of the wrapped transform.
    """

    count: jax.Array  # type: ignore[assignment]
    key: jax.Array
    mask: PyTree
    ascent_state: PyTree


def ssam_f(
    ascent: optax.GradientTransformation, sparsity: float, key: jax.Array
) -> optax.GradientTransformation:
    """SSAM-F: the mask keeps the entries of largest Fisher information.

    The mask starts at random and changes when told to: every few epochs, estimate the information
    with `fisher_information` and store `state._replace(mask=top_mask(information, sparsity))`.

    Args:
      ascent: transform from gradients to ε of all parameters, for example `variant("sam", 0.1)`.
      sparsity: share of entries left unperturbed, in [0, 1]; published are 0.5 and 0.9995 (Table
        5).
      key: concrete `jax.random.key` of the first mask.

    Returns:
      An optax transform from gradients to ε.

    Raises:
      UserError: sparsity is outside [0, 1].

    Example:
      >>> import jax, jax.numpy as jnp, samon_jax as samon
      >>> params = {"w": jnp.ones(4)}
      >>> ascent = samon.ssam_f(samon.variant("sam", 0.1), sparsity=0.5, key=jax.random.key(0))
      >>> state = ascent.init(params)
      >>> scores = {"w": jnp.array([3.0, 1.0, 4.0, 2.0])}
      >>> state = state._replace(mask=samon.top_mask(scores, 0.5))
      >>> ascent.update({"w": jnp.ones(4)}, state, params)[0]["w"].tolist()
      [0.05000000074505806, 0.0, 0.05000000074505806, 0.0]

    References:
      Mi et al. 2022, Make Sharpness-Aware Minimization Stronger: A Sparsified Perturbation
      Approach, algorithm 1 (SSAM-F); Table 5 of the SAM-ON paper.
    """
    _check_sparsity(sparsity)

    def init(params: PyTree) -> SparseState:
        return _initial_state(ascent, sparsity, key, params)

    def update(
        grads: PyTree, state: SparseState, params: PyTree | None = None
    ) -> tuple[PyTree, SparseState]:
        epsilon, state = _masked_step(ascent, grads, state, params)
        return epsilon, state

    return optax.GradientTransformation(init, update)


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
      sparsity: share of entries left unperturbed, in [0, 1].
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
    _check_sparsity(sparsity)
    if not 0 <= drop <= 1:
        raise UserError(f"drop={drop} must lie in [0, 1]")
    for name, value in (("total_updates", total_updates), ("update_every", update_every)):
        if value < 1:
            raise UserError(f"{name}={value} must be an integer >= 1")

    def init(params: PyTree) -> SparseState:
        return _initial_state(ascent, sparsity, key, params)

    def renew(grads: PyTree, state: SparseState) -> PyTree:
        if axis_name is not None:
            grads = jax.lax.pmean(grads, axis_name)
        progress = jnp.minimum(state.count / total_updates, 1)
        share = drop / 2 * (1 + jnp.cos(jnp.pi * progress))
        step_key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.count)
        return drop_and_regrow(state.mask, grads, share, step_key)

    def update(
        grads: PyTree, state: SparseState, params: PyTree | None = None
    ) -> tuple[PyTree, SparseState]:
        due = (state.count > 0) & (state.count % update_every == 0)
        mask = jax.lax.cond(due, renew, lambda grads, state: state.mask, grads, state)
        return _masked_step(ascent, grads, state._replace(mask=mask), params)

    return optax.GradientTransformation(init, update)


def fisher_information(
    loss_fn: Callable[[PyTree, PyTree], jax.Array], params: PyTree, examples: PyTree
) -> PyTree:
    """Diagonal of the empirical Fisher matrix: the mean of squared per-example gradients.

    Args:
      loss_fn: `loss_fn(params, batch)`, the scalar mean loss of a batch; it gets batches of one
        example.
      params: pytree of parameters.
      examples: pytree of arrays [n, ...]; Mi et al. use n = 128 drawn at random.

    Returns:
      A pytree of `params`' structure and shapes, in float32 or wider: half precision would lose
      what is added to a sum. One gradient at a time is held in memory.

    References:
      Mi et al. 2022, Eq. 6.
    """
    count = len(jax.tree.leaves(examples)[0])

    def add(total: PyTree, example: PyTree) -> tuple[PyTree, None]:
        grads = jax.grad(loss_fn)(params, jax.tree.map(lambda x: x[None], example))
        return jax.tree.map(lambda t, g: t + widen(g) ** 2, total, grads), None

    zeros = jax.tree.map(lambda leaf: widen(jnp.zeros_like(leaf)), params)
    total, _ = jax.lax.scan(add, zeros, examples)
    return jax.tree.map(lambda t: t / count, total)


def top_mask(scores: PyTree, sparsity: float) -> PyTree:
    """Selects the entries of largest score over all leaves together.

    Args:
      scores: pytree of arrays.
      sparsity: share left out, in [0, 1].

    Returns:
      A pytree of bool arrays with exactly `round((1 - sparsity) * number of entries)` True; of
      equal scores, the first are taken.

    Raises:
      UserError: sparsity is outside [0, 1].
    """
    _check_sparsity(sparsity)
    leaves, treedef = flatten(scores)
    flat = _concatenate(leaves)
    count = round((1 - sparsity) * flat.size)
    return treedef.unflatten(_split_like(_largest(flat, count), leaves))


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
    selected = _concatenate(leaves)
    size = jnp.abs(_concatenate(treedef.flatten_up_to(grads))).astype(jnp.float32)
    size = jnp.where(jnp.isnan(size), jnp.inf, size)  # sorted as it is, it would come last
    held = selected.sum()
    exchanged = jnp.minimum(jnp.floor(share * held).astype(jnp.int32), selected.size - held)
    kept = _largest(jnp.where(selected, size, -1), held - exchanged)
    lottery = jax.random.uniform(key, selected.shape)
    entered = _largest(jnp.where(selected, -1, lottery), exchanged)
    return treedef.unflatten(_split_like(kept | entered, leaves))


def _initial_state(
    ascent: optax.GradientTransformation, sparsity: float, key: jax.Array, params: PyTree
) -> SparseState:
    leaves, treedef = flatten(params)
    lottery = [
        jax.random.uniform(jax.random.fold_in(key, i), leaf.shape) for i, leaf in enumerate(leaves)
    ]
    mask = top_mask(treedef.unflatten(lottery), sparsity)
    count = jnp.zeros((), jnp.int32)
    return SparseState(count, jax.random.key_data(key), mask, ascent.init(params))


def _masked_step(
    ascent: optax.GradientTransformation, grads: PyTree, state: SparseState, params: PyTree | None
) -> tuple[PyTree, SparseState]:
    epsilon, ascent_state = ascent.update(grads, state.ascent_state, params)
    epsilon = jax.tree.map(lambda e, m: jnp.where(m, e, 0), epsilon, state.mask)
    count = optax.safe_increment(state.count)
    return epsilon, state._replace(count=count, ascent_state=ascent_state)


def _largest(scores: jax.Array, count: int | jax.Array) -> jax.Array:
    """Bool array that is True at the `count` largest entries of a vector."""
    order = jnp.argsort(-scores, stable=True)
    return jnp.zeros(scores.shape, bool).at[order].set(jnp.arange(scores.size) < count)


def _concatenate(leaves: list[jax.Array]) -> jax.Array:
    return jnp.concatenate([jnp.ravel(leaf) for leaf in leaves])


def _split_like(flat: jax.Array, leaves: list[jax.Array]) -> list[jax.Array]:
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1].tolist()
    parts = jnp.split(flat, ends)
    return [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]


def _check_sparsity(sparsity: float) -> None:
    if not 0 <= sparsity <= 1:
        raise UserError(f"sparsity={sparsity} must lie in [0, 1]")
