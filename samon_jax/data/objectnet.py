"""ObjectNet (Barbu et al. 2019), from its folder: pictures of 313 objects, 113 of them ImageNet's.

The folder holds `images`, with one sub-folder an object, and `mappings`, with four files that say
which classes of ImageNet an object may be called. Every picture has a red border of a pixel; two
are cut off, as the authors' loader does.
"""

import json
from pathlib import Path
from typing import Any

from samon_jax.data.folder import FolderRecords, class_names
from samon_jax.data.imagenet_records import NUM_CLASSES
from samon_jax.errors import UserError

BORDER = 2  # pixels
_FOLDERS, _OBJECTS, _IDS, _NAMES = (
    "folder_to_objectnet_label.json",
    "objectnet_to_imagenet_1k.json",
    "pytorch_to_imagenet_2012_id.json",
    "imagenet_to_label_2012_v2",
)


def find(data_dir: Path) -> Path:
    """The folder of ObjectNet in or at a directory.

    Raises:
      UserError: there is none.
    """
    for folder in (data_dir / "objectnet-1.0", data_dir / "objectnet", data_dir):
        if (folder / "images").is_dir() and (folder / "mappings").is_dir():
            return folder
    raise UserError(
        f"ObjectNet is not in {data_dir}: it must hold a folder objectnet-1.0 with images and "
        "mappings"
    )


def accepted_classes(mappings: Path) -> dict[str, tuple[int, ...]]:
    """Classes of ImageNet that each folder of pictures may be called.

    Args:
      mappings: the folder of that name.

    Returns:
      Name of a folder to labels of ImageNet, in the order of folders; 113 in the published files.

    Raises:
      UserError: a file is missing or does not fit the others.
    """
    folders: dict[str, str] = _json(mappings / _FOLDERS)
    objects: dict[str, str] = _json(mappings / _OBJECTS)
    ids: dict[str, int] = _json(mappings / _IDS)  # label to line of the file of names
    try:
        lines = (mappings / _NAMES).read_text().splitlines()
        label_of_line = {int(line): int(label) for label, line in ids.items()}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{mappings / _NAMES} or {_IDS} cannot be used: {error}") from error
    labels = {name.strip(): label_of_line[i] for i, name in enumerate(lines) if i in label_of_line}
    for file, content in ((_FOLDERS, folders), (_OBJECTS, objects)):
        if not all(isinstance(value, str) for value in content.values()):
            raise UserError(f"{mappings / file} cannot be used: it holds something else than names")
    if not all(0 <= label < NUM_CLASSES for label in labels.values()):
        raise UserError(f"{mappings / _IDS} cannot be used: labels must be 0 to {NUM_CLASSES - 1}")
    folder_of = {name: folder for folder, name in folders.items()}
    found: dict[str, tuple[int, ...]] = {}
    for name, classes in objects.items():
        if name not in folder_of:
            raise UserError(f"{mappings / _OBJECTS}: {name!r} is not in {_FOLDERS}")
        for each in classes.split("; "):
            if each not in labels:
                raise UserError(f"{mappings / _OBJECTS}: {each!r} of {name!r} is not in {_NAMES}")
        found[folder_of[name]] = tuple(sorted({labels[each] for each in classes.split("; ")}))
    return dict(sorted(found.items()))


class ObjectNetRecords(FolderRecords):
    """Pictures of the objects that ImageNet has; their labels count the folders in order.

    Args:
      folder: of ObjectNet.

    Attributes:
      accepted: of each label, the classes of ImageNet that are right.

    Raises:
      UserError: mappings and folders do not fit.
    """

    def __init__(self, folder: Path) -> None:
        classes = accepted_classes(folder / "mappings")
        there = set(class_names(folder / "images"))
        if missing := sorted(set(classes) - there):
            raise UserError(f"{folder / 'images'} lacks the folder {missing[0]!r} of the mappings")
        self.accepted = tuple(classes.values())
        super().__init__(folder / "images", tuple(classes), others=True)


def _json(path: Path) -> Any:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} does not fit: it must hold an object of JSON")
    return content
