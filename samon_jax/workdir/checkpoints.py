"""Checkpoints: the newest few and the best, each with a checksum, written in the background."""

import contextlib
import os
import re
import shutil
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from orbax.checkpoint import checkpoint_managers as policies

from samon_jax._fields import Field, integer
from samon_jax.errors import UserError
from samon_jax.workdir import seal
from samon_jax.workdir.files import writing

PyTree = Any

DIRECTORY = "checkpoints"
UNREADABLE = "unreadable_checkpoints"

# How TensorStore's ValueErrors say that the system refused to write.
_REFUSED = "OS error|No space left|Error writing|Permission denied|"
_REFUSED += "UNAVAILABLE|FAILED_PRECONDITION|INTERNAL"

# Section `checkpoint` of a config.
FIELDS: dict[str, Field] = {
    "every_epochs": Field(1, integer(1), "epochs between two checkpoints"),
    "keep": Field(2, integer(1), "newest checkpoints; the best one is kept besides"),
}


class UnreadableError(UserError):
    """There are checkpoints, but none that was asked for can be read."""


class Found(NamedTuple):
    """A checkpoint that was read whole.

    Attributes:
      step: steps done.
      leaves: NumPy arrays by name, as `leaves_by_name` of the saved state gives them.
      identity: of the run that wrote it.
      score: its value of the task's score; None in the middle of an epoch.
    """

    step: int
    leaves: dict[str, np.ndarray]
    identity: dict[str, Any]
    score: float | None


def leaves_by_name(tree: PyTree) -> dict[str, Any]:
    """The leaves of a pytree by their path.

    Example:
      >>> leaves_by_name({"params": {"scale": 1.0, "bias": 0.0}})
      {'params/bias': 0.0, 'params/scale': 1.0}
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


class Checkpoints:
    """Saves the state of a run in the background and keeps the newest few and the best.

    A checkpoint becomes visible by a rename when it is complete, so a crash leaves the ones before.

    Args:
      workdir: of the run; checkpoints lie in its folder `checkpoints`, one folder per step.
      keep: how many of the newest to keep; the one with the best score is kept besides.
      identity: of the run, see `training.config.identity`.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     checkpoints = Checkpoints(Path(folder), keep=2)
      ...     checkpoints.save(7, {"scale": np.ones(2)}, score=0.98)
      ...     checkpoints.close()
      ...     restore(Path(folder)).leaves
      {'scale': array([1., 1.])}
    """

    def __init__(self, workdir: Path, keep: int, identity: Mapping[str, Any] | None = None) -> None:
        best = policies.BestN(
            get_metric_fn=lambda m: m["score"], n=1, keep_checkpoints_without_metrics=False
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
            multiprocessing_options=_alone(),
            create=False,
        )
        self._directory = workdir / DIRECTORY
        self._identity = dict(identity or {})
        with self._writing():
            self._directory.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self._directory.absolute(), options=options)

    def save(self, step: int, state: PyTree, score: float | None = None) -> None:
        """Copies the state to the host and writes it in the background.

        Args:
          step: steps done; a step that is saved already is left alone.
          state: pytree of arrays.
          score: of the task, larger being better; None in the middle of an epoch.

        Raises:
          UserError: a number is infinite or NaN; or this checkpoint, or the one before, cannot be
            written, as on a full disk.
        """
        if step in self._manager.all_steps():
            return
        leaves = {n: np.asarray(x) for n, x in leaves_by_name(jax.device_get(state)).items()}
        _check_finite(leaves, step)
        beside = seal.write(leaves, score, self._identity)
        with self._writing():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(leaves), checksum=ocp.args.JsonSave(beside)
                ),
                metrics=None if score is None else {"score": score},
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
        """Turns what Orbax raises when it cannot write into one line; other errors pass."""
        try:
            yield
        except (OSError, ValueError) as error:
            if isinstance(error, OSError):
                reason = error.strerror or type(error).__name__
            elif re.search(_REFUSED, str(error)):
                reason = str(error).rsplit(": ", 1)[-1]  # what the system said
            else:
                raise
            reason = textwrap.shorten(reason, 200)
            raise UserError(f"{self._directory} cannot be written: {reason}") from None


def _check_finite(leaves: Mapping[str, np.ndarray], step: int) -> None:
    for name, x in leaves.items():
        if np.issubdtype(x.dtype, np.floating) and not np.isfinite(x).all():
            advice = "a smaller optimizer.lr or sam.rho may help"
            raise UserError(f"{name} is not finite after step {step}, and was not saved; {advice}")


def restore(
    workdir: Path, *, which: str = "newest", say: Callable[[str], None] = print
) -> Found | None:
    """Reads the newest or the best checkpoint; an unreadable one is passed over, and said so.

    Args:
      workdir: of the run.
      which: "newest", or "best" by the task's score.
      say: receives one line for every checkpoint passed over.

    Returns:
      What was found, or None if there is no checkpoint.

    Raises:
      UnreadableError: there are checkpoints, but none can be read; or "best", and none was
        evaluated.
      UserError: the checkpoint was written by a version with another format.
    """
    order = saved_steps(workdir)[::-1]
    if not order:
        return None
    if which == "best":
        said = {step: seal.read_if_whole(workdir / DIRECTORY / str(step)) for step in order}
        scores = {step: of["score"] for step, of in said.items() if of is not None}
        order = [step for step in order if isinstance(scores.get(step), float)]
        order.sort(key=lambda step: (scores[step], step), reverse=True)
    failures: list[tuple[int, str]] = []
    for step in order:
        try:
            found = read(workdir, step)
        except (UserError, MemoryError):  # these say nothing about the files
            raise
        except Exception as error:  # whatever a damaged file makes of Orbax's readers
            reason = str(error) if isinstance(error, seal.DamagedError) else type(error).__name__
            failures.append((step, reason))
            continue
        for bad, reason in failures:
            say(
                f"checkpoint of step {bad} in {workdir / DIRECTORY} is unreadable ({reason}); "
                f"using the one of step {step}"
            )
        return found
    tried = ", ".join(f"step {step}: {reason}" for step, reason in failures) or "none was evaluated"
    raise UnreadableError(f"no {which} checkpoint in {workdir / DIRECTORY} is readable ({tried})")


def fit(found: Found, template: PyTree, workdir: Path) -> PyTree:
    """The leaves of a checkpoint in the structure of a pytree.

    Args:
      found: from `restore`.
      template: pytree with shapes and dtypes; a part of what was saved, or all of it.
      workdir: of the run, for the message.

    Returns:
      NumPy arrays in the template's structure.

    Raises:
      UserError: a leaf is missing or has another shape or dtype: it is of another model or method.
    """
    wanted = leaves_by_name(template)
    where = f"checkpoint of step {found.step} in {workdir / DIRECTORY}"
    for name, like in wanted.items():
        saved = found.leaves.get(name)
        if saved is None:
            raise UserError(f"{where} does not fit this run: it holds no {name}")
        if saved.shape != like.shape or saved.dtype != like.dtype:
            raise UserError(
                f"{where} does not fit this run: {name} is {saved.dtype}{list(saved.shape)} "
                f"there, {like.dtype}{list(like.shape)} in the model"
            )
    return jax.tree.unflatten(jax.tree.structure(template), [found.leaves[n] for n in wanted])


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
    names = os.listdir(directory) if directory.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit())


def read(workdir: Path, step: int) -> Found:
    """Reads the checkpoint of a step.

    Raises:
      UserError: it was written by a version with another format.
      Exception: of many kinds, where it is damaged.
    """
    directory = (workdir / DIRECTORY / str(step)).absolute()
    beside = seal.read(directory)
    if beside["format"] != seal.FORMAT:
        raise UserError(
            f"checkpoint of step {step} in {workdir / DIRECTORY} was written by another version of "
            "samon_jax, which must read it"
        )
    _read_every_value(directory / "state")
    alone = _alone()
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
        leaves = checkpointer.restore(directory / "state", args=ocp.args.StandardRestore())
    leaves = {name: np.asarray(leaf) for name, leaf in leaves.items()}
    if seal.checksum(leaves) != beside["crc32"]:
        raise seal.DamagedError("checksum differs")
    return Found(step, leaves, beside["identity"], beside["score"])


def _alone() -> ocp.options.MultiprocessingOptions:
    """Of several processes, each reads for itself, and one writes: none waits for the others."""
    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process{own}"
    )


def _read_every_value(directory: Path) -> None:
    """Raises an error if a file is missing or damaged.

    Orbax would raise one too, but it closes its event loop while other reads go on, and each of
    these prints a traceback. Reading one value after the other keeps a bad checkpoint to one line.
    """
    store = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{directory}/"}).result()
    keys = store.list().result()
    if not keys:
        raise seal.DamagedError("no values")
    for key in keys:
        store.read(key).result()
