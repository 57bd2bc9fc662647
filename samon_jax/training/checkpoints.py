"""Checkpoints: the newest few and the best, each with a checksum, written in the background."""

import contextlib
import json
import os
import shutil
import textwrap
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from orbax.checkpoint import checkpoint_managers as policies

from samon_jax.errors import UserError
from samon_jax.training.workdir import writing

PyTree = Any

DIRECTORY = "checkpoints"
UNREADABLE = "unreadable_checkpoints"
METRIC = "test_accuracy"


def checksum(tree: PyTree) -> int:
    """CRC-32 over paths, shapes, dtypes and bytes of all leaves.

    Args:
      tree: pytree of arrays.

    Returns:
      An integer in [0, 2**32).
    """
    crc = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        crc = zlib.crc32(f"{jax.tree_util.keystr(path)}{array.shape}{array.dtype}".encode(), crc)
        crc = zlib.crc32(array.tobytes(), crc)
    return crc


class UnreadableError(UserError):
    """There are checkpoints, but none that was asked for can be read."""


class Checkpoints:
    """Saves the state of a run in the background and keeps the newest few and the best.

    A checkpoint becomes visible by a rename when it is complete, so a crash leaves the ones before.

    Args:
      workdir: of the run; checkpoints lie in its folder `checkpoints`, one folder per step.
      keep: how many of the newest to keep; the one with the best test accuracy is kept besides.

    Example:
      >>> checkpoints = Checkpoints(workdir, keep=2)
      >>> checkpoints.save(step, state, test_accuracy=0.98)
      >>> checkpoints.close()
    """

    def __init__(self, workdir: Path, keep: int) -> None:
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics[METRIC],
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        self._directory = workdir / DIRECTORY
        with self._writing():
            self._manager = ocp.CheckpointManager(self._directory.absolute(), options=options)

    def save(self, step: int, state: PyTree, test_accuracy: float | None = None) -> None:
        """Copies the state to the host and writes it in the background.

        Args:
          step: steps done; a step that is saved already is left alone.
          state: pytree of arrays.
          test_accuracy: in [0, 1]; None in the middle of an epoch.

        Raises:
          UserError: this checkpoint or the one before cannot be written, as on a full disk.
        """
        if step in self._manager.all_steps():
            return
        state = jax.tree.map(np.asarray, jax.device_get(state))
        with self._writing():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    checksum=ocp.args.JsonSave({"crc32": checksum(state), METRIC: test_accuracy}),
                ),
                metrics=None if test_accuracy is None else {METRIC: test_accuracy},
            )

    def newest_step(self) -> int | None:
        """Step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def wait(self) -> None:
        """Waits until everything is on disk; UserError if something cannot be written."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until everything is on disk, and ends the background threads."""
        try:
            self.wait()
        finally:
            with self._writing():
                self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns whatever Orbax raises when it cannot write into one line."""
        try:
            yield
        except Exception as error:  # OSError, or TensorStore's ValueError
            # TensorStore says at the very end what the operating system said.
            cause = error.strerror if isinstance(error, OSError) else str(error).rsplit(": ", 1)[-1]
            reason = textwrap.shorten(cause or type(error).__name__, 200)
            raise UserError(f"{self._directory} cannot be written: {reason}") from None


def restore(
    workdir: Path, template: PyTree, *, which: str = "newest", say: Callable[[str], None] = print
) -> tuple[PyTree, int] | None:
    """Reads the newest or the best checkpoint; an unreadable one is passed over, and said so.

    Args:
      workdir: of the run.
      template: pytree of the saved structure with shapes and dtypes.
      which: "newest", or "best" by test accuracy.
      say: receives one line for every checkpoint passed over.

    Returns:
      The state as NumPy arrays and its step, or None if there is no checkpoint.

    Raises:
      UnreadableError: there are checkpoints, but none can be read; or "best", and none was
        evaluated.
    """
    steps = saved_steps(workdir)
    if not steps:
        return None
    order = sorted(steps, reverse=True)
    if which == "best":
        accuracies = {step: _test_accuracy(workdir, step) for step in order}
        order = [step for step in order if accuracies[step] is not None]
        order.sort(key=lambda step: (accuracies[step], step), reverse=True)
    failures: list[tuple[int, str]] = []
    for step in order:
        try:
            state = _read(workdir, step, template)
        except Exception as error:  # whatever a damaged file makes of Orbax's readers
            reason = str(error) if isinstance(error, _DamagedError) else type(error).__name__
            failures.append((step, reason))
            continue
        for bad, reason in failures:
            say(
                f"checkpoint of step {bad} in {workdir / DIRECTORY} is unreadable ({reason}); "
                f"using the one of step {step}"
            )
        return state, step
    tried = ", ".join(f"step {step}: {reason}" for step, reason in failures) or "none was evaluated"
    raise UnreadableError(f"no {which} checkpoint in {workdir / DIRECTORY} is readable ({tried})")


def set_aside_after(workdir: Path, step: int, say: Callable[[str], None] = print) -> None:
    """Moves checkpoints newer than `step`, which proved unreadable, out of the way.

    Args:
      workdir: of the run.
      step: of the newest readable checkpoint, or -1; the run will write the later ones anew.
      say: receives one line for every checkpoint moved.
    """
    for bad in saved_steps(workdir):
        if bad > step:
            target = workdir / UNREADABLE / str(bad)
            number = 1
            while target.exists():
                target = target.with_name(f"{bad}-{number}")
                number += 1
            with writing(target):
                target.parent.mkdir(exist_ok=True)
                shutil.move(workdir / DIRECTORY / str(bad), target)
            say(f"moved the unreadable checkpoint of step {bad} to {target}")


def saved_steps(workdir: Path) -> list[int]:
    """Steps of the complete checkpoints, readable or not, in increasing order."""
    directory = workdir / DIRECTORY
    if not directory.is_dir():
        return []
    return sorted(int(name) for name in os.listdir(directory) if name.isdigit())


class _DamagedError(Exception):
    """A checkpoint that can be parsed but is not what was saved."""


def _read(workdir: Path, step: int, template: PyTree) -> PyTree:
    directory = (workdir / DIRECTORY / str(step)).absolute()
    expected = json.loads(_json_item(directory).read_text())["crc32"]
    _read_every_value(directory / "state")
    abstract = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), template)
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        state = checkpointer.restore(directory / "state", args=ocp.args.StandardRestore(abstract))
    if checksum(state) != expected:
        raise _DamagedError("checksum differs")
    return state


def _read_every_value(directory: Path) -> None:
    """Raises an error if a file is missing or damaged.

    Orbax would raise one too, but it closes its event loop while other reads go on, and each of
    these prints a traceback. Reading one value after the other keeps a bad checkpoint to one line.
    """
    store = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{directory}/"}).result()
    keys = store.list().result()
    if not keys:
        raise _DamagedError("no values")
    for key in keys:
        store.read(key).result()


def _test_accuracy(workdir: Path, step: int) -> float | None:
    try:
        return json.loads(_json_item(workdir / DIRECTORY / str(step)).read_text())[METRIC]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _json_item(directory: Path) -> Path:
    return directory / "checksum" / "metadata"
