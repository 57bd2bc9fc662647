"""Colour jitter against Pillow, as torchvision calls it; what depends on the seed alone."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageEnhance

from samon_jax.data import jitter
from samon_jax.data.jitter import color_jitter
from samon_jax.data.photographs import photographs

flip_and_jitter = jax.jit(jitter.flip_and_jitter, static_argnums=2, static_argnames="mirror")

ENHANCE = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def some_images(n):
    images = [photographs()[i % 3].crop((0, 50, 300, 350)).resize((32, 32)) for i in range(n)]
    return np.stack([np.asarray(image) for image in images])


def test_equals_pillow_in_every_order():
    orders = np.array(list(itertools.permutations(range(3))) * 4)
    images = some_images(len(orders))
    factors = np.random.default_rng(0).uniform(0.2, 2.0, orders.shape).astype(np.float32)
    found = np.asarray(jax.jit(color_jitter)(images, factors, orders))
    for image, factor, order, result in zip(images, factors, orders, found, strict=True):
        expected = Image.fromarray(image)
        for kind in order:
            expected = ENHANCE[kind](expected).enhance(float(factor[kind]))
        np.testing.assert_array_equal(result, np.asarray(expected))


def test_a_picture_depends_on_its_seed_alone():
    images, seeds = some_images(6), np.arange(6, dtype=np.uint32)
    whole = flip_and_jitter(seeds, images, 0.4)
    some = flip_and_jitter(seeds[3:], images[3:], 0.4)
    np.testing.assert_array_equal(whole[3:], some)
    assert (np.asarray(whole[0]) != np.asarray(whole[3])).any()  # the same photograph


def test_half_of_the_pictures_are_mirrored_and_factors_fill_their_range():
    n = 2000
    images = np.zeros((n, 1, 2, 3), np.uint8)
    images[:, :, 0] = 100
    plain = np.asarray(flip_and_jitter(np.arange(n, dtype=np.uint32), images, 0.0))
    share = (plain[:, 0, 1, 0] == 100).mean()
    assert abs(share - 0.5) < 0.04
    grey = np.full((n, 1, 2, 3), 100, np.uint8)  # contrast and saturation change nothing
    bright = np.asarray(flip_and_jitter(np.arange(n, dtype=np.uint32), grey, 0.4))[:, 0, 0, 0]
    assert (bright.min(), bright.max()) == (60, 139)  # 60.0 to 139.99 without decimals
    assert abs(bright.mean() - 99.5) < 1.5


def test_without_strength_and_mirror_nothing_changes():
    images = some_images(2)
    found = flip_and_jitter(jnp.arange(2, dtype=jnp.uint32), images, 0.0, mirror=False)
    np.testing.assert_array_equal(found, images)
