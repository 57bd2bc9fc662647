"""Which parameter belongs to a normalization layer, and masks made from that.

A leaf is the scale (gamma) or bias (beta) of a norm because of the layer that it belongs to, not
because some name contains "bn". From a bare pytree the layer is recognized by the names and shapes
of the leaves that it holds; `samon_jax.label_module` asks the layer's type instead.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from samon_jax.errors import UserError

PyTree = Any
Mask = Callable[[PyTree], PyTree]

NORM_SCALE, NORM_BIAS, WEIGHT, BIAS = "norm_scale", "norm_bias", "weight", "bias"
NORM_LABELS = frozenset({NORM_SCALE, NORM_BIAS})

# Classes of flax.linen, flax.nnx, haiku and equinox. WeightNorm and SpectralNorm normalize weights.
NORM_CLASSES = frozenset({"BatchNorm", "LayerNorm", "GroupNorm", "InstanceNorm", "RMSNorm"})
_LIBRARIES = frozenset({"flax", "haiku", "equinox"})

_SCALES = frozenset({"scale", "gamma", "weight"})
_BIASES = frozenset({"bias", "offset", "beta"})
_BIAS_NAME = re.compile(r"(^|_)(b|bias|offset|beta)\d*$|^bias_")
_NORM_MODULE_NAME = re.compile(r"(^|[/_~])(batch|layer|group|instance|rms)_?norm(_?\d+)?$", re.I)


def label_params(params: PyTree, *, norm_types: tuple[type, ...] = ()) -> PyTree:
    """Labels every parameter "norm_scale", "norm_bias", "weight" or "bias".

    A module counts as a norm if its leaves are nothing but a scale and/or a bias of one shape:
    `scale`/`bias` (Flax), `scale`/`offset` (Haiku), `weight`/`bias` of equal shape (Equinox,
    PyTorch names) or `gamma`/`beta`. BatchNorm, LayerNorm, GroupNorm, InstanceNorm, RMSNorm and the
    norms of queries and keys in attention are found; weight norm, LayerScale's lone `gamma` and a
    `scale` beside a kernel are not. Of a lone one-dimensional `scale` or `weight` the tree does not
    tell more than that RMSNorm has one; ask `label_module` if your model has others. Layers that
    appear in the pytree themselves (Equinox modules) are recognized by type.

    Args:
      params: pytree of arrays or `jax.ShapeDtypeStruct`s: a Linen or Haiku dict, an `nnx.State`,
        an Equinox module or a bare dict. What is no array (an activation function inside an Equinox
        module, say) becomes None, as in `eqx.filter(model, eqx.is_array)`.
      norm_types: further classes whose instances inside `params` are norm layers.

    Returns:
      A pytree of `params`' structure whose leaves are strings.

    Example:
      >>> import jax.numpy as jnp
      >>> label_params({"conv": {"kernel": jnp.ones((3, 3))},
      ...               "norm": {"scale": jnp.ones(3), "bias": jnp.zeros(3)}})
      {'conv': {'kernel': 'weight'}, 'norm': {'bias': 'norm_bias', 'scale': 'norm_scale'}}
    """
    return label_by_paths(params, norm_layer_paths(params, norm_types), bare=True)


def norm_layer_paths(tree: PyTree, norm_types: tuple[type, ...] = ()) -> set[tuple[str, ...]]:
    """Paths of the norm layers that are nodes of `tree` themselves, as Equinox modules are."""

    def is_norm(node: Any) -> bool:
        return is_norm_layer(node, norm_types)

    nodes = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_norm)[0]
    return {path_names(path) for path, node in nodes if is_norm(node)}


def label_by_paths(params: PyTree, norm_paths: set[tuple[str, ...]], *, bare: bool) -> PyTree:
    """Labels the leaves of the modules at `norm_paths` as norm parameters.

    Args:
      params: pytree of arrays.
      norm_paths: paths of norm layers, as `path_names` gives them.
      bare: also recognize norms by the names and shapes of a module's leaves.

    Returns:
      A pytree of strings, or None where `params` holds something other than an array.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
    paths = [path_names(path) for path, _ in leaves]
    shapes: dict[tuple[str, ...], dict[str, tuple[int, ...]]] = {}
    has_children: set[tuple[str, ...]] = set()
    for path, (_, leaf) in zip(paths, leaves, strict=True):
        if _is_array(leaf):
            shapes.setdefault(path[:-1], {})[path[-1] if path else ""] = np.shape(leaf)
            has_children.update(path[:i] for i in range(len(path) - 1))

    def label(path: tuple[str, ...], leaf: Any) -> str | None:
        if not _is_array(leaf):
            return None
        module, name = path[:-1], path[-1] if path else ""
        if module in norm_paths or (
            bare
            and module not in has_children
            and _looks_like_norm(shapes[module], module[-1] if module else "")
        ):
            return NORM_BIAS if name in _BIASES else NORM_SCALE
        return BIAS if _BIAS_NAME.search(name) else WEIGHT

    labels = [label(path, leaf) for path, (_, leaf) in zip(paths, leaves, strict=True)]
    return jax.tree.unflatten(treedef, labels)


def is_norm_layer(node: Any, norm_types: tuple[type, ...] = ()) -> bool:
    """Whether `node` is a normalization layer of a known library or one of `norm_types`."""
    if norm_types and isinstance(node, norm_types):
        return True
    return any(
        cls.__name__ in NORM_CLASSES and cls.__module__.partition(".")[0] in _LIBRARIES
        for cls in type(node).__mro__
    )


def path_names(path: tuple[Any, ...]) -> tuple[str, ...]:
    """The names along a `jax.tree_util` key path, without the `.value` of a boxed parameter."""
    if path and isinstance(path[-1], jax.tree_util.GetAttrKey) and path[-1].name == "value":
        path = path[:-1]
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def path_strings(params: PyTree) -> list[str]:
    """The "/"-joined path of every leaf, in the order of `jax.tree.leaves`."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return ["/".join(path_names(path)) for path, _ in leaves]


def all_params(params: PyTree) -> PyTree:
    """Mask that selects every parameter: SAM-all.

    Args:
      params: pytree of arrays.

    Returns:
      A pytree of Python bools, usable as any `mask=` of optax.
    """
    return jax.tree.map(lambda _: True, params)


def only_norm(params: PyTree, labels: PyTree | None = None) -> PyTree:
    """Mask that selects the scale and bias of normalization layers: SAM-ON (section 4).

    Args:
      params: pytree of arrays.
      labels: what `label_module` returned for the model; by default `label_params(params)`.

    Returns:
      A pytree of Python bools.

    Raises:
      UserError: nothing is selected; the message lists parameter paths.

    Example:
      >>> import jax.numpy as jnp
      >>> only_norm({"dense": {"kernel": jnp.ones((2, 2))}, "norm": {"scale": jnp.ones(2)}})
      {'dense': {'kernel': False}, 'norm': {'scale': True}}
    """
    return _mask_of_labels(params, labels, "only_norm", lambda label, path: label in NORM_LABELS)


def no_norm(params: PyTree, labels: PyTree | None = None) -> PyTree:
    """Mask that selects everything but normalization layers: the paper's "no-norm" (section 4).

    Args and returns as in `only_norm`.
    """
    return _mask_of_labels(params, labels, "no_norm", lambda label, path: label not in NORM_LABELS)


def only_norm_in(path_regex: str) -> Callable[..., PyTree]:
    """Mask that selects the norms of some blocks, such as "B3" or "B2+B3" in Figure 3.

    Args:
      path_regex: regular expression searched for in the "/"-joined path of each leaf, for example
        `"stage3"` or `"stage[23]"` for the models of this project.

    Returns:
      A function `mask(params, labels=None)` like `only_norm`.

    Raises:
      UserError: `path_regex` is not a regular expression.
    """
    try:
        pattern = re.compile(path_regex)
    except re.error as error:
        raise UserError(
            f"path_regex={path_regex!r} is not a regular expression: {error}"
        ) from error

    def only_norm_in_blocks(params: PyTree, labels: PyTree | None = None) -> PyTree:
        return _mask_of_labels(
            params,
            labels,
            f"only_norm_in({path_regex!r})",
            lambda label, path: label in NORM_LABELS and pattern.search(path) is not None,
        )

    return only_norm_in_blocks


def random_mask(key: jax.Array, sparsity: float) -> Mask:
    """Mask of single entries drawn uniformly at random: SAM-rand (section 5.1, Table 5).

    The mask is drawn once, on the host, over all entries of all leaves together, so the number of
    selected entries is exactly `round((1 - sparsity) * number of parameters)` and the same on every
    backend.

    Args:
      key: concrete `jax.random.key`.
      sparsity: share of entries left unperturbed, in [0, 1]; 0.9995 has the size of SAM-ON's mask.

    Returns:
      A function `mask(params)` to a pytree of NumPy bool arrays of the leaves' shapes, with the
      Python bools True and False for leaves that are selected as a whole or not at all. Because of
      the arrays it serves `samon_jax.perturbation`, but not optax's own `mask=` arguments.

    Raises:
      UserError: sparsity is outside [0, 1], or leaves no entry to perturb.
    """
    if not 0 <= sparsity <= 1:
        raise UserError(f"sparsity={sparsity} must lie in [0, 1]")
    seed = np.asarray(jax.random.key_data(key)).tolist()

    def random_entries(params: PyTree) -> PyTree:
        leaves, treedef = jax.tree.flatten(params)
        sizes = [int(np.prod(np.shape(leaf))) for leaf in leaves]
        selected = np.zeros(sum(sizes), bool)
        count = round((1 - sparsity) * selected.size)
        selected[np.random.default_rng(seed).choice(selected.size, count, replace=False)] = True
        mask: list[bool | np.ndarray] = []
        for leaf, part in zip(
            leaves, np.split(selected, np.cumsum(sizes)[:-1].tolist()), strict=True
        ):
            whole = bool(part.all()) if part.all() or not part.any() else None
            mask.append(part.reshape(np.shape(leaf)) if whole is None else whole)
        return require_selection(
            jax.tree.unflatten(treedef, mask), params, f"random_mask(sparsity={sparsity})"
        )

    return random_entries


def require_selection(mask: PyTree, params: PyTree, name: str) -> PyTree:
    """Returns `mask`, or raises a UserError that lists paths of `params` if it selects nothing."""
    if any(np.any(selected) for selected in jax.tree.leaves(mask)):
        return mask
    paths = path_strings(params)
    if paths == [""]:
        raise UserError(
            f"mask {name} was called with one bare array instead of a tree of parameters; with "
            "optax.inject_hyperparams, pass static_args=samon_jax.STATIC_ARGS"
        )
    shown = ", ".join(paths[:12]) + (f", ... ({len(paths)} in all)" if len(paths) > 12 else "")
    raise UserError(f"mask {name} selects none of the parameters: {shown}")


def _mask_of_labels(
    params: PyTree, labels: PyTree | None, name: str, select: Callable[[str, str], bool]
) -> PyTree:
    if labels is None:
        labels = label_params(params)
    leaves, treedef = jax.tree.flatten(labels)
    paths = path_strings(labels)
    mask = [select(label, path) for label, path in zip(leaves, paths, strict=True)]
    return require_selection(jax.tree.unflatten(treedef, mask), params, name)


def _looks_like_norm(leaves: Mapping[str, tuple[int, ...]], module_name: str) -> bool:
    """Decides from one module's leaf names and shapes whether it is a normalization layer."""
    names = set(leaves)
    if not names <= _SCALES | _BIASES or len(set(leaves.values())) > 1:
        return False
    shape = next(iter(leaves.values()))
    if not shape:
        return False  # a lone number, such as a temperature
    if "scale" in names:
        return True
    if "gamma" in names:
        return "beta" in names  # LayerScale has a gamma alone
    if "weight" in names:
        return (len(shape) == 1 and shape != (1,)) or bool(names & _BIASES)
    return _NORM_MODULE_NAME.search(module_name) is not None  # use_scale=False


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and hasattr(leaf, "shape")
