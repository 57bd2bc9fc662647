"""Augmentation against padding, slicing and flipping in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samon_jax.data import augment


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(1, 256, (128, 32, 32, 3), dtype=np.uint8)


def numpy_crop(images, offsets, padding):
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    return np.stack(
        [x[i : i + height, j : j + width] for x, (i, j) in zip(padded, offsets, strict=True)]
    )


@pytest.mark.parametrize("padding", [1, 4])
def test_crop_equals_padding_and_slicing(images, padding):
    images = images[:, :20]  # not square
    offsets = np.random.default_rng(1).integers(0, 2 * padding + 1, (128, 2))
    offsets[:2] = [[0, 2 * padding], [2 * padding, 0]]
    cropped = jax.jit(augment.crop, static_argnums=2)(images, offsets, padding)
    assert cropped.dtype == jnp.uint8
    np.testing.assert_array_equal(cropped, numpy_crop(images, offsets, padding))


def find_offsets(images, cropped, padding):
    """The offsets of each crop, found by comparison with all of them."""
    found = np.full((len(images), 2), -1)
    for i in range(2 * padding + 1):
        for j in range(2 * padding + 1):
            candidate = numpy_crop(images, np.full((len(images), 2), (i, j)), padding)
            found[(candidate == cropped).all((1, 2, 3))] = i, j
    return found


def test_random_crop_reaches_all_offsets_equally_often():
    images = np.random.default_rng(0).integers(1, 256, (4050, 6, 6, 1), dtype=np.uint8)
    cropped = np.asarray(augment.random_crop(jax.random.key(0), images, 4))
    offsets = find_offsets(images, cropped, 4)
    counts = np.zeros((9, 9))
    np.add.at(counts, tuple(offsets.T), 1)
    assert offsets.min() == 0  # every image is a crop of itself
    assert counts.min() > 0
    # χ² with 80 degrees of freedom, which exceeds 137 with probability 1e-4.
    assert ((counts - 50) ** 2 / 50).sum() < 137


def test_random_crop_without_padding_changes_nothing(images):
    np.testing.assert_array_equal(augment.random_crop(jax.random.key(0), images, 0), images)


def test_flip_equals_numpy(images):
    mirrored = np.random.default_rng(2).random(128) < 0.5
    flipped = jax.jit(augment.flip)(images, mirrored)
    assert flipped.dtype == jnp.uint8
    np.testing.assert_array_equal(flipped[mirrored], np.flip(images[mirrored], axis=2))
    np.testing.assert_array_equal(flipped[~mirrored], images[~mirrored])


def test_random_flip_mirrors_half_of_the_images():
    images = np.random.default_rng(0).integers(0, 256, (4000, 4, 4, 1), dtype=np.uint8)
    flipped = np.asarray(augment.random_flip(jax.random.key(0), images))
    mirrored = (flipped == images[:, :, ::-1]).all((1, 2, 3))
    unchanged = (flipped == images).all((1, 2, 3))
    assert (mirrored ^ unchanged).all()
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / np.sqrt(4000)


@pytest.mark.parametrize(
    "function", [lambda k, x: augment.random_crop(k, x, 4), augment.random_flip]
)
def test_the_key_decides(images, function):
    function = jax.jit(function)
    first = function(jax.random.key(0), images)
    np.testing.assert_array_equal(first, function(jax.random.key(0), images))
    assert (np.asarray(first) != np.asarray(function(jax.random.key(1), images))).any()


def test_normalize_equals_numpy(images):
    mean, std = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
    expected = (images.astype(np.float64) / 255 - mean) / std
    normalized = augment.normalize(images, mean, std)
    assert normalized.dtype == jnp.float32
    np.testing.assert_allclose(normalized, expected, atol=1e-6)
    half = augment.normalize(images, mean, std, jnp.bfloat16)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half, normalized.astype(jnp.bfloat16))
