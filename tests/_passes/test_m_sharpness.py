"""m-sharpness against a loop over the parts, on one device and over eight."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import samon_jax as samon
from tests.reference import assert_close, data, is_norm, mlp, mlp_loss, two_passes
from tests.several_devices import over_devices

RHO = 0.4
BOTH = {"batch_argnums": (0, 1)}


def everything(path):
    return True


MASKS = pytest.mark.parametrize(
    ("mask", "moved"),
    [
        (samon.only_norm, is_norm),
        (samon.all_params, everything),
        (samon.no_norm, lambda path: not is_norm(path)),
        (samon.only_norm_in("norm2"), lambda path: path.startswith("norm2")),
    ],
)


@functools.cache
def step(moved):
    return jax.jit(lambda params, *batch: two_passes(mlp_loss, params, RHO, moved, *batch))


def loop(moved, m, n=16):
    """Losses of the parts of m examples and the mean of their gradients."""
    x, y = data(n)
    results = [step(moved)(mlp(), x[i : i + m], y[i : i + m]) for i in range(0, n, m)]
    losses, grads = zip(*results, strict=True)
    return np.stack(losses), jax.tree.map(lambda *g: np.mean(np.stack(g), 0), *grads)


@MASKS
@pytest.mark.parametrize("m", [4, 16])
def test_parts_of_a_batch(mask, moved, m):
    params, batch = mlp(), data(16)
    ascent = samon.perturbation(RHO, mask=mask)
    f = jax.jit(samon.value_and_grad(mlp_loss, ascent, m=m, **BOTH))
    loss, grads, state = f(params, ascent.init(params), *batch)
    losses, expected = loop(moved, m)
    assert_close((loss, grads), (losses.mean(), expected))
    assert int(state.count) == 1


@pytest.mark.parametrize("reuse_prefix", [True, False])
def test_parts_of_one_example(reuse_prefix):
    """m = 1; norms over single features instead of the batch, whose variance would be 0."""
    params, (x, y) = mlp(), data(6)

    def loss_fn(params, x, y):
        h = jnp.tanh(x @ params["a"]["kernel"]) * params["norm1"]["scale"]
        return jnp.mean((h @ params["c"]["kernel"] - y) ** 2)

    ascent = samon.perturbation(RHO, mask=samon.only_norm)

    @jax.jit
    def run(params, x, y):
        f = samon.value_and_grad(loss_fn, ascent, m=1, reuse_prefix=reuse_prefix, **BOTH)
        parts = [
            two_passes(loss_fn, params, RHO, is_norm, x[i : i + 1], y[i : i + 1]) for i in range(6)
        ]
        mean = jax.tree.map(lambda *leaves: sum(leaves) / 6, *parts)
        return f(params, ascent.init(params), x, y)[:2], mean

    assert_close(*run(params, x, y))


def test_aux_gains_an_axis_and_other_arguments_are_shared():
    params, (x, y) = mlp(), data(16)

    def loss_fn(params, shift, batch, *, factor):
        h = batch["x"] + shift
        aux = {"mean": h.mean(0), "shift": shift, "norm": params["norm1"]["scale"]}
        return factor * mlp_loss(params, h, batch["y"]), aux

    ascent = samon.perturbation(RHO, mask=samon.only_norm)
    options = {"has_aux": True, "m": 4, "batch_argnums": 1, "aux_from": "both"}
    f = samon.value_and_grad(loss_fn, ascent, **options)
    shift = jnp.array([0.5, 0, 0])
    run = jax.jit(functools.partial(f, factor=2.0))
    (loss, (clean, perturbed)), grads, _ = run(params, ascent.init(params), shift, {"x": x, "y": y})
    parts = [
        two_passes(
            lambda p, i: loss_fn(p, shift, {"x": x[i : i + 4], "y": y[i : i + 4]}, factor=2.0)[0],
            params, RHO, is_norm, i,
        )
        for i in range(0, 16, 4)
    ]  # fmt: skip
    losses, expected = zip(*parts, strict=True)
    assert_close(loss, np.mean(losses))
    assert_close(grads, jax.tree.map(lambda *g: np.mean(np.stack(g), 0), *expected))
    assert_close(clean["mean"], (x + shift).reshape(4, 4, 3).mean(1))
    assert_close(clean["shift"], np.tile(shift, (4, 1)))
    assert_close(clean["norm"], np.tile(params["norm1"]["scale"], (4, 1)))
    assert perturbed["norm"].shape == (4, 4)
    assert np.abs(perturbed["norm"][0] - perturbed["norm"][1]).max() > 1e-4


def test_state_moves_on_once_with_the_mean_gradient():
    params, batch = mlp(), data(16)
    ascent = optax.chain(optax.trace(0.9), samon.perturbation(RHO))
    f = jax.jit(samon.value_and_grad(mlp_loss, ascent, m=4, **BOTH))
    _, _, state = f(params, ascent.init(params), *batch)
    gradient = jax.jit(jax.grad(mlp_loss))
    parts = [gradient(params, *(b[i : i + 4] for b in batch)) for i in range(0, 16, 4)]
    assert_close(state[0].trace, jax.tree.map(lambda *g: np.mean(np.stack(g), 0), *parts))
    assert int(state[1].count) == 1


def test_ascent_that_reads_more_than_it_moves():
    params, batch = mlp(), data(16)
    ascent = optax.chain(
        optax.clip_by_global_norm(0.05), samon.perturbation(RHO, mask=samon.only_norm)
    )
    f = jax.jit(samon.value_and_grad(mlp_loss, ascent, m=4, **BOTH))
    loss, grads, _ = f(params, ascent.init(params), *batch)
    losses, expected = loop(is_norm, 4)  # clipping rescales, and ε does not care
    assert_close((loss, grads), (losses.mean(), expected))


def on_devices(f, ascent, how):
    """Runs f over 8 devices with 2 examples each."""
    params = mlp()
    return over_devices(
        f, how, params, ascent.init(params), *data(16), devices=8, axis_name="batch"
    )


def groups(moved, m):
    """ε from m examples on neighbouring devices whose norms see 2 examples each."""
    x, y = data(16)
    x, y = x.reshape(16 // m, m // 2, 2, 3), y.reshape(16 // m, m // 2, 2, 2)

    def loss_of_group(params, x, y):
        return jnp.mean(jax.vmap(mlp_loss, in_axes=(None, 0, 0))(params, x, y))

    run = jax.jit(lambda x, y: two_passes(loss_of_group, mlp(), RHO, moved, x, y)[1])
    grads = [run(a, b) for a, b in zip(x, y, strict=True)]
    return jax.tree.map(lambda *g: np.mean(np.stack(g), 0), *grads)


@pytest.mark.parametrize("how", ["pmap", "shard_map", "shard_map without types"])
@pytest.mark.parametrize(
    ("m", "mask", "moved"),
    [
        (4, samon.only_norm, is_norm),
        (8, samon.all_params, everything),
        (16, samon.only_norm, is_norm),
    ],
)
def test_groups_of_devices(how, m, mask, moved):
    ascent = samon.perturbation(RHO, mask=mask)
    f = samon.value_and_grad(mlp_loss, ascent, axis_name="batch", m=m, **BOTH)
    losses, grads, _ = on_devices(f, ascent, how)
    x, y = data(16)
    local = [mlp_loss(mlp(), x[i : i + 2], y[i : i + 2]) for i in range(0, 16, 2)]
    assert_close(losses, np.stack(local))
    assert_close(grads, groups(moved, m))


@pytest.mark.parametrize("m", [2, None])
def test_m_of_a_devices_batch_is_the_default(m):
    ascent = samon.perturbation(RHO, mask=samon.only_norm)
    f = samon.value_and_grad(mlp_loss, ascent, axis_name="batch", m=m, **BOTH)
    losses, grads, _ = on_devices(f, ascent, "pmap")
    assert_close((losses, grads), loop(is_norm, 2))


def test_parts_on_every_device():
    """8 devices with 2 examples, one ε for each."""
    ascent = samon.perturbation(RHO, mask=samon.only_norm_in("norm1"))

    def loss_fn(params, x, y):
        h = jnp.tanh(x @ params["a"]["kernel"]) * params["norm1"]["scale"]
        return jnp.mean((h @ params["c"]["kernel"] - y) ** 2)

    f = samon.value_and_grad(loss_fn, ascent, axis_name="batch", m=1, **BOTH)
    losses, grads, _ = on_devices(f, ascent, "shard_map")
    x, y = data(16)

    def moved(path):
        return path.startswith("norm1")

    run = jax.jit(lambda x, y: two_passes(loss_fn, mlp(), RHO, moved, x, y))
    parts = [run(x[i : i + 1], y[i : i + 1]) for i in range(16)]
    expected_losses, expected = zip(*parts, strict=True)
    assert_close(losses, np.stack(expected_losses).reshape(8, 2).mean(1))
    assert_close(grads, jax.tree.map(lambda *g: np.mean(np.stack(g), 0), *expected))


@pytest.mark.parametrize(
    ("m", "argnums", "message"),
    [
        (3, (0, 1), "m=3 must divide the 16 examples"),
        (0, (0, 1), "m=0 is not allowed; it must be an integer >= 1"),
        (-4, (0, 1), "m=-4 is not allowed; it must be an integer >= 1"),
        (32, (0, 1), "m=32 must divide the 16 examples"),
        (4, (0, 1, 2), "m=4 needs batch_argnums to name arguments whose arrays all have"),
        (4, (0, 3), "m=4 needs batch_argnums to name arguments whose arrays all have"),
        (4, (), "m=4 needs batch_argnums to name arguments whose arrays all have"),
        (4, (0, 7), "batch_argnums=(0, 7)"),
    ],
)
def test_errors_on_one_device(m, argnums, message):
    params, (x, y) = mlp(), data(16)
    ascent = samon.perturbation(RHO)

    def call():
        loss_fn = lambda params, x, y, *_: mlp_loss(params, x, y)  # noqa: E731
        f = samon.value_and_grad(loss_fn, ascent, m=m, batch_argnums=argnums)
        f(params, ascent.init(params), x, y, jnp.ones(5), 1.0)

    with pytest.raises(samon.UserError, match=re.escape(message)):
        call()


@pytest.mark.parametrize("m", [3, 6, 32])
def test_errors_over_devices(m):
    ascent = samon.perturbation(RHO)
    f = samon.value_and_grad(mlp_loss, ascent, axis_name="batch", m=m, **BOTH)
    with pytest.raises(samon.UserError, match=f"m={m} must divide the 2 .* number of devices, 8"):
        on_devices(f, ascent, "pmap")
