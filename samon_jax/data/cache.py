"""Decoded images on disk: PNGs are decoded once, and later runs read two plain arrays per split."""

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from samon_jax.data.dataset import SPLITS, Split

_log = logging.getLogger(__name__)


def cache_dir() -> Path:
    """`SAMON_CACHE_DIR`, else `$XDG_CACHE_HOME/samon_jax`, else `~/.cache/samon_jax`."""
    if own := os.environ.get("SAMON_CACHE_DIR"):
        return Path(own).expanduser()
    # The XDG specification ignores relative paths.
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "samon_jax"


def fingerprint(files: Iterable[Path]) -> str:
    """16 hex digits that change when the names, sizes or times of change of the files do."""
    digest = hashlib.sha256()
    for file in sorted(files):
        stat = file.stat()
        digest.update(f"{file.name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def cached_splits(
    path: Path,
    decode: Callable[[], dict[str, Split]],
    names: Sequence[str] = SPLITS,
    shape: tuple[int, ...] | None = None,
) -> dict[str, Split]:
    """Reads the splits from `path`, or decodes and writes them there.

    An unreadable file is written anew. If the directory is not writable, a warning says so and
    nothing is cached.

    Args:
      path: .npz file whose name identifies the contents.
      decode: makes all splits, by name.
      names: of the splits that are wanted.
      shape: of an image; a file with others is written anew.

    Returns:
      The splits by name.
    """
    try:
        splits = _read(path, names)
        if shape is not None:
            _check_shapes(splits, shape)
        return splits
    except FileNotFoundError:
        pass
    except Exception as error:  # zipfile and NumPy raise many types on a damaged file
        _log.warning("cache %s cannot be read (%s); decoding again", path, error)
    splits = decode()
    try:
        _write(path, splits)
    except OSError as error:
        _log.warning("cache %s cannot be written (%s); the next run decodes again", path, error)
    return splits


def _read(path: Path, names: Sequence[str] = SPLITS) -> dict[str, Split]:
    # A zip file carries a checksum of each array, so damaged pixels are noticed as well.
    with np.load(path, allow_pickle=False) as arrays:
        return {
            name: Split(images=arrays[f"{name}/images"], labels=arrays[f"{name}/labels"])
            for name in names
        }


def _check_shapes(splits: dict[str, Split], shape: tuple[int, ...]) -> None:
    for name, split in splits.items():
        if split.images.shape[1:] != shape or split.labels.shape != split.images.shape[:1]:
            raise ValueError(f"{name} holds images {split.images.shape[1:]}, not {shape}")


def _write(path: Path, splits: dict[str, Split]) -> None:
    arrays: dict[str, Any] = {}
    for name, split in splits.items():
        arrays[f"{name}/images"], arrays[f"{name}/labels"] = split.images, split.labels
    write_whole(path, lambda file: np.savez(file, **arrays))


def write_whole(path: Path, write: Callable[[Any], None]) -> None:
    """Writes a file of the cache by `write(file)` under another name, and renames it.

    So a run which dies, or several that start at once, leave no half file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
