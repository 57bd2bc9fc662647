"""What `samon_jax.data.load` returns: images and labels as plain arrays."""

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

SPLITS = ("train", "test")


class Description(NamedTuple):
    """What a model and the augmentation must know of a data set of images.

    Attributes:
      name: that it is loaded by.
      num_classes: number of classes.
      image_shape: (height, width, channels).
      mean: mean of each channel over the training images, scaled to [0, 1].
      std: standard deviation of each channel over all training pixels, in the same units.
    """

    name: str
    num_classes: int
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Split(NamedTuple):
    """Examples: of a split in the order of their files, or some of them; on the host or a device.

    Attributes:
      images: uint8 [n, H, W, C].
      labels: int32 [n], in [0, num_classes).
      seeds: uint32 [n], of flip and colours, where pictures are streamed to be trained on.
    """

    images: Any
    labels: Any
    seeds: Any = None


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set in memory, with what normalizes its images; splits are read when first used.

    Attributes:
      description: of the images.
      read: name of a split to its examples.
    """

    description: Description
    read: Callable[[str], Split]

    @cached_property
    def train(self) -> Split:
        """Training examples."""
        return self.read("train")

    @cached_property
    def test(self) -> Split:
        """Test examples."""
        return self.read("test")

    def split(self, name: str) -> Split:
        """A split by name."""
        return getattr(self, name) if name in SPLITS else self.read(name)

    @property
    def num_train(self) -> int:
        """Number of training examples."""
        return len(self.train.labels)

    @property
    def name(self) -> str:
        """The name it was loaded by."""
        return self.description.name

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.description.num_classes

    @property
    def mean(self) -> tuple[float, ...]:
        """Of each channel, in [0, 1]."""
        return self.description.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Of each channel, in [0, 1]."""
        return self.description.std
