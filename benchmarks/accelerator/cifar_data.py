"""CIFAR-100 from decoded arrays, or from the shards of TFDS where TFDS is installed."""

import importlib.util
from pathlib import Path

import numpy as np

from samon_jax import data
from samon_jax.data.dataset import Dataset, Split
from samon_jax.errors import UserError

NAME = "cifar100"
NPZ = f"{NAME}.npz"
DECODE = f"python -m benchmarks.decode_cifar --dir=<TFDS data_dir> --out={NPZ}"


def find(path: Path) -> Path:
    """The .npz file, or a folder of TFDS, in or at a path.

    Raises:
      UserError: there is none, or it needs packages that are missing.
    """
    file = path / NPZ if path.is_dir() else path
    if file.is_file():
        return file
    if not path.is_dir():
        raise UserError(f"--data={path} is not there")
    shards = sorted(path.rglob(f"{NAME}-train.array_record*"))
    if not shards:
        raise UserError(
            f"--data={path} has neither {NPZ} nor shards {NAME}-train.array_record-*; make the "
            f"former where TFDS is installed: {DECODE}"
        )
    for package in ("tensorflow_datasets", "array_record"):
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"--data={path} holds shards, but {package} is not installed; decode them where "
                f"it is: {DECODE}"
            )
    return shards[0].parents[2]  # <data_dir>/cifar100/<version>/<shard>


def read(path: Path) -> Dataset:
    """The data set in an .npz file, in a folder with `cifar100.npz`, or in a TFDS folder.

    Args:
      path: of the file, or of the folder.

    Raises:
      UserError: it is not there, is damaged, or needs packages that are missing.
    """
    found = find(path)
    if found.is_dir():
        return data.load(NAME, str(found))
    splits = _arrays(found)
    return Dataset(data.load(NAME).description, splits.__getitem__)


def _arrays(file: Path) -> dict[str, Split]:
    try:
        with np.load(file) as arrays:
            splits = {
                name: Split(arrays[f"{name}_images"], arrays[f"{name}_labels"].astype(np.int32))
                for name in ("train", "test")
            }
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise UserError(f"{file} is damaged or holds something else: {error}") from None
    for name, split in splits.items():
        images, labels = split.images, split.labels
        if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3) or not len(images):
            raise UserError(
                f"{file}: {name}_images is {images.dtype} {images.shape}; it must be uint8 "
                "[n, 32, 32, 3]"
            )
        if labels.shape != images.shape[:1] or labels.min() < 0 or labels.max() > 99:
            raise UserError(f"{file}: {name}_labels must be {len(images)} integers from 0 to 99")
    return splits
