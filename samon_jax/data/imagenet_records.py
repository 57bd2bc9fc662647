"""ImageNet and the sets that share its labels, as TFDS keeps them: JPEGs, read without TensorFlow.

`imagenet2012` is split into train and validation; `imagenet_v2`, `imagenet_r`, `imagenet_a` and
`imagenet_sketch` have one split, test, and labels of ImageNet's 1,000 classes.
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samon_jax.data.reader import open_prepared, with_tfds
from samon_jax.data.streamed import Record
from samon_jax.errors import UserError

NUM_CLASSES = 1000
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # as in PyTorch's ImageNet example

# What the test split of a data set is called in TFDS.
_TEST_SPLIT = {"imagenet2012": "validation"}


class PreparedRecords:
    """A split of a data set that TFDS has on disk; its JPEGs are not decoded.

    Args:
      name: of the data set in TFDS, "imagenet2012" or "imagenet_v2/matched-frequency".
      data_dir: TFDS directory.
      split: "train" or "test", the latter for the validation split of ImageNet too, or a name of
        TFDS.

    Raises:
      UserError: the data set is not there, has another format, or has no such split.
    """

    def __init__(self, name: str, data_dir: Path, split: str) -> None:
        import tensorflow_datasets as tfds  # takes a while

        builder = open_prepared(name, data_dir, _how_to(name, data_dir))
        self._name = name
        self._split = _TEST_SPLIT.get(name, split) if split == "test" else split
        if self._split not in builder.info.splits:
            raise UserError(
                f"data set {name!r} in {builder.data_path} has no split {self._split!r}; it has "
                f"{', '.join(builder.info.splits)}"
            )
        self._source: Any = builder.as_data_source(
            self._split, decoders={"image": tfds.decode.SkipDecoding()}
        )

    def __len__(self) -> int:
        """How many pictures there are."""
        return len(self._source)

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Some of them, in the order of the files."""
        try:
            found = self._source.__getitems__(list(indices))
        except RuntimeError as error:  # array_record's, when a file is missing or cut short
            reason = " ".join(str(error).split())
            raise UserError(
                f"data set {self._name!r}, split {self._split!r}, is damaged ({reason})"
            ) from error
        return [self._record(i, x) for i, x in zip(indices, found, strict=True)]

    def _record(self, index: int, example: dict[str, Any]) -> Record:
        name = example.get("file_name", b"").decode() or f"{self._name} {self._split} {index}"
        return Record(name, bytes(example["image"]), int(example["label"]))


def _how_to(name: str, data_dir: Path) -> str:
    if name != "imagenet2012":
        return with_tfds(name, data_dir)
    return (
        f"{shlex.quote(sys.executable)} -m samon_jax.data.prepare_imagenet <folder with "
        f"ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar> {shlex.quote(str(data_dir))}"
    )
