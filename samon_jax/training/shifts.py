"""Accuracy of a checkpoint on other pictures of ImageNet's classes: the rows of Table 4."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from samon_jax.data import imagenet, objectnet
from samon_jax.data.imagenet_records import NUM_CLASSES, PreparedRecords
from samon_jax.data.reader import resolve_data_dir
from samon_jax.data.source import Examples
from samon_jax.data.streamed import Records
from samon_jax.errors import UserError
from samon_jax.tasks.classification import Classification
from samon_jax.training import devices as devices_room
from samon_jax.training.devices import Devices
from samon_jax.training.reading import Trained, read
from samon_jax.workdir import files
from samon_jax.workdir.progress import say

FILE = "shifts.json"  # in the work directory

# Name -> data set of TFDS, or "" for ObjectNet's folder.
SETS = {
    "imagenet2012": "imagenet2012",
    "imagenet_v2": "imagenet_v2/matched-frequency",
    "imagenet_v2/matched-frequency": "imagenet_v2/matched-frequency",
    "imagenet_v2/threshold-0.7": "imagenet_v2/threshold-0.7",
    "imagenet_v2/topimages": "imagenet_v2/topimages",
    "imagenet_r": "imagenet_r",
    "imagenet_a": "imagenet_a",
    "imagenet_sketch": "imagenet_sketch",
    "objectnet": "",
}


class Shift(NamedTuple):
    """Result on a set of pictures.

    Attributes:
      accuracy: share of pictures whose largest logit, of all 1,000, is of a right class.
      accuracy_own: the same with the logits of the classes in the set alone.
      classes: how many classes of ImageNet those are: 200 of ImageNet-R and -A; what ObjectNet's
        113 objects may be called are more.
      examples: number of pictures.
    """

    accuracy: float
    accuracy_own: float
    classes: int
    examples: int


def evaluate_shifts(
    directory: Path, names: Sequence[str], which: str, overrides: Mapping[str, Any] | None = None
) -> dict[str, Shift]:
    """Evaluates a run on sets of pictures, prints the results and writes them to shifts.json.

    Args:
      directory: work directory of the run, whose data have ImageNet's classes.
      names: keys of `SETS`.
      which: checkpoint, as for `reading.read`.
      overrides: values of fields among `config.EVAL_FIELDS`; `data.dir` is the TFDS directory of
        the sets, in which ObjectNet is a folder.

    Returns:
      The result on each set.

    Raises:
      UserError: a set is unknown or not on disk, or the run has other classes.
    """
    for name in names:
        if name not in SETS:
            raise UserError(f"--data={name} is not allowed; choose among {', '.join(SETS)}")
    trained = read(directory, which, overrides)
    devices = devices_room.take(0)
    found: dict[str, Shift] = {}
    for name in names:
        found[name] = shift = evaluate_shift(trained, name, devices)
        say(
            f"step {trained.step}: {name}, {shift.examples} pictures: accuracy "
            f"{100 * shift.accuracy:.2f} % among 1000 classes, {100 * shift.accuracy_own:.2f} % "
            f"among its {shift.classes}"
        )
    saved = files.read_json(directory / FILE)
    saved = saved if isinstance(saved, dict) else {}
    results = {name: shift._asdict() | {"step": trained.step} for name, shift in found.items()}
    files.write_json(directory / FILE, saved | results)
    return found


def evaluate_shift(trained: Trained, name: str, devices: Devices) -> Shift:
    """The result of a run on one set.

    Args:
      trained: from `reading.read`.
      name: key of `SETS`.
      devices: that share the work.

    Raises:
      UserError: the set is not on disk, or the run has other classes.
    """
    config, task = trained.config, trained.task
    if not isinstance(task, Classification) or task.images.num_classes != NUM_CLASSES:
        raise UserError(
            f"--data={name} is not allowed: the run of data.name={config.data.name!r} does not "
            f"have the {NUM_CLASSES} classes of ImageNet"
        )
    directory = resolve_data_dir(config.data.dir)
    records: Records
    if SETS[name]:
        records, border = PreparedRecords(SETS[name], directory, "test"), 0
        accepted: Sequence[Sequence[int]] = [(label,) for label in range(NUM_CLASSES)]
    else:
        records, border = objectnet.ObjectNetRecords(objectnet.find(directory)), objectnet.BORDER
        accepted = records.accepted
    with config.unlocked():
        config.data.train_examples = config.data.test_examples = 0
    source = imagenet.make_source(
        config, lambda split: records, devices.count, devices.share, border
    )
    return score(*_logits(trained, source.evaluation(), devices), accepted)


def score(logits: np.ndarray, labels: np.ndarray, accepted: Sequence[Sequence[int]]) -> Shift:
    """Accuracy among all classes and among those of the set.

    Args:
      logits: float [n, classes].
      labels: int [n].
      accepted: of each label, the classes that are right.

    Example:
      >>> score(np.array([[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]]), np.array([1, 0]), [(0,), (1,)])
      Shift(accuracy=0.5, accuracy_own=1.0, classes=2, examples=2)
    """
    right = np.zeros((len(accepted), logits.shape[1]), bool)
    for label, classes in enumerate(accepted):
        right[label, list(classes)] = True
    own = right[np.unique(labels)].any(axis=0)
    among_own = np.where(own, logits, -np.inf)
    accuracies = (right[labels, x.argmax(axis=1)].mean() for x in (logits, among_own))
    accuracy, accuracy_own = (float(x) for x in accuracies)
    return Shift(accuracy, accuracy_own, int(own.sum()), len(labels))


def _logits(
    trained: Trained, examples: Examples, devices: Devices
) -> tuple[np.ndarray, np.ndarray]:
    """Logits float32 [n, classes] and labels [n] of a split; at most 200 MB for 50,000 pictures."""
    assert isinstance(trained.task, Classification)
    program = _program(trained.task, examples.fetch, devices)
    variables = devices.replicate(jax.tree.map(jnp.asarray, trained.variables))
    logits, labels = [], []
    for raw in examples.batches:
        valid = raw["valid"]
        logits.append(devices.to_host(program(variables, devices.shard(raw)))[valid])
        labels.append(raw["labels"][valid])
    return np.concatenate(logits), np.concatenate(labels)


@functools.lru_cache(maxsize=4)
def _program(task: Classification, fetch: Any, devices: Devices) -> Any:
    def step(variables: Any, raw: Any) -> jax.Array:
        batch = task.prepare(None, fetch((), raw), train=False)
        logits: Any = task.model.apply(variables, batch.images, train=False)
        return jax.lax.all_gather(logits, devices.axis_name, tiled=True)

    return devices.compile(step)
