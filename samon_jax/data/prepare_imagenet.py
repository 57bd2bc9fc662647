"""ImageNet's archives or folders to the data set `imagenet2012` of TFDS, without TensorFlow.

    python -m samon_jax.data.prepare_imagenet SOURCE DATA_DIR

SOURCE holds ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar as they are downloaded, or folders
train and val (or validation) with one sub-folder a class, called n01440764 and so on. The pictures
are copied as they are, but for those that are no RGB or grey JPEG (22 in CMYK and a PNG among
ImageNet's), which are encoded anew. The result is read by the stock builder of TFDS.
"""

import argparse
import contextlib
import io
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import simplejpeg
from PIL import Image

from samon_jax.data.folder import class_names
from samon_jax.data.pictures import UnreadableError, decode
from samon_jax.errors import UserError

# TFDS's name of a split, the archive that holds it, its names as a folder, and its pictures.
_SPLITS: dict[str, tuple[str, tuple[str, ...], int]] = {
    "train": ("ILSVRC2012_img_train.tar", ("train",), 1_281_167),
    "validation": ("ILSVRC2012_img_val.tar", ("val", "validation"), 50_000),
}


class Example(NamedTuple):
    """A picture: name of its file, encoded, and synset, as n01440764."""

    name: str
    data: bytes
    synset: str


def repaired(data: bytes) -> bytes:
    """The same bytes if they are an RGB or grey JPEG, else the picture encoded as one.

    Raises:
      pictures.UnreadableError: it cannot be decoded.
    """
    try:
        if simplejpeg.decode_jpeg_header(data)[2] in ("YCbCr", "Gray"):
            return data
    except ValueError:
        pass
    file = io.BytesIO()
    Image.fromarray(decode(data)).save(file, "JPEG", quality=100)  # as TFDS does
    return file.getvalue()


def examples(source: Path, split: str) -> Iterator[Example]:
    """The pictures of a split, from its archive or its folder.

    Args:
      source: as in the description of this module.
      split: "train" or "validation".

    Raises:
      UserError: the split is not there.
    """
    archive, folders, _ = _SPLITS[split]
    if (source / archive).is_file():
        read = _from_train_tar if split == "train" else _from_validation_tar
        yield from read(source / archive)
        return
    for folder in folders:
        if (source / folder).is_dir():
            yield from _from_folder(source / folder)
            return
    raise UserError(
        f"{str(source)!r} has no split {split!r}: neither {archive} nor a folder "
        f"{' or '.join(folders)}"
    )


def prepare(source: Path, data_dir: Path, *, progress: bool = True) -> dict[str, int]:
    """Writes the data set.

    Args:
      source: archives or folders; a split that is not there is left out, with a notice.
      data_dir: TFDS directory to write to.
      progress: show a bar on stderr.

    Returns:
      Number of pictures of each split.

    Raises:
      UserError: there is no split at all, the data set is there already, a class is not ImageNet's,
        or a picture cannot be decoded.
    """
    import tensorflow_datasets as tfds

    if not source.is_dir():
        raise UserError(f"the folder {str(source)!r} does not exist")
    there = [split for split in _SPLITS if _holds(source, split)]
    if not there:
        raise UserError(
            f"{str(source)!r} holds neither ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar "
            "nor folders train and val"
        )
    stock = tfds.builder("imagenet2012", data_dir=data_dir)
    if (Path(stock.data_path) / "dataset_info.json").is_file():
        raise UserError(f"{stock.data_path} exists already; remove it to prepare it anew")
    for split in sorted(set(_SPLITS) - set(there)):
        print(f"{source} has no split {split!r}; it is left out", file=sys.stderr)
    scratch = _builder(type(stock), source, there, progress)
    builder = scratch(data_dir=data_dir, file_format="array_record")
    # TFDS says where it writes, and has bars of its own.
    silent = contextlib.nullcontext() if progress else redirect_stderr(io.StringIO())
    with redirect_stdout(io.StringIO()), silent, tempfile.TemporaryDirectory() as downloads:
        builder.download_and_prepare(download_dir=downloads)
    return {split: builder.info.splits[split].num_examples for split in there}


def _holds(source: Path, split: str) -> bool:
    archive, folders, _ = _SPLITS[split]
    return (source / archive).is_file() or any((source / name).is_dir() for name in folders)


def _builder(stock: Any, source: Path, splits: list[str], progress: bool) -> Any:
    """The stock builder, whose splits are read by us."""

    class Builder(stock, skip_registration=True):  # type: ignore[call-arg]
        # By these, TFDS finds labels and description, and names the data set.
        pkg_dir_path = stock.pkg_dir_path
        name = stock.name
        url_infos: dict[str, Any] = {}  # noqa: RUF012  nothing is downloaded

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {split: self._of_split(split) for split in splits}

        def _of_split(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
            known = set(self.info.features["label"].names)
            for example in _shown(examples(source, split), split, progress):
                if example.synset not in known:
                    raise UserError(f"the class {example.synset!r} is none of ImageNet's 1,000")
                try:
                    data = repaired(example.data)
                except UnreadableError as error:
                    raise UserError(f"{example.name} cannot be decoded ({error})") from error
                yield (
                    example.name,
                    {"image": io.BytesIO(data), "label": example.synset, "file_name": example.name},
                )

    return Builder


def _shown(items: Iterator[Example], split: str, progress: bool) -> Iterator[Example]:
    from tqdm import tqdm

    total = _SPLITS[split][2]
    return iter(tqdm(items, desc=split, total=total, unit=" pictures", disable=not progress))


def _from_train_tar(path: Path) -> Iterator[Example]:
    """An archive of one archive for each class, called n01440764.tar."""
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            inner = archive.extractfile(member)
            if inner is None:
                continue
            with tarfile.open(fileobj=inner, mode="r:") as pictures:
                for picture in pictures:
                    if file := pictures.extractfile(picture):
                        yield Example(picture.name, file.read(), Path(member.name).stem)


def _from_validation_tar(path: Path) -> Iterator[Example]:
    """An archive of pictures; their classes are in a list of TFDS, in the order of their names."""
    synset = _validation_labels()
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            name = Path(member.name).name
            if not (file := archive.extractfile(member)):
                continue
            if name not in synset:
                raise UserError(f"{path} holds {name!r}, which is no picture of the validation set")
            yield Example(name, file.read(), synset[name])


def _validation_labels() -> dict[str, str]:
    import tensorflow_datasets as tfds

    path = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt")
    labels = path.read_text().split()
    return {f"ILSVRC2012_val_{i:08d}.JPEG": label for i, label in enumerate(labels, start=1)}


def _from_folder(directory: Path) -> Iterator[Example]:
    for synset in class_names(directory):
        for path in sorted((directory / synset).iterdir()):
            if path.is_file():
                yield Example(path.name, path.read_bytes(), synset)


def main(argv: list[str]) -> int:
    """The command line; a mistake becomes one line on stderr and status 2."""
    parser = argparse.ArgumentParser(prog="python -m samon_jax.data.prepare_imagenet")
    parser.add_argument("source", type=Path, help="folder with the archives, or train and val")
    parser.add_argument("data_dir", type=Path, help="TFDS directory to write to")
    arguments = parser.parse_args(argv)
    try:
        counts = prepare(arguments.source, arguments.data_dir)
    except (UserError, OSError, tarfile.TarError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(", ".join(f"{count} pictures for {split}" for split, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
