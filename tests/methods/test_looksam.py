"""LookSAM against algorithm 1 of Liu et al. 2022 in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import samon_jax as samon
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

RHO, ALPHA, RATE, EVERY = 0.4, 0.7, 0.05, 3
MASKS = pytest.mark.parametrize(
    ("mask", "moved"), [(samon.all_params, ALL), (samon.only_norm, NORM)]
)


def by_hand(batches, moved=ALL, every=EVERY, shares=1):
    """Weights of SGD before every step, and the gradients it used.

    Each batch falls into equal `shares`, of which each has an ε of its own.
    """
    v, g_v, steps = vector(PARAMS), None, []
    for t, (x, y) in enumerate(batches):
        parts = list(zip(np.split(x, shares), np.split(y, shares), strict=True))
        g = np.mean([gradient(v, *part) for part in parts], 0)
        if t % every == 0:
            sharp = [v + sam_epsilon(gradient(v, *part), RHO, moved) for part in parts]
            used = np.mean([gradient(s, *p) for s, p in zip(sharp, parts, strict=True)], 0)
            cosine = used @ g / np.linalg.norm(used) / np.linalg.norm(g)
            g_v = used - np.linalg.norm(used) * cosine * g / np.linalg.norm(g)
        else:
            used = g + ALPHA * np.linalg.norm(g) / np.linalg.norm(g_v) * g_v
        steps.append((v, used, g_v))
        v = v - RATE * used
    return steps


def descend(params, grads):
    return jax.tree.map(lambda w, g: w - RATE * g, params, grads)


def looksam(mask=samon.all_params, every=EVERY, **options):
    ascent = samon.variant("sam", RHO, mask)
    return samon.looksam(loss_fn, ascent, every=every, alpha=ALPHA, **options)


BATCHES = [data(8, seed) for seed in range(5)]


@MASKS
def test_equals_the_algorithm(mask, moved):
    look = looksam(mask)
    chosen, sharp, plain = [jax.jit(f) for f in look[1:]]
    params, state = PARAMS, look.init(PARAMS)
    for t, (batch, (v, used, g_v)) in enumerate(zip(BATCHES, by_hand(BATCHES, moved), strict=True)):
        loss, grads, new = chosen(params, state, *batch)
        assert float(loss) == pytest.approx(losses(v, *batch).mean(), rel=1e-4)
        np.testing.assert_allclose(vector(grads), used, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(vector(new.direction), g_v, rtol=1e-3, atol=1e-4)
        # The caller may choose instead.
        same = (plain if t % EVERY else sharp)(params, state, *batch)
        np.testing.assert_allclose(vector(same), vector((loss, grads, new)), rtol=1e-5, atol=1e-6)
        params, state = descend(params, grads), new
        assert int(state.count) == t + 1
    assert int(state.ascent_state.count) == 2  # steps 0 and 3


@MASKS
def test_every_step_sharp_is_sam(mask, moved):
    look, ascent = looksam(mask, every=1), samon.variant("sam", RHO, mask)
    state = look.init(PARAMS)
    assert jax.tree.leaves(state.direction) == []
    assert look.value_and_grad is look.sharp is look.plain
    sam = jax.jit(samon.value_and_grad(loss_fn, ascent))
    for batch in BATCHES[:2]:
        loss, grads, state = jax.jit(look.value_and_grad)(PARAMS, state, *batch)
        want = sam(PARAMS, ascent.init(PARAMS), *batch)[:2]
        np.testing.assert_array_equal(vector((loss, grads)), vector(want))
        v = vector(PARAMS)
        sharp = v + sam_epsilon(gradient(v, *batch), RHO, moved)
        np.testing.assert_allclose(vector(grads), gradient(sharp, *batch), rtol=1e-4, atol=1e-4)
    assert int(state.count) == int(state.ascent_state.count) == 2


@pytest.mark.parametrize("how", ["pmap", "shard_map"])
def test_devices_hold_the_same_state(how):
    look = looksam(axis_name="d")
    params, state = PARAMS, look.init(PARAMS)
    if how == "pmap":
        # The new state of every device, to compare.
        run = jax.pmap(look.value_and_grad, "d", in_axes=(None, None, 0, 0), out_axes=0)

        def step(params, state, x, y):
            everyone = run(params, state, x.reshape(4, 2, 3), y.reshape(4, 2))
            for leaf in jax.tree.leaves(everyone[1:]):
                assert (np.asarray(leaf) == np.asarray(leaf[:1])).all()
            return everyone[0], *jax.tree.map(lambda leaf: leaf[0], everyone[1:])

    else:
        mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))

        def local(*args):
            loss, grads, state = look.value_and_grad(*args)
            return loss[None], grads, state

        # Out specs P() are checked: what varies over the devices is refused.
        specs = {"in_specs": (P(), P(), P("d"), P("d")), "out_specs": (P("d"), P(), P())}
        step = jax.jit(jax.shard_map(local, mesh=mesh, **specs))
    for batch, (v, used, _) in zip(BATCHES, by_hand(BATCHES, shares=4), strict=True):
        loss, grads, state = step(params, state, *batch)
        want = losses(v, *batch).reshape(4, 2).mean(1)
        np.testing.assert_allclose(loss, want, rtol=1e-3)
        np.testing.assert_allclose(vector(grads), used, rtol=1e-3, atol=2e-4)
        params = descend(params, grads)


def test_parts_of_a_batch_and_aux():
    ascent = samon.variant("sam", RHO)

    def with_aux(params, x, y):
        return loss_fn(params, x, y), {"b": params["norm"]["bias"], "n": jnp.ones(len(x))}

    options = {"has_aux": True, "m": 4, "batch_argnums": (0, 1), "aux_from": "both"}
    look = samon.looksam(with_aux, ascent, every=2, alpha=ALPHA, **options)
    step, params, state = jax.jit(look.value_and_grad), PARAMS, look.init(PARAMS)
    want = by_hand(BATCHES[:2], every=2, shares=2)
    for t, (v, used, _) in enumerate(want):
        (loss, (clean, perturbed)), grads, state = step(params, state, *BATCHES[t])
        assert float(loss) == pytest.approx(losses(v, *BATCHES[t]).mean(), rel=1e-4)
        np.testing.assert_allclose(vector(grads), used, rtol=1e-3, atol=1e-4)
        assert clean["n"].shape == perturbed["n"].shape == (2, 4)
        np.testing.assert_allclose(clean["b"], np.full((2, 1), v[3]), rtol=1e-5)
        differ = np.abs(perturbed["b"] - clean["b"]).max()
        assert differ == 0 if t else differ > 1e-3  # a plain step has one pass
        params = descend(params, grads)


# Where a length is zero or close to it.


def run(loss_fn, params, rho=RHO, scale=1.0):
    """Gradients and direction of a sharp and a plain step at the same parameters."""
    look = samon.looksam(
        lambda p: scale * loss_fn(p), samon.perturbation(rho), every=2, alpha=ALPHA
    )
    step = jax.jit(look.value_and_grad)
    _, sharp, state = step(params, look.init(params))
    _, plain, state = step(params, state)
    return vector(sharp), vector(plain), vector(state.direction)


def bowl(params):
    """Gradient [w_1, 3 w_2, 9 w_3], which ε turns."""
    return jnp.sum(jnp.array([1.0, 3.0, 9.0]) * params["w"] ** 2) / 2


CURVATURE = np.array([1.0, 3.0, 9.0])
W = np.array([0.3, -0.7, 0.2])


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
def test_lengths_neither_overflow_nor_vanish(scale):
    """Squares of the gradient are outside of float32's range, or close to its ends."""
    sharp, plain, direction = run(bowl, {"w": jnp.float32(W)}, scale=scale)
    g = CURVATURE * W
    g_s = CURVATURE * (W + RHO * g / np.linalg.norm(g))
    g_v = g_s - (g_s @ g) / (g @ g) * g
    np.testing.assert_allclose(sharp / scale, g_s, rtol=1e-4)
    np.testing.assert_allclose(direction / scale, g_v, rtol=1e-4, atol=1e-5)
    want = g + ALPHA * np.linalg.norm(g) / np.linalg.norm(g_v) * g_v
    np.testing.assert_allclose(plain / scale, want, rtol=1e-4)


@pytest.mark.parametrize("rho", [0.0, jnp.float32(0.0)])
def test_without_an_ascent_there_is_no_direction(rho):
    sharp, plain, direction = run(bowl, {"w": jnp.float32(W)}, rho)
    np.testing.assert_allclose(sharp, CURVATURE * W, rtol=1e-6)
    np.testing.assert_array_equal(direction, 0)
    np.testing.assert_array_equal(plain, sharp)


def test_rounding_is_no_direction():
    """ε along the gradient, as with equal curvature: g_s is parallel to g, up to rounding."""
    w = np.random.default_rng(0).normal(size=300)
    sharp, plain, direction = run(lambda p: jnp.sum(p["w"] ** 2) / 2, {"w": jnp.float32(w)})
    np.testing.assert_allclose(sharp, w * (1 + RHO / np.linalg.norm(w)), rtol=1e-5)
    np.testing.assert_array_equal(direction, 0)
    np.testing.assert_allclose(plain, w, rtol=1e-6)


def test_a_tiny_radius_has_a_direction():
    """Where g_v is but a millionth of g, and more than rounding of their difference."""
    w, rho = np.float64(np.float32(W)), 3e-6
    direction = run(bowl, {"w": jnp.float32(w)}, rho)[2]
    g = CURVATURE * w
    rise = rho * CURVATURE * g / np.linalg.norm(g)
    g_v = rise - (rise @ g) / (g @ g) * g
    assert np.linalg.norm(g_v) < 4e-6 * np.linalg.norm(g)
    assert np.linalg.norm(direction - g_v) < 0.15 * np.linalg.norm(g_v)


def test_zero_gradient():
    sharp, plain, direction = run(bowl, {"w": jnp.zeros(3)})
    for leaf in (sharp, plain, direction):
        np.testing.assert_array_equal(leaf, 0)


def test_zero_clean_gradient_leaves_the_whole_sharp_one():
    """At a stationary point ε is 0 with `perturbation`; another transform may leave it."""

    def update(grads, state, params=None):
        return jax.tree.map(lambda g: g + 1.0, grads), state

    look = samon.looksam(bowl, optax.GradientTransformation(lambda params: (), update), every=2)
    params = {"w": jnp.zeros(3)}
    _, _, state = look.sharp(params, look.init(params))
    np.testing.assert_allclose(state.direction["w"], CURVATURE)
    np.testing.assert_array_equal(look.plain(params, state)[1]["w"], 0)


def test_half_precision_adds_up_in_float32():
    """In bfloat16 a sum of ones stops at 256."""
    n = 4000
    curvature = jnp.where(jnp.arange(n) < n // 2, 1.0, 2.0)
    params = {"w": jnp.ones(n, jnp.bfloat16)}

    def loss_fn(params):
        return jnp.sum(curvature * params["w"].astype(jnp.float32) ** 2) / 2

    _, plain, direction = run(loss_fn, params, rho=20.0)
    g = np.asarray(curvature, np.float64)
    w = np.float64(jnp.bfloat16(1) + jnp.asarray(20 * g / np.linalg.norm(g), jnp.bfloat16))
    g_s = g * w
    g_v = g_s - (g_s @ g) / (g @ g) * g
    np.testing.assert_allclose(direction, g_v, rtol=2**-8)  # rounded once
    want = g + ALPHA * np.linalg.norm(g) / np.linalg.norm(direction) * direction
    np.testing.assert_allclose(plain, want, rtol=2**-8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": np.int64(0)}, "every=0 is not allowed; it must be an integer >= 1"),
        ({"every": 2.5}, "every=2.5 is not allowed; it must be an integer >= 1"),
        ({"every": True}, "every=True is not allowed; it must be an integer >= 1"),
        ({"alpha": -1.0}, "alpha=-1.0 is not allowed; it must be a finite number >= 0"),
        ({"aux_from": "last"}, "aux_from='last' must be one of clean"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(samon.UserError, match=message):
        samon.looksam(loss_fn, samon.variant("sam", RHO), **{"every": 2} | options)
