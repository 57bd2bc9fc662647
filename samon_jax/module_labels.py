"""Labels from the model itself: the layer's type decides, whatever its name."""

import sys
from typing import Any

import jax

from samon_jax.errors import UserError
from samon_jax.labels import is_norm_layer, label_by_paths, norm_layer_paths

PyTree = Any


def label_module(
    model: Any, *inputs: Any, norm_types: tuple[type, ...] = (), **kwargs: Any
) -> PyTree:
    """Labels the parameters of a model by the types of its layers.

    BatchNorm, LayerNorm, GroupNorm, InstanceNorm and RMSNorm of the model's library count as norms,
    and so do their subclasses and `norm_types`. No library is imported and nothing is computed:
    Linen and Haiku models are traced once with abstract values.

    Args:
      model: a Flax Linen module, a `haiku.Transformed` or `TransformedWithState`, a Flax NNX module
        or an Equinox module.
      *inputs: example inputs (arrays or `jax.ShapeDtypeStruct`) of a Linen or Haiku model; none for
        NNX and Equinox.
      norm_types: further classes whose instances are norm layers.
      **kwargs: further arguments of the model that are not traced, such as `train=True`.

    Returns:
      A pytree of "norm_scale", "norm_bias", "weight" and "bias" with the structure of the
      parameters: of `variables["params"]` (Linen), `params` (Haiku), `nnx.state(model, nnx.Param)`
      (NNX) or `eqx.filter(model, eqx.is_array)` (Equinox). Pass it on as
      `samon_jax.only_norm(params, labels)`.

    Raises:
      UserError: `model` is none of these.

    Example:
      >>> import flax.linen as nn, jax.numpy as jnp, samon_jax as samon
      >>> samon.label_module(nn.LayerNorm(use_bias=False), jnp.ones((2, 3)))
      {'scale': 'norm_scale'}
    """
    linen, nnx = sys.modules.get("flax.linen"), sys.modules.get("flax.nnx")
    haiku = sys.modules.get("haiku")
    if linen is not None and isinstance(model, linen.Module):
        return _label_linen(linen, model, inputs, norm_types, kwargs)
    if nnx is not None and isinstance(model, nnx.Module):
        paths = {
            tuple(str(name) for name in path)
            for path, node in nnx.iter_graph(model)
            if is_norm_layer(node, norm_types)
        }
        return label_by_paths(nnx.state(model, nnx.Param), paths, bare=False)
    if haiku is not None and isinstance(model, haiku.Transformed | haiku.TransformedWithState):
        return _label_haiku(haiku, model, inputs, norm_types, kwargs)
    equinox = sys.modules.get("equinox")
    if equinox is not None and isinstance(model, equinox.Module):
        return label_by_paths(model, norm_layer_paths(model, norm_types), bare=False)
    raise UserError(
        f"model of type {type(model).__name__} must be a Flax Linen, Flax NNX or Equinox module or "
        "a Haiku Transformed; label a bare tree of parameters with samon_jax.label_params"
    )


def _label_linen(
    linen: Any, model: Any, inputs: Any, norm_types: tuple[type, ...], kwargs: dict[str, Any]
) -> PyTree:
    paths: set[tuple[str, ...]] = set()

    def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if is_norm_layer(context.module, norm_types):
            paths.add(tuple(context.module.path))
        return call(*args, **kwargs)

    def init(*inputs: Any) -> PyTree:
        with linen.intercept_methods(watch):
            keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
            return model.init(keys, *inputs, **kwargs)

    return label_by_paths(jax.eval_shape(init, *inputs)["params"], paths, bare=False)


def _label_haiku(
    haiku: Any, model: Any, inputs: Any, norm_types: tuple[type, ...], kwargs: dict[str, Any]
) -> PyTree:
    names: set[str] = set()

    def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        result = call(*args, **kwargs)
        if is_norm_layer(context.module, norm_types):  # its constructor has named it by now
            names.add(context.module.module_name)
        return result

    def init(*inputs: Any) -> PyTree:
        with haiku.intercept_methods(watch):
            return model.init(jax.random.key(0), *inputs, **kwargs)

    result = jax.eval_shape(init, *inputs)
    with_state = isinstance(model, haiku.TransformedWithState)
    return label_by_paths(result[0] if with_state else result, {(n,) for n in names}, bare=False)
