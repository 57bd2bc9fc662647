"""The sharpness-aware gradient against two plain gradients, under every way to run JAX."""

import functools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

import samon_jax as samon
from tests.reference import (
    assert_close,
    data,
    flat,
    is_norm,
    mlp,
    mlp_loss,
    nested,
    sam_epsilon,
    table9,
    two_passes,
)

RHO = 0.4
ON = samon.perturbation(RHO, mask=samon.only_norm)


PLAIN_GRAD = jax.jit(jax.grad(mlp_loss))


def everything(path):
    return True


def sharp(loss_fn, ascent, params, *args, jit=True, **options):
    """Loss and gradient of samon_jax for one step from a fresh state."""
    f = samon.value_and_grad(loss_fn, ascent, **options)
    f = jax.jit(f) if jit else f
    return f(params, ascent.init(params), *args)[:2]


def check(loss_fn, params, *args, ascent=ON, moved=is_norm, jit=True, tolerance=1e-5, **options):
    """Compares samon_jax with two plain gradients, both in one program."""

    def both(params, *args):
        actual = sharp(loss_fn, ascent, params, *args, jit=False, **options)
        return actual, two_passes(loss_fn, params, RHO, moved, *args)

    actual, expected = (jax.jit(both) if jit else both)(params, *args)
    assert_close(actual, expected, tolerance)


@functools.cache
def plain(moved):
    """Loss and gradient of `mlp_loss` from two plain gradients: jitted (params, rho, x, y)."""
    return jax.jit(lambda params, rho, *batch: two_passes(mlp_loss, params, rho, moved, *batch))


# How it is run.


@pytest.mark.parametrize("jit", [True, False])
@pytest.mark.parametrize("reuse_prefix", [True, False])
@pytest.mark.parametrize(("mask", "moved"), [(samon.only_norm, is_norm), (None, everything)])
def test_plain_call(jit, reuse_prefix, mask, moved):
    ascent = samon.perturbation(RHO, mask=mask or samon.all_params)
    options = {"ascent": ascent, "moved": moved, "jit": jit, "reuse_prefix": reuse_prefix}
    check(mlp_loss, mlp(), *data(8), **options)


@pytest.mark.parametrize("variant", samon.VARIANTS)
def test_every_variant(variant):
    params, batch = mlp(), data(8)
    selected = {path: is_norm(path) for path in flat(params)}
    biases = {path for path in selected if path.endswith("bias")}
    clean = PLAIN_GRAD(params, *batch)
    epsilon = table9(variant, 0.1, flat(params), flat(clean), selected, biases)
    perturbed = jax.tree.map(lambda w, e: w + np.float32(e), params, nested(epsilon))
    actual = sharp(mlp_loss, samon.variant(variant, 0.1, samon.only_norm), params, *batch)
    assert_close(actual[1], PLAIN_GRAD(perturbed, *batch))


def test_vmap_over_seeds():
    batch, trees = data(8), [mlp(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    f = samon.value_and_grad(mlp_loss, ON)
    run = jax.jit(jax.vmap(f, in_axes=(0, None, None, None)))
    losses, grads, _ = run(stacked, ON.init(trees[0]), *batch)
    for i, params in enumerate(trees):
        actual = losses[i], jax.tree.map(lambda leaf, i=i: leaf[i], grads)
        assert_close(actual, plain(is_norm)(params, RHO, *batch))


@functools.cache
def per_device(moved, devices=8, per=4):
    """Losses of the devices and the mean of their gradients, one device after the other."""
    params = mlp()
    x, y = data(devices * per)
    x, y = x.reshape(devices, per, 3), y.reshape(devices, per, 2)
    results = [plain(moved)(params, RHO, x[i], y[i]) for i in range(devices)]
    losses, grads = zip(*results, strict=True)
    mean = jax.tree.map(lambda *g: np.mean(np.stack(g), 0), *grads)
    return params, x, y, np.stack(losses), mean


DEVICE_MASKS = pytest.mark.parametrize(
    ("mask", "moved"), [(samon.only_norm, is_norm), (samon.all_params, everything)]
)


@DEVICE_MASKS
def test_pmap(mask, moved):
    params, x, y, losses, grads = per_device(moved)
    ascent = samon.perturbation(RHO, mask=mask)
    f = samon.value_and_grad(mlp_loss, ascent, axis_name="batch")
    run = jax.pmap(f, "batch", in_axes=(None, None, 0, 0), out_axes=(0, None, None))
    actual = run(params, ascent.init(params), x, y)
    assert_close(actual[:2], (losses, grads))
    assert int(actual[2].count) == 1


@pytest.mark.parametrize(
    ("check_vma", "reuse_prefix"), [(True, True), (True, False), (False, True)]
)
@DEVICE_MASKS
def test_shard_map(check_vma, reuse_prefix, mask, moved):
    params, x, y, losses, grads = per_device(moved)
    ascent = samon.perturbation(RHO, mask=mask)
    f = samon.value_and_grad(mlp_loss, ascent, axis_name="batch", reuse_prefix=reuse_prefix)

    def step(params, state, x, y):
        loss, grads, state = f(params, state, x, y)
        return loss[None], grads, state

    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    run = jax.jit(
        jax.shard_map(
            step,
            mesh=mesh,
            in_specs=(P(), P(), P("batch"), P("batch")),
            out_specs=(P("batch"), P(), P()),
            check_vma=check_vma,
        )
    )
    actual = run(params, ascent.init(params), x.reshape(32, 3), y.reshape(32, 2))
    assert_close(actual[:2], (losses, grads))


def test_shard_map_over_two_axes():
    params, x, y, losses, grads = per_device(is_norm)
    f = samon.value_and_grad(mlp_loss, ON, axis_name=("a", "b"))

    def step(params, state, x, y):
        loss, grads, _ = f(params, state, x, y)
        return loss[None], grads

    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    both = P(("a", "b"))
    run = jax.shard_map(step, mesh=mesh, in_specs=(P(), P(), both, both), out_specs=(both, P()))
    actual = jax.jit(run)(params, ON.init(params), x.reshape(32, 3), y.reshape(32, 2))
    assert_close(actual, (losses, grads))


def test_vmap_with_axis_name():
    params, x, y, losses, grads = per_device(is_norm)
    f = samon.value_and_grad(mlp_loss, ON, axis_name="batch")
    run = jax.jit(jax.vmap(f, in_axes=(None, None, 0, 0), axis_name="batch"))
    actual = run(params, ON.init(params), x, y)
    assert_close(actual[0], losses)
    for i in (0, 7):
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], actual[1]), grads)


def synced(params, x, y, axis_name="batch"):
    """A loss whose norm takes its statistics over all devices."""
    h = x @ params["a"]["kernel"]
    h = h - jax.lax.pmean(h.mean(0), axis_name)
    h = h / jnp.sqrt(jax.lax.pmean(jnp.mean(h**2, 0), axis_name) + 1e-3)
    h = jnp.tanh(h * params["norm1"]["scale"] + params["norm1"]["bias"])
    return jnp.mean((h @ params["c"]["kernel"] - y) ** 2)


@pytest.mark.parametrize("mask", [samon.only_norm, samon.all_params])
def test_collectives_in_the_loss(mask):
    """With `pmap` and without the prefix JAX computes the reference itself."""
    params = {name: mlp()[name] for name in ("a", "norm1", "c")}
    x, y = data(32)
    x, y = x.reshape(8, 4, 3), y.reshape(8, 4, 2)
    ascent = samon.perturbation(RHO, mask=mask)

    def two_pass(params, x, y):
        clean = jax.grad(synced)(params, x, y)
        epsilon, _ = ascent.update(clean, ascent.init(params), params)
        loss = synced(params, x, y)
        grads = jax.grad(synced)(jax.tree.map(jnp.add, params, epsilon), x, y)
        return loss, jax.lax.pmean(grads, "batch")

    axes = {"in_axes": (None, 0, 0), "out_axes": (0, None)}
    expected = jax.pmap(two_pass, "batch", **axes)(params, x, y)
    f = samon.value_and_grad(synced, ascent, axis_name="batch")
    actual = jax.pmap(
        lambda params, *batch: f(params, ascent.init(params), *batch)[:2], "batch", **axes
    )
    assert_close(actual(params, x, y), expected)


# What the loss is made of.


@jax.custom_jvp
def with_jvp(x):
    return jnp.sin(x)


@with_jvp.defjvp
def _(primals, tangents):
    return with_jvp(primals[0]), 0.5 * jnp.cos(primals[0]) * tangents[0]  # on purpose not sin's


@jax.custom_vjp
def with_vjp(x):
    return jnp.sin(x)


with_vjp.defvjp(
    lambda x: (with_vjp(x), jnp.cos(x)),
    lambda cosine, g: (0.5 * cosine * g,),  # on purpose not sin's
)

CONSTANT = np.arange(4, dtype=np.float32)


@jax.jit
def inner(x):
    return jnp.tanh(x + CONSTANT)


@jax.jit
def nested_jit(x, w):
    return inner(inner(x) @ w) + jnp.float32(0.1)


def body(params, x, middle):
    """Kernel, norm, `middle`, norm, kernel."""
    h = x @ params["a"]["kernel"] * params["norm1"]["scale"] + params["norm1"]["bias"]
    h = middle(h, params["b"]["kernel"])
    h = h * params["norm2"]["scale"] + params["norm2"]["bias"]
    return h @ params["c"]["kernel"] + params["c"]["bias"]


def squared(params, x, y, middle):
    return jnp.mean((body(params, x, middle) - y) ** 2)


def scan_middle(h, w):
    def step(h, w):
        return jnp.tanh(h @ w), h.sum()

    h, sums = jax.lax.scan(step, h, jnp.stack([w, 0.5 * w, w.T]))
    return h + 0.01 * sums.sum()


def cond_on_data(h, w):
    return jax.lax.cond(w[0, 0] > 0, lambda h: jnp.tanh(h @ w), lambda h: h @ w.T, h)


def while_middle(h, w):
    """A loop that no gradient flows through finds the scale."""
    norm = jax.lax.stop_gradient(jnp.abs(h).max())
    scale = jax.lax.while_loop(lambda s: s * norm > 1.0, lambda s: s / 2, jnp.float32(1.0))
    return jnp.tanh(h * scale @ w)


def integer_middle(h, w):
    """Argmax: integers that depend on the parameters."""
    return jnp.tanh(h @ w) + w[jnp.argmax(h, 1)]


def stop_middle(h, w):
    return jnp.tanh(h @ jax.lax.stop_gradient(w)) + h


MIDDLES = {
    "nested_jit": nested_jit,
    "jit_twice": lambda h, w: inner(h @ w) * inner(h @ w.T) + inner(h),
    "custom_jvp": lambda h, w: with_jvp(h @ w),
    "custom_vjp": lambda h, w: with_vjp(h @ w),
    "custom_in_jit": lambda h, w: jax.jit(lambda h: with_vjp(with_jvp(h) @ w))(h),
    "checkpoint": jax.checkpoint(lambda h, w: jnp.tanh(inner(h) @ w)),
    "scan": scan_middle,
    "cond": cond_on_data,
    "while": while_middle,
    "integers": integer_middle,
    "stop_gradient": stop_middle,
    "relu_softmax": lambda h, w: jax.nn.softmax(jax.nn.relu(h @ w)),
    "logsumexp_gelu": lambda h, w: jax.nn.gelu(h @ w) - jax.nn.logsumexp(h, 1, keepdims=True),
    "sort": lambda h, w: jnp.sort(h @ w, axis=1) + jnp.cumsum(h, 1),
    "map": lambda h, w: jax.lax.map(lambda row: jnp.tanh(row @ w), h),
    "vmap": lambda h, w: jax.vmap(lambda row: inner(row @ w))(h),
    "linalg": lambda h, w: h @ jnp.linalg.inv(w @ w.T + jnp.eye(4)),
}


def norm2_or_c(path):
    return path.startswith(("norm2", "c/"))


@pytest.mark.parametrize("middle", MIDDLES)
def test_programs(middle):
    """Of every kind, in the prefix and in the suffix."""
    params, batch = mlp(), data(5)
    loss_fn = functools.partial(squared, middle=MIDDLES[middle])
    cases = {"early": is_norm, "late": lambda path: path.startswith("norm2")}

    @jax.jit  # one program for all cases: compiling takes most of the time
    def run(params, *batch):
        results = {}
        for name, moved in cases.items():
            mask = nested({path: moved(path) for path in flat(params)})
            ascent = samon.perturbation(RHO, mask=mask)
            actual = sharp(loss_fn, ascent, params, *batch, jit=False)
            results[name] = actual, two_passes(loss_fn, params, RHO, moved, *batch)
        return results

    for actual, expected in run(params, *batch).values():
        assert_close(actual, expected)


def test_data_dependent_cond_and_embedding_of_integers():
    params = mlp() | {
        "embedding": {"table": jnp.float32(np.random.default_rng(5).normal(size=(7, 3)))}
    }
    tokens, flip, y = jnp.array([1, 5, 5, 0]), jnp.array(True), data(4)[1]

    def loss_fn(params, tokens, flip, y):
        x = params["embedding"]["table"][tokens]
        x = jax.lax.cond(flip, lambda x: x[:, ::-1], lambda x: x, x)
        return mlp_loss(params, x, y) + jnp.mean(tokens)

    check(loss_fn, params, tokens, flip, y)


@pytest.mark.parametrize("key", [jax.random.key, jax.random.PRNGKey])
def test_dropout_has_the_same_mask_in_both_passes(key):
    params, batch = mlp(), data(8)

    def loss_fn(params, x, y, key):
        keep = jax.random.bernoulli(key, 0.5, x.shape)
        noise = jax.random.normal(jax.random.fold_in(key, 1), (4,))
        params = params | {"b": {"kernel": params["b"]["kernel"] + noise}}
        return mlp_loss(params, jnp.where(keep, x / 0.5, 0), y)

    check(loss_fn, params, *batch, key(7))


@pytest.mark.parametrize("train", [True, False])
def test_python_bool_that_steers_the_program(train):
    params, (x, y) = mlp(), data(8)

    def loss_fn(params, x, train, *, y, power):
        return mlp_loss(params, x if train else 2 * x, y) ** power

    f = samon.value_and_grad(loss_fn, ON)
    state = ON.init(params)
    expected = two_passes(loss_fn, params, RHO, is_norm, x, train, y=y, power=2)
    assert_close(f(params, state, x, train, y=y, power=2)[:2], expected)
    jitted = jax.jit(f, static_argnums=3, static_argnames="power")
    assert_close(jitted(params, state, x, train, y=y, power=2)[:2], expected)


def test_leaves_used_before_and_after_the_split():
    """The kernel b and the fixed bias serve in both halves; the gradient is the sum of both."""
    params, batch = mlp(), data(6)

    def loss_fn(params, x, y):
        w = params["b"]["kernel"]
        h = jnp.tanh(x @ params["a"]["kernel"] @ w) + params["norm1"]["bias"]
        h = h * params["norm2"]["scale"] @ w + params["norm1"]["bias"] * jnp.sum(w**2)
        return jnp.mean((h[:, :2] - y) ** 2) + 0.1 * jnp.sum(params["a"]["kernel"] ** 2)

    mask = samon.only_norm_in("norm2/scale")
    ascent = samon.perturbation(RHO, mask=mask)
    check(loss_fn, params, *batch, ascent=ascent, moved=lambda path: path == "norm2/scale")


def test_unused_parameters_get_zeros():
    params, batch = mlp() | {"unused": {"kernel": jnp.ones((2, 2))}}, data(6)

    @jax.jit
    def run(params, *batch):
        ascents = [
            samon.perturbation(RHO, mask=mask)
            for mask in (samon.only_norm, samon.all_params, samon.no_norm)
        ]
        return [sharp(mlp_loss, ascent, params, *batch, jit=False)[1] for ascent in ascents]

    for grads in run(params, *batch):
        np.testing.assert_array_equal(grads["unused"]["kernel"], 0)


def test_only_unused_parameters_are_perturbed():
    params, batch = mlp() | {"z": {"scale": jnp.ones(2)}}, data(6)
    ascent = samon.perturbation(RHO, mask=samon.only_norm_in("^z/"))
    expected = jax.jit(jax.value_and_grad(mlp_loss))(params, *batch)
    assert_close(sharp(mlp_loss, ascent, params, *batch), expected)


@pytest.mark.parametrize("rho", [0.0, jnp.float32(0.0)])
@pytest.mark.parametrize("m", [None, 2])
def test_rho_zero_is_the_plain_gradient(rho, m):
    params, batch = mlp(), data(6)

    def loss_fn(params, x, y):  # examples do not interact, so that parts add up
        return jnp.mean((body(params, x, lambda h, w: jnp.tanh(h @ w)) - y) ** 2)

    actual = sharp(loss_fn, samon.perturbation(rho), params, *batch, m=m, batch_argnums=(0, 1))
    assert_close(actual, jax.value_and_grad(loss_fn)(params, *batch))


def test_rho_zero_needs_one_pass():
    calls = []

    def loss_fn(params, x, y):
        calls.append(1)
        return mlp_loss(params, x, y)

    params, batch = mlp(), data(4)
    for rho, expected in ((0.0, 1), (0.1, 2)):
        calls.clear()
        sharp(loss_fn, samon.perturbation(rho), params, *batch, reuse_prefix=False)
        assert len(calls) == expected


def test_rho_schedule_over_steps():
    params, batch = mlp(), data(6)
    ascent = samon.perturbation(optax.linear_schedule(0.0, 1.0, 2), mask=samon.only_norm)
    f, state = jax.jit(samon.value_and_grad(mlp_loss, ascent)), ascent.init(params)
    for rho in (0.0, 0.5, 1.0, 1.0):
        loss, grads, state = f(params, state, *batch)
        assert_close((loss, grads), plain(is_norm)(params, rho, *batch))


def test_ascent_with_inject_hyperparams():
    params, batch = mlp(), data(6)
    ascent = optax.inject_hyperparams(samon.perturbation, static_args=samon.STATIC_ARGS)(
        rho=0.5, mask=samon.only_norm
    )
    f, state = jax.jit(samon.value_and_grad(mlp_loss, ascent)), ascent.init(params)
    for rho in (0.5, 0.0, 0.25):
        state.hyperparams["rho"] = jnp.float32(rho)
        loss, grads, state = f(params, state, *batch)
        assert_close((loss, grads), plain(is_norm)(params, rho, *batch))


def test_ascent_that_reads_all_gradients():
    """clip_by_global_norm before the Fisher operator: ε of the norms depends on every gradient."""
    params, batch = mlp(), data(6)
    ascent = optax.chain(
        optax.clip_by_global_norm(0.05), samon.variant("fisher", RHO, samon.only_norm)
    )
    clean = flat(PLAIN_GRAD(params, *batch))
    length = np.sqrt(sum(np.sum(np.float64(g) ** 2) for g in clean.values()))
    assert length > 0.05
    clipped = {path: np.float64(g) * 0.05 / length for path, g in clean.items()}
    epsilon = table9(
        "fisher", RHO, flat(params), clipped, {path: is_norm(path) for path in clean}, set()
    )
    perturbed = jax.tree.map(lambda w, e: w + np.float32(e), params, nested(epsilon))
    expected = PLAIN_GRAD(perturbed, *batch)
    actual = sharp(mlp_loss, ascent, params, *batch)
    assert_close(actual[1], expected)


def test_ascent_that_reads_one_gradient_upstream():
    """ε of norm2 is scaled by the gradient of the first kernel, and no other is read."""

    def update(grads, state, params=None):
        epsilon = jax.tree.map(jnp.zeros_like, params)
        epsilon["norm2"]["scale"] = grads["norm2"]["scale"] * jnp.sum(grads["a"]["kernel"])
        return epsilon, state

    ascent = optax.GradientTransformation(lambda params: (), update)
    params, batch = mlp(), data(6)
    clean = PLAIN_GRAD(params, *batch)
    step = clean["norm2"]["scale"] * jnp.sum(clean["a"]["kernel"])
    norm2 = params["norm2"] | {"scale": params["norm2"]["scale"] + step}
    assert np.max(np.abs(step)) > 1e-3
    actual = sharp(mlp_loss, ascent, params, *batch)
    assert_close(actual[1], PLAIN_GRAD(params | {"norm2": norm2}, *batch))


def test_ascent_whose_state_reads_all_gradients():
    """optax.trace before the mask: the state needs gradients that ε does not."""
    params, batch = mlp(), data(6)
    ascent = optax.chain(optax.trace(0.9), samon.perturbation(RHO, mask=samon.only_norm))
    f, state = jax.jit(samon.value_and_grad(mlp_loss, ascent)), ascent.init(params)
    clean = PLAIN_GRAD(params, *batch)
    for _ in range(2):
        loss, grads, state = f(params, state, *batch)
        # the trace grows by the same direction, which normalization removes
        assert_close((loss, grads), plain(is_norm)(params, RHO, *batch))
    assert_close(state[0].trace, jax.tree.map(lambda g: 1.9 * g, clean))


def test_ascent_after_which_leaves_are_masked():
    """Zeros made by another transform count as well: nothing moves but what is left."""
    params, batch = mlp(), data(6)
    keep = jax.tree.map(lambda selected: not selected, samon.only_norm(params))
    ascent = optax.chain(samon.perturbation(RHO), optax.masked(optax.set_to_zero(), keep))
    clean = PLAIN_GRAD(params, *batch)
    epsilon = sam_epsilon(RHO, clean, everything)
    epsilon = {p: e if is_norm(p) else np.zeros_like(e) for p, e in flat(epsilon).items()}
    perturbed = jax.tree.map(lambda w, e: w + np.float32(e), params, nested(epsilon))
    actual = sharp(mlp_loss, ascent, params, *batch)
    assert_close(actual[1], PLAIN_GRAD(perturbed, *batch))


def test_random_mask():
    params, batch = mlp(), data(6)
    mask = samon.random_mask(jax.random.key(0), 0.7)
    clean = flat(PLAIN_GRAD(params, *batch))
    epsilon = table9("sam", RHO, flat(params), clean, flat(mask(params)), set())
    perturbed = jax.tree.map(lambda w, e: w + np.float32(e), params, nested(epsilon))
    actual = sharp(mlp_loss, samon.perturbation(RHO, mask=mask), params, *batch)
    assert_close(actual[1], PLAIN_GRAD(perturbed, *batch))


@pytest.mark.parametrize("kind", ["print", "callback"])
def test_side_effects_happen_in_both_passes(kind, capfd):
    params, batch, seen = mlp(), data(4), []

    def loss_fn(params, x, y):
        loss = mlp_loss(params, x, y)
        if kind == "print":
            jax.debug.print("the loss is {}", loss)
        else:
            jax.debug.callback(lambda loss: seen.append(float(loss)), loss)
        return loss

    actual = sharp(loss_fn, ON, params, *batch)
    jax.block_until_ready(actual)
    jax.effects_barrier()
    count = len(seen) if kind == "callback" else capfd.readouterr().out.count("the loss is")
    assert count == 2
    assert_close(actual, plain(is_norm)(params, RHO, *batch))


def test_mutable_references_inside_the_loss():
    """A write that the perturbation reaches must not come after its read."""
    params, batch = mlp(), data(4)

    def loss_fn(params, x, y):
        cell = jax.new_ref(jnp.zeros(()))
        loss = mlp_loss(params, x, y)
        cell[...] = loss**2
        return cell[...] + jnp.sum(params["a"]["kernel"] ** 2)

    check(loss_fn, params, *batch)


# Types.


def test_bfloat16_parameters_and_loss():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), mlp())
    batch = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), data(8))
    loss, grads = sharp(mlp_loss, ON, params, *batch)
    assert loss.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(grads))
    widened = jax.tree.map(jnp.float32, params), jax.tree.map(jnp.float32, batch)
    expected = plain(is_norm)(widened[0], RHO, *widened[1])
    assert_close((loss, grads), expected, tolerance=0.15)


def test_bfloat16_compute_with_float32_parameters():
    params, batch = mlp(), data(8)

    def loss_fn(params, x, y):
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
        return mlp_loss(params, x.astype(jnp.bfloat16), y).astype(jnp.float32)

    grads = jax.eval_shape(lambda params: sharp(loss_fn, ON, params, *batch), params)[1]
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(grads))
    # Rounding differs where XLA fuses; the second gradient is that of a nearby point.
    check(loss_fn, params, *batch, tolerance=0.1)


def test_numpy_parameters_and_float64():
    rng = np.random.default_rng(0)
    params = {"dense": {"kernel": rng.normal(size=(3, 4))}, "norm": {"scale": rng.normal(size=4)}}

    def loss_fn(params, x):
        return jnp.sum((x @ params["dense"]["kernel"] * params["norm"]["scale"]) ** 2)

    with jax.enable_x64(True):
        x = rng.normal(size=(5, 3))
        _, grads = sharp(loss_fn, ON, params, x, jit=False)
    h, w = x @ params["dense"]["kernel"], params["norm"]["scale"]
    clean = 2 * np.sum(h**2, 0) * w
    moved = w + RHO * clean / np.linalg.norm(clean)
    expected = {"dense": {"kernel": 2 * x.T @ (h * moved**2)}}
    expected["norm"] = {"scale": 2 * np.sum(h**2, 0) * moved}
    assert_close(grads, expected, tolerance=1e-12)
    assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(grads))


# Aux, and the libraries.


class Net(nn.Module):
    """Dense, BatchNorm, remat block with dropout, BatchNorm, Dense."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.tanh(nn.BatchNorm(not train, momentum=0.5)(nn.Dense(4)(x)))

        class Block(nn.Module):
            @nn.compact
            def __call__(self, x):
                x = nn.Dropout(0.2, deterministic=not train)(nn.Dense(4)(x))
                return nn.BatchNorm(not train, momentum=0.5)(x)

        return nn.Dense(2)(nn.remat(Block)()(x))


def linen_setup():
    variables = Net().init(jax.random.key(0), data(4)[0], train=False)
    rng = np.random.default_rng(3)
    params = jax.tree.map(
        lambda leaf: leaf + np.float32(0.3 * rng.normal(size=leaf.shape)), variables["params"]
    )

    def loss_fn(params, stats, x, y, key):
        out, new = Net().apply(
            {"params": params, "batch_stats": stats},
            x,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        return jnp.mean((out - y) ** 2), new["batch_stats"]

    return loss_fn, params, (variables["batch_stats"], *data(16), jax.random.key(5))


def linen_norm(path):
    return "BatchNorm" in path


def test_linen_batch_stats_come_from_the_chosen_pass():
    loss_fn, params, args = linen_setup()

    @jax.jit
    def run(params, *args):
        def loss_alone(params):
            return loss_fn(params, *args)[0]

        loss, grads = two_passes(loss_alone, params, RHO, linen_norm)
        clean = flat(jax.grad(loss_alone)(params))
        norm = jnp.sqrt(sum(jnp.sum(g**2) for path, g in clean.items() if linen_norm(path)))
        perturbed = {
            path: w + RHO / norm * clean[path] if linen_norm(path) else w
            for path, w in flat(params).items()
        }
        both = loss_fn(params, *args)[1], loss_fn(nested(perturbed), *args)[1]
        actual = {
            aux_from: sharp(loss_fn, ON, params, *args, aux_from=aux_from, has_aux=True, jit=False)
            for aux_from in ("clean", "perturbed", "both")
        }
        return (loss, grads), both, actual

    (loss, grads), both, actual = run(params, *args)
    difference = jax.tree.map(lambda a, b: np.max(np.abs(a - b)), *both)
    assert difference["CheckpointBlock_0"]["BatchNorm_0"]["mean"] > 1e-3
    for aux_from, expected in (("clean", both[0]), ("perturbed", both[1]), ("both", both)):
        assert_close(actual[aux_from], ((loss, expected), grads))


def test_aux_of_every_kind():
    """Constants, inputs, parameters and None can be handed through, from either side."""
    params, (x, y) = mlp(), data(4)

    def loss_fn(params, x, y):
        h = x @ params["a"]["kernel"]
        aux = {"x": x, "h": h, "scale": params["norm2"]["scale"], "kernel": params["a"]["kernel"]}
        aux |= {"number": 3, "none": None, "argmax": jnp.argmax(h, 1), "constant": jnp.arange(3)}
        return mlp_loss(params, x, y), aux

    (_, (clean, perturbed)), _ = sharp(loss_fn, ON, params, x, y, has_aux=True, aux_from="both")
    expected = jax.jit(loss_fn)(params, x, y)[1]
    assert_close(clean, jax.tree.map(np.asarray, expected))
    assert_close(clean | {"scale": 0}, perturbed | {"scale": 0})
    assert np.abs(clean["scale"] - perturbed["scale"]).max() > 1e-3


def nnx_model():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)])
            self.norm = nnx.BatchNorm(4, rngs=rngs)

        def __call__(self, x):
            return self.layers[1](jnp.tanh(self.norm(self.layers[0](x))))

    return Model(nnx.Rngs(0))


def test_nnx_state():
    graph, params, rest = nnx.split(nnx_model(), nnx.Param, ...)
    x, y = data(8)

    def loss_fn(params, rest, x, y):
        model = nnx.merge(graph, params, rest, copy=True)
        loss = jnp.mean((model(x) - y) ** 2)
        return loss, nnx.state(model, nnx.BatchStat)

    def plain_loss(pure):
        state = jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves(pure))
        return loss_fn(state, rest, x, y)[0]

    (loss, stats), grads = sharp(loss_fn, ON, params, rest, x, y, has_aux=True)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    pure = nnx.to_pure_dict(params)
    pure = jax.tree_util.tree_map(lambda leaf: leaf, pure)
    clean = jax.grad(plain_loss)(pure)
    leaves = jax.tree.leaves(clean)
    chosen = jax.tree.leaves(samon.only_norm(params))
    length = np.sqrt(
        sum(np.sum(np.float64(g) ** 2) for g, on in zip(leaves, chosen, strict=True) if on)
    )
    moved = [
        w + np.float32(RHO * np.asarray(g) / length) if on else w
        for w, g, on in zip(jax.tree.leaves(pure), leaves, chosen, strict=True)
    ]
    perturbed = jax.tree.unflatten(jax.tree.structure(pure), moved)
    assert_close(loss, plain_loss(pure))
    assert_close(jax.tree.leaves(grads), jax.tree.leaves(jax.grad(plain_loss)(perturbed)))
    assert float(jnp.abs(stats["norm"]["mean"].get_value()).max()) > 0


def test_equinox_partition():
    keys = jax.random.split(jax.random.key(0), 2)
    model = eqx.nn.Sequential(
        [
            eqx.nn.Linear(3, 4, key=keys[0]),
            eqx.nn.LayerNorm(4),
            eqx.nn.Lambda(jnp.tanh),
            eqx.nn.Linear(4, 2, key=keys[1]),
        ]
    )
    params, static = eqx.partition(model, eqx.is_inexact_array)
    x, y = data(8)

    def loss_fn(params, x, y):
        return jnp.mean((jax.vmap(eqx.combine(params, static))(x) - y) ** 2)

    gradient = jax.jit(jax.grad(loss_fn))
    loss, grads = sharp(loss_fn, ON, params, x, y)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    clean = gradient(params, x, y)
    norm = clean.layers[1]
    length = np.sqrt(np.sum(np.float64(norm.weight) ** 2) + np.sum(np.float64(norm.bias) ** 2))
    perturbed = eqx.tree_at(
        lambda tree: (tree.layers[1].weight, tree.layers[1].bias),
        params,
        (
            params.layers[1].weight + RHO / length * norm.weight,
            params.layers[1].bias + RHO / length * norm.bias,
        ),
    )
    assert_close((loss, grads), (loss_fn(params, x, y), gradient(perturbed, x, y)))


def test_tied_parameters():
    """One leaf used twice, as tied embeddings are."""
    params = {"embedding": {"table": mlp()["b"]["kernel"]}, "norm": {"scale": jnp.ones(4) * 1.2}}
    tokens = jnp.array([0, 3, 1])

    def loss_fn(params, tokens):
        h = params["embedding"]["table"][tokens] * params["norm"]["scale"]
        logits = h @ params["embedding"]["table"].T
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens).mean()

    check(loss_fn, params, tokens)


# Errors.


def test_errors():
    params, batch = mlp(), data(4)
    with pytest.raises(samon.UserError, match="aux_from='first' must be one of clean, perturbed"):
        samon.value_and_grad(mlp_loss, ON, aux_from="first")
    with pytest.raises(TypeError, match=r"scalar loss, not shape \(4,\)"):
        sharp(lambda params, x, y: x[:, 0] * params["c"]["bias"][0], ON, params, *batch)
    with pytest.raises(samon.UserError, match="selects none of the parameters: w"):
        sharp(
            lambda params: params["w"].sum(),
            samon.perturbation(1.0, mask=samon.only_norm),
            {"w": jnp.ones(2)},
        )


@pytest.mark.parametrize(
    ("leaf", "dtype"), [(jnp.arange(3), "int32"), (jnp.ones(3, jnp.complex64), "complex64")]
)
def test_parameters_without_a_real_gradient_are_named(leaf, dtype):
    fn = samon.value_and_grad(lambda p: jnp.sum(p["w"] ** 2), samon.perturbation(0.1))
    params = {"w": jnp.ones(3), "table": {"index": leaf}}
    with pytest.raises(samon.UserError, match=f"params table/index has dtype {dtype}"):
        fn(params, samon.PerturbationState(jnp.int32(0)))


def test_python_numbers_are_parameters_too():
    ascent = samon.perturbation(0.1)
    fn = samon.value_and_grad(lambda p: p["w"] ** 2, ascent)
    state = ascent.init({"w": jnp.float32(3.0)})
    assert float(fn({"w": 3.0}, state)[1]["w"]) == pytest.approx(2 * 3.1)


@pytest.mark.parametrize("loss", [lambda p: jnp.int32(p["w"].sum()), lambda p: p["w"].sum() + 0j])
def test_loss_must_be_real(loss):
    ascent = samon.perturbation(0.1)
    params = {"w": jnp.ones(3)}
    with pytest.raises(TypeError):
        samon.value_and_grad(loss, ascent)(params, ascent.init(params))


def test_m_asks_which_arguments_hold_examples():
    ascent = samon.perturbation(0.1)
    params, x, y = {"w": jnp.ones(3)}, jnp.ones((4, 3)), jnp.ones(4)
    fn = samon.value_and_grad(lambda p, x, y: jnp.mean((x @ p["w"] - y) ** 2), ascent, m=2)
    with pytest.raises(samon.UserError, match=r"batch_argnums=None: with m=2 and 2 arguments"):
        fn(params, ascent.init(params), x, y)
