"""Reads a run from its work directory: builds the model and reads, and trains nothing."""

import functools
import os
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from samon_jax import data, tasks
from samon_jax.errors import UserError
from samon_jax.tasks.task import Task, Variables
from samon_jax.tasks.translation import Translation
from samon_jax.training import devices as devices_room
from samon_jax.training.config import check_fields, check_identity, default_config, identity
from samon_jax.training.devices import Devices
from samon_jax.workdir import checkpoints, files
from samon_jax.workdir.progress import say


class Trained(NamedTuple):
    """A run as its checkpoint has it.

    Attributes:
      config: of the run, as it was trained.
      task: with the model.
      variables: parameters and model state, NumPy arrays.
      step: of the checkpoint.
    """

    config: ConfigDict
    task: Task
    variables: Variables
    step: int


def load_config(directory: Path) -> ConfigDict:
    """The config a run was started with; fields that it did not know have their defaults.

    Raises:
      UserError: there is none, or it is not one of this program's.
    """
    saved = files.read_config(directory)
    if saved is None:
        raise UserError(f"workdir={str(directory)!r} holds no run: {files.CONFIG} is missing")
    config = default_config()
    try:
        with config.unlocked():
            config.compare.methods.update(saved.get("compare", {}).get("methods", {}))
        config.update(saved)
        check_fields(config)
    except (TypeError, ValueError, AttributeError, KeyError, OverflowError) as error:
        reason = textwrap.shorten(str(error), 200)  # ml_collections shows all fields there are
        raise UserError(
            f"{directory / files.CONFIG} is not a config of samon_jax: {reason}"
        ) from None
    return config


def read(
    directory: Path,
    which: str = "newest",
    overrides: Mapping[str, Any] | None = None,
    tell: Callable[[str], None] = say,
) -> Trained:
    """The model of a run, finished or not.

    Args:
      directory: its work directory.
      which: "newest", "best" or "last" checkpoint; the last is that of a finished run's last step
        and no other.
      overrides: values of fields of its config, among `config.EVAL_FIELDS`.
      tell: receives a line for every checkpoint that cannot be read.

    Raises:
      UserError: there is no run, or no checkpoint that can be read or fits the model, or it was
        written by a run with another config; or a value is not allowed.
    """
    config = load_config(directory)
    trained_with = identity(config)
    if config.data.dir and not Path(config.data.dir).is_dir() and "TFDS_DATA_DIR" in os.environ:
        config.data.dir = ""  # the run comes from another machine
    if overrides:
        config.update_from_flattened_dict(overrides)
        check_fields(config)
    task = tasks.create(config, directory)
    newest_or_best = "newest" if which == "last" else which
    found = checkpoints.restore(directory, which=newest_or_best, say=tell)
    if found is None:
        raise UserError(f"workdir={str(directory)!r} holds no checkpoint yet")
    check_identity(found.identity, trained_with, directory / checkpoints.DIRECTORY)
    if which == "last" and found.step != (files.read_summary(directory) or {}).get("steps"):
        raise UserError(
            f"workdir={str(directory)!r}: the checkpoint of the last step is not there or cannot "
            f"be read; there is one of step {found.step}"
        )
    shapes = dict(jax.eval_shape(task.init, jax.random.key(0)))
    template = {"params": shapes.pop("params"), "model_state": shapes}
    saved = checkpoints.fit(found, template, directory)
    return Trained(config, task, {"params": saved["params"], **saved["model_state"]}, found.step)


def evaluate_checkpoint(
    directory: Path, which: str, overrides: Mapping[str, Any] | None = None, split: str = "test"
) -> dict[str, float]:
    """Evaluates a finished or interrupted run from its work directory, and prints the result.

    Args:
      directory: work directory of the run; its config is read from there.
      which: checkpoint, as for `read`.
      overrides: values of fields among `config.EVAL_FIELDS`. If the run's `data.dir` is gone and
        none is given here, TFDS_DATA_DIR counts.
      split: of its data set.

    Returns:
      The task's metrics.

    Raises:
      UserError: there is no run, or no checkpoint that can be read.
    """
    trained = read(directory, which, overrides)
    metrics = evaluate(trained, devices_room.take(0), split)
    own = {name.removeprefix(f"{split}_"): value for name, value in metrics.items()}
    loss = f"{split} loss {own['loss']:.4f}"
    say(f"step {trained.step}: {split} {trained.task.show(own)}, {loss}")
    if note := tasks.TASKS[trained.config.task].note():
        say(note)
    return metrics


def translate(
    directory: Path,
    lines: Sequence[str],
    which: str = "newest",
    overrides: Mapping[str, Any] | None = None,
) -> list[str]:
    """Translates lines with the model of a run.

    Args:
      directory: work directory of the run.
      lines: sentences in the language that it translates from; blank ones stay blank.
      which: "newest" or "best" checkpoint.
      overrides: values of fields among `config.TRANSLATE_FIELDS`.

    Returns:
      As many lines.

    Raises:
      UserError: there is no run, or one of another task.
    """
    to_stderr = functools.partial(print, file=sys.stderr)  # what is translated goes to stdout
    trained = read(directory, which, overrides, to_stderr)
    if not isinstance(trained.task, Translation):
        raise UserError(
            f"workdir={str(directory)!r} holds a run of task={trained.config.task!r}, which does "
            "not translate"
        )
    devices = devices_room.take(1)
    variables = devices.replicate(jax.tree.map(jnp.asarray, trained.variables))
    return trained.task.translate(variables, lines, devices)


def read_lines(file: str | None) -> list[str]:
    """The lines of a file, or of standard input.

    Raises:
      UserError: the file cannot be read, or is no UTF-8.
    """
    name = file or "standard input"
    try:
        content = sys.stdin.buffer.read() if file is None else Path(file).expanduser().read_bytes()
        lines = content.decode("utf-8").removesuffix("\n").split("\n")
    except OSError as error:
        raise UserError(f"--input={file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{name} is not UTF-8: line {line} holds an invalid byte") from None
    return [line.removesuffix("\r") for line in lines] if content else []


def evaluate(trained: Trained, devices: Devices, split: str = "test") -> dict[str, float]:
    """The task's metrics of a run on a split of its data set.

    Args:
      trained: from `read`.
      devices: that share the work.
      split: of the data set of its config.
    """
    source = data.make_source(trained.config, devices=devices.count, share=devices.share)
    examples = source.evaluation(split)
    examples = examples._replace(resident=devices.replicate(examples.resident))
    variables = devices.replicate(jax.tree.map(jnp.asarray, trained.variables))
    return trained.task.evaluate(variables, examples, devices, f"{split}_")
