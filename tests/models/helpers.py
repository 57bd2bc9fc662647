"""What tests of the models share: shapes, counts, and layers in NumPy and float64."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params

import samon_jax as samon
from samon_jax import models


def shapes(name, num_classes, image_shape=(32, 32, 3)):
    model = models.create(name, num_classes)
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    return jax.eval_shape(
        lambda key, x: model.init(key, x, train=False), jax.random.key(0), images
    )["params"]


def initialize(name, dtype=jnp.float32, image_shape=(8, 8, 3)):
    """A model, images, and variables of the right shapes from NumPy, all away from 0 and 1."""
    return draw_variables(models.create(name, 5, dtype=dtype), image_shape)


def draw_variables(model, image_shape=(8, 8, 3)):
    """The model, four images, and variables from NumPy as in `initialize`."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4, *image_shape)).astype(np.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)

    def draw(leaf):
        if leaf.ndim == 1:
            return rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
        return rng.normal(0, (2 / np.prod(leaf.shape[:-1])) ** 0.5, leaf.shape).astype(leaf.dtype)

    return model, jnp.asarray(images), jax.tree.map(lambda x: jnp.asarray(draw(x)), variables)


def forward(model, variables, images, train=True):
    return model.apply(variables, images, train=train, mutable=["batch_stats"])


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def count_norms(params):
    labels = samon.label_params(params)
    return sum(
        leaf.size
        for leaf, label in zip(jax.tree.leaves(params), jax.tree.leaves(labels), strict=True)
        if label in ("norm_scale", "norm_bias")
    )


def paths(tree, selected=lambda leaf: True):
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(p, simple=True, separator="/") for p, x in flat if selected(x)}


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


def np_conv(x, kernel, stride=1, groups=1):
    kernel = np.asarray(kernel, np.float64)
    if groups > 1:
        inputs, kernels = np.split(x, groups, -1), np.split(kernel, groups, -1)
        parts = [np_conv(a, b, stride) for a, b in zip(inputs, kernels, strict=True)]
        return np.concatenate(parts, -1)
    size, pad = kernel.shape[0], kernel.shape[0] // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    rows = (x.shape[1] - size) // stride + 1
    y = np.zeros((x.shape[0], rows, rows, kernel.shape[3]))
    for i in range(rows):
        for j in range(rows):
            patch = x[:, i * stride : i * stride + size, j * stride : j * stride + size]
            y[:, i, j] = np.tensordot(patch, kernel, ((1, 2, 3), (0, 1, 2)))
    return y


class NumpyNorm:
    """BatchNorm that records the running statistics that PyTorch's momentum of 0.1 gives."""

    def __init__(self, train):
        self.train = train
        self.running = {}

    def __call__(self, x, params, stats, name):
        mean, var = (np.asarray(stats[k], np.float64) for k in ("mean", "var"))
        if self.train:
            batch_mean, batch_var = x.mean((0, 1, 2)), x.var((0, 1, 2))
            self.running[name] = (0.9 * mean + 0.1 * batch_mean, 0.9 * var + 0.1 * batch_var)
            mean, var = batch_mean, batch_var
        scale, bias = (np.asarray(params[k], np.float64) for k in ("scale", "bias"))
        return (x - mean) / np.sqrt(var + 1e-5) * scale + bias
