"""One call of a loss, taken apart: parameters as leaves, and the arguments that hold examples."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from samon_jax._checks import check_params
from samon_jax._passes.examples import positions
from samon_jax._passes.m_sharpness import AxisName, vary
from samon_jax._passes.trees import flatten
from samon_jax.errors import UserError
from samon_jax.labels import path_strings

PyTree = Any
Leaves = list[jax.Array]

# The examples of the second pass, from the batch and the aux of passes over it at w and at w + ε.
Choose = Callable[[list[Any], PyTree, PyTree], list[Any]]


@dataclasses.dataclass(frozen=True)
class Options:
    """The keyword arguments of `value_and_grad`, where they are explained.

    Attributes:
      select: the batch to how the examples of the second pass are chosen, or to None for all.
      average: whether the gradients are averaged over the devices; False leaves it to the caller.
      why: the option because of which the examples must be known, for messages; None if none is.
    """

    has_aux: bool = False
    axis_name: AxisName | None = None
    m: int | None = None
    batch_argnums: int | Sequence[int] | None = None
    reuse_prefix: bool = True
    aux_from: str = "clean"
    combine: Callable[[PyTree, PyTree], PyTree] | None = None
    ascent_fraction: float = 1.0
    select: Callable[[list[Any]], Choose | None] | None = None
    average: bool = True
    why: str | None = None


class Call(NamedTuple):
    """A call `loss_fn(params, *args, **kwargs)`.

    Attributes:
      leaves: the parameters, one copy per device.
      treedef: their structure.
      batch: the arguments that hold examples.
      loss: leaves and batch to loss and aux, () if there is none.
    """

    leaves: Leaves
    treedef: Any
    batch: list[Any]
    loss: Callable[[Leaves, list[Any]], tuple[jax.Array, PyTree]]

    @property
    def params(self) -> PyTree:
        """The parameters as the caller knows them."""
        return self.treedef.unflatten(self.leaves)


def bind(
    loss_fn: Callable[..., Any],
    params: PyTree,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    options: Options,
) -> Call:
    """Takes a call apart.

    Args:
      loss_fn: returns a scalar, or `(scalar, aux)`.
      params: the parameters.
      args: the positional arguments after them.
      kwargs: the others.
      options: how; without `why`, the batch is empty.

    Raises:
      UserError: a parameter has no real gradient, or the examples cannot be found.
    """
    leaves, treedef = real_leaves(params, options.axis_name)
    why = options.why
    argnums = () if why is None else positions(options.batch_argnums, len(args), why)

    def loss(leaves: Leaves, batch: list[Any]) -> tuple[jax.Array, PyTree]:
        full = list(args)
        for i, part in zip(argnums, batch, strict=True):
            full[i] = part
        result = loss_fn(treedef.unflatten(leaves), *full, **kwargs)
        value, aux = take_apart(result, options.has_aux)
        if jnp.shape(value) != ():
            raise TypeError(f"loss_fn must return a scalar loss, not shape {jnp.shape(value)}")
        return jnp.asarray(value), aux

    return Call(leaves, treedef, [args[i] for i in argnums], loss)


def take_apart(result: Any, has_aux: bool, name: str = "loss_fn") -> tuple[Any, PyTree]:
    """What a loss function returned, as loss and aux, which is () where there is none.

    Raises:
      UserError: it is a pair without `has_aux`, or none with it.
    """
    if has_aux and not (isinstance(result, tuple | list) and len(result) == 2):
        raise UserError(f"has_aux=True: {name} must return a pair, (loss, aux)")
    if not has_aux and isinstance(result, tuple | list | dict):
        raise UserError(f"has_aux=False: {name} must return a loss alone; for (loss, aux), set it")
    return result if has_aux else (result, ())


def real_leaves(params: PyTree, axis_name: AxisName | None) -> tuple[Leaves, Any]:
    """The parameters as arrays, one copy per device, and their structure.

    Raises:
      UserError: a parameter has no real gradient; it is named.
    """
    check_params(params)
    for path, leaf in zip(path_strings(params), jax.tree.leaves(params), strict=True):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise UserError(
                f"params {path or 'itself'} has dtype {jnp.result_type(leaf)}; parameters must be "
                "real floating-point arrays"
            )
    leaves, treedef = flatten(params)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    if axis_name is not None:
        leaves = [vary(leaf, axis_name) for leaf in leaves]
    return leaves, treedef
