"""Flip and colours of streamed pictures on the device, as torchvision and timm define them."""

import jax
import jax.numpy as jnp

from samon_jax.data.augment import flip
from samon_jax.data.autoaugment import grey_levels, mean_level, mix

_DRAWS = 7  # of each picture: flip, three factors, three ranks


def flip_and_jitter(
    seeds: jax.Array, images: jax.Array, strength: float, mirror: bool = True
) -> jax.Array:
    """Mirrors every second picture, then changes brightness, contrast and saturation at random.

    What is drawn for a picture is a function of its seed, wherever it lies in a batch.

    Args:
      seeds: uint32 [n].
      images: uint8 [n, H, W, 3].
      strength: s >= 0; factors are uniform in [max(0, 1 - s), 1 + s]. Table 8's runs have timm's
        0.4.
      mirror: whether to mirror at all.

    Returns:
      Images of the same shape and dtype.

    Example:
      >>> images = jnp.zeros((2, 4, 4, 3), jnp.uint8)
      >>> flip_and_jitter(jnp.arange(2, dtype=jnp.uint32), images, 0.4).shape
      (2, 4, 4, 3)
    """
    base = jax.random.key(0)
    keys = jax.vmap(lambda seed: jax.random.fold_in(base, seed))(seeds)
    draws = jax.vmap(lambda key: jax.random.uniform(key, (_DRAWS,)))(keys)
    if mirror:
        images = flip(images, draws[:, 0] < 0.5)
    if not strength:
        return images
    low = max(0.0, 1 - strength)
    factors = low + (1 + strength - low) * draws[:, 1:4]
    return color_jitter(images, factors, jnp.argsort(draws[:, 4:], axis=1))


def color_jitter(images: jax.Array, factors: jax.Array, order: jax.Array) -> jax.Array:
    """Brightness, contrast and saturation by given factors, in a given order; equal to Pillow's.

    Each is `base + factor (image - base)`, cut to whole levels: the base is black, the mean level
    of grey, or the grey picture. This is torchvision's ColorJitter without hue.

    Args:
      images: uint8 [n, H, W, 3].
      factors: float [n, 3], of brightness, contrast and saturation.
      order: int [n, 3], permutations: which of the three is first, second and last.

    Returns:
      Images of the same shape and dtype.
    """
    for place in range(3):
        kind = order[:, place]
        factor = jnp.take_along_axis(factors, kind[:, None], axis=1)[:, 0]
        grey = grey_levels(images)
        mean = mean_level(grey)
        kind = kind[:, None, None]
        base = jnp.where(kind == 0, 0, jnp.where(kind == 1, mean, grey)).astype(jnp.uint8)
        images = mix(images, base[..., None], factor)
    return images
