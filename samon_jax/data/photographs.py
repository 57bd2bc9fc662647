"""A small data set in ImageNet's own format, from photographs that our dependencies ship.

    python -m samon_jax.data.photographs DATA_DIR

Two photographs of scikit-learn and one of matplotlib, three classes of ImageNet: a palace, a daisy
(a dahlia, in truth), a military uniform. Each picture is a random part of one of them, a little
brighter or darker. It is for trying things out: the commands, files and code are those of the real
data set.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from samon_jax.data.prepare_imagenet import prepare
from samon_jax.errors import UserError

# Synset -> photograph.
CLASSES = {"n03877845": "palace", "n11939491": "daisy", "n03763968": "military uniform"}
SPLITS = {"train": 64, "val": 16}  # pictures of each class


def write_folders(directory: Path, counts: dict[str, int] | None = None, side: int = 256) -> None:
    """Writes JPEGs into folders: directory/train/n03877845/0000.JPEG.

    Args:
      directory: to write to.
      counts: split to the number of pictures of each class; `SPLITS` if None.
      side: shorter side of the pictures, in pixels; the longer one is up to 4/3 of it.
    """
    rng = np.random.default_rng(0)
    for split, count in (counts or SPLITS).items():
        for synset, photograph in zip(CLASSES, photographs(), strict=True):
            folder = directory / split / synset
            folder.mkdir(parents=True)
            for i in range(count):
                part = _part(photograph, side, rng)
                part.save(folder / f"{synset}_{split}_{i:04d}.JPEG", quality=90)


def photographs() -> list[Image.Image]:
    """The three photographs, about 600 pixels wide: china.jpg, flower.jpg, grace_hopper.jpg."""
    import matplotlib.cbook
    from sklearn.datasets import load_sample_images

    china, flower = (Image.fromarray(image) for image in load_sample_images().images)
    path: Any = matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    with Image.open(path) as image:
        portrait = image.convert("RGB")
    return [china, flower, portrait]


def _part(photograph: Image.Image, side: int, rng: np.random.Generator) -> Image.Image:
    share, ratio = rng.uniform(0.4, 0.9), rng.uniform(3 / 4, 4 / 3)
    height = round(share * min(photograph.height, photograph.width / ratio))
    width = round(height * ratio)
    left = int(rng.integers(photograph.width - width + 1))
    top = int(rng.integers(photograph.height - height + 1))
    part = photograph.crop((left, top, left + width, top + height))
    scale = side / min(width, height)
    part = part.resize((round(scale * width), round(scale * height)), Image.Resampling.BICUBIC)
    return ImageEnhance.Brightness(part).enhance(rng.uniform(0.8, 1.2))


def prepare_photographs(
    data_dir: Path, counts: dict[str, int] | None = None, side: int = 256
) -> dict[str, int]:
    """Writes the data set `imagenet2012` with these pictures into a TFDS directory.

    Args:
      data_dir: TFDS directory; must not have that data set yet.
      counts: as in `write_folders`.
      side: as in `write_folders`.

    Returns:
      Number of pictures of each split.
    """
    with tempfile.TemporaryDirectory() as directory:
        write_folders(Path(directory), counts, side)
        return prepare(Path(directory), data_dir, progress=False)


def main(argv: list[str]) -> int:
    """The command line."""
    if len(argv) != 1:
        print("usage: python -m samon_jax.data.photographs DATA_DIR", file=sys.stderr)
        return 2
    try:
        counts = prepare_photographs(Path(argv[0]))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(", ".join(f"{count} pictures for {split}" for split, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
