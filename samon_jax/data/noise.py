"""Noise images in the shape of CIFAR, for trying things out without a data set on disk."""

import numpy as np

from samon_jax.data.dataset import Split

NUM_TRAIN, NUM_TEST = 2048, 256


def make_noise(num_classes: int) -> dict[str, Split]:
    """Draws images of independent pixels, uniform over 0..255; there is nothing to be learned.

    Args:
      num_classes: the labels go round 0, 1, ..., num_classes - 1, so that classes are balanced.

    Returns:
      The splits "train", 2,048 images of 32x32x3, and "test", 256; the same at every call.

    Example:
      >>> make_noise(10)["train"].images.shape
      (2048, 32, 32, 3)
    """
    # RandomState, because NumPy guarantees that its stream never changes (NEP 19).
    random = np.random.RandomState(num_classes)
    return {
        name: Split(
            images=random.randint(0, 256, (count, 32, 32, 3)).astype(np.uint8),
            labels=np.arange(count, dtype=np.int32) % num_classes,
        )
        for name, count in (("train", NUM_TRAIN), ("test", NUM_TEST))
    }
