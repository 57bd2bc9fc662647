"""What `samon_jax.data.load` returns: images and labels as plain arrays."""

import dataclasses

import numpy as np

SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples in the order of their files.

    Attributes:
      images: uint8 [n, H, W, C].
      labels: int32 [n], in [0, num_classes).
    """

    images: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set in memory, with what normalizes its images.

    Attributes:
      name: the name it was loaded by.
      train: training examples.
      test: test examples.
      num_classes: number of classes.
      mean: mean of each channel over the training images, scaled to [0, 1].
      std: standard deviation of each channel over all training pixels, in the same units.
    """

    name: str
    train: Split
    test: Split
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
