"""Data sets by name. Reading them needs TFDS or plain files, but never TensorFlow.

A data set is an entry of `SETS`: what its images look like, and how a source of them is made. One
that is read whole needs `resident_set` and a function that reads it; a file of its own may register
it with `register`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from samon_jax._fields import Field, boolean, integer, number, one_of, text
from samon_jax.data import imagenet, text_source
from samon_jax.data.dataset import SPLITS, Dataset, Description, Split
from samon_jax.data.noise import make_noise
from samon_jax.data.part import stratified_part
from samon_jax.data.reader import read_digits, read_prepared, resolve_data_dir
from samon_jax.data.resident import ResidentSource
from samon_jax.data.source import Share, Source
from samon_jax.errors import UserError

__all__ = [
    "FIELDS",
    "SETS",
    "DataSet",
    "Dataset",
    "Description",
    "ResidentSource",
    "Share",
    "Source",
    "Split",
    "describe",
    "load",
    "make_source",
    "names",
    "register",
    "resident_set",
    "resolve_data_dir",
]


def _known(name: str, value: Any) -> None:
    one_of(*SETS)(name, value)


# Section `data` of a config.
FIELDS: dict[str, Field] = {
    "name": Field("cifar100", _known, "a name that samon_jax.data.names() lists"),
    "dir": Field("", text, 'TFDS data_dir; "" = TFDS_DATA_DIR, else the default of TFDS'),
    "train_examples": Field(0, integer(0), "only so many, the first of the data set; 0 = all"),
    "test_examples": Field(0, integer(0), "only so many, the first of the data set; 0 = all"),
    "part": Field(
        0, integer(0), "a stratified part of so many training examples, drawn by part_seed; 0 = all"
    ),
    "part_seed": Field(0, integer(0, 2**32 - 1), "of the draw of `part` and `held_back`"),
    "held_back": Field(
        0,
        integer(0),
        "evaluate on so many training examples, which are not trained on, instead of the test set",
    ),
    "crop_padding": Field(
        4, integer(0), "black pixels around an image before a random crop; 0 = no crop"
    ),
    "flip": Field(True, boolean, "mirror every second image, left to right"),
    "auto_augment": Field(False, boolean, 'AutoAugment after crop and flip: "+AA" of the papers'),
    "color_jitter": Field(
        0.0,
        number(),
        "brightness, contrast and saturation change by factors of up to 1 ± so much; ImageNet: 0.4",
    ),
    **imagenet.FIELDS,
}


class DataSet(NamedTuple):
    """An entry of `SETS`.

    Attributes:
      describe: section `data` of a config to what the task must know; a `Description` for images.
      source: `source(config, devices, share) -> Source`.
      task: the task that it is for.
    """

    describe: Callable[[Any], Any]
    source: Callable[[Any, int, Share], Source]
    task: str = "classification"


SETS: dict[str, DataSet] = {}


def register(name: str, entry: DataSet) -> None:
    """Adds a data set.

    Raises:
      UserError: there is one of that name.
    """
    if name in SETS:
        raise UserError(f"data set {name!r} exists already")
    SETS[name] = entry


def names() -> tuple[str, ...]:
    """The data sets there are."""
    return tuple(SETS)


def describe(config: Any) -> Any:
    """What the task of a config must know of its data; reads no examples.

    Args:
      config: a complete config.
    """
    _known("data.name", config.data.name)
    return SETS[config.data.name].describe(config.data)


def make_source(config: Any, *, devices: int = 1, share: Share = Share()) -> Source:  # noqa: B008
    """The source of a config's examples.

    Args:
      config: a complete config.
      devices: that share a batch, on all processes.
      share: of each batch that this process feeds.

    Raises:
      UserError: the data set is not on disk, or too small for the config.
    """
    _known("data.name", config.data.name)
    return SETS[config.data.name].source(config, devices, share)


def resident_set(description: Description, read: Callable[[Path, str], Split]) -> DataSet:
    """An entry for images that lie on the device as a whole.

    Args:
      description: of the images.
      read: TFDS directory and name of a split, "train" or "test", to its examples.
    """

    def source(config: Any, devices: int, share: Share) -> Source:
        dataset = _shortened(Dataset(description, _reader(config.data.dir, read)), config.data)
        return ResidentSource(
            dataset,
            batch_size=config.batch_size,
            eval_batch_size=config.eval_batch_size,
            devices=devices,
            share=share,
        )

    return DataSet(lambda data: description, source)


def load(name: str, data_dir: str | None = None) -> Dataset:
    """A data set that fits into memory.

    Decoded CIFAR images are cached in `SAMON_CACHE_DIR`, else `$XDG_CACHE_HOME/samon_jax`, else
    `~/.cache/samon_jax`.

    Args:
      name: "cifar10" or "cifar100", which must have been prepared by TFDS, "digits"
        (scikit-learn's 8x8 digits), which is written to `data_dir` when it is first used, or
        "random10" or "random100" (noise, for trying things out), which need no files.
      data_dir: TFDS directory; by default `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.

    Returns:
      A `Dataset`; the same arrays, in the same order, at every call. A split is read when it is
      first looked at.

    Raises:
      UserError: the name is unknown; when a split is read, the data set is not on disk, and the
        message holds the commands that prepare it.

    Example:
      >>> dataset = load("digits")
      >>> dataset.train.images.shape, dataset.test.images.shape
      ((1437, 8, 8, 1), (360, 8, 8, 1))
    """
    if name not in _READERS:
        raise UserError(f"data set {name!r} does not exist; choose one of {', '.join(_READERS)}")
    description, read = _READERS[name]
    return Dataset(description, _reader(data_dir, read))


def _reader(data_dir: str | None, read: Callable[[Path, str], Split]) -> Callable[[str], Split]:
    return lambda split: read(resolve_data_dir(data_dir), split)


def _shortened(dataset: Dataset, data: Any) -> Dataset:
    """The examples of each split that the fields of the section ask for."""

    def part(split: str) -> Split:
        whole = dataset.read("train" if data.held_back else split)
        if split != "train" and not data.held_back:
            return whole
        wanted, available = data.part + data.held_back, len(whole.labels)
        if wanted > available:
            raise UserError(
                f"data.part={data.part} and data.held_back={data.held_back} are not allowed; "
                f"data.name={dataset.name!r} has {available} training examples"
            )
        if not wanted:
            return whole
        rows = stratified_part(whole.labels, data.part, data.held_back, data.part_seed)
        chosen = rows[split != "train"]
        return Split(whole.images[chosen], whole.labels[chosen])

    def read(split: str) -> Split:
        whole, count = part(split), data.get(f"{split}_examples", 0)
        available = len(whole.labels)
        if count > available:
            raise UserError(
                f"data.{split}_examples={count} is not allowed; data.name={dataset.name!r} has "
                f"{available}"
            )
        return Split(whole.images[:count], whole.labels[:count]) if count else whole

    return Dataset(dataset.description, read)


def _of_two_splits(name: str, read: Callable[[Path, str], Split]) -> Callable[[Path, str], Split]:
    def checked(data_dir: Path, split: str) -> Split:
        if split not in SPLITS:  # of which TFDS's error would look like damage
            raise UserError(f"data set {name!r} has no split {split!r}; it has train and test")
        return read(data_dir, split)

    return checked


def _noise(num_classes: int) -> Callable[[Path, str], Split]:
    return lambda data_dir, split: make_noise(num_classes)[split]


def _prepared(name: str) -> Callable[[Path, str], Split]:
    return lambda data_dir, split: read_prepared(name, data_dir, (split,))[split]


# Mean and standard deviation are over the training pixels; a test recomputes them. Of noise, which
# is uniform over 0..255: mean 1/2, variance (256² - 1) / 12 / 255².
_RGB = (32, 32, 3)
_UNIFORM = ((0.5,) * 3, (0.2898,) * 3)
_READERS: dict[str, tuple[Description, Callable[[Path, str], Split]]] = {
    "digits": (
        Description("digits", 10, (8, 8, 1), (0.3059,), (0.3764,)),
        lambda data_dir, split: read_digits(data_dir, (split,))[split],
    ),
    "cifar10": (
        Description("cifar10", 10, _RGB, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        _prepared("cifar10"),
    ),
    "cifar100": (
        Description("cifar100", 100, _RGB, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
        _prepared("cifar100"),
    ),
    "random10": (Description("random10", 10, _RGB, *_UNIFORM), _noise(10)),
    "random100": (Description("random100", 100, _RGB, *_UNIFORM), _noise(100)),
}
_READERS = {
    name: (description, _of_two_splits(name, read))
    for name, (description, read) in _READERS.items()
}
for _name, (_description, _read) in _READERS.items():
    register(_name, resident_set(_description, _read))

register("imagenet2012", DataSet(imagenet.describe_imagenet, imagenet.imagenet_source))
register("folder", DataSet(imagenet.describe_folder, imagenet.folder_source))
for _name in text_source.NAMES:
    register(_name, DataSet(lambda data: None, text_source.source_of, task="translation"))
register("random1000", DataSet(imagenet.describe_imagenet, imagenet.noise_source))
