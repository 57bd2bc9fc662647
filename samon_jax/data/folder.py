"""Pictures in folders: one sub-folder a class, as people keep their own."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from samon_jax.data.streamed import Record
from samon_jax.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm")

# A split may be called so on disk, in the order of search.
SPLITS = {"train": ("train",), "test": ("test", "val", "validation")}


class FolderRecords:
    """Pictures of a folder; only their names are held in memory.

    Their order is random but always the same, so that the first ones are of all classes.

    Args:
      directory: has a sub-folder for each class.
      classes: names of the sub-folders, in the order of their labels. None for all there are,
        sorted.
      others: leave out sub-folders that are not among `classes`, instead of an error.

    Raises:
      UserError: there are no classes, or others than `classes`, or no pictures.
    """

    def __init__(
        self, directory: Path, classes: Sequence[str] | None = None, *, others: bool = False
    ) -> None:
        found = class_names(directory)
        classes = found if classes is None else classes
        if not others and (strange := sorted(set(found) - set(classes))):
            raise UserError(
                f"data.dir: {str(directory)!r} has the class {strange[0]!r}, which the training "
                "split does not have"
            )
        self._directory = directory
        self._labels, self._names = list[int](), list[str]()
        for label, name in enumerate(classes):
            for file in _pictures(directory / name):
                self._labels.append(label)
                self._names.append(os.path.join(name, file))
        if not self._names:
            raise UserError(
                f"data.dir: the classes in {str(directory)!r} hold no pictures "
                f"({', '.join(SUFFIXES)})"
            )

        order = np.random.default_rng(0).permutation(len(self._names))
        self._labels = [self._labels[i] for i in order]
        self._names = [self._names[i] for i in order]

    def __len__(self) -> int:
        """How many pictures there are."""
        return len(self._names)

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Reads some files."""
        return [
            Record(
                str(self._directory / self._names[i]),
                (self._directory / self._names[i]).read_bytes(),
                self._labels[i],
            )
            for i in indices
        ]


def class_names(directory: Path) -> tuple[str, ...]:
    """Names of the sub-folders, sorted; UserError if there are none.

    Example:
      >>> import tempfile
      >>> directory = Path(tempfile.mkdtemp())
      >>> for name in ("dog", "cat"):
      ...     (directory / name).mkdir()
      >>> class_names(directory)
      ('cat', 'dog')
    """
    if not directory.is_dir():
        raise UserError(f"data.dir: the folder {str(directory)!r} does not exist")
    names = sorted(x.name for x in directory.iterdir() if x.is_dir() and x.name[0] != ".")
    if not names:
        raise UserError(
            f"data.dir: {str(directory)!r} has no classes; it must have one sub-folder for each"
        )
    return tuple(names)


def split_directory(directory: Path, split: str) -> Path:
    """Where a split of `data.name=folder` lies.

    Raises:
      UserError: the folder has no such split.
    """
    names = SPLITS.get(split, (split,))
    for name in names:
        if (directory / name).is_dir():
            return directory / name
    there = class_names(directory)
    shown = ", ".join(there[:5]) + (", ..." if there[5:] else "")
    raise UserError(
        f"data.dir: {str(directory)!r} has no sub-folder {' or '.join(names)} for the split "
        f"{split!r}, in which there is one sub-folder a class; it has: {shown}"
    )


def _pictures(directory: Path) -> list[str]:
    if not directory.is_dir():
        return []
    with os.scandir(directory) as entries:
        return sorted(e.name for e in entries if e.name.lower().endswith(SUFFIXES) and e.is_file())
