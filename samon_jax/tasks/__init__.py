"""Tasks by name: what a run learns.

A task is a file here that calls `register` with its name, a function that makes it from a config,
and the fields of its section, if it has one.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from samon_jax._fields import Field, number, one_of, text
from samon_jax.errors import UserError
from samon_jax.tasks.task import Aux, Task, Variables

__all__ = [
    "FIELDS",
    "TASKS",
    "Aux",
    "Entry",
    "Task",
    "Variables",
    "create",
    "files",
    "measured_split",
    "register",
    "rows",
]

DTYPES = ("float32", "bfloat16")


class Entry(NamedTuple):
    """An entry of `TASKS`.

    Attributes:
      create: `create(config) -> Task`.
      fields: of the section of the config that has the task's name; {} for none.
      files: `files(task)`, what a work directory keeps besides, by name; None for nothing.
      restore: `restore(config, directory) -> Task` from a work directory with these files.
      note: how the metrics are computed, in one line, for who quotes them; "" for nothing to say.
      rows_differ: whether batches differ in rows, all of them multiples of `batch_size` (and of
        `sam.m` on every device).
    """

    create: Callable[[Any], Task]
    fields: dict[str, Field] = {}  # noqa: RUF012
    files: Callable[[Any], dict[str, bytes]] | None = None
    restore: Callable[[Any, Path], Task] | None = None
    note: Callable[[], str] = str
    rows_differ: bool = False


TASKS: dict[str, Entry] = {}


def _known(name: str, value: Any) -> None:
    one_of(*TASKS)(name, value)


# Fields of a config that every task reads.
FIELDS: dict[str, Field] = {
    "task": Field("classification", _known, "what is learned: a name in samon_jax.tasks.TASKS"),
    "model": Field("wrn-28-10", text, "a name that samon_jax.models.create knows"),
    "dtype": Field(
        "float32",
        one_of(*DTYPES),
        "of the forward and backward pass; parameters are always float32",
    ),
    "label_smoothing": Field(
        0.1, number(0, 1, below=True), "A.1; probability mass spread evenly over all classes"
    ),
    "norm_dropout": Field(
        0.0,
        number(0, 1, below=True),
        "B.9; share of the outputs of the normalization layers that a training step sets to 0",
    ),
}


def register(name: str, entry: Entry) -> None:
    """Adds a task.

    Raises:
      UserError: there is one of that name.
    """
    if name in TASKS:
        raise UserError(f"task {name!r} exists already")
    TASKS[name] = entry


def create(config: Any, directory: Path | None = None) -> Task:
    """The task of a config.

    Args:
      config: a complete config.
      directory: work directory of the run, if it is to be read.

    Raises:
      UserError: the task does not exist, does not go with the data set, or has no such model.
    """
    _known("task", config.task)
    entry = TASKS[config.task]
    if directory is not None and entry.restore is not None:
        return entry.restore(config, directory)
    return entry.create(config)


def files(task: Task) -> dict[str, bytes]:
    """What a work directory must keep so that the task can be made again, by name."""
    make = TASKS[task.name].files if task.name in TASKS else None
    return make(task) if make is not None else {}


def rows(config: Any) -> int | None:
    """Examples of every step over all devices; None where the steps differ in them.

    Args:
      config: a complete config.
    """
    return None if TASKS[config.task].rows_differ else config.batch_size


def measured_split(task: Task) -> str:
    """The split that a run is measured on: "test" if its score is "test_accuracy"."""
    return task.score.partition("_")[0]


from samon_jax.tasks import bleu, classification, translation  # noqa: E402

register("classification", Entry(classification.create))
register(
    "translation",
    Entry(
        translation.create,
        translation.FIELDS,
        translation.files,
        translation.restore,
        bleu.signatures,
        rows_differ=True,
    ),
)
