"""ε against Table 9 written down in NumPy, and everything that could make it wrong."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import samon_jax as samon
from tests.reference import flat, nested, table9

SHAPES = {
    "conv/kernel": (3, 2, 5),
    "conv/bias": (5,),
    "norm/scale": (5,),
    "norm/bias": (5,),
    "block2/norm/scale": (4,),
    "block2/norm/bias": (4,),
    "block2/dense/kernel": (5, 4),
    "block2/dense/bias": (4,),
}
BIASES = {"conv/bias", "norm/bias", "block2/norm/bias", "block2/dense/bias"}
NORM = {"norm/scale", "norm/bias", "block2/norm/scale", "block2/norm/bias"}
BLOCK2 = {"block2/norm/scale", "block2/norm/bias"}
RHO = 0.37

RANDOM = samon.random_mask(jax.random.key(3), 0.6)
MASKS = {
    "all": (samon.all_params, set(SHAPES)),
    "only_norm": (samon.only_norm, NORM),
    "no_norm": (samon.no_norm, set(SHAPES) - NORM),
    "only_norm_in": (samon.only_norm_in("^block2/"), BLOCK2),
    "random": (RANDOM, None),
}


def tree(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return nested({path: rng.normal(size=shape).astype(dtype) for path, shape in SHAPES.items()})


def epsilon(ascent, params, grads):
    return ascent.update(grads, ascent.init(params), params)[0]


def norm(tree):
    return math.sqrt(sum(np.sum(np.float64(leaf) ** 2) for leaf in jax.tree.leaves(tree)))


@functools.cache
def all_variants(mask, dtype):
    """ε of all variants from one compiled program, together with its inputs."""
    params, grads = tree(0, dtype), tree(1, dtype)
    compute = jax.jit(
        lambda params, grads: {
            name: epsilon(samon.variant(name, RHO, MASKS[mask][0]), params, grads)
            for name in samon.VARIANTS
        }
    )
    with jax.enable_x64(dtype is np.float64):
        return params, grads, jax.device_get(compute(params, grads))


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 1e-12)])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("variant", samon.VARIANTS)
def test_matches_table_9(variant, mask, dtype, tolerance):
    params, grads, results = all_variants(mask, dtype)
    chosen = MASKS[mask][1]
    entries = flat(RANDOM(params)) if chosen is None else {p: p in chosen for p in SHAPES}
    expected = table9(variant, RHO, flat(params), flat(grads), entries, BIASES)
    actual = flat(results[variant])
    assert actual.keys() == expected.keys()
    for path in SHAPES:
        assert actual[path].dtype == dtype
        difference = np.max(np.abs(actual[path] - expected[path]))
        assert difference <= tolerance * np.max(np.abs(expected[path])), path
        assert not np.any(actual[path][~np.broadcast_to(entries[path], SHAPES[path])])


def test_names_of_the_variants_are_the_published_ones():
    assert set(samon.VARIANTS) == {
        "sam",
        "elementwise_l2",
        "elementwise_l2_orig",
        "elementwise_linf",
        "layerwise_l2",
        "fisher",
    }


@pytest.mark.parametrize("operator", ["identity", "elementwise", "layerwise", "fisher"])
def test_free_combination_of_operator_p_and_eta(operator):
    """p = inf and other η than the published ones, against the formula."""
    params, grads = tree(0), tree(1)
    ascent = samon.perturbation(RHO, operator=operator, p=math.inf, eta=0.5)
    actual = flat(epsilon(ascent, params, grads))
    for path, w in flat(params).items():
        g = np.float64(flat(grads)[path])
        t = {
            "identity": 1.0,
            "elementwise": np.abs(w) + 0.5,
            "layerwise": np.linalg.norm(np.float64(w)),
            "fisher": (1 + 0.5 * g**2) ** -0.5,
        }[operator]
        np.testing.assert_allclose(actual[path], RHO * t * np.sign(g), rtol=1e-6)


@pytest.mark.parametrize("mask", MASKS)
def test_identity_has_length_rho(mask):
    assert norm(all_variants(mask, np.float32)[2]["sam"]) == pytest.approx(RHO, rel=1e-6)


@pytest.mark.parametrize("mask", [samon.all_params, samon.only_norm, RANDOM])
@pytest.mark.parametrize("variant", samon.VARIANTS)
def test_zero_gradient_gives_zero(variant, mask):
    params = tree(0)
    result = epsilon(samon.variant(variant, RHO, mask), params, jax.tree.map(np.zeros_like, params))
    assert all(not np.any(leaf) and np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(result))


@pytest.mark.parametrize("variant", samon.VARIANTS)
def test_zero_parameters_stay_finite(variant):
    params = jax.tree.map(np.zeros_like, tree(0))
    result = flat(epsilon(samon.variant(variant, RHO), params, tree(1)))
    expected = table9(
        variant, RHO, flat(params), flat(tree(1)), dict.fromkeys(SHAPES, True), BIASES
    )
    for path in SHAPES:
        np.testing.assert_allclose(result[path], expected[path], rtol=1e-5)


@pytest.mark.parametrize("magnitude", [1e30, 1e20, 1e-20, 1e-30])
@pytest.mark.parametrize("variant", samon.VARIANTS)
def test_no_overflow_and_no_underflow(variant, magnitude):
    """Their squares leave float32's range."""
    params, grads = tree(0), jax.tree.map(lambda g: g * np.float32(magnitude), tree(1))
    actual = flat(jax.jit(functools.partial(epsilon, samon.variant(variant, RHO)))(params, grads))
    expected = table9(variant, RHO, flat(params), flat(grads), dict.fromkeys(SHAPES, True), BIASES)
    for path in SHAPES:
        np.testing.assert_allclose(actual[path], expected[path], rtol=2e-5)


def test_huge_and_ordinary_gradients_together():
    params = {"u": np.ones(3, np.float32), "v": np.ones(2, np.float32)}
    grads = {"u": np.full(3, 1e20, np.float32), "v": np.array([0.1, -3], np.float32)}
    for variant in samon.VARIANTS:
        actual = epsilon(samon.variant(variant, RHO), params, grads)
        expected = table9(variant, RHO, params, grads, {"u": True, "v": True}, set())
        for path in params:
            np.testing.assert_allclose(actual[path], expected[path], rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_is_not_hidden(bad):
    grads = tree(1)
    grads["norm"]["scale"][2] = bad
    result = epsilon(samon.variant("sam", RHO), tree(0), grads)
    assert all(np.all(np.isnan(leaf)) for leaf in jax.tree.leaves(result))


def test_bfloat16_sums_in_float32():
    """A sum of 2^20 equal squares in bfloat16 stalls at 2^8 of them."""
    n = 2**20
    params = {"w": jnp.ones(n, jnp.bfloat16)}
    grads = {"w": jnp.full(n, 0.5, jnp.bfloat16)}
    for name, expected in (
        ("sam", 3 / 2**10),
        ("layerwise_l2", 3.0),
        ("elementwise_l2", 3 / 2**10),
    ):
        result = jax.jit(functools.partial(epsilon, samon.variant(name, 3.0)))(params, grads)["w"]
        assert result.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float64(result), expected, rtol=2**-8)


def test_bfloat16_gradients_of_float32_parameters():
    params, grads = tree(0), jax.tree.map(lambda g: jnp.asarray(g, jnp.bfloat16), tree(1))
    actual = flat(epsilon(samon.variant("fisher", RHO), params, grads))
    expected = table9("fisher", RHO, flat(params), flat(grads), dict.fromkeys(SHAPES, True), BIASES)
    for path in SHAPES:
        assert actual[path].dtype == np.float32
        np.testing.assert_allclose(actual[path], expected[path], rtol=1e-5, atol=1e-7)


def test_layerwise_takes_a_weight_and_its_bias_as_two_leaves():
    params = {
        "dense": {"kernel": np.full((2, 2), 3, np.float32), "bias": np.full(4, 0.5, np.float32)}
    }
    grads = jax.tree.map(np.ones_like, params)
    result = epsilon(samon.perturbation(1.0, operator="layerwise", p=math.inf), params, grads)
    np.testing.assert_allclose(result["dense"]["kernel"], 6.0)
    np.testing.assert_allclose(result["dense"]["bias"], 1.0)


def test_rho_as_a_schedule():
    params, grads = tree(0), tree(1)
    ascent = samon.perturbation(optax.linear_schedule(0.0, 1.0, 4))
    state, update = ascent.init(params), jax.jit(ascent.update)
    for step in range(6):
        result, state = update(grads, state, params)
        assert norm(result) == pytest.approx(min(step / 4, 1.0), abs=1e-6)
    assert isinstance(state, samon.PerturbationState)
    assert int(state.count) == 6


def test_rho_as_an_array():
    assert norm(epsilon(samon.variant("sam", jnp.float32(0.5)), tree(0), tree(1))) == pytest.approx(
        0.5, rel=1e-6
    )


@pytest.mark.parametrize("mask", [samon.all_params, samon.only_norm])
def test_rho_through_inject_hyperparams(mask):
    params, grads = tree(0), tree(1)
    ascent = optax.inject_hyperparams(samon.perturbation, static_args=samon.STATIC_ARGS)(
        rho=0.5, operator="elementwise", eta=0.01, normalize_bias=False, mask=mask
    )
    state, update = ascent.init(params), jax.jit(ascent.update)
    first, state = update(grads, state, params)
    assert float(state.hyperparams["rho"]) == 0.5
    state.hyperparams["rho"] = jnp.float32(1.5)
    second, state = update(grads, state, params)
    assert float(state.hyperparams["rho"]) == 1.5
    expected = epsilon(samon.variant("elementwise_l2_orig", 0.5, mask), params, grads)
    for path in SHAPES:
        np.testing.assert_allclose(flat(first)[path], flat(expected)[path], rtol=1e-5)
        np.testing.assert_allclose(flat(second)[path], 3 * flat(expected)[path], rtol=1e-5)


def test_schedule_through_inject_hyperparams():
    params, grads = tree(0), tree(1)
    ascent = optax.inject_hyperparams(samon.perturbation, static_args=samon.STATIC_ARGS)(
        rho=optax.linear_schedule(1.0, 0.0, 2)
    )
    state, lengths = ascent.init(params), []
    for _ in range(3):
        result, state = ascent.update(grads, state, params)
        lengths.append(norm(result))
    np.testing.assert_allclose(lengths, [1.0, 0.5, 0.0], atol=1e-6)


@pytest.mark.parametrize("mask", [{}, {"mask": samon.only_norm}, {"mask": samon.all_params}])
def test_inject_hyperparams_without_static_args_says_so(mask):
    ascent = optax.inject_hyperparams(samon.perturbation)(rho=0.5, **mask)
    with pytest.raises(samon.UserError, match=r"static_args=samon_jax\.STATIC_ARGS"):
        ascent.update(tree(1), ascent.init(tree(0)), tree(0))


@pytest.mark.parametrize("chain", ["chain", "named_chain"])
def test_chain_after_clip_by_global_norm(chain):
    """Clipping rescales g, which changes nothing for p = 2 but the Fisher operator's T."""
    params, grads = tree(0), tree(1)
    clip, ascent = optax.clip_by_global_norm(0.1), samon.variant("fisher", RHO, samon.only_norm)
    if chain == "chain":
        chained = optax.chain(clip, ascent)
    else:
        chained = optax.named_chain(("clip", clip), ("ascent", ascent))
    actual = flat(jax.jit(functools.partial(epsilon, chained))(params, grads))
    clipped = jax.tree.map(lambda g: g * (0.1 / norm(grads)), grads)
    selected = {path: path in NORM for path in SHAPES}
    expected = table9("fisher", RHO, flat(params), flat(clipped), selected, BIASES)
    for path in SHAPES:
        np.testing.assert_allclose(actual[path], expected[path], rtol=1e-5, atol=1e-8)


def test_mask_given_as_a_tree_or_as_a_prefix_of_one():
    params, grads = tree(0), tree(1)
    whole = nested({path: path in NORM for path in SHAPES})
    prefix = {"conv": False, "norm": True, "block2": {"norm": True, "dense": False}}
    expected = flat(epsilon(samon.variant("sam", RHO, samon.only_norm), params, grads))
    for mask in (whole, prefix):
        actual = flat(epsilon(samon.variant("sam", RHO, mask), params, grads))
        for path in SHAPES:
            np.testing.assert_array_equal(actual[path], expected[path])


def test_leaves_outside_the_mask_are_left_out_when_the_program_is_built():
    """Their gradients do not even appear in the program."""
    params, grads = tree(0), tree(1)
    ascent = samon.variant("elementwise_l2", RHO, samon.only_norm)
    jaxpr = jax.make_jaxpr(functools.partial(epsilon, ascent))(params, grads).jaxpr
    read = {v for e in jaxpr.eqns for v in e.invars if not hasattr(v, "val")}
    paths = sorted(SHAPES)  # the order of the leaves of nested dicts: no name is a prefix here
    gradients = jaxpr.invars[len(paths) :]
    assert {path for path, v in zip(paths, gradients, strict=True) if v in read} == NORM


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rho": -0.1}, "rho=-0.1"),
        ({"rho": math.nan}, "rho=nan"),
        ({"rho": math.inf}, "rho=inf"),
        ({"rho": jnp.float32(-1)}, "rho=-1"),
        ({"rho": 0.1, "eta": -1.0}, "eta=-1.0"),
        ({"rho": 0.1, "eta": math.nan}, "eta=nan"),
        ({"rho": 0.1, "p": 3}, "p=3"),
        ({"rho": 0.1, "p": 1}, "p=1"),
        ({"rho": 0.1, "operator": "elemntwise"}, "operator='elemntwise'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(samon.UserError, match=re.escape(message)) as raised:
        samon.perturbation(**arguments)
    assert "\n" not in str(raised.value)


def test_unknown_variant_and_operator_list_what_exists():
    with pytest.raises(samon.UserError, match=r"'asam'.*layerwise_l2.*fisher"):
        samon.variant("asam", 0.1)
    with pytest.raises(samon.UserError, match=r"'asam'.*identity, elementwise, layerwise, fisher"):
        samon.perturbation(0.1, operator="asam")


@pytest.mark.parametrize(
    "mask",
    [samon.only_norm, samon.only_norm_in("stem"), {"dense": {"kernel": False, "bias": False}}],
)
def test_a_mask_that_selects_nothing_lists_the_paths(mask):
    params = {"dense": {"kernel": np.ones((2, 2)), "bias": np.ones(2)}}
    ascent = samon.variant("sam", RHO, mask)
    with pytest.raises(samon.UserError, match="dense/bias, dense/kernel"):
        ascent.init(params)
    with pytest.raises(samon.UserError, match="dense/bias, dense/kernel"):
        ascent.update(params, samon.PerturbationState(jnp.int32(0)), params)


def test_update_without_parameters():
    ascent = samon.variant("sam", RHO)
    with pytest.raises(samon.UserError, match="params=None"):
        ascent.update(tree(1), ascent.init(tree(0)))


def test_schedule_in_float64_is_as_exact_as_a_number():
    with jax.enable_x64(True):
        params, grads = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([3.0, 4.0])}
        tx = samon.perturbation(optax.linear_schedule(0.1, 0.7, 30))
        state = samon.PerturbationState(jnp.int32(7))
        epsilon, _ = jax.jit(tx.update)(grads, state, params)
        rho = 0.1 + 0.6 * 7 / 30
        np.testing.assert_allclose(epsilon["w"], [rho * 0.6, rho * 0.8], rtol=1e-12)


@pytest.mark.parametrize("rho", ["abc", None, [1.0, 2.0]])
def test_rho_of_a_wrong_type(rho):
    with pytest.raises(samon.UserError, match="rho="):
        samon.perturbation(rho)


def test_mask_by_name_is_refused():
    with pytest.raises(samon.UserError, match="mask='only_norm' must be a function"):
        samon.perturbation(0.1, mask="only_norm")
