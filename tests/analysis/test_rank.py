import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from samon_jax import models
from samon_jax.analysis import rank
from samon_jax.errors import UserError


def identity(params, inputs):
    return params * inputs


def of_rank(r, n, d, scale=1.0, offset=0.0):
    random = np.random.default_rng(r)
    matrix = random.normal(size=(n, r)) @ random.normal(size=(r, d))
    return (scale * (matrix / np.sqrt(r) + offset)).astype(np.float32)


@pytest.mark.parametrize(("n", "d"), [(260, 200), (200, 260)])
@pytest.mark.parametrize(("r", "scale"), [(1, 1e-10), (10, 1.0), (100, 1e10), (100, 1e-10)])
def test_a_random_matrix_of_rank_r(n, d, r, scale):
    # All but 1e-7 of the variance: a float32 matrix has r singular values above its rounding.
    found = rank.feature_rank(identity, jnp.ones(()), of_rank(r, n, d, scale), share=1 - 1e-7)
    assert found == (r, d, n)


@pytest.mark.parametrize(("r", "expected"), [(1, 1), (7, 7), (50, 50), (99, 99), (250, 248)])
@pytest.mark.parametrize("shape", [(300, 260), (260, 300)])
def test_equal_singular_values(r, expected, shape):
    # r equal values hold 99 % together once there are ⌈0.99 r⌉ of them.
    random = np.random.default_rng(r)
    left = random.normal(size=(shape[0], r))
    left = np.linalg.qr(left - left.mean(0))[0]
    right = np.linalg.qr(random.normal(size=(shape[1], r)))[0]
    found = rank.feature_rank(identity, jnp.ones(()), (left @ right.T).astype(np.float32))
    assert found.rank == expected


@pytest.mark.parametrize(("n", "d"), [(200, 80), (80, 200), (100, 100)])
def test_spectrum_equals_numpy(n, d):
    random = np.random.default_rng(n)
    matrix = random.normal(size=(n, d)) * np.geomspace(1, 1e-3, d) + 1000
    spectrum = rank.Spectrum(n)
    for begin in range(0, n, 37):
        spectrum.add(matrix[begin : begin + 37])
    expected = np.linalg.svd(matrix - matrix.mean(0), compute_uv=False) ** 2
    found = spectrum.squared_singular_values()
    np.testing.assert_allclose(found[: len(expected)], expected, rtol=1e-8, atol=1e-9)


def test_moments_are_held_once():
    rows = np.random.default_rng(0).normal(size=(64, 1500)).astype(np.float32)
    spectrum = rank.Spectrum(2000)
    tracemalloc.start()
    for _ in range(3):
        spectrum.add(rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 1500**2 * 8 <= peak < 1.4 * 1500**2 * 8


def test_a_large_mean_does_not_count():
    found = rank.feature_rank(
        identity, jnp.ones(()), of_rank(5, 300, 100, offset=100), batch_size=32, share=0.999
    )
    assert found.rank == 5


def test_constant_features_have_rank_zero():
    found = rank.feature_rank(identity, jnp.ones(()), np.ones((10, 4), np.float32))
    assert found.rank == 0


@pytest.mark.parametrize(
    ("values", "expected"), [([99, 1], 1), ([98, 1, 1], 2), ([0, 0], 0), ([], 0)]
)
def test_rank_of(values, expected):
    assert rank.rank_of(np.array(values, float)) == expected


def test_block_output_is_the_input_of_what_follows():
    model = models.create("digits-resnet", 10)
    images = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
    variables = jax.jit(lambda key: model.init(key, images, train=False))(jax.random.key(1))
    params, rest = variables["params"], {"batch_stats": variables["batch_stats"]}
    block = rank.last_block(rank.block_names(model, images))
    assert block == "stage3_block0"
    features = jax.jit(rank.block_output(model, rest, images, block))(params, images)
    assert features.shape == (3, 2, 2, 64)
    # Norm, ReLU, pooling and head by hand (untrained: γ = 1, β = 0, mean 0, variance 1).
    pooled = np.maximum(np.asarray(features) / np.sqrt(1 + 1e-5), 0).mean((1, 2))
    logits = pooled @ np.asarray(params["head"]["kernel"]) + np.asarray(params["head"]["bias"])
    expected = jax.jit(lambda images: model.apply(variables, images, train=False))(images)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    inner = rank.block_output(model, rest, images, "stage3_block0/conv2")
    assert jax.eval_shape(inner, params, images).shape == features.shape


def test_one_program_for_all_batches_and_runs():
    traces = []

    def counting(scale, params, inputs):
        traces.append(1)
        return scale * params * inputs

    for scale in (1.0, 2.0):
        rank.feature_rank(Partial(counting, scale), jnp.ones(()), of_rank(3, 64, 8), batch_size=16)
    assert len(traces) == 1


def test_unknown_block_lists_the_blocks():
    model = models.create("digits-resnet", 10)
    with pytest.raises(UserError, match="block='stage4' does not exist") as error:
        rank.block_output(model, {}, jnp.zeros((1, 8, 8, 1)), "stage4")
    for name in ("stem", "stage1_block0", "stage2_block0", "stage3_block0", "norm_out", "head"):
        assert name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share": 1.0}, "share=1.0"),
        ({"inputs": np.zeros((0, 3), np.float32)}, "inputs is empty"),
        ({"params": jnp.nan}, "not finite"),
    ],
)
def test_bad_arguments(change, message):
    arguments = {"params": jnp.ones(()), "inputs": np.ones((4, 3), np.float32)} | change
    with pytest.raises(UserError, match=message):
        rank.feature_rank(identity, **arguments)
