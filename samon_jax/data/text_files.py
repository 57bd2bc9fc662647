"""Parallel text: two files a split, line i of one being the translation of line i of the other."""

from pathlib import Path
from typing import NamedTuple

from samon_jax.data.text_reversal import read_reversal
from samon_jax.errors import UserError

# Where the splits of a data set are: split -> names of its files without the language, the first
# that exists being read. The names are those under which the data are distributed.
_NAMES = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}
_FLICKR: dict[str, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val",),
    "test": ("test_2016_flickr",),
}
FILES: dict[str, dict[str, tuple[str, ...]]] = {
    "multi30k": _FLICKR,
    "iwslt14_de_en": _NAMES,
    "text": _NAMES,
    "reversal": _NAMES,  # which needs no files
}

_WHERE = {
    "multi30k": "the six raw files are in https://github.com/multi30k/dataset, folder data/task1/"
    "raw (gunzip them; train, val and test_2016_flickr, each .de and .en)",
    "iwslt14_de_en": "prepare-iwslt14.sh of https://github.com/facebookresearch/fairseq, in "
    "examples/translation, writes them (train, valid and test, each .de and .en)",
    "text": "data.dir must be a folder with train.*, val.* and test.*, a file for either language",
}


class Pairs(NamedTuple):
    """A split: `source[i]` and `target[i]` say the same.

    Attributes:
      source: lines to translate.
      target: their translations.
    """

    source: list[str]
    target: list[str]


def folder(name: str, data_dir: Path) -> Path:
    """The folder of a data set: `data_dir/<name>` if there is one, else `data_dir`.

    Args:
      name: as in `data.name`.
      data_dir: as in `data.dir`.
    """
    inside = data_dir / name
    return inside if name != "text" and inside.is_dir() else data_dir


def read_pairs(
    name: str, where: Path, split: str, source: str, target: str, *, lowercase: bool = False
) -> Pairs:
    """Reads a split.

    Lines end in line feeds alone (or CR LF): the other characters that Python takes for ends of
    lines occur inside sentences.

    Args:
      name: a key of `FILES`.
      where: the folder with the files.
      split: "train", "val" or "test".
      source: ending of the files to translate from: "de".
      target: ending of the files to translate to: "en".
      lowercase: lower-case both sides.

    Returns:
      As many source lines as target lines, at least one.

    Raises:
      UserError: `name` is none of them, a file is missing (the message says where it is to be had),
        empty or no UTF-8, or the two have different numbers of lines.
    """
    if name not in FILES:
        allowed = ", ".join(FILES)
        raise UserError(f"data.name={name!r} is not allowed here; sentences are in {allowed}")
    if split not in FILES[name]:
        raise UserError(f"split={split!r} is not allowed; it must be one of train, val, test")
    if name == "reversal":
        return Pairs(*read_reversal(split))
    files = [_find(name, where, split, language) for language in (source, target)]
    sides = [_read_lines(file) for file in files]
    if len(sides[0]) != len(sides[1]):
        raise UserError(
            f"{files[0]} has {len(sides[0])} lines and {files[1].name} has {len(sides[1])}; line i "
            "of one must be the translation of line i of the other"
        )
    if lowercase:
        sides = [[line.lower() for line in side] for side in sides]
    return Pairs(*sides)


def _find(name: str, where: Path, split: str, language: str) -> Path:
    stems = FILES[name][split]
    for stem in stems:
        if (file := where / f"{stem}.{language}").is_file():
            return file
    missing = where / f"{stems[0]}.{language}"
    raise UserError(f"data.name={name!r}: {missing} does not exist; {_WHERE[name]}")


def _read_lines(file: Path) -> list[str]:
    try:
        content = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{file} is not UTF-8: line {line} holds an invalid byte") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    lines = [line.removesuffix("\r") for line in content.removesuffix("\n").split("\n")]
    if not content.strip():
        raise UserError(f"{file} is empty; it must hold a sentence a line")
    return lines
