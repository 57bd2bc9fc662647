"""Reads prepared TFDS data sets through `as_data_source`, without TensorFlow.

tensorflow_datasets is imported inside the functions only: that takes a while, and models, tests
and the help page can do without.
"""

import functools
import io
import logging
import os
import shlex
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from samon_jax.data import cache
from samon_jax.data.dataset import SPLITS, Split
from samon_jax.errors import UserError

_log = logging.getLogger(__name__)

_BATCH = 1000
_INFO = "dataset_info.json"


def resolve_data_dir(data_dir: str | None) -> Path:
    """The TFDS `data_dir`: the argument, else `TFDS_DATA_DIR`, else TFDS's default.

    Raises:
      UserError: the argument names nothing that exists; only the other two are made where needed.
    """
    if data_dir and not os.path.exists(Path(data_dir).expanduser()):
        raise UserError(f"data.dir={data_dir!r} does not exist")
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def read_prepared(name: str, data_dir: Path, splits: Sequence[str] = SPLITS) -> dict[str, Split]:
    """Reads a data set of TFDS that is on disk already; its images are decoded only once.

    Args:
      name: name of the data set in TFDS, for example "cifar100".
      data_dir: TFDS directory.
      splits: which to read, of "train" and "test".

    Returns:
      The splits, in the order of the files.

    Raises:
      UserError: the data set is not there, is damaged, or has a format that needs TensorFlow.
    """
    prepare = with_tfds(name, data_dir)
    builder = open_prepared(name, data_dir, prepare)
    files = [file for file in Path(builder.data_path).iterdir() if file.is_file()]
    path = cache.cache_dir() / f"{name}-{builder.version}-{cache.fingerprint(files)}.npz"
    try:
        shape = builder.info.features["image"].shape
        return cache.cached_splits(path, lambda: _decode(builder), splits, shape)
    except MemoryError:
        raise
    except Exception as error:  # array_record's, TFDS's or Pillow's, when a file is damaged
        raise UserError(
            f"data set {name!r} in {builder.data_path} is damaged ({_one_line(error)}); "
            f"move it away and prepare it with: {prepare}"
        ) from error


def with_tfds(name: str, data_dir: Path) -> str:
    """The command by which TFDS prepares a data set so that it can be read without TensorFlow."""
    python = shlex.quote(sys.executable)
    return (
        f"{python} -m pip install '.[prepare]' && "
        f'{python} -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', data_dir='{data_dir}', file_format='array_record')"
        '.download_and_prepare()"'
    )


def open_prepared(name: str, data_dir: Path, prepare: str) -> Any:
    """TFDS's builder of a data set that is on disk.

    Args:
      name: of the data set in TFDS.
      data_dir: TFDS directory.
      prepare: the command that prepares it.

    Raises:
      UserError: the data set is not there, is damaged, or has a format that needs TensorFlow.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except Exception as error:  # what a damaged dataset_info.json makes of TFDS and protobuf
        raise UserError(
            f"data set {name!r} in {data_dir} is damaged ({_one_line(error)}); move it away and "
            f"prepare it with: {prepare}"
        ) from error
    if not _is_prepared(builder):
        raise UserError(f"data set {name!r} is not in {data_dir}; prepare it with: {prepare}")
    formats = builder.info.available_file_formats()
    if not tfds.core.FileFormat.with_random_access() & formats:
        found = ", ".join(sorted(f.value for f in formats)) or "unknown"
        raise UserError(
            f"data set {name!r} in {builder.data_path} has the format {found}, which needs "
            f"TensorFlow; move it away and prepare it with: {prepare}"
        )
    return builder


def read_digits(data_dir: Path, splits: Sequence[str] = SPLITS) -> dict[str, Split]:
    """Reads the `digits`; writes them first if they are not there yet.

    They go to `data_dir` or, if that is not writable, to "tfds" in `cache.cache_dir()`.

    Raises:
      UserError: neither of the directories is writable.
    """
    from samon_jax.data.digits import Digits

    fallback, reason = cache.cache_dir() / "tfds", ""
    for directory in (data_dir, fallback):
        make = functools.partial(Digits, data_dir=directory, file_format="array_record")
        folder = directory / "digits" / str(Digits.VERSION)
        for attempt in range(2):
            try:
                if not (folder / _INFO).is_file():
                    _prepare(make())
                # The builder that prepared does not know the lengths of the splits.
                return _decode(make(), splits)
            except Exception as error:  # the system's, or what its readers and writers make of it
                reason = _one_line(error)
                if not (folder / _INFO).is_file():  # it could not be written
                    _log.info("data set 'digits' was not written to %s: %s", directory, reason)
                    break
                if isinstance(error, OSError):  # another process was faster; its files are as good
                    continue
                if attempt:
                    raise
                try:
                    _set_aside(folder)
                except OSError as refused:
                    _log.warning("%s is damaged (%s) and stays: %s", folder, reason, refused)
                    break
                _log.warning("%s is damaged (%s): made anew", folder, reason)
    raise UserError(
        f"data set 'digits' cannot be written: neither data_dir={str(data_dir)!r} nor the cache "
        f"directory {str(fallback)!r} is writable ({reason}); set SAMON_CACHE_DIR to one that is"
    )


def _one_line(error: Exception) -> str:
    return textwrap.shorten(" ".join(str(error).split()) or type(error).__name__, 200)


def _set_aside(folder: Path) -> None:
    """Renames a damaged data set, so that nothing of it is lost."""
    target = folder.with_name(f"{folder.name}.damaged")
    number = 1
    while target.exists():
        number += 1
        target = folder.with_name(f"{folder.name}.damaged-{number}")
    folder.rename(target)


def _is_prepared(builder: Any) -> bool:
    # builder.is_prepared() logs a warning for each directory that does not exist.
    return (Path(builder.data_path) / _INFO).is_file()


def _prepare(builder: Any) -> None:
    """Writes the data set beside its final place and renames it; OSError if that is impossible."""
    final = Path(builder.data_path)
    existing = next(parent for parent in final.parents if parent.exists())
    if not existing.stat().st_mode & 0o222:  # root could write there all the same
        raise PermissionError(f"{existing} is read-only")
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=final.parent, prefix="incomplete."))
    try:
        scratch = type(builder)(data_dir=temporary, file_format="array_record")
        # TFDS prints progress bars and the scratch directory, for what takes a second.
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            scratch.download_and_prepare(download_dir=temporary / "downloads")
        os.rename(scratch.data_path, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _decode(builder: Any, names: Sequence[str] = SPLITS) -> dict[str, Split]:
    splits = {}
    for name in names:
        source = builder.as_data_source(split=name)
        images = np.empty((len(source), *builder.info.features["image"].shape), np.uint8)
        labels = np.empty(len(source), np.int32)
        for start in range(0, len(source), _BATCH):
            rows = range(start, min(start + _BATCH, len(source)))
            for i, record in zip(rows, source.__getitems__(rows), strict=True):
                images[i], labels[i] = record["image"], record["label"]
        splits[name] = Split(images=images, labels=labels)
    return splits
