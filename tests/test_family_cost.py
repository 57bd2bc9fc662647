"""What ESAM, LookSAM and a smaller ascent batch cost, counted by XLA; SGD = 1, see test_cost."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

import samon_jax as samon

WIDTH = 128
LAYERS = 5
X = jnp.zeros((WIDTH, WIDTH))
PARAMS = {
    str(i): {"kernel": jnp.zeros((WIDTH, WIDTH)), "norm": {"scale": jnp.ones(WIDTH)}}
    for i in range(LAYERS)
}


def losses_fn(params, x):
    for layer in params.values():
        h = x @ layer["kernel"]
        h = (h - h.mean(1, keepdims=True)) / (h.std(1, keepdims=True) + 1e-3)
        x = jax.nn.relu(h * layer["norm"]["scale"])
    return jnp.mean(x**2, 1)


def loss_fn(params, x):
    return losses_fn(params, x).mean()


def flops(fn, *args):
    return jax.jit(fn).lower(*args).compile().cost_analysis()["flops"]


@functools.cache
def sgd():
    return flops(jax.value_and_grad(loss_fn), PARAMS, X)


def ascent(mask):
    return samon.perturbation(0.1, mask=mask)


def cost(fn, state):
    return flops(fn, PARAMS, state, X) / sgd()


def cost_of(fn, transform):
    return cost(fn, transform.init(PARAMS))


@functools.cache
def sam_on():
    transform = ascent(samon.only_norm)
    return cost_of(samon.value_and_grad(loss_fn, transform), transform)


# The first kernel needs no gradient of its input: 1 of 3 units in one of five layers is not there,
# which moves the ratios by a few per cent.


@pytest.mark.parametrize(("mask", "first"), [(samon.all_params, 3), (samon.only_norm, 2)])
def test_esam(mask, first):
    transform = ascent(mask)
    measured = cost_of(samon.esam(losses_fn, transform, gamma=0.5), transform)
    assert measured == pytest.approx((first + 1 + 3 * 0.5) / 3, rel=0.05)


def test_stochastic_perturbation_keeps_the_saving():
    transform = samon.stochastic_perturbation(ascent(samon.only_norm), 0.6, jax.random.key(0))
    assert cost_of(samon.value_and_grad(loss_fn, transform), transform) <= 1.02 * sam_on()


def test_esam_of_all_examples_costs_what_sam_does():
    transform = ascent(samon.only_norm)
    assert cost_of(samon.esam(losses_fn, transform, gamma=1.0), transform) == sam_on()


def test_looksam():
    transform = ascent(samon.only_norm)
    look = samon.looksam(loss_fn, transform, every=5)
    state = look.init(PARAMS)
    assert cost(look.plain, state) <= 1.05  # the norms of g and g_v
    assert cost(look.sharp, state) == pytest.approx(2, rel=0.05)


def test_looksam_of_every_step_costs_what_sam_does():
    look = samon.looksam(loss_fn, ascent(samon.only_norm), every=1)
    # The one operation more counts the steps.
    counted = 1 / sgd()
    assert sam_on() <= cost(look.value_and_grad, look.init(PARAMS)) <= sam_on() + 4 * counted


@pytest.mark.parametrize(("mask", "per_example"), [(samon.only_norm, 2), (samon.all_params, 3)])
def test_ascent_fraction(mask, per_example):
    transform, fraction = ascent(mask), 0.25
    fn = samon.value_and_grad(loss_fn, transform, ascent_fraction=fraction)
    assert cost_of(fn, transform) == pytest.approx((3 + fraction * per_example) / 3, rel=0.04)


def test_gsam_needs_the_whole_gradient_of_the_fraction():
    transform, combine = ascent(samon.only_norm), samon.gsam(0.3)
    fn = samon.value_and_grad(loss_fn, transform, ascent_fraction=0.25, combine=combine)
    assert cost_of(fn, transform) == pytest.approx((3 + 0.25 * 3) / 3, rel=0.06)


def test_fraction_of_a_convolutional_network():
    """SAM-ON with a fifth of 20 examples costs (3 + 0.2 * 2) / 3."""
    params = [
        {"kernel": jnp.ones((3, 3, 16, 16)), "norm": {"scale": jnp.ones(16)}} for _ in range(4)
    ]
    x = jnp.zeros((20, 16, 16, 16))

    def conv_loss(params, x):
        for layer in params:
            x = jax.lax.conv_general_dilated(
                x, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu((x - x.mean((0, 1, 2))) * layer["norm"]["scale"])
        return jnp.mean(x**2)

    base = flops(jax.value_and_grad(conv_loss), params, x)
    transform = optax.chain(ascent(samon.only_norm))
    fn = samon.value_and_grad(conv_loss, transform, ascent_fraction=0.2)
    measured = flops(fn, params, transform.init(params), x) / base
    assert measured == pytest.approx((3 + 0.2 * 2) / 3, rel=0.03)
