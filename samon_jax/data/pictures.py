"""Encoded pictures to uint8 arrays of one size: decoding, crops and resizing on the host.

A JPEG is decoded by simplejpeg, which is a quarter faster than Pillow and equal to it in every
pixel; whatever is not an ordinary JPEG (CMYK, a PNG under a wrong name) goes to Pillow. Resizing is
Pillow's: OpenCV's is twice as fast, but its bilinear filter does not antialias, and a network that
is evaluated with one filter and trained with the other loses accuracy. EXIF rotation is ignored, as
in ImageNet's published numbers. All of these release Python's lock, so threads are enough.
"""

import io
import math
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC

# Of torchvision's RandomResizedCrop, "inception-style" (Szegedy et al. 2015, section 6).
AREA = (0.08, 1.0)  # share of the picture that the crop covers
RATIO = (3 / 4, 4 / 3)  # width / height
TRIES = 10
DRAWS = 4 * TRIES + 1  # numbers that `training_crop` takes

# Decoded by simplejpeg; it would read CMYK without the inversion that Adobe's files have.
_PLAIN_JPEG = ("YCbCr", "Gray")


class UnreadableError(Exception):
    """A picture that cannot be decoded; the message says why."""


class Box(NamedTuple):
    """A crop, in pixels: rows [top, top + height), columns [left, left + width)."""

    top: int
    left: int
    height: int
    width: int


def decode(data: bytes) -> np.ndarray:
    """Decodes a picture; grey, CMYK and transparent ones become RGB.

    Args:
      data: a JPEG, PNG or other file that Pillow reads.

    Returns:
      uint8 [height, width, 3].

    Raises:
      UnreadableError: it is truncated, or no picture.
    """
    try:
        if simplejpeg.decode_jpeg_header(data)[2] in _PLAIN_JPEG:
            return simplejpeg.decode_jpeg(data)
    except ValueError:
        pass  # Pillow knows whether it is worse than unusual.
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError as error:
        raise UnreadableError("no picture") from error
    except Exception as error:  # Pillow's plugins raise many types on damaged files
        raise UnreadableError(" ".join(str(error).split()) or type(error).__name__) from error


def training_crop(height: int, width: int, draws: np.ndarray) -> tuple[Box, Image.Resampling]:
    """A random part of a picture and a filter: torchvision's RandomResizedCrop, timm's filter.

    The crop covers a share of the area in [0.08, 1], uniformly, with a ratio of its sides in [3/4,
    4/3], log-uniformly. After ten tries that do not fit into the picture it is the largest central
    one of an allowed ratio. The filter is bilinear or bicubic with equal probability.

    Args:
      height: of the picture.
      width: of the picture.
      draws: float64 [DRAWS], uniform in [0, 1): area, ratio, top and left of each try; the filter.

    Returns:
      The crop and the filter by which it is resized.

    Example:
      >>> training_crop(100, 100, np.full(DRAWS, 0.5))
      (Box(top=14, left=14, height=73, width=73), <Resampling.BICUBIC: 3>)
    """
    resampling = BILINEAR if draws[-1] < 0.5 else BICUBIC
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    for area, ratio, top, left in draws[:-1].reshape(TRIES, 4).tolist():
        target = height * width * (AREA[0] + (AREA[1] - AREA[0]) * area)
        aspect = math.exp(low + (high - low) * ratio)
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(top * (height - h + 1)), int(left * (width - w + 1)), h, w), resampling
    w, h = width, height
    if width / height < RATIO[0]:
        h = round(width / RATIO[0])
    elif width / height > RATIO[1]:
        w = round(height * RATIO[1])
    return Box((height - h) // 2, (width - w) // 2, h, w), resampling


def write_crop(
    picture: np.ndarray, box: Box, resampling: Image.Resampling, out: np.ndarray
) -> None:
    """Cuts a part out, then resizes it; pixels outside of the part have no influence.

    Args:
      picture: uint8 [height, width, 3].
      box: inside the picture.
      resampling: Pillow's filter.
      out: uint8 [size, size, 3], which is written.
    """
    part = picture[box.top : box.top + box.height, box.left : box.left + box.width]
    size = (out.shape[1], out.shape[0])
    # Pillow would copy the part while it holds Python's lock, NumPy does not.
    out[...] = Image.fromarray(np.ascontiguousarray(part)).resize(size, resampling)


def write_centre(picture: np.ndarray, crop: float, out: np.ndarray) -> None:
    """Evaluation: the shorter side to size / crop, bicubically, then the central square.

    Args:
      picture: uint8 [height, width, 3].
      crop: side of the square relative to the shorter side: 0.875 (ResNet) or 0.9 (ViT).
      out: uint8 [size, size, 3], which is written.
    """
    height, width, _ = picture.shape
    size = len(out)
    short = math.floor(size / crop)
    if width <= height:
        w, h = short, int(short * height / width)
    else:
        w, h = int(short * width / height), short
    resized = Image.fromarray(picture).resize((w, h), BICUBIC)
    top, left = round((h - size) / 2), round((w - size) / 2)
    out[...] = resized.crop((left, top, left + size, top + size))
