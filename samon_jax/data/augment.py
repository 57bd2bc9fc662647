"""Augmentation on the device: pure, jit-able functions of a key and a batch of uint8 images.

Every example of a batch is augmented independently. Each random function has a deterministic twin
that takes the draws (`crop`, `flip`).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def random_crop(key: jax.Array, images: jax.Array, padding: int) -> jax.Array:
    """Shifts every image by up to `padding` pixels in both directions; what enters is black.

    The "basic" augmentation of CIFAR is `padding=4`, then `random_flip` (section 4.1).

    Args:
      key: `jax.random.key`.
      images: [n, H, W, C] of any dtype, not normalized yet, so that 0 is black.
      padding: largest shift, in pixels; 0 returns the images as they are.

    Returns:
      Images of the same shape and dtype. All (2 padding + 1)² shifts are equally likely.
    """
    if padding == 0:
        return images
    offsets = jax.random.randint(key, (images.shape[0], 2), 0, 2 * padding + 1)
    return crop(images, offsets, padding)


def crop(images: jax.Array, offsets: jax.Array, padding: int) -> jax.Array:
    """Pads every image with `padding` zeros on each side and cuts out a window of its old size.

    Args:
      images: [n, H, W, C].
      offsets: int [n, 2], first row and first column of the window, each in [0, 2 padding].
      padding: width of the border, in pixels.

    Returns:
      Images of the same shape and dtype.
    """
    border = (padding, padding)
    padded = jnp.pad(images, ((0, 0), border, border, (0, 0)))

    # Under vmap this becomes one gather. Of gathers by pixel, shifts by `where` and products with
    # one-hot matrices, none was faster on CPU.
    def window(image: jax.Array, offset: jax.Array) -> jax.Array:
        return lax.dynamic_slice(image, (offset[0], offset[1], 0), images.shape[1:])

    return jax.vmap(window)(padded, offsets)


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors every image left to right with probability 1/2.

    Args:
      key: `jax.random.key`.
      images: [n, H, W, C].

    Returns:
      Images of the same shape and dtype.
    """
    return flip(images, jax.random.bernoulli(key, shape=images.shape[:1]))


def flip(images: jax.Array, mirrored: jax.Array) -> jax.Array:
    """Mirrors the chosen images left to right.

    Args:
      images: [n, H, W, C].
      mirrored: bool [n], True where the image is mirrored.

    Returns:
      Images of the same shape and dtype.
    """
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def normalize(
    images: jax.Array, mean: Sequence[float], std: Sequence[float], dtype: Any = jnp.float32
) -> jax.Array:
    """Scales uint8 images to [0, 1], subtracts the mean and divides by the standard deviation.

    Args:
      images: uint8 [n, H, W, C].
      mean: C numbers, in units of [0, 1] images.
      std: C numbers, in the same units.
      dtype: dtype of the result; the arithmetic is in float32.

    Returns:
      Images of the same shape.
    """
    unit = images.astype(jnp.float32) / 255
    return ((unit - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)).astype(dtype)
