"""Arguments of the wrong kind: one line that names the argument, wherever they are handed over."""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import samon_jax as samon

PARAMS = {"dense": {"kernel": jnp.ones((2, 2))}, "norm": {"scale": jnp.array([1.0, 2.0])}}
X = jnp.ones((4, 2))
ASCENT = samon.variant("sam", 0.1)
STATE = ASCENT.init(PARAMS)
SGD = optax.sgd(0.1)


def loss_fn(params, x):
    return jnp.sum((x @ params["dense"]["kernel"] * params["norm"]["scale"]) ** 2)


def with_aux(params, x):
    return loss_fn(params, x), x


def grad_fn(params):
    return jax.grad(loss_fn)(params, X)


GRADS = grad_fn(PARAMS)
fn = samon.value_and_grad(loss_fn, ASCENT)
tx = samon.sam(SGD, ASCENT)
TX_STATE = tx.init(PARAMS)


def update(grads=GRADS, state=TX_STATE, params=PARAMS, grad_fn=grad_fn):
    return tx.update(grads, state, params, grad_fn=grad_fn)


def masked(mask):
    return samon.perturbation(0.1, mask=mask).init(PARAMS)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: samon.value_and_grad(loss_fn, None), "ascent=None is not allowed; it must be an"),
        (
            lambda: samon.value_and_grad(loss_fn, 0.1),
            "ascent=0.1 is not allowed; it must be an opt",
        ),
        (lambda: samon.value_and_grad(ASCENT, loss_fn), "loss_fn=of type Ascent is not allowed"),
        (lambda: samon.esam(ASCENT, loss_fn), "losses_fn=of type Ascent is not allowed"),
        (lambda: samon.looksam(loss_fn, 3, every=2), "ascent=3 is not allowed"),
        (lambda: samon.stochastic_perturbation(0.5, ASCENT, None), "ascent=0.5 is not allowed"),
        (lambda: samon.ssam_f(None, 0.5, jax.random.key(0)), "ascent=None is not allowed"),
        (lambda: samon.ssam_f(ASCENT, 1, jax.random.key(0)), "sparsity=1 is not allowed"),
        (
            lambda: samon.ssam_d(0.1, 0.5, jax.random.key(0), total_updates=3),
            "ascent=0.1 is not allowed",
        ),
        (lambda: samon.single_pass("sam"), "ascent='sam' is not allowed"),
        (lambda: samon.sam(None, ASCENT), "optimizer=None is not allowed; .* optax.sgd"),
        (lambda: samon.sam(SGD, 0.1), "ascent=0.1 is not allowed"),
        (lambda: samon.sam(ASCENT, SGD), "optimizer is a transform to ε, .* sam\\(optimizer, asc"),
        (
            lambda: fn(PARAMS, X),
            r"ascent_state=an array of float32\[4, 2\] is not allowed; .*\(params",
        ),
        (lambda: fn(PARAMS, None, X), "ascent_state=None is not allowed"),
        (lambda: fn(STATE, PARAMS, X), "params count has dtype int32"),
        (
            lambda: samon.looksam(loss_fn, ASCENT, every=2).sharp(PARAMS, X),
            "state of type .*Array.* is not allowed",
        ),
        (lambda: ASCENT.update(GRADS, None, PARAMS), "state of type NoneType is not allowed"),
        (lambda: ASCENT.update(None, STATE, PARAMS), "grads must have the structure of params, {d"),
        (lambda: ASCENT.update(1.0, STATE, PARAMS), "grads must have .*; it is 1.0"),
        (lambda: update(grads=None), "grads must have the structure of params, .*; it is None"),
        (lambda: update(grads=loss_fn(PARAMS, X)), "grads must have .*; it is an array of float32"),
        (lambda: update(state=PARAMS), "state of type dict is not allowed"),
        (lambda: update(params=TX_STATE), "grads must have the structure of params"),
        (lambda: update(grad_fn=GRADS), "grad_fn=of type dict is not allowed"),
        (
            lambda: update(grad_fn=lambda params: loss_fn(params, X)),
            "grad_fn's result must have the structure of params, {dense/kernel, norm/scale}",
        ),
        (
            lambda: update(grad_fn=lambda params: (1.0, grad_fn(params))),
            "grad_fn's result must have the structure of params",
        ),
        (
            lambda: update(grad_fn=lambda params: jax.tree.map(jnp.sum, grad_fn(params))),
            r"grad_fn's result dense/kernel has shape \(\); params have \(2, 2\)",
        ),
        (
            lambda: samon.value_and_grad(with_aux, ASCENT)(PARAMS, STATE, X),
            "has_aux=False: loss_fn must return a loss alone",
        ),
        (
            lambda: samon.value_and_grad(loss_fn, ASCENT, has_aux=True)(PARAMS, STATE, X),
            "has_aux=True: loss_fn must return a pair",
        ),
        (
            lambda: samon.esam(loss_fn, ASCENT, has_aux=True)(PARAMS, STATE, X),
            "has_aux=True: losses_fn must return a pair",
        ),
        (lambda: samon.perturbation("0.5"), "rho='0.5' is not allowed; it must be a finite number"),
        (lambda: samon.perturbation(None), "rho=None is not allowed"),
        (lambda: samon.value_and_grad(loss_fn, ASCENT, m=2.0), "m=2.0 is not allowed; .* integer"),
        (lambda: masked(None), "mask=None must be a function"),
        (lambda: masked(0.5), "mask=0.5 must be a function"),
        (lambda: masked(samon.only_norm_in), r"mask=only_norm_in makes a mask: only_norm_in\('st"),
        (lambda: masked(samon.random_mask), r"mask=random_mask makes a mask: random_mask\(key"),
        (lambda: samon.only_norm_in(PARAMS), "path_regex of type dict must be text"),
        (lambda: masked({"dense": True}), "mask given as a tree must have the structure of params"),
        (lambda: masked({"a": True, "b": True}), "mask given as a tree must have .* it is {a, b}"),
        (lambda: masked(lambda params: [True]), "mask <lambda> must have the structure of params"),
        (
            lambda: masked({"dense": 0.5, "norm": True}),
            "mask given as a tree must hold bools; dense/kernel is 0.5",
        ),
        (
            lambda: masked(lambda params: jax.tree.map(jnp.ones_like, params)),
            "mask <lambda> must hold bools; dense/kernel is an array of float32",
        ),
    ],
)
def test_one_line_names_the_argument(call, message):
    with pytest.raises(samon.UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_module_that_holds_functions_is_told_how_to_pass_its_arrays():
    model = eqx.nn.MLP(2, 1, 3, 1, key=jax.random.key(0))
    with pytest.raises(samon.UserError, match=r"params activation.* is .*function.*eqx.partition"):
        samon.perturbation(0.1).init(model)
    step = samon.value_and_grad(lambda m, x: jax.vmap(m)(x).sum(), ASCENT)
    with pytest.raises(samon.UserError, match="not an array"):
        step(model, STATE, X)


def test_masks_of_arrays_and_of_prefixes_stay_allowed():
    for mask in (
        {"dense": False, "norm": True},
        {"dense": np.zeros((2, 2), bool), "norm": {"scale": jnp.array([True, False])}},
        functools.partial(samon.only_norm),
        True,
    ):
        masked(mask)


@pytest.mark.parametrize("variant", ["sam", "layerwise_l2", "elementwise_linf"])
@pytest.mark.parametrize("size", [1e-44, 1e-39, 1e-38, 1e-31, 5e37, 3e38])
def test_epsilon_of_extreme_gradients_has_its_direction_and_length(variant, size):
    """ε does not depend on the length of g, for all but the Fisher operator."""
    grads = {"w": np.float32([0.6, -0.8, 0.0]), "b": np.float32([0.5])}
    params = {"w": jnp.float32([50.0, 3.0, 2.0]), "b": jnp.float32([4.0])}
    ascent = samon.variant(variant, 0.5)
    state = ascent.init(params)
    # The smallest denormal numbers hold whole multiples alone.
    digits = 0 if size < 1e-40 else 2
    steps = {name: np.round(g.astype(np.float64), digits) * size for name, g in grads.items()}
    extreme = {name: g.astype(np.float32) for name, g in steps.items()}
    top = max(np.abs(g).max() for g in extreme.values()).astype(np.float64)
    scaled = {name: np.float32(g.astype(np.float64) / top) for name, g in extreme.items()}
    update = jax.jit(ascent.update)
    want = update(scaled, state, params)[0]
    got = update(extreme, state, params)[0]
    for name in got:
        np.testing.assert_allclose(got[name], want[name], rtol=3e-6)
    assert math.isfinite(float(optax.tree.norm(want)))


def test_the_loss_that_comes_with_its_gradient_refuses_a_derivative():
    def value(params):
        return jax.jit(fn)(params, STATE, X)[0]

    for derivative in (jax.grad(value), jax.jit(jax.grad(value))):
        with pytest.raises(samon.UserError, match="the loss that value_and_grad returns cannot be"):
            derivative(PARAMS)
