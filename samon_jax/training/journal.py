"""What a run writes: its records, checkpoints and results, in a work directory of its own."""

import contextlib
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, Protocol

import jax
import numpy as np
from ml_collections import ConfigDict

import samon_jax as samon
from samon_jax import drawing, tasks
from samon_jax.errors import UserError
from samon_jax.processes import messages
from samon_jax.training.config import changes, check_identity, identity
from samon_jax.training.run import Run
from samon_jax.training.state import TrainState
from samon_jax.training.step import StepMetrics
from samon_jax.workdir import checkpoints, files, seal
from samon_jax.workdir.checkpoints import Checkpoints
from samon_jax.workdir.progress import Reporter, say


def claim(directory: Path, config: ConfigDict) -> None:
    """Makes the directory this run's: writes config.json, or checks the one that is there.

    Args:
      directory: created if missing.
      config: complete and resolved; fields that only say where data lie or what is shown may
        differ.

    Raises:
      UserError: the directory holds a run with another config, or results of one whose config.json
        is gone; or it cannot be written.
    """
    ours = json.loads(config.to_json())
    saved = files.read_config(directory)
    if saved is not None:
        changed = [
            f"{field}: {theirs!r} there, {mine!r} now"
            for field, theirs, mine in changes(identity(saved), identity(config))
        ]
        if changed:
            raise UserError(
                f"workdir={str(directory)!r} holds a run with another config "
                f"({'; '.join(changed)}); choose another --workdir"
            )
        if (directory / files.SUMMARY).exists() or saved == ours:
            return
    else:  # before anything is written beside what another run left
        for where, theirs in _identities(directory):
            check_identity(theirs, identity(config), where)
    with files.writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    files.write_json(directory / files.CONFIG, ours)


def finished(run: Run, directory: Path) -> dict[str, Any] | None:
    """The content of summary.json if the run is complete, which is then said; else None.

    A summary that cannot be used is made again from the last checkpoint and the records.
    """
    try:
        summary = files.read_summary(directory, run.task.metrics)
    except UserError as error:
        say(f"{error}; making it again")
        return None
    if summary is None:
        return None
    check_identity(summary.get("identity"), identity(run.config), directory / files.SUMMARY)
    say(f"{directory} is finished: {_result(run, summary)} after {summary['steps']} steps")
    return summary


def start_or_resume(run: Run, directory: Path) -> TrainState:
    """The state of the newest readable checkpoint, or the initial one, on every device.

    What the task needs besides the config is kept in the directory.

    Raises:
      UserError: the checkpoint is of another run or does not fit this one; nothing is moved then.
    """
    for name, content in tasks.files(run.task).items() if run.devices.is_writer else ():
        files.keep(directory / name, content)
    try:
        found = checkpoints.restore(directory, say=say)
    except checkpoints.UnreadableError as error:
        say(f"{error}; starting again from step 0")
        checkpoints.set_aside_after(directory, -1, say)
        found = None
    if found is None:
        return first_state(run)
    where = directory / checkpoints.DIRECTORY / str(found.step)
    check_identity(found.identity, identity(run.config), where)
    state = checkpoints.fit(found, run.template(), directory)
    checkpoints.set_aside_after(directory, found.step, say)
    return run.devices.place(state)


def first_state(run: Run) -> TrainState:
    """The state before the first step, on every device."""
    if run.config.init_from:
        return run.devices.place(run.initial_state())
    seed, rho = np.uint32(run.config.seed), np.float32(run.config.sam.rho)
    return run.devices.make(run.programs.init, seed, rho)


class Writes(Protocol):
    """What the loop tells a journal, of one run or of several."""

    def steps(self, step: int, metrics: StepMetrics) -> None:
        """The steps up to `step` are under way."""

    def epoch(self, state: TrainState, speed: float, seconds: float, save: bool) -> None:
        """An epoch is over."""

    def save(self, state: TrainState) -> None:
        """Something must be kept in the middle of an epoch."""

    def interrupted(self, signal_name: str, step: int) -> None:
        """The run ends here for now."""


class Journal:
    """One run and what it writes while it is trained.

    Args:
      run: from `set_up`.
      directory: work directory, claimed; records after the state's step are dropped from its
        metrics.jsonl, and a missing one of that step is measured again.
      state: of the run, to begin with.
      name: said before every line, to tell several runs apart.
      bar: whether a terminal shows a bar for this run.

    Attributes:
      run: as given.
      directory: as given.
      records: of metrics.jsonl.
    """

    def __init__(
        self, run: Run, directory: Path, state: TrainState, *, name: str = "", bar: bool = True
    ) -> None:
        step = int(state.step)
        self.run, self.directory, self._name = run, directory, name
        self.records = files.trim_metrics(directory, step, say, run.task.metrics)
        lacks = _lacks_record(self.records, step, run.steps_per_epoch)
        messages.tell("again", lacks)
        if lacks:
            say(f"the line of step {step} is missing in {files.METRICS}: evaluating again")
            before = self.records[-1]["seconds"] if self.records else 0.0
            self._append(measure(run, state) | {"examples_per_second": None, "seconds": before})
        self._seconds: float = self.records[-1]["seconds"] if self.records else 0.0
        self._reporter = Reporter(
            directory,
            run.config,
            run.task.show,
            step,
            run.total_steps,
            examples_per_step=run.examples_per_step,
            name=name,
            bar=bar,
        )
        if step:
            self._reporter.say(f"resuming after step {step} of {run.total_steps}")
        self._saver = Checkpoints(directory, run.config.checkpoint.keep, identity(run.config))

    def steps(self, step: int, metrics: StepMetrics) -> None:
        """Waits for the metrics of the steps up to `step`, checks all and shows the last.

        Raises:
          UserError: a loss, parameter or running statistic is not finite.
        """
        jax.block_until_ready(metrics)  # raises where memory is wanted; to read waits forever
        losses = np.asarray(metrics.loss)
        self._check_finite("loss", losses, step)
        if not np.all(np.asarray(metrics.finite)):
            self._fail(f"a parameter or running statistic is not finite after step {step}")
        last = {name: float(np.asarray(values)[-1]) for name, values in metrics.sums.items()}
        self._reporter.progress(step, float(losses[-1]), self.run.task.describe(last))

    def epoch(self, state: TrainState, speed: float, seconds: float, save: bool) -> None:
        """Measures the state after an epoch, writes the record and perhaps a checkpoint.

        Args:
          state: after the epoch.
          speed: examples per second.
          seconds: since training began or went on.
          save: whether a checkpoint is due.
        """
        step = int(state.step)
        record = measure(self.run, state)
        record |= {"examples_per_second": speed, "seconds": self._seconds + seconds}
        for name in self.run.task.metrics:
            self._check_finite(name.replace("_", " "), np.asarray([record[name]]), step)
        self._append(record)
        self._reporter.epoch(record)
        if save:
            self._saver.save(step, self.run.devices.to_host(state), record[self.run.task.score])

    def save(self, state: TrainState) -> None:
        """Writes a checkpoint in the middle of an epoch.

        Raises:
          UserError: a number of the state is not finite, or it cannot be written.
        """
        self._saver.save(int(state.step), self.run.devices.to_host(state))

    def interrupted(self, signal_name: str, step: int) -> None:
        """Waits until the checkpoint of `step` is on disk and says that the run can go on."""
        self._saver.wait()
        self._reporter.say(
            f"{signal_name}: saved a checkpoint at step {step} of {self.run.total_steps}; the same "
            "command continues from there"
        )

    def close(self) -> None:
        """Waits until everything is on disk."""
        try:
            self._reporter.close()
        finally:
            self._saver.close()

    def finish(self, state: TrainState, flops: dict[str, float | None]) -> dict[str, Any]:
        """Draws the pictures and writes summary.json, whose presence says the run is complete."""
        params = self.run.devices.to_host(state.params)
        with files.writing(self.directory):
            drawing.learning_curve(self.records, self.directory / "learning_curve.png")
            drawing.norm_parameters(params, self.directory / "norm_parameters.png")
        sizes = [leaf.size for leaf in jax.tree.leaves(params)]
        labels = jax.tree.leaves(samon.label_params(params))
        of_norm = [n for n, label in zip(sizes, labels, strict=True) if label.startswith("norm")]
        speeds = [x for r in self.records if (x := r["examples_per_second"]) is not None]
        last = self.records[-1]
        summary = {
            **{name: last[name] for name in self.run.task.metrics},
            "train_loss": last["train_loss"],
            "num_params": sum(sizes),
            "num_norm_params": sum(of_norm),
            "steps": self.run.total_steps,
            "seconds": last["seconds"],
            "examples_per_second": statistics.median(speeds) if speeds else None,
            **flops,
            "identity": identity(self.run.config),
        }
        files.write_json(self.directory / files.SUMMARY, summary)
        say(
            f"finished: {_result(self.run, summary)}, {summary['seconds']:.0f} s, results in "
            f"{self.directory}"
        )
        return summary

    def _append(self, record: dict[str, Any]) -> None:
        files.append_metrics(self.directory, record)
        self.records.append(record)

    def _check_finite(self, name: str, values: np.ndarray, step: int) -> None:
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            at = step - len(values) + int(bad[0]) + 1
            self._fail(f"{name} is {values[bad[0]]} at step {at}")

    def _fail(self, what: str) -> NoReturn:
        saved = self._saver.newest_step()
        kept = (
            "no checkpoint was saved yet"
            if saved is None
            else f"checkpoint of step {saved} is kept"
        )
        raise UserError(f"{self._name}{what}; {kept}; a smaller optimizer.lr or sam.rho may help")


def measure(run: Run, state: TrainState) -> dict[str, Any]:
    """The record of metrics.jsonl for the state after an epoch, without its times."""
    step = int(state.step)
    split = tasks.measured_split(run.task)
    of_training = run.task.describe({name: float(x) for name, x in state.sums.items()})
    return {
        "epoch": step // run.steps_per_epoch,
        "step": step,
        "train_loss": float(state.loss_sum) / run.steps_per_epoch,
        **{f"train_{name}": value for name, value in of_training.items()},
        **run.task.evaluate(state.variables, run.examples(split), run.devices, f"{split}_"),
        "learning_rate": run.learning_rate(step - 1),
    }


def flops_of(run: Run) -> dict[str, float | None]:
    """Floating-point operations of a step, as summary.json names them."""
    return {
        "flops_per_step": run.flops_per_step(),
        "flops_per_step_base": run.flops_per_step(perturb=False),
    }


def _result(run: Run, summary: dict[str, Any]) -> str:
    split = tasks.measured_split(run.task)
    own = {name.removeprefix(f"{split}_"): summary[name] for name in run.task.metrics}
    return f"{split} {run.task.show(own)}"


def _identities(directory: Path) -> Iterator[tuple[Path, Any]]:
    """What summary and checkpoints say whose they are, as far as they can be read."""
    with contextlib.suppress(UserError):
        if summary := files.read_summary(directory):
            yield directory / files.SUMMARY, summary.get("identity")
    for step in checkpoints.saved_steps(directory)[::-1]:
        where = directory / checkpoints.DIRECTORY / str(step)
        if beside := seal.read_if_whole(where):
            yield where, beside["identity"]


def _lacks_record(records: list[dict[str, Any]], step: int, steps_per_epoch: int) -> bool:
    """Whether metrics.jsonl, damaged or deleted, has no line for a checkpoint after an epoch."""
    after_epoch = step > 0 and step % steps_per_epoch == 0
    return after_epoch and (not records or records[-1]["step"] != step)
