"""What SSAM-F and SSAM-D share: ε under a mask of single entries (Mi et al. 2022).

ε is normalized by the whole gradient and masked afterwards, unlike `perturbation(mask=...)`, where
the norm runs over the selected entries. The number of selected entries is exact.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from samon_jax._fields import Field, integer, number, one_of
from samon_jax._passes.trees import flatten
from samon_jax.errors import UserError
from samon_jax.masks import SPARSITY
from samon_jax.methods._recipe import Conflict

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
    number(0, 1)("sparsity", sparsity)  # 1 selects nothing, which is fine without an ε
    leaves, treedef = flatten(scores)
    flat = concatenate(leaves)
    count = round((1 - sparsity) * flat.size)
    return treedef.unflatten(split_like(largest(flat, count), leaves))


def initial_state(
    ascent: optax.GradientTransformation, sparsity: float, key: jax.Array, params: PyTree
) -> SparseState:
    leaves, treedef = flatten(params)
    lottery = [
        jax.random.uniform(jax.random.fold_in(key, i), leaf.shape) for i, leaf in enumerate(leaves)
    ]
    size = sum(leaf.size for leaf in leaves)
    if round((1 - sparsity) * size) == 0:
        raise UserError(f"sparsity={sparsity} leaves none of the {size} parameters to perturb")
    mask = top_mask(treedef.unflatten(lottery), sparsity)
    count = jnp.zeros((), jnp.int32)
    return SparseState(count, jax.random.key_data(key), mask, ascent.init(params))


def masked_step(
    ascent: optax.GradientTransformation,
    grads: PyTree,
    state: SparseState,
    params: PyTree | None = None,
) -> tuple[PyTree, SparseState]:
    epsilon, ascent_state = ascent.update(grads, state.ascent_state, params)
    epsilon = jax.tree.map(lambda e, m: jnp.where(m, e, 0), epsilon, state.mask)
    count = optax.safe_increment(state.count)
    return epsilon, state._replace(count=count, ascent_state=ascent_state)


@jax.jit
def largest(scores: jax.Array, count: int | jax.Array) -> jax.Array:
    """Bool array that is True at the `count` largest entries of a vector.

    Of equal entries the first are taken; NaN is the smallest. The smallest entry that is taken is
    found by bisection, bit by bit, and so is the last of its equals: some fifty passes over the
    vector, each a comparison and a sum, instead of a sort. Half of 11 million float32 entries took
    1.0 s on two busy cores, where a stable sort took 9.9 s and `jax.lax.top_k` 18.3 s; of one entry
    in 2,000 it is 0.9 s, 12 s and 0.1 s.

    Args:
      scores: [n], of at most 32 bits, or 64 where JAX has them.
      count: integer scalar, 0 <= count <= n.
    """
    keys = _ordered(scores)
    # 0, and each device's own where the scores or the count are: a loop's carry keeps its type.
    start = keys[:0].sum(dtype=keys.dtype) + (count * jnp.zeros((), int)).astype(keys.dtype)
    threshold = _bisect(start, lambda least: (keys >= least).sum() >= count)
    equal = keys == threshold
    missing = count - (keys > threshold).sum()
    index = jnp.arange(scores.size, dtype=jnp.uint32)
    # The largest index before which too few equals lie: those before the next one are enough.
    last = _bisect(start.astype(index.dtype), lambda end: (equal & (index < end)).sum() < missing)
    return (keys > threshold) | (equal & (index <= last) & (missing > 0))


def _bisect(zero: jax.Array, holds: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The largest unsigned integer, of the type of `zero`, up to which `holds` is true."""
    dtype, bits = zero.dtype, jnp.iinfo(zero.dtype).bits

    def set_bit(i: jax.Array, found: jax.Array) -> jax.Array:
        candidate = found | (jnp.ones((), dtype) << (bits - 1 - i).astype(dtype))
        return jnp.where(holds(candidate), candidate, found)

    return jax.lax.fori_loop(0, bits, set_bit, zero)


def _ordered(scores: jax.Array) -> jax.Array:
    """Unsigned integers in the same order; 0 and -0 become equal, and NaN the smallest."""
    if not jnp.issubdtype(scores.dtype, jnp.floating):
        scores = scores.astype(jnp.int32)
    elif scores.dtype.itemsize < 4:
        scores = scores.astype(jnp.float32)
    unsigned = jnp.dtype(f"uint{8 * scores.dtype.itemsize}")
    sign = jnp.ones((), unsigned) << (8 * scores.dtype.itemsize - 1)
    keys = jax.lax.bitcast_convert_type(scores, unsigned)
    if jnp.issubdtype(scores.dtype, jnp.integer):
        return keys ^ sign
    keys = jnp.where(scores == 0, jnp.zeros_like(keys), keys)
    keys = jnp.where((keys & sign) != 0, ~keys, keys | sign)
    return jnp.where(jnp.isnan(scores), jnp.zeros_like(keys), keys)


def concatenate(leaves: list[jax.Array]) -> jax.Array:
    return jnp.concatenate([jnp.ravel(leaf) for leaf in leaves])


def split_like(flat: jax.Array, leaves: list[jax.Array]) -> list[jax.Array]:
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1].tolist()
    parts = jnp.split(flat, ends)
    return [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]


# What both have; their own fields stand in their files.
FIELDS = {
    "sparse": Field(
        "none",
        one_of("none", "ssam_f", "ssam_d"),
        "Sparse perturbations with a mask that changes (Mi et al. 2022; Tables 5 and 12).",
    ),
    "sparsity": Field(
        0.5, SPARSITY, "Share of the parameters' entries that a sparse perturbation leaves out."
    ),
    "sparse_update_epochs": Field(1, integer(1), "Epochs between two changes of the sparse mask."),
}

CONFLICTS = [
    Conflict(
        "mask",
        "sparse",
        "it is normalized by the whole gradient and masked afterwards; choose 'all'",
        allowed="all",
    )
]


def describe(fields: Mapping[str, Any]) -> list[str]:
    """The method, and how its mask changes where that is not the default."""
    name = fields["sparse"].upper().replace("_", "-")
    every = fields["sparse_update_epochs"]
    changes = [f"mask changes every {every} epochs"] if every > 1 else []
    return [f"{name} with sparsity {fields['sparsity']:g}", *changes]
