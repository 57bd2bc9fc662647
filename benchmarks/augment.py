"""What augmentation costs: images per second with and without AutoAugment, beside Pillow's.

    python -m benchmarks.augment --batch=256

prints one Markdown table. "device" is random crop, random flip and normalization on the device, in
one compiled program, with `samon_jax.data.autoaugment` in between or not. "Pillow" is AutoAugment
alone with Pillow's operations in one Python process, the usual work of a data loader.
"""

import argparse
import platform
import random
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from samon_jax.data import augment, autoaugment

_MEAN, _STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
_GREY = (128, 128, 128)


def on_device(auto_augment: bool) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The compiled augmentation of a training step."""

    @jax.jit
    def run(key: jax.Array, images: jax.Array) -> jax.Array:
        crop_key, flip_key, policy_key = jax.random.split(key, 3)
        images = augment.random_flip(flip_key, augment.random_crop(crop_key, images, 4))
        if auto_augment:
            images = autoaugment.auto_augment(policy_key, images)
        return augment.normalize(images, _MEAN, _STD)

    return run


def in_pillow(image: Image.Image) -> Image.Image:
    """AutoAugment as data loaders do it."""
    for name, probability, level in random.choice(autoaugment.POLICY):
        if random.random() >= probability:
            continue
        m = autoaugment.MAGNITUDES[name][level]
        if name in autoaugment.SIGNED:
            m *= random.choice((-1, 1))
        size, affine = image.size, Image.Transform.AFFINE
        match name:
            case "ShearX":
                image = image.transform(size, affine, (1, m, 0, 0, 1, 0), fillcolor=_GREY)
            case "ShearY":
                image = image.transform(size, affine, (1, 0, 0, m, 1, 0), fillcolor=_GREY)
            case "TranslateX":
                image = image.transform(size, affine, (1, 0, m * size[0], 0, 1, 0), fillcolor=_GREY)
            case "TranslateY":
                image = image.transform(size, affine, (1, 0, 0, 0, 1, m * size[1]), fillcolor=_GREY)
            case "Rotate":
                image = image.rotate(m, fillcolor=_GREY)
            case "Posterize":
                image = ImageOps.posterize(image, int(m))
            case "Solarize":
                image = ImageOps.solarize(image, m)  # type: ignore[arg-type]
            case "AutoContrast" | "Equalize" | "Invert":
                image = getattr(ImageOps, name.lower())(image)
            case _:
                image = getattr(ImageEnhance, name)(image).enhance(1 + m)
    return image


def seconds_per_call(run: Callable[[], object], rounds: int) -> float:
    """Median over rounds, after one call that compiles."""
    run()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def main() -> None:
    """Parses the arguments, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batch", type=int, default=256, help="images per call")
    parser.add_argument("--rounds", type=int, default=30, help="timed calls of each row")
    args = parser.parse_args()

    # Smooth images, so that the operations have levels to work on.
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (args.batch, 8, 8, 3)).astype(np.float32)
    smooth = jax.image.resize(jnp.asarray(coarse), (args.batch, 32, 32, 3), "linear")
    images = smooth.astype(jnp.uint8)
    key = jax.random.key(0)
    random.seed(0)
    pillow = [Image.fromarray(image) for image in np.asarray(images)]
    rows: list[tuple[str, Callable[[], object]]] = [
        ("device, basic", lambda: on_basic(key, images).block_until_ready()),
        ("device, with AutoAugment", lambda: on_strong(key, images).block_until_ready()),
        ("Pillow, AutoAugment alone", lambda: [in_pillow(image) for image in pillow]),
    ]
    on_basic, on_strong = on_device(False), on_device(True)
    print(
        f"batch {args.batch}, {jax.devices()[0].device_kind}, jax {jax.__version__}, "
        f"Python {platform.python_version()}\n\n| | µs / image | images / s |\n|---|---|---|"
    )
    for name, run in rows:
        seconds = seconds_per_call(run, args.rounds) / args.batch
        print(f"| {name} | {1e6 * seconds:.1f} | {1 / seconds:,.0f} |")


if __name__ == "__main__":
    main()
