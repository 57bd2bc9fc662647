"""ESAM against its equations in NumPy (Du et al. 2022, sections 3.1 and 3.2)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import samon_jax as samon
from samon_jax._passes.footprint import footprint
from tests import reference
from tests.closed_form import (
    ALL,
    NORM,
    PARAMS,
    data,
    gradient,
    losses,
    losses_fn,
    sam_epsilon,
    vector,
)
from tests.several_devices import over_devices

RHO = 0.4
BOTH = {"batch_argnums": (0, 1)}
MASKS = pytest.mark.parametrize(
    ("mask", "moved"), [(samon.all_params, ALL), (samon.only_norm, NORM)]
)


def by_hand(x, y, gamma, moved, draw=1.0):
    """Value, gradient and selected examples; `draw` is the random factor of every entry of ε."""
    v = vector(PARAMS)
    sharp = v + draw * sam_epsilon(gradient(v, x, y), RHO, moved)
    rise = losses(sharp, x, y) - losses(v, x, y)
    count = max(1, round(gamma * len(x)))
    chosen = np.argsort(-rise)[:count]
    if count < len(x):
        assert np.diff(np.sort(rise)).min() > 1e-5  # float32 finds the same order
    return losses(v, x, y).mean(), gradient(sharp, x[chosen], y[chosen]), chosen


def assert_equal(actual, loss, grads):
    assert float(actual[0]) == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(vector(actual[1]), grads, rtol=1e-4, atol=1e-5)


@MASKS
@pytest.mark.parametrize("gamma", [0.01, 0.25, 0.5, 0.9, 1.0])
def test_equals_the_equations(mask, moved, gamma):
    x, y = data(10)
    ascent = samon.variant("sam", RHO, mask)
    step = jax.jit(samon.esam(losses_fn, ascent, gamma=gamma, **BOTH))
    loss, grads, state = step(PARAMS, ascent.init(PARAMS), x, y)
    assert_equal((loss, grads), *by_hand(x, y, gamma, moved)[:2])
    assert int(state.count) == 1


def test_with_both_parts():
    x, y = data(12)
    ascent = samon.stochastic_perturbation(samon.variant("sam", RHO), 0.6, jax.random.key(2))
    state = ascent.init(PARAMS)
    drawn = vector(
        ascent.update(jax.grad(lambda p: losses_fn(p, x, y).mean())(PARAMS), state, PARAMS)
    )
    drawn = drawn[:5] != 0
    assert 0 < drawn.sum() < 5
    step = jax.jit(samon.esam(losses_fn, ascent, gamma=0.5, **BOTH))
    loss, grads, state = step(PARAMS, state, x, y)
    assert_equal((loss, grads), *by_hand(x, y, 0.5, ALL, drawn / 0.6)[:2])
    assert int(state.count) == int(state.ascent_state.count) == 1


@MASKS
def test_trivial_settings_are_sam(mask, moved):
    x, y = data(8)
    sam = samon.variant("sam", RHO, mask)
    ascent = samon.stochastic_perturbation(sam, 1.0, jax.random.key(0))
    step = jax.jit(samon.esam(losses_fn, ascent, gamma=1.0))
    actual = step(PARAMS, ascent.init(PARAMS), x, y)[:2]
    mean = samon.value_and_grad(lambda *args: losses_fn(*args).mean(), sam)
    expected = jax.jit(mean)(PARAMS, sam.init(PARAMS), x, y)[:2]
    np.testing.assert_array_equal(vector(actual), vector(expected))
    v = vector(PARAMS)
    sharp = v + sam_epsilon(gradient(v, x, y), RHO, moved)
    np.testing.assert_allclose(vector(actual[1]), gradient(sharp, x, y), rtol=1e-4, atol=1e-5)


def test_a_share_that_rounds_to_all_examples_is_sam():
    x, y = data(3)
    ascent = samon.variant("sam", RHO)
    actual = samon.esam(losses_fn, ascent, gamma=0.9, **BOTH)(PARAMS, ascent.init(PARAMS), x, y)
    assert_equal(actual, *by_hand(x, y, 1.0, ALL)[:2])


@pytest.mark.parametrize("aux_from", ["clean", "perturbed", "both"])
def test_aux(aux_from):
    x, y = data(10)
    ascent = samon.variant("sam", RHO)

    def with_aux(params, batch, shift):
        aux = {"name": batch["name"], "b": params["norm"]["bias"], "shift": shift}
        return losses_fn(params, batch["x"], batch["y"]), aux

    fn = samon.esam(with_aux, ascent, gamma=0.4, has_aux=True, batch_argnums=0, aux_from=aux_from)
    batch = {"x": x, "y": y, "name": np.arange(10)}
    (loss, aux), grads, _ = jax.jit(fn)(PARAMS, ascent.init(PARAMS), batch, jnp.arange(3.0))
    want, want_grads, chosen = by_hand(x, y, 0.4, ALL)
    assert_equal((loss, grads), want, want_grads)
    clean, perturbed = aux if aux_from == "both" else (aux, aux)
    if aux_from != "perturbed":
        np.testing.assert_array_equal(clean["name"], np.arange(10))
        np.testing.assert_array_equal(clean["b"], PARAMS["norm"]["bias"])
    if aux_from != "clean":
        np.testing.assert_array_equal(perturbed["name"], chosen)
        assert abs(float(perturbed["b"][0] - PARAMS["norm"]["bias"][0])) > 1e-3
        np.testing.assert_array_equal(perturbed["shift"], np.arange(3.0))


def test_keys_are_examples_too():
    x, y = data(6)
    keys, ascent = jax.random.split(jax.random.key(0), 6), samon.variant("sam", RHO)
    noise = np.asarray(jax.vmap(jax.random.normal)(keys))

    def noisy(params, x, y, keys, *, factor):
        return losses_fn(params, x, y + factor * jax.vmap(jax.random.normal)(keys))

    fn = functools.partial(
        samon.esam(noisy, ascent, gamma=0.5, batch_argnums=(0, 1, 2)), factor=2.0
    )
    actual = jax.jit(fn)(PARAMS, ascent.init(PARAMS), x, y, keys)
    assert_equal(actual, *by_hand(x, y + 2 * noise, 0.5, ALL)[:2])


@pytest.mark.parametrize("how", ["pmap", "shard_map"])
def test_devices_select_among_their_own_examples(how):
    x, y = data(32)
    ascent = samon.variant("sam", RHO)
    fn = samon.esam(losses_fn, ascent, gamma=0.5, axis_name="d", **BOTH)
    state = ascent.init(PARAMS)
    value, grads, state = over_devices(fn, how, PARAMS, state, x, y, devices=4, axis_name="d")
    want = [by_hand(x[i : i + 8], y[i : i + 8], 0.5, ALL) for i in range(0, 32, 8)]
    np.testing.assert_allclose(value, [w[0] for w in want], rtol=1e-5)
    np.testing.assert_allclose(
        vector(grads), np.mean([w[1] for w in want], 0), rtol=1e-4, atol=1e-5
    )
    assert int(state.count) == 1


@pytest.mark.parametrize("reuse_prefix", [True, False])
@pytest.mark.parametrize(
    "ascent",
    [
        samon.perturbation(RHO, mask=samon.only_norm_in("norm2")),
        optax.chain(  # reads gradients in the prefix
            optax.clip_by_global_norm(0.05),
            samon.perturbation(RHO, mask=samon.only_norm_in("norm2")),
        ),
    ],
)
def test_shared_prefix_and_statistics_of_the_batch(reuse_prefix, ascent):
    """The last pass normalizes with the statistics of the selected examples."""
    params, (x, y) = reference.mlp(), reference.data(8)

    def of_examples(params, x, y):
        h = jnp.tanh(reference.normalize(x @ params["a"]["kernel"], params["norm1"]))
        h = jnp.tanh(reference.normalize(h @ params["b"]["kernel"], params["norm2"]))
        return jnp.mean((h @ params["c"]["kernel"] + params["c"]["bias"] - y) ** 2, 1)

    fn = samon.esam(of_examples, ascent, gamma=0.5, reuse_prefix=reuse_prefix, **BOTH)
    loss, grads, _ = jax.jit(fn)(params, ascent.init(params), x, y)
    gradient = jax.jit(jax.grad(reference.mlp_loss))
    clean = gradient(params, x, y)
    epsilon = reference.sam_epsilon(RHO, clean, lambda path: path.startswith("norm2"))
    sharp = jax.tree.map(lambda w, e: w + np.float32(e), params, epsilon)
    rise = np.asarray(of_examples(sharp, x, y) - of_examples(params, x, y))
    chosen = np.argsort(-rise)[:4]
    assert np.diff(np.sort(rise)).min() > 1e-5
    want = gradient(sharp, x[chosen], y[chosen])
    reference.assert_close((loss, grads), (reference.mlp_loss(params, x, y), want))


# SWP alone.


def swp(beta, seed=0, mask=samon.all_params):
    ascent = samon.variant("sam", RHO, mask)
    return samon.stochastic_perturbation(ascent, beta, jax.random.key(seed))


def test_every_entry_is_kept_with_probability_beta_and_scaled():
    rng = np.random.default_rng(0)
    params = {"a": jnp.ones((50, 40)), "b": jnp.ones(2000)}
    grads = jax.tree.map(lambda w: jnp.float32(rng.normal(size=w.shape)), params)
    ascent = swp(0.3)
    state, draws = ascent.init(params), []
    full = sam_epsilon(vector(grads), RHO, 1.0)
    for count in range(3):
        assert int(state.count) == count
        epsilon, state = jax.jit(ascent.update)(grads, state, params)
        kept = vector(epsilon) != 0
        np.testing.assert_allclose(vector(epsilon), np.where(kept, full / 0.3, 0), rtol=1e-5)
        draws.append(kept)
    kept = np.stack(draws)
    assert kept.mean() == pytest.approx(0.3, abs=0.015)  # 12000 entries: 3.6 standard deviations
    for i, j in ((0, 1), (1, 2)):  # the draws are independent of each other, and so are the leaves
        assert (kept[i] & kept[j]).mean() == pytest.approx(0.09, abs=0.02)
    assert (kept[:, :2000] & kept[:, 2000:]).mean() == pytest.approx(0.09, abs=0.02)


def test_the_key_decides():
    params = {"w": jnp.ones(64)}

    def draw(seed):
        ascent = swp(0.5, seed)
        return vector(ascent.update(params, ascent.init(params), params)[0])

    np.testing.assert_array_equal(draw(0), draw(0))
    assert (draw(0) != draw(1)).any()


def test_seeds_in_the_state_can_be_mapped():
    params = {"w": jnp.ones(64)}
    keys = jax.random.split(jax.random.key(0), 3)

    def draw(key):
        ascent = samon.stochastic_perturbation(samon.variant("sam", RHO), 0.5, key)
        return ascent.update(params, ascent.init(params), params)[0]["w"]

    each = np.stack([draw(key) for key in keys])
    np.testing.assert_array_equal(jax.vmap(draw)(keys), each)


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_masked_leaves_stay_static_zeros(beta):
    ascent = swp(beta, mask=samon.only_norm)
    found = footprint(ascent, ascent.init(PARAMS), PARAMS)
    assert found.moves == found.reads == [False, True, True]


# Errors.


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: swp(0.0), r"beta=0.0 is not allowed; it must be a number, 0 < value <= 1"),
        (lambda: swp(1.5), r"beta=1.5 is not allowed; it must be a number, 0 < value <= 1"),
        (lambda: swp("much"), r"beta='much' is not allowed; it must be a number"),
        (lambda: run_esam(gamma=0), r"gamma=0 is not allowed; it must be a number"),
        (lambda: run_esam(gamma=float("nan")), r"gamma=nan is not allowed; it must be a number"),
        (lambda: run_esam(aux_from="last"), "aux_from='last' must be one of clean, perturbed"),
        (lambda: run_esam(gamma=0.5), "batch_argnums=None: with gamma=0.5 and 2 arguments"),
        (
            lambda: run_esam(gamma=0.5, batch_argnums=3),
            r"batch_argnums=\(3,\) must name positional",
        ),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(samon.UserError, match=message):
        call()


def run_esam(losses_fn=losses_fn, **options):
    ascent = samon.variant("sam", RHO)
    return samon.esam(losses_fn, ascent, **options)(PARAMS, ascent.init(PARAMS), *data(4))


def test_examples_that_do_not_fit():
    ascent = samon.variant("sam", RHO)
    fn = samon.esam(losses_fn, ascent, gamma=0.5, **BOTH)
    with pytest.raises(samon.UserError, match=r"gamma=0\.5 needs batch_argnums to name arguments"):
        fn(PARAMS, ascent.init(PARAMS), jnp.ones((4, 3)), jnp.ones(5))


@pytest.mark.parametrize("gamma", [0.5, 1.0])
def test_losses_must_be_of_examples(gamma):
    with pytest.raises(TypeError, match=r"losses_fn must return .*, not shape \(\)"):
        run_esam(lambda *args: losses_fn(*args).mean(), gamma=gamma, **BOTH)
    if gamma < 1:
        with pytest.raises(TypeError, match=r"losses of shape \(4,\), not shape \(2,\)"):
            run_esam(lambda *args: losses_fn(*args)[:2], gamma=gamma, **BOTH)
