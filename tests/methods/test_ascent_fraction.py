"""ε from a share of the batch, against NumPy (Brock et al. 2021)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samon_jax as samon
from tests import reference
from tests.closed_form import (
    ALL,
    NORM,
    PARAMS,
    data,
    gradient,
    loss_fn,
    losses,
    sam_epsilon,
    vector,
)
from tests.several_devices import over_devices

RHO = 0.4
BOTH = {"batch_argnums": (0, 1)}
MASKS = pytest.mark.parametrize(
    ("mask", "moved"), [(samon.all_params, ALL), (samon.only_norm, NORM)]
)


def by_hand(x, y, count, moved=ALL):
    """Value, gradient at w and at w + ε; the former two of the first `count` examples."""
    v = vector(PARAMS)
    clean = gradient(v, x[:count], y[:count])
    sharp = gradient(v + sam_epsilon(clean, RHO, moved), x, y)
    return losses(v, x[:count], y[:count]).mean(), clean, sharp


def run(x, y, fraction, mask=samon.all_params, **options):
    ascent = samon.variant("sam", RHO, mask)
    fn = samon.value_and_grad(loss_fn, ascent, ascent_fraction=fraction, **BOTH, **options)
    return jax.jit(fn)(PARAMS, ascent.init(PARAMS), x, y)


def assert_equal(actual, loss, grads):
    assert float(actual[0]) == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(vector(actual[1]), grads, rtol=1e-4, atol=1e-4)


@MASKS
@pytest.mark.parametrize(
    ("fraction", "count"), [(0.01, 1), (0.2, 2), (0.36, 4), (0.5, 5), (0.98, 10), (1.0, 10)]
)
def test_first_examples_make_epsilon(mask, moved, fraction, count):
    x, y = data(10)
    loss, grads, state = run(x, y, fraction, mask)
    want, _, sharp = by_hand(x, y, count, moved)
    assert_equal((loss, grads), want, sharp)
    assert int(state.count) == 1


def test_one_argument_needs_no_number():
    x, y = data(8)
    ascent = samon.variant("sam", RHO)
    fn = samon.value_and_grad(lambda p, batch: loss_fn(p, *batch), ascent, ascent_fraction=0.25)
    assert_equal(fn(PARAMS, ascent.init(PARAMS), (x, y)), *by_hand(x, y, 2)[::2])


@pytest.mark.parametrize("rho", [0.0, jnp.float32(0.0)])
def test_rho_zero_is_the_plain_gradient_of_all_examples(rho):
    x, y = data(8)
    ascent = samon.perturbation(rho)
    fn = samon.value_and_grad(loss_fn, ascent, ascent_fraction=0.5, **BOTH)
    loss, grads, _ = fn(PARAMS, ascent.init(PARAMS), x, y)
    assert_equal((loss, grads), by_hand(x, y, 4)[0], gradient(vector(PARAMS), x, y))


@MASKS
def test_every_part_has_its_share(mask, moved):
    x, y = data(12)
    parts = [by_hand(x[i : i + 6], y[i : i + 6], 2, moved) for i in (0, 6)]
    actual = run(x, y, 0.3, mask, m=6)
    assert_equal(actual, np.mean([p[0] for p in parts]), np.mean([p[2] for p in parts], 0))


@pytest.mark.parametrize("mask", [samon.all_params, samon.only_norm])
@pytest.mark.parametrize("m", [None, 6])
def test_gsam_gets_the_gradient_of_the_share(mask, m):
    x, y = data(12)
    moved = NORM if mask is samon.only_norm else ALL
    size = m or 12
    parts = [
        by_hand(x[i : i + size], y[i : i + size], size // 3, moved) for i in range(0, 12, size)
    ]
    clean, sharp = (np.mean([p[i] for p in parts], 0) for i in (1, 2))
    orthogonal = clean - (clean @ sharp) / (sharp @ sharp) * sharp
    actual = run(x, y, 1 / 3, mask, m=m, combine=samon.gsam(0.3))
    assert_equal(actual, np.mean([p[0] for p in parts]), sharp - 0.3 * orthogonal)


@pytest.mark.parametrize("how", ["pmap", "shard_map"])
@pytest.mark.parametrize("m", [None, 16])
def test_devices(how, m):
    """Every device takes the first of its own examples; m = 16 joins two devices of 8."""
    x, y = data(32)
    ascent = samon.variant("sam", RHO)
    fn = samon.value_and_grad(loss_fn, ascent, axis_name="d", m=m, ascent_fraction=0.25, **BOTH)
    state = ascent.init(PARAMS)
    value, grads, _ = over_devices(fn, how, PARAMS, state, x, y, devices=4, axis_name="d")
    v = vector(PARAMS)
    x, y = np.asarray(x).reshape(4, 8, 3), np.asarray(y).reshape(4, 8)
    np.testing.assert_allclose(
        value, [losses(v, x[d, :2], y[d, :2]).mean() for d in range(4)], rtol=1e-5
    )
    clean = np.stack([gradient(v, x[d, :2], y[d, :2]) for d in range(4)])
    if m:
        clean = np.repeat(clean.reshape(2, 2, 5).mean(1), 2, 0)
    sharp = [gradient(v + sam_epsilon(clean[d], RHO, 1.0), x[d], y[d]) for d in range(4)]
    np.testing.assert_allclose(vector(grads), np.mean(sharp, 0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("m", [None, 5])
def test_clean_aux_is_of_the_share(m):
    x, y = data(10)
    ascent = samon.variant("sam", RHO)

    def with_aux(params, x, y, shift):
        return loss_fn(params, x, y), {"x": x[:, 0], "shift": shift}

    options = {"has_aux": True, "aux_from": "both", "m": m, "ascent_fraction": 0.4, **BOTH}
    fn = samon.value_and_grad(with_aux, ascent, **options)
    (_, (clean, perturbed)), _, _ = fn(PARAMS, ascent.init(PARAMS), x, y, jnp.arange(3))
    parts = np.asarray(x[:, 0]).reshape(-1, m or 10)
    np.testing.assert_array_equal(np.atleast_2d(clean["x"]), parts[:, : (m or 10) * 2 // 5])
    np.testing.assert_array_equal(np.atleast_2d(perturbed["x"]), parts)
    np.testing.assert_array_equal(np.atleast_2d(clean["shift"])[0], np.arange(3))


@pytest.mark.parametrize("mask", [samon.only_norm, samon.only_norm_in("norm2")])
def test_statistics_of_the_share(mask):
    """BatchNorm normalizes the first pass with the statistics of its own examples."""
    params, (x, y) = reference.mlp(), reference.data(12)
    ascent = samon.perturbation(RHO, mask=mask)
    fn = samon.value_and_grad(reference.mlp_loss, ascent, ascent_fraction=0.5, **BOTH)
    loss, grads, _ = jax.jit(fn)(params, ascent.init(params), x, y)
    clean = jax.grad(reference.mlp_loss)(params, x[:6], y[:6])
    selected = reference.flat(mask(params))
    epsilon = reference.sam_epsilon(RHO, clean, selected.__getitem__)
    sharp = jax.tree.map(lambda w, e: w + np.float32(e), params, epsilon)
    want = jax.grad(reference.mlp_loss)(sharp, x, y)
    reference.assert_close((loss, grads), (reference.mlp_loss(params, x[:6], y[:6]), want))


@pytest.mark.parametrize("fraction", [0, -0.2, 1.5, float("nan"), "half"])
def test_fraction_outside_its_range(fraction):
    with pytest.raises(samon.UserError, match=r"ascent_fraction=.* number, 0 < value <= 1"):
        samon.value_and_grad(loss_fn, samon.variant("sam", RHO), ascent_fraction=fraction)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"batch_argnums=None: with ascent_fraction=0.5 and 2 arguments"),
        ({"batch_argnums": 2}, r"batch_argnums=\(2,\) must name .*; ascent_fraction=0.5 was given"),
        ({"batch_argnums": ()}, r"ascent_fraction=0.5 needs batch_argnums to name arguments whose"),
    ],
)
def test_examples_must_be_known(options, message):
    ascent = samon.variant("sam", RHO)
    fn = samon.value_and_grad(loss_fn, ascent, ascent_fraction=0.5, **options)
    with pytest.raises(samon.UserError, match=message):
        fn(PARAMS, ascent.init(PARAMS), *data(4))
