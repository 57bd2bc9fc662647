"""Data sets in memory, by name. Reading them needs TFDS, but never TensorFlow."""

from samon_jax.data.dataset import Dataset, Split
from samon_jax.data.noise import make_noise
from samon_jax.data.reader import read_digits, read_prepared, resolve_data_dir
from samon_jax.errors import UserError

__all__ = ["Dataset", "Split", "load", "names"]

# name -> number of classes, mean and standard deviation of the channels. The statistics are over
# the training pixels, scaled to [0, 1]; a test recomputes them.
_DATASETS: dict[str, tuple[int, tuple[float, ...], tuple[float, ...]]] = {
    "digits": (10, (0.3059,), (0.3764,)),
    "cifar10": (10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": (100, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    # 0..255 uniformly: mean 1/2, variance (256² - 1) / 12 / 255².
    "random10": (10, (0.5,) * 3, (0.2898,) * 3),
    "random100": (100, (0.5,) * 3, (0.2898,) * 3),
}


def names() -> tuple[str, ...]:
    """The data sets that `load` knows."""
    return tuple(_DATASETS)


def load(name: str, data_dir: str | None = None) -> Dataset:
    """Loads a data set into memory.

    Decoded CIFAR images are cached in `SAMON_CACHE_DIR`, else `$XDG_CACHE_HOME/samon_jax`, else
    `~/.cache/samon_jax`.

    Args:
      name: "cifar10" or "cifar100", which must have been prepared by TFDS, "digits"
        (scikit-learn's 8x8 digits), which is written to `data_dir` when it is first used, or
        "random10" or "random100" (noise, for trying things out), which need no files.
      data_dir: TFDS directory; by default `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.

    Returns:
      A `Dataset`; the same arrays, in the same order, at every call.

    Raises:
      UserError: the name is unknown, or the data set is not on disk; the message then holds
        the commands that prepare it.

    Example:
      >>> dataset = load("digits")
      >>> dataset.train.images.shape, dataset.test.images.shape
      ((1437, 8, 8, 1), (360, 8, 8, 1))
    """
    if name not in _DATASETS:
        raise UserError(f"data set {name!r} does not exist; choose one of {', '.join(names())}")
    num_classes, mean, std = _DATASETS[name]
    if name.startswith("random"):
        splits = make_noise(num_classes)
    elif name == "digits":
        splits = read_digits(resolve_data_dir(data_dir))
    else:
        splits = read_prepared(name, resolve_data_dir(data_dir))
    return Dataset(
        name=name,
        train=splits["train"],
        test=splits["test"],
        num_classes=num_classes,
        mean=mean,
        std=std,
    )
