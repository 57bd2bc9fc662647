"""scikit-learn's 8x8 digits as a TFDS data set that needs neither a download nor TensorFlow.

Import this module only where it is used: it imports tensorflow_datasets.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from samon_jax.data.part import quotas_of

NUM_TEST = 360


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,797 handwritten digits, 8x8 grey-level images, 1,437 to train and 360 to test.

    These are the test images of "Optical Recognition of Handwritten Digits" of the UCI repository
    (Alpaydin and Kaynak, 1998), as `sklearn.datasets.load_digits` ships them. The split is
    stratified, drawn once and fixed.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Stratified split of 1,437 and 360 images."}  # noqa: RUF012

    # TFDS would look this up with the help of importlib_resources, which it does not install.
    code_path = tfds.core.Path(__file__)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits as 8x8 grey-level images, from scikit-learn.",
            features=tfds.features.FeaturesDict(
                {
                    # Not tfds.features.Image: encoding a PNG needs TensorFlow.
                    "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
            disable_shuffling=True,  # the split is drawn at random already
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        from sklearn.datasets import load_digits

        levels, labels = load_digits(return_X_y=True)
        train, test = stratified_split(labels, NUM_TEST)
        images = to_uint8(levels).reshape(-1, 8, 8, 1)
        return {
            "train": self._generate_examples(images[train], labels[train]),
            "test": self._generate_examples(images[test], labels[test]),
        }

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[int, dict]]:
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield i, {"image": image, "label": int(label)}


def to_uint8(levels: np.ndarray) -> np.ndarray:
    """Grey levels 0..16 to 0..255: 255 level / 16, rounded; different levels stay different."""
    return np.rint(levels * (255 / 16)).astype(np.uint8)


def stratified_split(labels: np.ndarray, num_test: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws a split in which every class has its share, always the same one.

    Args:
      labels: int [n].
      num_test: number of test examples.

    Returns:
      Indices of the training and of the test examples, each in random order. Of every class,
      `num_test / n` of the examples are for testing, rounded so that the total is exact.
    """
    # RandomState, because NumPy guarantees that its stream never changes (NEP 19).
    random = np.random.RandomState(0)
    classes, counts = np.unique(labels, return_counts=True)
    train, test = [], []
    for label, quota in zip(classes, quotas_of(counts, num_test), strict=True):
        members = random.permutation(np.flatnonzero(labels == label))
        test.append(members[:quota])
        train.append(members[quota:])
    return random.permutation(np.concatenate(train)), random.permutation(np.concatenate(test))
