"""A training run from the first to the last step; read from top to bottom."""

import contextlib
import signal
import time
from pathlib import Path
from typing import Any, NoReturn

from ml_collections import ConfigDict

from samon_jax.processes import cluster, messages
from samon_jax.training.follower import Follower, agree, machine, settings, start, weights
from samon_jax.training.journal import Journal, Writes, claim, finished, flops_of, start_or_resume
from samon_jax.training.run import Run, set_up
from samon_jax.training.state import TrainState
from samon_jax.training.step import StepMetrics
from samon_jax.workdir import lock
from samon_jax.workdir.lock import locked
from samon_jax.workdir.progress import say


def train(config: ConfigDict, directory: Path) -> dict[str, Any]:
    """Trains a model, or continues where an earlier call with the same arguments stopped.

    The result is a function of the config alone, however often the run is interrupted.

    Args:
      config: a complete config.
      directory: work directory. Afterwards it holds config.json, metrics.jsonl (one object per
        epoch: `epoch`, `step`, `train_loss` (nats), the task's metrics of training and evaluation
        (for classification `train_accuracy`, `test_loss`, `test_accuracy`), `learning_rate`,
        `examples_per_second` (null if the line had to be measured again), `seconds`), summary.json,
        checkpoints, TensorBoard events and two plots. `seconds` counts from the start of the run,
        without the time it lay still and without the part of an epoch that an interruption cost.

    Returns:
      The content of summary.json.

    Raises:
      UserError: something in the config, the data or the directory is wrong, another run works
        there, or the loss became infinite.
      SystemExit: a signal asked the run to stop (143 after SIGTERM, 130 after Ctrl-C).
    """
    agree("the machines", machine)
    run = set_up(config)
    agree("the settings", lambda: settings(run))
    if not run.devices.is_writer:
        return _follow(run, directory)
    with locked(directory, say):
        claim(directory, run.config)
        messages.tell("lock", lock.text(directory))
        if summary := finished(run, directory):
            messages.tell("start", {"summary": summary})
            return summary
        state = start_or_resume(run, directory)
        messages.tell("start", {"step": int(state.step)})
        agree("the weights", lambda: weights(run, state))
        with contextlib.closing(Journal(run, directory, state)) as journal:
            state = train_epochs(run, state, journal)
        summary = journal.finish(state, flops_of(run))
        messages.tell("summary", summary)
        return summary


def _follow(run: Run, directory: Path) -> dict[str, Any]:
    """The same in a process of a cluster that writes nothing."""
    state, summary = start(run, directory)
    if state is None:
        return summary or {}
    agree("the weights", lambda: weights(run, state))
    follower = Follower(run, state)
    return follower.finish(train_epochs(run, state, follower))


def train_epochs(run: Run, state: TrainState, journal: Writes) -> TrainState:
    """Trains to the end of the last epoch.

    Args:
      run: from `set_up`.
      state: to begin with, on every device.
      journal: receives metrics and states.

    Returns:
      The state after the last step; metrics and checkpoints are written.

    Raises:
      UserError: a number became infinite, or something cannot be written.
      SystemExit: as in `train`.
    """
    step = int(state.step)
    begin = time.perf_counter()
    with cluster.stop_requests() as must_stop:
        compiled = set[str]()
        for epoch in range(step // run.steps_per_epoch, run.config.epochs):
            speed = _Speed()
            waiting: tuple[int, StepMetrics] | None = None
            signal_number: int | None = None
            with contextlib.closing(run.calls(epoch, step % run.steps_per_epoch)) as calls:
                for call in calls:
                    if waiting and call.program not in compiled:  # its time counts
                        journal.steps(*waiting)
                        waiting = None
                    program, begin_call = run.programs.step(call.kind), time.perf_counter()
                    state, metrics = program((state, run.resident), call.raw)
                    step += call.steps
                    # Fetch the metrics of the call before while this one is under way.
                    if waiting:
                        journal.steps(*waiting)
                    waiting = step, metrics
                    if call.program not in compiled:  # wait for it, and do not count its time
                        journal.steps(*waiting)
                        waiting = None
                        compiled.add(call.program)
                        speed.leave_out(call.steps, begin_call)
                    signal_number = must_stop()
                    if signal_number and step % run.steps_per_epoch:
                        if waiting:
                            journal.steps(*waiting)
                        journal.save(state)
                        _exit(signal_number, step, journal)
                    speed.steps += call.steps
            if waiting:
                journal.steps(*waiting)
            last = epoch + 1 == run.config.epochs
            due = (epoch + 1) % run.config.checkpoint.every_epochs == 0
            seconds = time.perf_counter() - begin
            rate = speed.steps_per_second() * run.examples_per_step
            journal.epoch(state, rate, seconds, save=bool(due or last or signal_number))
            signal_number = signal_number or must_stop()  # or while it was evaluated
            if signal_number:  # also after the last epoch: others may follow this run
                journal.save(state)
                _exit(signal_number, step, journal)
    return state


class _Speed:
    """Steps per second in an epoch, without calls that compiled, unless there were no others."""

    def __init__(self) -> None:
        self.steps = 0
        self._left_out = 0
        self._begin = time.perf_counter()
        self._compiling = 0.0

    def leave_out(self, steps: int, since: float) -> None:
        """A call of so many steps, begun at that time and over now, had to be compiled."""
        self._left_out += steps
        self._compiling += time.perf_counter() - since

    def steps_per_second(self) -> float:
        now = time.perf_counter()
        if self.steps > self._left_out:
            return (self.steps - self._left_out) / (now - self._begin - self._compiling)
        return self.steps / (now - self._begin)


def _exit(number: int, step: int, journal: Writes) -> NoReturn:
    journal.interrupted(signal.Signals(number).name, step)
    raise SystemExit(128 + number)
