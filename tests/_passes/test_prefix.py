"""What the split shares, what it repeats, and that the result stays the same."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import samon_jax as samon
from samon_jax._passes.footprint import footprint
from samon_jax._passes.inlining import evaluate, inline
from samon_jax._passes.prefix import split
from tests.reference import assert_close, data, flat, mlp, mlp_loss, nested

PATHS = sorted(flat(mlp()))

SELECTIONS = {
    "early": lambda path: path.startswith("norm1"),
    "middle": lambda path: path.startswith("b/"),
    "last": lambda path: path.startswith("c/"),
    "first kernel": lambda path: path.startswith("a/"),
    "first and last": lambda path: path.startswith(("a/", "c/")),
    "all": lambda path: True,
    "no_norm": lambda path: not path.startswith("norm"),
    "one bias": lambda path: path == "c/bias",
}


@pytest.mark.parametrize("reads_all", [False, True])
def test_reuse_changes_nothing(reads_all):
    """For every selection, with transforms that read one or all gradients."""
    params, batch = mlp(), data(8)

    @jax.jit
    def run(params, *batch):
        results = {}
        for name, chosen in SELECTIONS.items():
            mask = nested({path: chosen(path) for path in PATHS})
            ascent = samon.perturbation(0.4, mask=mask)
            if reads_all:
                ascent = optax.chain(optax.clip_by_global_norm(0.1), ascent)
            state = ascent.init(params)
            results[name] = [
                samon.value_and_grad(mlp_loss, ascent, reuse_prefix=reuse)(params, state, *batch)
                for reuse in (True, False)
            ]
        return results

    for reused, plain in run(params, *batch).values():
        assert_close(reused, plain, tolerance=1e-6)


def counts(loss_fn, params, chosen, *args):
    """Names of shared and repeated operations."""
    closed = jax.make_jaxpr(
        lambda leaves: loss_fn(nested(dict(zip(PATHS, leaves, strict=True))), *args)
    )([flat(params)[path] for path in PATHS])
    found = split(closed, [chosen(path) for path in PATHS])
    if found is None:
        return None
    return (
        [equation.primitive.name for equation in found.shared],
        [equation.primitive.name for equation in found.repeated],
    )


def test_what_is_shared():
    """Matrix products before the first perturbed parameter are shared, later ones repeated."""
    params, batch = mlp(), data(4)
    for name, shared, repeated in (
        ("early", 1, 2),
        ("middle", 1, 2),
        ("last", 2, 1),
        ("one bias", 3, 0),
        ("first kernel", 0, 3),
    ):
        a, b = counts(mlp_loss, params, SELECTIONS[name], *batch) or ([], ["dot_general"] * 3)
        assert (a.count("dot_general"), b.count("dot_general")) == (shared, repeated), name


def test_the_halves_of_jitted_functions_go_to_their_sides():
    """The last kernel is perturbed; the whole loss is one jitted call, called inside another."""
    params, batch = mlp(), data(4)
    loss = jax.jit(lambda params, *batch: jax.jit(mlp_loss)(params, *batch))
    shared, repeated = counts(loss, params, SELECTIONS["last"], *batch)
    assert shared.count("dot_general") == 2
    assert repeated.count("dot_general") == 1


def test_preprocessing_is_shared_even_if_the_first_layer_is_perturbed():
    def loss_fn(params, key, x, y):
        x = x + jax.random.normal(key, x.shape)
        return mlp_loss(params, x / jnp.std(x), y)

    shared, repeated = counts(loss_fn, mlp(), SELECTIONS["all"], jax.random.key(0), *data(4))
    assert "random_bits" in shared
    assert "random_bits" not in repeated


@pytest.mark.parametrize("effect", ["print", "reference"])
def test_side_effects_forbid_a_split(effect):
    def loss_fn(params, x, y):
        if effect == "print":
            jax.debug.print("{}", x.sum())
        else:
            cell = jax.new_ref(x)
            x = cell[...]
        return mlp_loss(params, x, y)

    assert counts(mlp_loss, mlp(), SELECTIONS["last"], *data(4)) is not None
    assert counts(loss_fn, mlp(), SELECTIONS["last"], *data(4)) is None


def test_collectives_do_not_forbid_a_split():
    """Norms synchronized over devices mention their axis as an effect in the trace."""
    found = []

    def loss_fn(params, x, y):
        return mlp_loss(params, x - jax.lax.pmean(x, "batch"), y)

    def device(x, y):
        found.append(counts(loss_fn, mlp(), SELECTIONS["last"], x, y))
        return x

    x, y = data(16)
    jax.pmap(device, "batch")(x.reshape(8, 2, 3), y.reshape(8, 2, 2))
    assert found[0][0].count("dot_general") == 2


def test_nothing_to_share():
    """Every operation reads the perturbed parameter."""
    closed = jax.make_jaxpr(lambda w: jnp.sum(jnp.tanh(w)))(jnp.ones(3))
    assert split(closed, [True]) is None


def test_inlining_keeps_the_value():
    """Same function twice, constants, literals, arguments handed straight through, dropped ones."""
    constant = np.arange(3, dtype=np.float32)

    @jax.jit
    def swap(a, b):
        return b, a, 2.0, constant

    @jax.jit
    def f(a, b):
        b, a, two, c = swap(a, b)
        _, d, _, _ = swap(a * c, b)
        first, _ = jax.jit(lambda x: (x + constant, x * 3))(d)
        return first * two + swap(a, b)[0], a

    args = jnp.array([1.0, 2.0, 3.0]), jnp.array([4.0, 5.0, 7.0])
    program = inline(jax.make_jaxpr(f)(*args))
    assert not any(e.primitive.name in ("jit", "pjit") for e in program.equations)
    result = evaluate(program.inputs, program.constants, program.equations, program.outputs, args)
    for actual, expected in zip(result, f(*args), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_inlining_keeps_derivative_rules_and_checkpoints_whole():
    @jax.custom_jvp
    def f(x):
        return jnp.sin(x)

    f.defjvp(lambda primals, tangents: (f(primals[0]), tangents[0]))
    program = inline(jax.make_jaxpr(jax.jit(lambda x: jax.checkpoint(jnp.cos)(f(x))))(1.0))
    names = [e.primitive.name for e in program.equations]
    assert len(names) == 2
    assert names[0] == "custom_jvp_call"
    assert names[1] in ("checkpoint", "remat", "remat2")


# What an ascent transform moves and reads.


def footprints(ascent):
    params = mlp()
    found = footprint(ascent, ascent.init(params), params)
    moves = {path for path, moved in zip(PATHS, found.moves, strict=True) if moved}
    reads = {path for path, read in zip(PATHS, found.reads, strict=True) if read}
    return moves, reads


def test_footprints():
    every, norms = set(PATHS), {path for path in PATHS if path.startswith("norm")}
    on = samon.perturbation(0.1, mask=samon.only_norm)
    assert footprints(samon.perturbation(0.1)) == (every, every)
    for variant in samon.VARIANTS:
        assert footprints(samon.variant(variant, 0.1, samon.only_norm)) == (norms, norms)
    assert footprints(samon.perturbation(jnp.float32(0.1), mask=samon.only_norm)) == (norms, norms)
    assert footprints(samon.perturbation(optax.constant_schedule(0.1)))[0] == every
    assert footprints(samon.perturbation(0.0)) == (set(), set())
    assert footprints(samon.perturbation(jnp.float32(0))) == (set(), set())
    assert footprints(optax.chain(optax.clip_by_global_norm(1.0), on)) == (norms, every)
    assert footprints(optax.chain(on, optax.clip_by_global_norm(1.0))) == (norms, norms)
    assert footprints(optax.chain(optax.trace(0.9), on)) == (norms, every)
    assert footprints(optax.chain(on, optax.trace(0.9)))[1] == norms
    assert footprints(optax.chain(on, optax.scale(-1))) == (norms, norms)
    injected = optax.inject_hyperparams(samon.perturbation, static_args=samon.STATIC_ARGS)
    assert footprints(injected(rho=0.1, mask=samon.only_norm)) == (norms, norms)
    assert footprints(optax.masked(samon.perturbation(0.1), samon.only_norm))[0] == every
    assert footprints(optax.set_to_zero()) == (set(), set())
    assert footprints(optax.identity()) == (every, every)


def test_effects_of_the_transform_are_read():
    """What a transform prints counts as read, although ε does not depend on it."""
    on = samon.perturbation(0.1, mask=samon.only_norm)

    def update(grads, state, params=None):
        jax.debug.print("{}", jnp.sum(grads["a"]["kernel"]))
        return on.update(grads, state, params)

    moves, reads = footprints(optax.GradientTransformation(on.init, update))
    assert reads == moves | {"a/kernel"}


def test_zero_divided_and_divided_by_zero():
    def update(grads, state, params=None):
        del params
        zero = jnp.zeros(())
        change = {"a/kernel": lambda g: zero / g, "b/kernel": lambda g: g / zero}
        return nested({p: change.get(p, lambda g: g * 0)(g) for p, g in flat(grads).items()}), state

    transform = optax.GradientTransformation(lambda params: (), update)
    assert footprints(transform) == ({"b/kernel"}, {"b/kernel"})


def _power_iteration(kernel):
    """A loop that reverse mode cannot differentiate."""

    def body(carry):
        step, v = carry
        v = kernel.T @ (kernel @ v)
        return step + 1, v / jnp.linalg.norm(v)

    return jax.lax.while_loop(lambda c: c[0] < 3, body, (0, jnp.ones(kernel.shape[1])))[1]


@pytest.mark.parametrize("use", ["aux", "stop_gradient"])
@pytest.mark.parametrize("quantity", ["singular", "loop"])
def test_shared_values_that_carry_no_gradient(use, quantity):
    """√0 has an infinite derivative and a while loop none: neither may be asked for one."""

    def loss_fn(params, x):
        hidden = jnp.tanh(x @ params["dense"]["kernel"] + params["dense"]["bias"])
        loss = jnp.mean((hidden * params["norm"]["scale"] - 1) ** 2)
        if quantity == "singular":
            value = jnp.sqrt(jnp.sum(params["dense"]["bias"] ** 2))
        else:
            value = _power_iteration(params["dense"]["kernel"]).sum()
        if use == "aux":
            return loss, value
        return loss + jax.lax.stop_gradient(value * params["norm"]["scale"].sum()), ()

    rng = np.random.default_rng(0)
    params = {
        "dense": {"kernel": jnp.float32(rng.normal(size=(3, 4))), "bias": jnp.zeros(4)},
        "norm": {"scale": jnp.ones(4)},
    }
    x = jnp.float32(rng.normal(size=(8, 3)))
    ascent = samon.variant("sam", 0.5, mask=samon.only_norm)
    state = ascent.init(params)
    _, grads, _ = jax.jit(samon.value_and_grad(loss_fn, ascent, has_aux=True))(params, state, x)
    clean = jax.grad(loss_fn, has_aux=True)(params, x)[0]
    epsilon, _ = ascent.update(clean, state, params)
    want = jax.grad(loss_fn, has_aux=True)(jax.tree.map(jnp.add, params, epsilon), x)[0]
    for got, expected in zip(jax.tree.leaves(grads), jax.tree.leaves(want), strict=True):
        assert np.isfinite(got).all()
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
