"""AutoAugment for CIFAR (Cubuk et al., 2019, https://arxiv.org/abs/1805.09501) on the device.

Operations equal Pillow's, on uint8 images and for a whole batch at once. Each image has its own
operation, and a batched `lax.switch` would compute all of them for all images. So every operation
is written as settings of one chain of steps that changes nothing by default:

1. affine:   nearest-neighbour sampling (ShearX, ShearY, TranslateX, TranslateY, Rotate)
2. blend:    base + factor (image - base) with another image as base (Brightness, Contrast, Color,
             Sharpness)
3. point:    x or 255 - x by a threshold, then a mask of bits (Solarize, Invert, Posterize)
4. stretch:  linear, by the extremes of each channel (AutoContrast)
5. equalize: by the histogram of each channel (Equalize)

Magnitudes, fill colour and signs are those of the PyTorch code that the SAM-ON paper's published
code contains; torchvision's are the same but for thresholds of Solarize, which start at 255 instead
of 256, and the fill colour, which is black by default. That code samples shears bicubically, here
they are nearest-neighbour samples like the other geometric operations, as in the authors' code and
torchvision: in this policy, shears come up in 2.8 % of the images.
"""

import functools
import math
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from samon_jax.data.autoaugment_policy import MAGNITUDES, POLICY, SIGNED
from samon_jax.errors import UserError

Array = jax.Array | np.ndarray
_T = TypeVar("_T")

FILL = 128  # grey, where a geometric operation looks outside of the image

_BLACK, _MEAN, _GREY, _SMOOTH = range(4)  # bases of `_blend`


class _Settings(NamedTuple):
    """Settings of the steps, one per image or per operation; the defaults change nothing.

    Attributes:
      matrix: int32 [n, 6], affine map from output to input pixels in 1/65536 of a pixel.
      base: int32 [n], the image to blend with.
      factor: float32 [n], 1 is the image itself and 0 the base.
      threshold: int32 [n]; levels from this on are inverted.
      bits: uint8 [n], mask of the bits that are kept.
      stretch: bool [n], whether the channels are stretched.
      equalize: bool [n], whether they are equalized.
    """

    matrix: Array
    base: Array
    factor: Array
    threshold: Array
    bits: Array
    stretch: Array
    equalize: Array


def auto_augment(key: jax.Array, images: jax.Array) -> jax.Array:
    """Applies one sub-policy of `POLICY`, drawn uniformly, to each image.

    Each of its two operations is applied with its probability, and its sign is + or - with equal
    probability. The strong augmentation of the paper (section 4.1, "+AA") is random crop, random
    flip, this, and normalization.

    Args:
      key: `jax.random.key`.
      images: uint8 [n, H, W, 3].

    Returns:
      Images of the same shape and dtype.

    Raises:
      UserError: the images are not uint8 with three channels and at least 3x3 pixels.

    Example:
      >>> images = jnp.zeros((8, 32, 32, 3), jnp.uint8)
      >>> auto_augment(jax.random.key(0), images).shape
      (8, 32, 32, 3)
    """
    _check(images)
    n, height, width, _ = images.shape
    settings, operations = _policy_settings(height, width)
    probabilities = np.array([[p for _, p, _ in sub_policy] for sub_policy in POLICY], np.float32)
    policy_key, applied_key, sign_key = jax.random.split(key, 3)
    policy = jax.random.randint(policy_key, (n,), 0, len(POLICY))
    applied = jax.random.uniform(applied_key, (n, 2)) < jnp.asarray(probabilities)[policy]
    sign = jax.random.bernoulli(sign_key, shape=(n, 2)).astype(jnp.int32)
    for i in (0, 1):
        operation = jnp.asarray(operations)[policy, i, sign[:, i]]
        operation = jnp.where(applied[:, i], operation, 0)
        drawn = _computed(_Settings(*(jnp.asarray(x)[operation] for x in settings)))
        images = _apply(images, drawn)
    return images


def _check(images: jax.Array) -> None:
    if images.dtype != jnp.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise UserError(
            f"images of dtype {images.dtype} and shape {images.shape}: AutoAugment needs uint8 "
            "[n, H, W, 3]"
        )
    if min(images.shape[1:3]) < 3:
        raise UserError(f"images of shape {images.shape}: AutoAugment needs at least 3x3 pixels")


# --- Settings of the operations, on the host -----------------------------------------------------


def _settings(name: str, magnitude: float, height: int, width: int) -> _Settings:
    """Settings of one operation as NumPy values; "Identity" is an operation here.

    Magnitudes of ShearX and ShearY are the shift per row or column, in pixels; of TranslateX and
    TranslateY the share of width or height by which the input lies to the right of or below the
    output; of Rotate degrees, counterclockwise; of Color, Contrast, Brightness and Sharpness
    Pillow's factor minus 1; of Posterize the number of bits that are kept; of Solarize the
    threshold. Others ignore it.
    """
    x, y = width / 2, height / 2
    matrix = _fixed_point(1, 0, 0, 0, 1, 0)
    base, factor, threshold, bits = _BLACK, 1.0, 256, 255
    match name:
        case "ShearX":
            matrix = _fixed_point(1, magnitude, 0, 0, 1, 0)
        case "ShearY":
            matrix = _fixed_point(1, 0, 0, magnitude, 1, 0)
        case "TranslateX":
            matrix = _fixed_point(1, 0, math.floor(magnitude * width + 0.5), 0, 1, 0)
        case "TranslateY":
            matrix = _fixed_point(1, 0, 0, 0, 1, math.floor(magnitude * height + 0.5))
        case "Rotate":
            cos, sin = math.cos(math.radians(magnitude)), math.sin(math.radians(magnitude))
            # About the centre of the image.
            matrix = _fixed_point(cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)
        case "Brightness" | "Contrast" | "Color" | "Sharpness":
            bases = {"Brightness": _BLACK, "Contrast": _MEAN, "Color": _GREY, "Sharpness": _SMOOTH}
            base, factor = bases[name], 1 + magnitude
        case "Invert":
            threshold = 0
        case "Solarize":
            threshold = math.ceil(magnitude)  # levels are whole numbers
        case "Posterize":
            bits = 256 - 2 ** (8 - round(magnitude))
    values = (
        matrix,
        np.int32(base),
        np.float32(factor),
        np.int32(threshold),
        np.uint8(bits),
        np.bool_(name == "AutoContrast"),
        np.bool_(name == "Equalize"),
    )
    return _Settings(*map(np.asarray, values))


def _fixed_point(*matrix: float) -> np.ndarray:
    """The map (x, y) -> (a x + b y + c, d x + e y + f) of points as Pillow's map of pixels.

    Pillow samples at the centres of the pixels, and counts in 1/65536 of a pixel.
    """
    a, b, c, d, e, f = matrix
    at_centre = (a, b, c + (a + b) / 2, d, e, f + (d + e) / 2)
    return np.array([math.floor(v * 65536 + 0.5) for v in at_centre], np.int32)


@functools.cache
def _policy_settings(height: int, width: int) -> tuple[_Settings, np.ndarray]:
    """Settings of all operations of the policy, and where they are.

    Returns:
      Settings with a leading axis of operations, the first of which changes nothing; and int32 [25,
      2, 2]: the operation of sub-policy i at place j with positive (0) or negative (1) sign.
    """
    operations = [("Identity", 0.0)]
    index = np.empty((len(POLICY), 2, 2), np.int32)
    for i, sub_policy in enumerate(POLICY):
        for j, (name, _, level) in enumerate(sub_policy):
            for k, sign in enumerate((1, -1)):
                signed = MAGNITUDES[name][level] * (sign if name in SIGNED else 1)
                if (name, signed) not in operations:
                    operations.append((name, signed))
                index[i, j, k] = operations.index((name, signed))
    settings = [_settings(name, magnitude, height, width) for name, magnitude in operations]
    return _Settings(*(np.stack(x) for x in zip(*settings, strict=True))), index


# --- The steps, on the device --------------------------------------------------------------------


def _apply(images: jax.Array, settings: _Settings) -> jax.Array:
    """All steps in turn: uint8 [n, H, W, 3] to the same."""
    images = _affine(images, settings.matrix)
    images = _blend(_computed(images), settings.base, settings.factor)
    images = jnp.where(images < _per_image(settings.threshold), images, 255 - images)
    images = _computed(images & _per_image(settings.bits))
    images = jnp.where(_per_image(settings.stretch), _stretched(images), images)
    images = _computed(images)
    return _computed(jnp.where(_per_image(settings.equalize), _equalized(images), images))


def _computed(x: _T) -> _T:
    # Against fusing a step into every place that reads its result, and computing it as many times:
    # on CPU, the whole takes 15 % longer without this.
    return lax.optimization_barrier(x)


def _per_image(x: Array) -> Array:
    return x[:, None, None, None]


def _affine(images: jax.Array, matrix: Array) -> jax.Array:
    n, height, width, channels = images.shape
    x = jnp.arange(width)
    y = jnp.arange(height)[:, None]
    a, b, c, d, e, f = (v[:, None, None] for v in matrix.T)
    column = (a * x + b * y + c) >> 16
    row = (d * x + e * y + f) >> 16
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    # Outside of the image is one more pixel, so that the result of the gather is final: else the
    # compiler repeats what follows it for each of the nine neighbours that `_smooth` reads.
    pixel = jnp.where(inside, row * width + column, height * width).reshape(n, -1, 1)
    pixels = images.reshape(n, height * width, channels)
    pixels = jnp.pad(pixels, ((0, 0), (0, 1), (0, 0)), constant_values=FILL)
    sampled = jnp.take_along_axis(pixels, pixel, axis=1, mode="promise_in_bounds")
    return sampled.reshape(images.shape)


def _blend(images: jax.Array, base: Array, factor: Array) -> jax.Array:
    grey = grey_levels(images)
    mean = mean_level(grey)
    kind = base[:, None, None]
    level = jnp.where(kind == _MEAN, mean, jnp.where(kind == _GREY, grey, 0)).astype(jnp.uint8)
    smooth = _computed(_smooth(images))
    other = jnp.where(_per_image(base) == _SMOOTH, smooth, _computed(level)[..., None])
    return mix(images, other, factor)


def mix(images: jax.Array, other: jax.Array, factor: Array) -> jax.Array:
    """Pillow's blend, `other + factor (images - other)` without decimals: uint8 [n, H, W, 3].

    Args:
      images: uint8 [n, H, W, 3].
      other: uint8, of a shape that broadcasts to it.
      factor: float32 [n]; 1 is the image itself.
    """
    other, floats = other.astype(jnp.float32), images.astype(jnp.float32)
    # Pillow rounds the product to float32 before it adds. This clip cannot change the result, but
    # keeps compilers from a fused multiply-add, which would be one level off in 2 % of the values.
    product = jnp.clip(_per_image(factor) * (floats - other), -511, 511)
    return jnp.clip(other + product, 0, 255).astype(jnp.uint8)  # decimals are cut off


def grey_levels(images: jax.Array) -> jax.Array:
    """Luma of ITU-R 601 in Pillow's fixed-point arithmetic: int32 [n, H, W]."""
    red, green, blue = (images[..., i].astype(jnp.int32) for i in range(3))
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


def mean_level(grey: jax.Array) -> jax.Array:
    """The mean of each grey picture [n, H, W], rounded half up: int32 [n, 1, 1]."""
    pixels = grey.shape[1] * grey.shape[2]
    return (2 * grey.sum((1, 2), keepdims=True) + pixels) // (2 * pixels)


def _smooth(images: jax.Array) -> jax.Array:
    """3x3 mean in which the centre counts fivefold, rounded; the border stays as it is."""
    n, height, width, c = images.shape
    # Columns and channels as one long axis, and sums in 16 bits: made for vector instructions.
    flat = images.reshape(n, height, width * c)
    wide = flat.astype(jnp.uint16)
    rows = _computed(wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:])
    centre = wide[:, 1:-1, c:-c]
    total = rows[..., : -2 * c] + rows[..., c:-c] + rows[..., 2 * c :] + 4 * centre
    rounded = (2 * total.astype(jnp.uint32) + 13) // 26
    return flat.at[:, 1:-1, c:-c].set(rounded.astype(jnp.uint8)).reshape(images.shape)


def _stretched(images: jax.Array) -> jax.Array:
    """Each channel's levels from its minimum to its maximum, spread over 0 to 255."""
    # Over rows first: on CPU, that is six times as fast as over both axes at once.
    low = _computed(images.min(1, keepdims=True)).min(2, keepdims=True).astype(jnp.float32)
    high = _computed(images.max(1, keepdims=True)).max(2, keepdims=True).astype(jnp.float32)
    # Rounded down; adding half to the whole numerator keeps exact quotients safe.
    levels = (255 * (images.astype(jnp.float32) - low) + 0.5) / jnp.maximum(high - low, 1)
    return jnp.where(high > low, levels.astype(jnp.uint8), images)


def _equalized(images: jax.Array) -> jax.Array:
    """Each channel's levels by their rank: Pillow's lookup table, from the channel's histogram."""
    n, height, width, channels = images.shape
    pixels = images.reshape(n, height * width, channels).astype(jnp.int32)
    image, channel = jnp.arange(n)[:, None, None], jnp.arange(channels)
    # Flat indices: on CPU, this scatter takes half the time of one with three.
    cells = ((image * channels + channel) * 256 + pixels).ravel()
    histogram = jnp.zeros(n * channels * 256, jnp.int32)
    histogram = histogram.at[cells].add(1, mode="promise_in_bounds").reshape(n, channels, 256)
    below = jnp.cumsum(histogram, axis=-1) - histogram
    # All pixels but those of the highest level, in 255 steps.
    step = jnp.where(histogram > 0, below, 0).max(-1, keepdims=True) // 255
    # A whole number and a half is never close to a multiple of `step`, so float division is safe.
    quotient = ((step // 2 + below) + 0.5) / jnp.maximum(step, 1)
    table = jnp.where(step > 0, jnp.minimum(quotient, 255), jnp.arange(256)).astype(jnp.uint8)
    levels = table.ravel().at[cells].get(mode="promise_in_bounds")
    return levels.reshape(images.shape)
