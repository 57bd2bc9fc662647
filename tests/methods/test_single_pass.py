"""ε from the gradients of earlier steps, in one pass."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import samon_jax as samon
from samon_jax import methods
from samon_jax._passes.footprint import footprint
from samon_jax.errors import UserError
from tests import reference
from tests.several_devices import over_devices

RHO, LR, BETA = 0.4, 0.05, 0.8


def linear_loss(params, x, y):
    """Mean squared error of x @ (kernel * scale) + sum(bias)."""
    weights = params["dense"]["kernel"] * params["norm"]["scale"]
    return jnp.mean((x @ weights + params["norm"]["bias"].sum() - y) ** 2)


def problem():
    rng = np.random.default_rng(0)
    params = {
        "dense": {"kernel": rng.normal(size=4)},
        "norm": {"scale": 1 + 0.1 * rng.normal(size=4), "bias": np.zeros(4)},
    }
    return params, rng.normal(size=(20, 6, 4)), rng.normal(size=(20, 6))


def linear_gradient(w, scale, bias, x, y):
    """By hand, in float64."""
    error = 2 * (x @ (w * scale) + bias.sum() - y) / len(y)
    return (error @ x) * scale, (error @ x) * w, np.full(4, error.sum())


@pytest.mark.parametrize("direction", ["previous", "momentum", "average"])
@pytest.mark.parametrize("norms", [True, False])
def test_it_equals_its_transcription_over_twenty_steps(direction, norms):
    params, xs, ys = problem()
    w, scale, bias = params["dense"]["kernel"], params["norm"]["scale"], params["norm"]["bias"]
    mask = samon.only_norm if norms else samon.all_params
    ascent = samon.single_pass(samon.variant("sam", RHO, mask), direction, decay=BETA)
    step = jax.jit(samon.value_and_grad(linear_loss, ascent))
    params = jax.tree.map(jnp.float32, params)
    state = ascent.init(params)
    held = [np.zeros(4)] * 3
    for x, y in zip(xs, ys, strict=True):
        moved = [False, True, True] if norms else [True] * 3
        norm = np.sqrt(sum(np.sum(h**2) for h, m in zip(held, moved, strict=True) if m)) or 1.0
        sign = -1 if direction == "momentum" else 1
        at = [
            leaf + sign * RHO * h / norm * m
            for leaf, h, m in zip((w, scale, bias), held, moved, strict=True)
        ]
        grads = linear_gradient(*at, x, y)
        want = np.mean((x @ (at[0] * at[1]) + at[2].sum() - y) ** 2)
        loss, got, state = step(params, state, jnp.float32(x), jnp.float32(y))
        assert float(loss) == pytest.approx(want, rel=1e-4)
        reference.assert_close(
            (got["dense"]["kernel"], got["norm"]["scale"], got["norm"]["bias"]), grads, 1e-4
        )
        params = jax.tree.map(lambda p, g: p - LR * g, params, got)
        w, scale, bias = (p - LR * g for p, g in zip((w, scale, bias), grads, strict=True))
        rule = {
            "previous": lambda h, g: g,
            "momentum": lambda h, g: BETA * h + g,
            "average": lambda h, g: BETA * h + (1 - BETA) * g,
        }[direction]
        held = [rule(h, g) for h, g in zip(held, grads, strict=True)]


@pytest.mark.parametrize("direction", ["previous", "momentum", "average"])
def test_with_radius_zero_it_is_sgd_to_the_bit(direction):
    ascent = samon.single_pass(samon.variant("sam", 0.0, samon.only_norm), direction)
    sharp = jax.jit(samon.value_and_grad(reference.mlp_loss, ascent))
    plain = jax.jit(jax.value_and_grad(reference.mlp_loss))
    one, other = reference.mlp(), reference.mlp()
    state = ascent.init(one)
    for i in range(20):
        batch = reference.data(8, seed=i)
        loss, grads, state = sharp(one, state, *batch)
        want, want_grads = plain(other, *batch)
        assert float(loss) == float(want)
        jax.tree.map(np.testing.assert_array_equal, grads, want_grads)
        one = jax.tree.map(lambda w, g: w - LR * g, one, grads)
        other = jax.tree.map(lambda w, g: w - LR * g, other, want_grads)


def test_only_what_is_perturbed_is_remembered():
    params = reference.mlp()
    ascent = samon.single_pass(samon.variant("sam", RHO, samon.only_norm))
    memory = ascent.init(params).memory
    sizes = {
        path: np.shape(leaf) for path, leaf in reference.flat(memory).items() if leaf is not None
    }
    assert sizes == {p: np.shape(x) for p, x in reference.flat(params).items() if "norm" in p}
    moves, reads = footprint(ascent, ascent.init(params), params)
    assert moves == reads == [reference.is_norm(path) for path in reference.flat(params)]


def test_the_first_step_is_plain_and_the_aux_is_of_the_one_pass():
    params, (x, y) = reference.mlp(), reference.data(8)

    def loss_fn(params, x, y):
        return reference.mlp_loss(params, x, y), params["norm1"]["scale"]

    ascent = samon.single_pass(samon.variant("sam", RHO, samon.only_norm), "previous")
    for aux_from in ("clean", "both"):
        fn = jax.jit(samon.value_and_grad(loss_fn, ascent, has_aux=True, aux_from=aux_from))
        (loss, _), grads, state = fn(params, ascent.init(params), x, y)
        assert float(loss) == pytest.approx(float(reference.mlp_loss(params, x, y)), rel=1e-6)
        (_, aux), _, _ = fn(params, state, x, y)
        epsilon = reference.sam_epsilon(RHO, grads, reference.is_norm)
        want = params["norm1"]["scale"] + epsilon["norm1"]["scale"]
        for of_pass in jax.tree.leaves(aux):
            reference.assert_close(of_pass, want)


def test_in_sam_the_gradient_at_w_is_not_read():
    params = reference.mlp()
    ascent = samon.single_pass(samon.variant("sam", RHO, samon.only_norm))
    tx = samon.sam(optax.sgd(LR, momentum=0.9), ascent)
    fn = jax.jit(samon.value_and_grad(reference.mlp_loss, ascent))
    base = optax.sgd(LR, momentum=0.9)
    one, other, state, own = params, params, tx.init(params), base.init(params)
    ascent_state = ascent.init(params)

    @jax.jit
    def update(params, state, *batch):
        nonsense = jax.tree.map(lambda w: w * jnp.nan, params)
        grad_fn = jax.grad(lambda params: reference.mlp_loss(params, *batch))
        return tx.update(nonsense, state, params, grad_fn=grad_fn)

    for i in range(3):
        batch = reference.data(8, seed=i)
        updates, state = update(one, state, *batch)
        one = optax.apply_updates(one, updates)
        _, grads, ascent_state = fn(other, ascent_state, *batch)
        updates, own = base.update(grads, own, other)
        other = optax.apply_updates(other, updates)
    reference.assert_close(one, other)


@pytest.mark.parametrize("how", ["pmap", "shard_map"])
def test_devices_and_parts_share_what_is_remembered(how):
    """The averaged gradient is remembered; parts of 4 examples have statistics of their own."""
    ascent = samon.single_pass(samon.variant("sam", RHO, samon.only_norm), "previous")
    fn = samon.value_and_grad(reference.mlp_loss, ascent, axis_name="d", m=4, batch_argnums=(0, 1))
    params, (x, y) = reference.mlp(), reference.data(16)

    def parts(params):
        losses = [reference.mlp_loss(params, x[i : i + 4], y[i : i + 4]) for i in range(0, 16, 4)]
        return sum(losses) / 4

    state = ascent.init(params)
    for _ in range(2):
        direction = jax.tree.map(
            lambda w, h: jnp.zeros_like(w) if h is None else h,
            params,
            state.memory,
        )
        epsilon = reference.sam_epsilon(RHO, direction, reference.is_norm)
        want = jax.jit(jax.grad(parts))(
            jax.tree.map(lambda w, e: w + np.float32(e), params, epsilon)
        )
        values, grads, state = over_devices(fn, how, params, state, x, y, devices=2, axis_name="d")
        reference.assert_close(grads, want)
        assert values.shape == (2,)
        kept = {p: g for p, g in reference.flat(state.memory).items() if g is not None}
        for path, held in kept.items():
            np.testing.assert_array_equal(held, reference.flat(grads)[path])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda a: samon.value_and_grad(len, a, combine=samon.gsam(0.1)),
            "combine is not allowed",
        ),
        (lambda a: samon.value_and_grad(len, a, ascent_fraction=0.5), "ascent_fraction is not"),
        (lambda a: samon.esam(len, a, gamma=0.5), "gamma is not allowed with a single-pass"),
        (lambda a: samon.looksam(len, a, every=2), "combine is not allowed with a single-pass"),
        (lambda a: samon.single_pass(a, "up"), "direction='up' is not allowed"),
        (lambda a: samon.single_pass(a, decay=1.0), "decay=1.0 is not allowed"),
    ],
)
def test_what_needs_a_pass_at_w_is_refused(call, message):
    with pytest.raises(samon.UserError, match=message):
        call(samon.single_pass(samon.variant("sam", 0.1)))


def test_from_the_config():
    fields = {name: field.default for name, field in methods.FIELDS.items()}
    fields |= {"variant": "sam", "direction": "momentum", "direction_decay": 0.5, "esam_beta": 0.5}
    method = methods.from_fields(fields, epochs=1, steps_per_epoch=5)
    now, params = methods.Now(np.uint32(0), np.float32(RHO), np.int32(0)), reference.mlp()

    def losses_fn(params, batch, train=True):
        x, y = batch
        return (y - (x @ params["a"]["kernel"] * params["norm1"]["scale"])[:, :2]).sum(1) ** 2, ()

    state, batch = method.init(params, now), reference.data(8)
    step = jax.jit(lambda state: method.gradient(losses_fn, params, state, batch, now, "sharp"))
    for i in range(3):
        found = step(state)
        old, held = state.memory["norm1"]["scale"], found.state.memory["norm1"]["scale"]
        reference.assert_close(held, 0.5 * old + found.grads["norm1"]["scale"])
        assert int(found.state.ascent_state.count) == i + 1
        state = found.state
    for field, value in {
        "gsam_alpha": 0.1, "esam_gamma": 0.5, "look_every": 2, "batch_stats": "both",
        "ascent_fraction": 0.5, "sparse": "ssam_f",
    }.items():  # fmt: skip
        with pytest.raises(samon.UserError, match=rf"sam\.{field}=.* with sam\.direction='mom"):
            methods.check(fields | {"mask": "all", field: value})
    assert "against the momentum, β = 0.5" in methods.describe(fields, epochs=1, batch_size=8)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda ascent: samon.ssam_f(ascent, 0.5, jax.random.key(0)),
        lambda ascent: samon.ssam_d(ascent, 0.5, jax.random.key(0), total_updates=9),
        lambda ascent: samon.stochastic_perturbation(ascent, 0.5, jax.random.key(0)),
    ],
)
def test_it_is_the_outermost(wrap):
    """Wrapped, it would silently cost two passes."""
    ascent = samon.variant("sam", 0.1)
    with pytest.raises(UserError, match="make it the outermost"):
        wrap(samon.single_pass(ascent))
    params = {"w": jnp.ones(3)}
    assert samon.single_pass(wrap(ascent)).init(params).memory["w"].shape == (3,)
