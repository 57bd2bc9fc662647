"""What Tables 4 and 15 measure on finished runs: other test sets, and attacks on the inputs."""

import functools
from pathlib import Path

import numpy as np

from samon_jax.analysis import trained
from samon_jax.analysis.robustness import robust_accuracy
from samon_jax.data import pictures
from samon_jax.data.imagenet_records import PreparedRecords
from samon_jax.data.reader import resolve_data_dir
from samon_jax.errors import UserError
from samon_jax.paper.grid import Metric
from samon_jax.training.shifts import evaluate_shifts

ATTACKED = 5000  # pictures of the validation set, evenly spaced; the paper does not say how many
_AT_ONCE = 250


@functools.cache
def shift(name: str, title: str) -> Metric:
    """Accuracy on a set of `shifts.SETS`, in percent, among the classes of that set.

    Args:
      name: of the set.
      title: in the table.
    """
    return Metric(f"accuracy_{name}", f"{title} (%)", 0.01, functools.partial(_shift, name))


@functools.cache
def robustness(norm: str, radius: float, title: str) -> Metric:
    """Accuracy under APGD-CE and -DLR, in percent.

    Args:
      norm: "l2" or "linf".
      radius: for images in [0, 1]; of linf in 255ths.
      title: in the table.
    """
    measure = functools.partial(_robustness, norm, radius / 255 if norm == "linf" else radius)
    return Metric(f"robust_{norm}_{radius:g}", f"{title} (%)", 0.01, measure)


def _shift(name: str, directory: Path) -> float:
    return evaluate_shifts(directory, [name], "last")[name].accuracy_own


def _robustness(norm: str, radius: float, directory: Path) -> float:
    """Some pictures after the others, so that they are never all in memory."""
    run = trained.load(directory, which="last")
    data = run.config.data
    records = PreparedRecords("imagenet2012", resolve_data_dir(data.dir), "test")
    rows = np.unique(np.linspace(0, len(records) - 1, ATTACKED).astype(int))
    right = 0.0
    for start in range(0, len(rows), _AT_ONCE):
        found = records.read(rows[start : start + _AT_ONCE].tolist())
        images = np.empty((len(found), *run.images.image_shape), np.uint8)
        for image, record in zip(images, found, strict=True):
            try:
                pictures.write_centre(pictures.decode(record.data), data.eval_crop, image)
            except pictures.UnreadableError as error:
                raise UserError(f"picture {record.name!r} cannot be decoded: {error}") from None
        (result,) = robust_accuracy(
            run.apply,
            run.params,
            images / np.float32(255),
            np.array([record.label for record in found]),
            norm=norm,
            radii=radius,
            normalize=run.normalizer(),
            batch_size=50,
        )
        right += result.robust
    return right / len(rows)
