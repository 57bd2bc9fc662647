"""Means and sums over devices."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any
AxisName = str | tuple[str, ...]


def pmean(tree: PyTree, axis_name: AxisName) -> PyTree:
    """The mean of a pytree over a mapped axis, in few reductions where many are slow."""
    return _joined(lambda x: jax.lax.pmean(x, axis_name), tree, axis_name)


def psum(
    tree: PyTree, axis_name: AxisName, groups: Sequence[Sequence[int]] | None = None
) -> PyTree:
    """The sum of a pytree over a mapped axis, or over groups of its devices, likewise."""
    return _joined(lambda x: jax.lax.psum(x, axis_name, axis_index_groups=groups), tree, axis_name)


def means_and_counts(means: PyTree, counts: PyTree, axis_name: AxisName) -> tuple[PyTree, PyTree]:
    """`pmean(means), psum(counts)`, in one reduction where each costs milliseconds.

    Args:
      means: of floats.
      counts: integers below 2**24 / devices, which float32 holds exactly.
      axis_name: mapped axis over the devices.
    """
    if not _is_slow():
        return pmean(means, axis_name), psum(counts, axis_name)
    floats = jax.tree.map(lambda x: x.astype(jnp.float32), counts)
    means, floats = psum((means, floats), axis_name)
    size = jax.lax.axis_size(axis_name)
    means = jax.tree.map(lambda x: x / size, means)
    return means, jax.tree.map(lambda x, like: x.astype(like.dtype), floats, counts)


def _is_slow() -> bool:
    """Whether every reduction costs milliseconds, however small it is: between CPU processes."""
    return jax.process_count() > 1 and jax.default_backend() == "cpu"


def _joined(reduce: Callable[[PyTree], PyTree], tree: PyTree, axis_name: AxisName) -> PyTree:
    """Reduces a pytree, all leaves of a dtype as one array where XLA does not join reductions.

    It does on GPU and TPU.
    """
    leaves, treedef = jax.tree.flatten(tree)
    mesh = jax.sharding.get_abstract_mesh()
    divided = set(mesh.axis_names) != set(mesh.manual_axes)  # joining would gather the leaves
    if divided and jax.lax.axis_size(axis_name) == 1:
        return tree  # XLA's partitioner stumbles over a reduction of one device's share
    if not _is_slow() or divided or len(leaves) < 2:
        return reduce(tree)
    dtypes = sorted({x.dtype for x in leaves}, key=str)
    for dtype in dtypes:
        of_dtype = [i for i, x in enumerate(leaves) if x.dtype == dtype]
        joined = reduce(jnp.concatenate([jnp.ravel(leaves[i]) for i in of_dtype]))
        start = 0
        for i in of_dtype:
            size = leaves[i].size
            leaves[i] = jnp.reshape(joined[start : start + size], leaves[i].shape)
            start += size
    return jax.tree.unflatten(treedef, leaves)
