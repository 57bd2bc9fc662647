"""What is asked of arguments that many functions take: transforms, parameters, states, masks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from samon_jax.errors import UserError
from samon_jax.labels import path_strings

PyTree = Any


class Ascent(optax.GradientTransformation):
    """A transform from gradients to ε; its type tells it from a base optimizer."""

    __slots__ = ()


class SinglePass(Ascent):
    """A transform whose ε is made from its state alone; the gradients only renew the state.

    `update(grads, state, params)` gives the ε that `state` holds and the state that remembers
    `grads`, so that one pass at w + ε does both.
    """

    __slots__ = ()


def check_transform(name: str, value: Any) -> None:
    """Raises a UserError unless `value` has the two functions of an optax transform."""
    if not all(callable(getattr(value, part, None)) for part in ("init", "update")):
        raise UserError(
            f"{name}={_show(value)} is not allowed; it must be an optax transform, such as "
            f"{'optax.sgd(0.1)' if name == 'optimizer' else 'samon_jax.perturbation(0.1)'}"
        )


def check_inner(ascent: Any) -> None:
    """Raises a UserError unless `ascent` is a transform whose ε follows the gradient it is given.

    Wrapped, a single pass would no longer be known as one, and be paid for with two.
    """
    check_transform("ascent", ascent)
    if isinstance(ascent, SinglePass):
        raise UserError(
            "ascent is a single_pass, which is not allowed here; make it the outermost: "
            "single_pass(stochastic_perturbation(ascent, ...))"
        )


def check_function(name: str, value: Any) -> None:
    """Raises a UserError unless `value` can be called."""
    if not callable(value):
        raise UserError(f"{name}={_show(value)} is not allowed; it must be a function")


def check_params(params: PyTree) -> None:
    """Raises a UserError that names the first leaf of `params` that is no array or number."""
    for path, leaf in zip(path_strings(params), jax.tree.leaves(params), strict=True):
        number = isinstance(leaf, int | float | complex | np.generic)
        if not number and not (hasattr(leaf, "dtype") and hasattr(leaf, "shape")):
            raise UserError(
                f"params {path or 'itself'} is {_show(leaf)}, not an array; of a module that holds "
                "more than arrays, pass the arrays: eqx.partition(model, eqx.is_inexact_array)[0]"
            )


def check_like_params(name: str, tree: PyTree, params: PyTree) -> None:
    """Raises a UserError unless `tree` has the structure and the shapes of `params`."""
    if _structure(tree) != _structure(params):
        raise UserError(
            f"{name} must have the structure of params, {_paths(params)}; it is {_paths(tree)}"
        )
    leaves = zip(path_strings(params), jax.tree.leaves(tree), jax.tree.leaves(params), strict=True)
    for path, leaf, param in leaves:
        if not hasattr(leaf, "dtype") and not isinstance(leaf, int | float):
            raise UserError(f"{name} {path} is {_show(leaf)}, not an array")
        if np.shape(leaf) != np.shape(param):
            raise UserError(
                f"{name} {path} has shape {np.shape(leaf)}; params have {np.shape(param)}"
            )


def check_state(
    name: str, ascent: optax.GradientTransformation, state: PyTree, params: PyTree
) -> None:
    """Raises a UserError unless `state` has the structure of `ascent.init(params)`."""
    if _structure(state) != _structure(jax.eval_shape(ascent.init, params)):
        raise UserError(
            f"{name}={_show(state)} is not allowed; it must be what ascent.init(params) or the "
            "last step returned: call fn(params, state, ...)"
        )


def check_mask(mask: PyTree, params: PyTree, name: str) -> PyTree:
    """Returns a mask that holds one bool, or bool array, for each leaf of `params`.

    Raises:
      UserError: it has another structure, or holds something else.
    """
    try:
        mask = jax.tree.broadcast(mask, params)
    except (ValueError, TypeError):
        raise UserError(
            f"mask {name} must have the structure of params, {_paths(params)}; it is {_paths(mask)}"
        ) from None
    for path, leaf in zip(path_strings(mask), jax.tree.leaves(mask), strict=True):
        is_bool = isinstance(leaf, bool) or getattr(leaf, "dtype", None) == jnp.dtype(bool)
        if not is_bool:
            raise UserError(f"mask {name} must hold bools; {path or 'it'} is {_show(leaf)}")
    return mask


def _structure(tree: PyTree) -> Any:
    return jax.tree.structure(tree)


def _paths(tree: PyTree) -> str:
    """The paths of a tree's leaves, or what it is if that is one leaf."""
    paths = path_strings(tree)
    if paths in ([], [""]):
        return _show(tree)
    return "{" + ", ".join(paths[:4]) + (", ..." if len(paths) > 4 else "") + "}"


def _show(value: Any) -> str:
    """A few words for a value of any type, on one line."""
    if isinstance(value, str | int | float | bool | None):
        return repr(value)
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"an array of {value.dtype}{list(value.shape)}"
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    return f"of type {type(value).__name__}"
