"""Labels from the model itself, where the layer's type decides."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import samon_jax as samon
from samon_jax.labels import path_strings
from tests.test_labels import (
    EQX_NORMS,
    HAIKU_NORMS,
    IMAGE,
    NNX_NORMS,
    ZOO_NORMS,
    EqxModel,
    NnxModel,
    X,
    Zoo,
    haiku_net,
)


def by_path(labels):
    return dict(zip(path_strings(labels), jax.tree.leaves(labels), strict=True))


def norms(labels):
    return {p: label for p, label in by_path(labels).items() if label.startswith("norm")}


def test_linen():
    labels = samon.label_module(Zoo(), X)
    params = jax.eval_shape(lambda: Zoo().init(jax.random.key(0), X))["params"]
    assert jax.tree.structure(labels) == jax.tree.structure(params)
    assert norms(labels) == ZOO_NORMS
    assert by_path(labels)["WeightNorm_0/Dense_0/kernel/scale"] == "weight"


@pytest.mark.parametrize("use_scale", [True, False])
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize(
    "cls", [nn.BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm, nn.RMSNorm]
)
def test_linen_norms_without_scale_or_bias_whatever_their_name(cls, use_scale, use_bias):
    arguments = {"use_scale": use_scale, "use_bias": use_bias}
    if cls is nn.BatchNorm:
        arguments["use_running_average"] = True
    if cls is nn.GroupNorm:
        arguments["num_groups"] = 2
    if cls is nn.RMSNorm:
        del arguments["use_bias"]

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            assert train  # a Python bool, not traced
            return nn.Dense(2, name="norm")(cls(**arguments, name="conv")(x))

    labels = samon.label_module(Net(), IMAGE, train=True)
    expected = {"norm/kernel": "weight", "norm/bias": "bias"}
    if use_scale:
        expected["conv/scale"] = "norm_scale"
    if arguments.get("use_bias"):
        expected["conv/bias"] = "norm_bias"
    assert by_path(labels) == expected


class LinenSubclass(nn.LayerNorm):
    pass


class HomeMade(nn.Module):
    """A norm by `norm_types` only; its parameters have names of their own."""

    @nn.compact
    def __call__(self, x):
        g = self.param("g", nn.initializers.ones, (x.shape[-1],))
        return g * x / jnp.sqrt(jnp.mean(x**2)) + self.param("bias", nn.initializers.zeros, (1,))


class BatchNorm(nn.Module):
    """Called like a norm, but of no library."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x) * self.param("kernel", nn.initializers.ones, (3,))


def test_linen_subclasses_and_norm_types():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return BatchNorm(name="c")(HomeMade(name="b")(LinenSubclass(name="a")(x)))

    labels = samon.label_module(Net(), X)
    assert norms(labels) == {"a/scale": "norm_scale", "a/bias": "norm_bias"}
    labels = samon.label_module(Net(), X, norm_types=(HomeMade,))
    assert norms(labels) == {
        "a/scale": "norm_scale",
        "a/bias": "norm_bias",
        "b/g": "norm_scale",
        "b/bias": "norm_bias",
    }


def test_linen_module_and_bare_tree_disagree_on_purpose():
    """A lone bias of a norm, and a `scale` of what is no norm: only the type can tell."""

    class Rescale(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x * self.param("scale", nn.initializers.ones, (x.shape[-1],))

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.LayerNorm(use_scale=False, name="a")(Rescale(name="b")(x))

    params = Net().init(jax.random.key(0), X)["params"]
    assert samon.label_params(params) == {"a": {"bias": "bias"}, "b": {"scale": "norm_scale"}}
    labels = samon.label_module(Net(), X)
    assert labels == {"a": {"bias": "norm_bias"}, "b": {"scale": "weight"}}
    assert samon.only_norm(params, labels) == {"a": {"bias": True}, "b": {"scale": False}}
    ascent = samon.perturbation(0.5, mask=samon.only_norm(params, labels))
    grads = jax.tree.map(jnp.ones_like, params)
    epsilon, _ = ascent.update(grads, ascent.init(params), params)
    assert not np.any(epsilon["b"]["scale"])
    assert np.linalg.norm(epsilon["a"]["bias"]) == pytest.approx(0.5, rel=1e-6)


def test_linen_from_shapes_with_dropout_and_setup():
    class Net(nn.Module):
        def setup(self):
            self.layers = [nn.Dense(6), nn.LayerNorm()]
            self.dropout = nn.Dropout(0.5, deterministic=False)

        def __call__(self, x):
            for layer in self.layers:
                x = layer(x)
            return self.dropout(x)

    labels = samon.label_module(Net(), jax.ShapeDtypeStruct((2, 6), jnp.float32))
    assert norms(labels) == {"layers_1/scale": "norm_scale", "layers_1/bias": "norm_bias"}


def test_nnx():
    model = NnxModel(nnx.Rngs(0))
    labels = samon.label_module(model)
    assert jax.tree.structure(labels) == jax.tree.structure(nnx.state(model, nnx.Param))
    assert norms(labels) == NNX_NORMS


def test_nnx_misleading_layers_subclasses_and_shared_norms():
    class Rescale(nnx.Module):
        def __init__(self):
            self.scale = nnx.Param(jnp.ones(3))

    class Sub(nnx.LayerNorm):
        pass

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.rescale = Rescale()
            self.lone = nnx.LayerNorm(3, use_scale=False, rngs=rngs)
            self.z_tied = Sub(3, rngs=rngs)
            self.a_tied = self.z_tied

    model = Net(nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    assert by_path(samon.label_params(params))["rescale/scale"] == "norm_scale"
    labels = samon.label_module(model)
    assert jax.tree.structure(labels) == jax.tree.structure(params)
    assert by_path(labels) == {
        "rescale/scale": "weight",
        "lone/bias": "norm_bias",
        "a_tied/scale": "norm_scale",
        "a_tied/bias": "norm_bias",
    }
    found = by_path(samon.label_module(model, norm_types=(Rescale,)))
    assert found["rescale/scale"] == "norm_scale"


@pytest.mark.parametrize("with_state", [True, False])
def test_haiku(with_state):
    if with_state:
        net = hk.transform_with_state(haiku_net)
        params, _ = jax.eval_shape(net.init, jax.random.key(0), IMAGE)
        expected = HAIKU_NORMS | {"no_scale/offset": "norm_bias"}
    else:

        def small(x):
            def inner(x):
                return hk.LayerNorm(-1, True, False, name="x")(hk.Linear(3, name="batch_norm")(x))

            return hk.Linear(3)(hk.to_module(inner)(name="outer")(x))

        net = hk.transform(small)
        params = jax.eval_shape(net.init, jax.random.key(0), IMAGE)
        expected = {"outer/x/scale": "norm_scale"}
    labels = samon.label_module(net, IMAGE)
    assert jax.tree.structure(labels) == jax.tree.structure(params)
    assert norms(labels) == expected


def test_equinox():
    model = EqxModel(jax.random.key(0))
    labels = samon.label_module(model)
    assert jax.tree.structure(labels) == jax.tree.structure(eqx.filter(model, eqx.is_array))
    assert norms(labels) == EQX_NORMS


def test_equinox_subclasses_and_misleading_layers():
    class Sub(eqx.nn.LayerNorm):
        pass

    class Rescale(eqx.Module):
        scale: jax.Array

    class Net(eqx.Module):
        sub: Sub
        rescale: Rescale

    model = Net(Sub(3), Rescale(jnp.ones(3)))
    expected = {"sub/weight": "norm_scale", "sub/bias": "norm_bias"}
    assert norms(samon.label_module(model)) == expected
    assert norms(samon.label_params(model)) == expected | {"rescale/scale": "norm_scale"}
    found = norms(samon.label_module(model, norm_types=(Rescale,)))
    assert found == expected | {"rescale/scale": "norm_scale"}


def test_other_models_are_rejected():
    with pytest.raises(samon.UserError, match="type dict must be"):
        samon.label_module({"norm": {"scale": np.ones(3)}})
