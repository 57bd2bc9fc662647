"""AutoAugment, operation by operation and as a whole, against Pillow on real images."""

import os
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_images

from samon_jax.data import autoaugment
from samon_jax.errors import UserError

GREY = (128, 128, 128)
GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")


@pytest.fixture(scope="module")
def images():
    """128 images of CIFAR-100, else 32x32 crops of scikit-learn's photographs; some degenerate."""
    root = Path(__file__).resolve().parents[2]
    directory = Path(os.environ.get("TFDS_DATA_DIR") or root.parent / "shared" / "data")
    random = np.random.default_rng(0)
    if list(directory.glob("cifar100/*/dataset_info.json")):
        builder = tfds.builder("cifar100", data_dir=directory)
        source = builder.as_data_source(split="test")  # decodes what it is asked for only
        chosen = np.stack([source[i]["image"] for i in range(128)])
    else:
        photographs = load_sample_images().images
        chosen = np.stack(
            [
                photographs[i % 2][y : y + 32, x : x + 32]
                for i, (y, x) in enumerate(random.integers(0, 390, (128, 2)))
            ]
        )
    chosen[0] = 77  # one level
    chosen[1] = random.integers(0, 256, (32, 32, 3))
    chosen[2, :30] = 200  # most pixels at the highest level: nothing to equalize
    chosen[3] = np.where(chosen[3] > 100, 255, 0)  # two levels
    return chosen


def in_pillow(name, image, magnitude):
    """The calls that the PyTorch implementations make, with nearest-neighbour sampling."""
    image = Image.fromarray(image)
    width, height = image.size

    def affine(*matrix):
        return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=GREY)

    match name:
        case "ShearX":
            out = affine(1, magnitude, 0, 0, 1, 0)
        case "ShearY":
            out = affine(1, 0, 0, magnitude, 1, 0)
        case "TranslateX":
            out = affine(1, 0, magnitude * width, 0, 1, 0)
        case "TranslateY":
            out = affine(1, 0, 0, 0, 1, magnitude * height)
        case "Rotate":
            out = image.rotate(magnitude, fillcolor=GREY)
        case "Posterize":
            out = ImageOps.posterize(image, int(magnitude))
        case "Solarize":
            out = ImageOps.solarize(image, magnitude)
        case "AutoContrast":
            out = ImageOps.autocontrast(image)
        case "Equalize":
            out = ImageOps.equalize(image)
        case "Invert":
            out = ImageOps.invert(image)
        case _:
            out = getattr(ImageEnhance, name)(image).enhance(1 + magnitude)
    return np.asarray(out)


@pytest.fixture(scope="module")
def steps():
    return jax.jit(autoaugment._apply)


def apply_op(steps, name, images, magnitude):
    """One operation on a batch, compiled once for all operations; the settings are arguments."""
    one = autoaugment._settings(name, magnitude, *images.shape[1:3])
    n = len(images)
    return np.asarray(steps(images, jax.tree.map(lambda x: np.broadcast_to(x, (n, *x.shape)), one)))


@pytest.mark.parametrize("name", autoaugment.MAGNITUDES)
def test_operation_equals_pillow_at_every_magnitude(images, steps, name):
    signs = (1, -1) if name in autoaugment.SIGNED else (1,)
    magnitudes = autoaugment.MAGNITUDES[name]
    assert len(magnitudes) == 10
    changed = 0
    for magnitude in sorted({sign * m for m in magnitudes for sign in signs}):
        expected = np.stack([in_pillow(name, image, magnitude) for image in images])
        output = apply_op(steps, name, images, magnitude)
        difference = np.abs(output.astype(int) - expected)
        where = f"{name} {magnitude}: {(difference > 0).mean():.2e} of the values differ"
        if name == "AutoContrast":
            # Pillow multiplies with a rounded quotient, so whole numbers can become one less.
            assert difference.max() <= 1, where
            assert (difference > 0).mean() < 0.02, where
        else:
            assert difference.max() == 0, where
        changed += (expected != images).any()
    assert changed >= (1 if name in ("AutoContrast", "Equalize", "Invert") else 4)


def test_geometry_equals_pillow_at_other_magnitudes_and_sizes(images, steps):
    random = np.random.default_rng(1)
    wide = np.concatenate([images[4:6], images[6:8, :, :13]], axis=2)[:, :21]
    for name in GEOMETRIC:
        for magnitude in random.uniform(-1, 1, 20):
            magnitude = float(magnitude * {"Rotate": 180}.get(name, 1))
            output = apply_op(steps, name, wide, magnitude)
            expected = np.stack([in_pillow(name, image, magnitude) for image in wide])
            np.testing.assert_array_equal(output, expected, err_msg=f"{name} {magnitude}")


def test_magnitudes_are_the_published_ones():
    def at(name, level):
        return autoaugment.MAGNITUDES[name][level]

    assert at("Rotate", 9) == 30
    assert at("ShearY", 8) == pytest.approx(0.3 * 8 / 9)
    assert at("TranslateY", 9) * 331 == pytest.approx(150)
    assert at("Posterize", 7) == 5
    assert at("Solarize", 0) == 256
    assert at("Solarize", 9) == 0
    assert at("Color", 9) == pytest.approx(0.9)
    assert len(autoaugment.POLICY) == 25


# --- The policy as a whole -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def auto_augment():
    return jax.jit(autoaugment.auto_augment)


def outcomes(image, policy):
    """Everything that a sub-policy can make of an image, with its probability."""
    results = [(1.0, image)]
    for name, probability, level in policy:
        signs = (1, -1) if name in autoaugment.SIGNED else (1,)
        magnitude = autoaugment.MAGNITUDES[name][level]
        results = [
            branch
            for weight, x in results
            for branch in [(weight * (1 - probability), x)]
            + [
                (weight * probability / len(signs), in_pillow(name, x, sign * magnitude))
                for sign in signs
            ]
        ]
    return results


def test_policy_draws_what_pillow_makes_and_as_often(images, auto_augment):
    """One image 20,000 times: all results are Pillow's, and each comes as often as it must."""
    image, n = images[10], 4000
    expected: dict[bytes, float] = {}
    for policy in autoaugment.POLICY:
        for weight, x in outcomes(image, policy):
            if weight > 0:
                expected[x.tobytes()] = expected.get(x.tobytes(), 0) + weight / 25
    assert sum(expected.values()) == pytest.approx(1)
    known = np.stack([np.frombuffer(x, np.uint8) for x in expected]).astype(int)
    batch = np.broadcast_to(image, (n, *image.shape))
    draws: Counter[bytes] = Counter()
    for i in range(5):
        draws.update(x.tobytes() for x in np.asarray(auto_augment(jax.random.key(i), batch)))
    counts = np.zeros(len(expected))
    for drawn, multiplicity in draws.items():
        distance = np.abs(np.frombuffer(drawn, np.uint8) - known).max(1)
        # One level in the first operation, where it is AutoContrast, can grow in the second.
        assert distance.min() <= 3
        counts[distance.argmin()] += multiplicity
    mean = 5 * n * np.array(list(expected.values()))
    often = mean >= 5
    deviations = (counts - mean)[often] / np.sqrt(mean[often])
    assert np.abs(deviations).max() < 4.5
    assert (deviations**2).mean() < 1.5
    assert counts[~often].sum() < 2 * mean[~often].sum() + 10


def test_images_are_augmented_independently_and_by_the_key(images, auto_augment):
    batch = np.broadcast_to(images[10], (64, 32, 32, 3))
    first = np.asarray(auto_augment(jax.random.key(0), batch))
    assert first.dtype == np.uint8
    assert len(np.unique(first.reshape(64, -1), axis=0)) > 15
    np.testing.assert_array_equal(first, auto_augment(jax.random.key(0), batch))
    assert (first != np.asarray(auto_augment(jax.random.key(1), batch))).any()


def test_works_under_vmap(images, auto_augment):
    keys = jax.random.split(jax.random.key(0), 2)
    halves = images[:32].reshape(2, 16, 32, 32, 3)
    mapped = jax.jit(jax.vmap(autoaugment.auto_augment))(keys, halves)
    for key, half, output in zip(keys, halves, mapped, strict=True):
        np.testing.assert_array_equal(output, auto_augment(key, half))


def test_errors_name_the_argument():
    key = jax.random.key(0)
    for images in (jnp.zeros((2, 8, 8, 1), jnp.uint8), jnp.zeros((2, 8, 8, 3), jnp.float32)):
        with pytest.raises(UserError, match="needs uint8"):
            autoaugment.auto_augment(key, images)
    with pytest.raises(UserError, match="3x3"):
        autoaugment.auto_augment(key, jnp.zeros((2, 2, 8, 3), jnp.uint8))
