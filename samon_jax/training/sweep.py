"""Several runs: one after the other, or those that differ only in seed or radius at once."""

import contextlib
import functools
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from samon_jax.errors import UserError
from samon_jax.training import loop
from samon_jax.training.config import differences, identity
from samon_jax.training.journal import Journal, claim, finished, flops_of, start_or_resume
from samon_jax.training.run import Call, Programs, Run, resolve, set_up
from samon_jax.training.stacked import seed_axes, stack, unstack
from samon_jax.training.state import TrainState
from samon_jax.training.step import StepMetrics
from samon_jax.workdir import files
from samon_jax.workdir.lock import locked
from samon_jax.workdir.progress import say

PyTree = Any


def at_once_pays() -> bool:
    """Whether several small models at once keep the device busier: on accelerators, not on CPU.

    XLA has no fast convolution on CPU whose kernels differ within a batch: on two cores, a step of
    three seeds took 1.1 times as long as three steps with digits-resnet and 3.1 times as long with
    ResNet-20. Several processes train one run after the other.
    """
    return jax.default_backend() != "cpu" and jax.process_count() == 1


def train_all(
    configs: Sequence[ConfigDict], directories: Sequence[Path]
) -> list[dict[str, Any] | UserError]:
    """Trains runs that differ in seed or radius, in the way that suits the device.

    Args:
      configs: as for `train_together`.
      directories: work directory of each.

    Returns:
      The content of each summary.json, or the error of a run that failed; the others are trained
      all the same.

    Raises:
      SystemExit: as in `loop.train`.
    """
    if at_once_pays() and len(configs) > 1:
        try:
            return list(train_together(configs, directories))
        except UserError:
            pass  # one of them failed; the others can go on alone
    results: list[dict[str, Any] | UserError] = []
    for config, directory in zip(configs, directories, strict=True):
        try:
            results.append(loop.train(config, directory))
        except UserError as error:
            results.append(error)
    return results


def train_together(
    configs: Sequence[ConfigDict], directories: Sequence[Path]
) -> list[dict[str, Any]]:
    """Trains several seeds, or radii, in one program: small models then keep an accelerator busy.

    Every directory ends up as `loop.train` would leave it, with the same result but for the
    rounding of float32; in metrics.jsonl, `examples_per_second` is what this one run gets. It can
    be evaluated, analyzed or continued on its own. An interrupted call continues where it stopped:
    finished runs are left alone, and the others go on together if they stand at the same step, else
    one after the other. That is also what happens if the memory of a device does not hold them all,
    and to seeds whose batches come in several shapes, those of sentences, in orders of their own.

    Args:
      configs: complete configs that differ in `seed` only, or also in `sam.rho` if `sam.rho_min`
        is not set.
      directories: work directory of each.

    Returns:
      The content of each summary.json.

    Raises:
      UserError: the configs differ in something else, a directory is named twice, or as in
        `loop.train`; the message begins with the seed (and ρ) where only one run is concerned.
        What was written before stays.
      SystemExit: as in `loop.train`.

    Example:
      >>> configs = [config | {"seed": seed} for seed in range(3)]  # doctest: +SKIP
      >>> train_together(configs, [Path(f"runs/seed{seed}") for seed in range(3)])  # doctest: +SKIP
    """
    configs = [resolve(config) for config in configs]
    _check(configs, directories)
    if len(configs) < 2:
        return [loop.train(*run) for run in zip(configs, directories, strict=True)]
    runs = [set_up(config) for config in configs]
    if len(runs[0].source.shapes()) > 1 and len({config.seed for config in configs}) > 1:
        return [loop.train(*run) for run in zip(configs, directories, strict=True)]
    with contextlib.ExitStack() as locks:
        for run, directory in zip(runs, directories, strict=True):
            locks.enter_context(locked(directory, say))
            claim(directory, run.config)
        left = [
            (run, directory)
            for run, directory in zip(runs, directories, strict=True)
            if finished(run, directory) is None
        ]
        if len(left) > 1:
            _train_from_same_step(left)
    return [
        files.read_summary(directory) or loop.train(config, directory)
        for config, directory in zip(configs, directories, strict=True)
    ]


class Together(Run):
    """Several runs as the loop sees one: their states are stacked, their batches go side by side.

    Args:
      runs: that differ in seed or radius only.
      axes: `seed_axes` of the state of one.
    """

    def __init__(self, runs: Sequence[Run], axes: TrainState) -> None:
        first = runs[0]
        super().__init__(first.config, first.source, _StackedPrograms(first.programs, axes))
        object.__setattr__(self, "_runs", tuple(runs))

    def calls(self, epoch: int, start: int) -> Generator[Call, None, None]:
        """The calls of all runs, with raw examples [devices, runs, steps, ...]."""
        members: tuple[Run, ...] = getattr(self, "_runs")  # noqa: B009 - set on a frozen dataclass
        for several in zip(*(run.calls(epoch, start) for run in members), strict=True):
            raw = jax.tree.map(lambda *x: np.stack(x, axis=1), *(call.raw for call in several))
            yield Call(several[0].kind, several[0].steps, raw)


class _StackedPrograms(Programs):
    """The programs of a run for stacked states."""

    rows_axis = 3

    def __init__(self, single: Programs, axes: TrainState) -> None:
        super().__init__(single.parts, single.devices, single.init)
        self._axes = axes

    def of_one_device(self, kind: str) -> Callable[..., Any]:
        """As of one run, over the axis of the runs."""
        one, axes = super().of_one_device(kind), self._axes
        return jax.vmap(one, in_axes=((axes, None), 0), out_axes=(axes, 0))


class Journals:
    """The journals of several runs as the loop sees one.

    Args:
      journals: of each.
      split: a stacked state to those of each.
    """

    def __init__(
        self, journals: Sequence[Journal], split: Callable[[TrainState], list[TrainState]]
    ) -> None:
        self._journals, self._split = journals, split

    def steps(self, step: int, metrics: StepMetrics) -> None:
        """As of one; every leaf of the metrics has a leading axis [runs]."""
        for i, journal in enumerate(self._journals):
            journal.steps(step, jax.tree.map(lambda x, i=i: x[i], metrics))

    def epoch(self, state: TrainState, speed: float, seconds: float, save: bool) -> None:
        """As of one, for each."""
        for journal, own in zip(self._journals, self._split(state), strict=True):
            journal.epoch(own, speed, seconds, save)

    def save(self, state: TrainState) -> None:
        """As of one, for each."""
        for journal, own in zip(self._journals, self._split(state), strict=True):
            journal.save(own)

    def interrupted(self, signal_name: str, step: int) -> None:
        """As of one, for each."""
        for journal in self._journals:
            journal.interrupted(signal_name, step)


def _train_from_same_step(left: Sequence[tuple[Run, Path]]) -> None:
    """Trains unfinished runs to their end, if they stand at the same step and fit into memory."""
    out_of_memory = False
    try:
        states = [start_or_resume(run, directory) for run, directory in left]
        if len({int(state.step) for state in states}) > 1:
            say("the runs do not stand at the same step: they go on one after the other")
            return
        _train(left, states)
    except jax.errors.JaxRuntimeError as error:
        out_of_memory = "RESOURCE_EXHAUSTED" in str(error)
        if not out_of_memory:
            raise
    if out_of_memory:
        say(f"{len(left)} runs at once need too much memory: they go on one after the other")


def _train(left: Sequence[tuple[Run, Path]], states: list[TrainState]) -> None:
    first = left[0][0]
    axes, sharding = seed_axes(states[0]), first.devices.replicated
    split = jax.jit(functools.partial(unstack, axes=axes, seeds=len(left)), out_shardings=sharding)
    names = _names([run.config for run, _ in left])
    journals: list[Journal] = []
    with contextlib.ExitStack() as opened:
        for (run, directory), state, name in zip(left, states, names, strict=True):
            journals.append(Journal(run, directory, state, name=name, bar=not journals))
            opened.enter_context(contextlib.closing(journals[-1]))
        state = jax.jit(stack, out_shardings=sharding)(states)
        states.clear()  # they would only take up memory
        together = Together([run for run, _ in left], axes)
        state = loop.train_epochs(together, state, Journals(journals, split))
    flops = flops_of(first)
    for journal, own in zip(journals, split(state), strict=True):
        journal.finish(own, flops)


def _names(configs: Sequence[ConfigDict]) -> list[str]:
    """What tells the runs apart: the seed, and ρ if that differs."""
    several = len({config.sam.rho for config in configs}) > 1
    return [
        f"seed {config.seed}, ρ = {config.sam.rho:g}: " if several else f"seed {config.seed}: "
        for config in configs
    ]


def _check(configs: Sequence[ConfigDict], directories: Sequence[Path]) -> None:
    if len(configs) != len(directories):
        raise UserError(
            f"directories has {len(directories)} entries; there are {len(configs)} configs"
        )
    resolved = [directory.resolve() for directory in directories]
    for directory in directories:
        if resolved.count(directory.resolve()) > 1:
            raise UserError(f"directories names {str(directory)!r} twice")
    constant_rho = all(config.sam.rho_min is None for config in configs)
    allowed = ("seed", "sam.rho") if constant_rho else ("seed",)
    for other in configs[1:]:
        for field, theirs, mine in differences(identity(configs[0]), identity(other)):
            if field not in allowed:
                raise UserError(
                    f"{field} is {theirs!r} in one config and {mine!r} in another; runs that are "
                    f"trained together may only differ in {' and '.join(allowed)}"
                )
