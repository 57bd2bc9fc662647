"""The streamed data sets: ImageNet, the sets that share its labels, and one's own pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from samon_jax._fields import Field, integer, number, one_of
from samon_jax.data.dataset import Description
from samon_jax.data.folder import FolderRecords, class_names, split_directory
from samon_jax.data.imagenet_records import MEAN, NUM_CLASSES, STD, PreparedRecords
from samon_jax.data.noise import NOISE, NoiseRecords
from samon_jax.data.reader import resolve_data_dir
from samon_jax.data.source import Share
from samon_jax.data.streamed import Records, StreamedSource
from samon_jax.errors import UserError

# What these data sets add to section `data` of a config; no other reads them.
FIELDS: dict[str, Field] = {
    "image_size": Field(224, integer(1), "Table 8; side of streamed pictures, in pixels"),
    "eval_crop": Field(
        0.875,
        number(0, 1, above=True),
        "streamed: side of the central square that is evaluated, relative to the shorter side",
    ),
    "statistics": Field(
        "imagenet",
        one_of("imagenet", "half"),
        "streamed: what normalizes: mean and deviation of ImageNet's pixels, or 1/2 and 1/2 (ViT)",
    ),
    "threads": Field(0, integer(0), "streamed: that decode; 0 = one for each core"),
}


def describe_imagenet(data: Any) -> Description:
    """Of any set with ImageNet's labels."""
    return _description(data, NUM_CLASSES)


def describe_folder(data: Any) -> Description:
    """Of a folder, whose training split says what classes there are."""
    return _description(data, len(_folder_classes(data)))


def imagenet_source(config: Any, devices: int, share: Share) -> StreamedSource:
    """Of `imagenet2012` as TFDS has it."""
    directory = resolve_data_dir(config.data.dir)
    return make_source(
        config, lambda split: PreparedRecords("imagenet2012", directory, split), devices, share
    )


def folder_source(config: Any, devices: int, share: Share) -> StreamedSource:
    """Of a folder with the splits train and val, each with one sub-folder a class."""
    classes, directory = _folder_classes(config.data), Path(config.data.dir).expanduser()

    def open_split(split: str) -> Records:
        return FolderRecords(split_directory(directory, split), classes)

    return make_source(config, open_split, devices, share)


def noise_source(config: Any, devices: int, share: Share) -> StreamedSource:
    """Of noise with ImageNet's labels, for trying things out: JPEGs of 32x32 pixels."""
    return make_source(
        config, lambda split: NoiseRecords(NOISE[split], NUM_CLASSES), devices, share
    )


def make_source(
    config: Any, open_split: Callable[[str], Records], devices: int, share: Share, border: int = 0
) -> StreamedSource:
    """A streamed source with the settings of a config.

    Args:
      config: a complete config.
      open_split: name of a split to its records.
      devices: that share a batch, on all processes.
      share: of each batch that this process feeds.
      border: see `StreamedSource`.

    Raises:
      UserError: a field of section `data` is not for streamed data sets.
    """
    data = config.data
    for field in ("part", "held_back"):
        if data.get(field, 0):
            raise UserError(
                f"data.{field}={data[field]} is not allowed with data.name={data.name!r}, whose "
                "labels are read together with its pictures; it must be 0"
            )
    return StreamedSource(
        open_split,
        size=data.image_size,
        crop=data.eval_crop,
        batch_size=config.batch_size,
        eval_batch_size=config.eval_batch_size,
        threads=data.threads,
        devices=devices,
        share=share,
        limits={"train": data.train_examples, "test": data.test_examples},
        border=border,
    )


def _description(data: Any, classes: int) -> Description:
    mean, std = (MEAN, STD) if data.statistics == "imagenet" else ((0.5,) * 3, (0.5,) * 3)
    return Description(data.name, classes, (data.image_size, data.image_size, 3), mean, std)


def _folder_classes(data: Any) -> tuple[str, ...]:
    if not data.dir:
        raise UserError(
            "data.dir is missing; with data.name='folder' it names the folder that holds train and "
            "val, each with one sub-folder a class"
        )
    return class_names(split_directory(Path(data.dir).expanduser(), "train"))
