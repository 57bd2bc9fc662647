"""What a run is made of: its task, source, method, optimizer and devices, and their programs."""

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Generator
from functools import cached_property
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from samon_jax import data, methods, tasks
from samon_jax.data.source import Examples, Source
from samon_jax.errors import UserError
from samon_jax.methods.method import PLAIN
from samon_jax.tasks.task import Task
from samon_jax.training import devices as devices_room
from samon_jax.training import init_from
from samon_jax.training.config import check, identity, method_context, plain
from samon_jax.training.devices import Devices
from samon_jax.training.optimizers import make_optimizer, make_schedule
from samon_jax.training.state import TrainState, initial_state
from samon_jax.training.step import Parts, make_step
from samon_jax.training.trainable import trainable_mask

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Call:
    """Consecutive steps of one kind that one call of a program takes.

    Attributes:
      kind: of the method.
      steps: how many.
      raw: on the devices, [devices, steps, examples of a device, ...].
    """

    kind: str
    steps: int
    raw: PyTree

    @property
    def program(self) -> str:
        """What is compiled once: the kind and the shapes."""
        return f"{self.kind} {[np.shape(x) for x in jax.tree.leaves(self.raw)]}"


class Programs:
    """The functions of a run that are compiled; runs that differ in seed and ρ alone share them.

    Args:
      parts: what a step is made of.
      devices: that they run on.
      init: `init(seed, rho) -> state` on the default device.
    """

    rows_axis = 2  # of raw examples [devices, steps, rows, ...]

    def __init__(self, parts: Parts, devices: Devices, init: Callable[..., TrainState]) -> None:
        self.parts, self.devices, self.init = parts, devices, init
        self._steps: dict[str, Any] = {}

    def step(self, kind: str) -> Any:
        """The program for steps of a kind, compiled when first called."""
        if kind not in self._steps:
            step, rows = self.of_one_device(kind), self.rows_axis
            self._steps[kind] = self.devices.compile(step, rows_axis=rows)
        return self._steps[kind]

    def of_one_device(self, kind: str) -> Callable[..., Any]:
        """What that program runs on every device."""
        return make_step(self.parts, kind)


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays the same from the first to the last step.

    Attributes:
      config: complete, checked, with the number of devices resolved.
      source: of the examples.
      programs: compiled functions.
    """

    config: ConfigDict
    source: Source
    programs: Programs

    @property
    def task(self) -> Task:
        """What is learned."""
        return self.programs.parts.task

    @property
    def devices(self) -> Devices:
        """Where it runs."""
        return self.programs.devices

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one epoch."""
        return self.source.steps_per_epoch

    @cached_property
    def examples_per_step(self) -> float:
        """Rows of a batch over all devices, on average."""
        kinds = [(jax.tree.leaves(raw)[0].shape[0], steps) for raw, steps in self.source.shapes()]
        rows = sum(rows * steps for rows, steps in kinds) * self.devices.share.processes
        return rows / self.steps_per_epoch

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.config.epochs * self.steps_per_epoch

    @cached_property
    def resident(self) -> PyTree:
        """What of the training set stays on the devices."""
        return self.devices.replicate(self.source.resident)

    @cached_property
    def _residents(self) -> dict[str, PyTree]:
        return {}

    def examples(self, split: str = "test") -> Examples:
        """A split to be evaluated; what is resident is copied to the devices once."""
        examples = self.source.evaluation(split)
        if split not in self._residents:
            self._residents[split] = self.devices.replicate(examples.resident)
        return examples._replace(resident=self._residents[split])

    def initial_state(self) -> TrainState:
        """The state before the first step, on the default device; weights of `init_from` if set."""
        state = self.programs.init(np.uint32(self.config.seed), np.float32(self.config.sam.rho))
        if source := self.config.init_from:
            kept, where = tasks.files(self.task), self.config.data.dir
            variables, notes = init_from.start_from(source, state.variables, where, kept)
            state = state.replace(params=variables.pop("params"), model_state=variables)
            if self.devices.is_writer:
                init_from.announce(source, notes)
        return state

    def template(self) -> TrainState:
        """Shapes and dtypes of the state, without computing anything."""
        return jax.eval_shape(self.programs.init, np.uint32(0), np.float32(0))

    def calls(self, epoch: int, start: int) -> Generator[Call, None, None]:
        """What the steps of an epoch are called with, from step `start` of it on.

        The boundaries of calls do not depend on `start`, so that a resumed run rounds as one that
        was never interrupted.
        """
        length = dispatch_length(
            self.config.steps_per_dispatch or self.devices.steps_per_call, self.steps_per_epoch
        )
        first, kind_of = epoch * self.steps_per_epoch, self.programs.parts.method.kind

        def alike(numbered: tuple[int, PyTree]) -> tuple[Any, ...]:
            step, raw = numbered
            shapes = tuple(np.shape(x) for x in jax.tree.leaves(raw))
            return step // length, kind_of(first + step), shapes

        raws = self.source.epoch(self.config.seed, epoch, start)
        for (_, kind, _), group in itertools.groupby(enumerate(raws, start), key=alike):
            several = [raw for _, raw in group]
            stacked = jax.tree.map(lambda *x: np.stack(x), *several)
            yield Call(kind, len(several), self.devices.shard_steps(stacked))

    def learning_rate(self, step: int) -> float:
        """Of the step after `step` steps."""
        return float(make_schedule(self.config, self.steps_per_epoch)(step))

    def flops_per_step(self, *, perturb: bool = True) -> float | None:
        """Floating-point operations of one training step over all devices, on average.

        XLA counts them in the program as it is handed over, before it is compiled; multiply and add
        count as two.

        Args:
          perturb: False for the plain gradient instead of the configured method.

        Returns:
          The count, or None where the backend does not say.
        """
        method = self.programs.parts.method
        kinds = [PLAIN]
        if perturb and set(method.kinds) != {PLAIN}:
            # The second period; what is rarer, as the renewals of a mask, is left out.
            period = method.period
            start = self.config.sam.start * self.steps_per_epoch
            kinds = [method.kind(start + period + i) for i in range(period)]
        total = count = 0.0
        for kind in set(kinds):
            for shape, times in self.source.shapes():
                flops = self._flops(kind, shape)
                if flops is None:
                    return None
                total += flops * times * kinds.count(kind)
                count += times * kinds.count(kind)
        return total / count

    def _flops(self, kind: str, shape: PyTree) -> float | None:
        one = jax.tree.map(lambda s: np.zeros((1, *s.shape), s.dtype), shape)
        resident = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self.resident)
        lowered = self.programs.step(kind).lower(
            (self.template(), resident), self.devices.shard_steps(one)
        )
        cost = lowered.cost_analysis()
        if not cost or "flops" not in cost:
            return None
        return self.devices.groups * float(cost["flops"])  # XLA counts the program of one device


def resolve(config: ConfigDict) -> ConfigDict:
    """A checked copy of a config in which the number of devices is no longer "all".

    Raises:
      UserError: a field is not allowed.
    """
    config = ConfigDict(plain(config.to_dict()))
    check(config)
    devices = devices_of(config)
    count = config.num_devices = devices.count
    if config.batch_size % count:
        raise UserError(
            f"batch_size={config.batch_size} is not allowed; it must be a multiple of the {count} "
            "devices"
        )
    methods.check(dict(config.sam), batch_size=tasks.rows(config), num_devices=devices.groups)
    return config


def devices_of(config: ConfigDict) -> Devices:
    """The devices that a config asks for.

    Raises:
      UserError: there are not so many.
    """
    layout = config.devices
    return devices_room.take(config.num_devices, layout.parallel, layout.fsdp)


def set_up(config: ConfigDict) -> Run:
    """Opens the data and builds the programs; writes nothing.

    Args:
      config: a complete config.

    Returns:
      What the loop needs.

    Raises:
      UserError: a field is not allowed, data are missing, or the mask selects nothing.
    """
    config = resolve(config)
    devices = devices_of(config)
    source = data.make_source(config, devices=devices.count, share=devices.share)
    # The radius is data, but where it follows the learning rate.
    apart = ["seed", *(["sam.rho"] if config.sam.rho_min is None else [])]
    # A folder of pictures says how many classes there are, though not part of the identity.
    key = json.dumps([identity(config, without=apart), config.data.dir])
    programs = _programs(key, _Unhashed(config), source.fetch, source.steps_per_epoch, devices)
    run = Run(config, source, programs)
    if run.total_steps >= 2**31:
        raise UserError(
            f"epochs={config.epochs} is not allowed; with {run.steps_per_epoch} steps each that is "
            "more than 2**31 steps"
        )
    if config.optimizer.accumulate > run.total_steps:
        raise UserError(
            f"optimizer.accumulate={config.optimizer.accumulate} is not allowed; the whole run has "
            f"{run.total_steps} steps, so that nothing would be trained"
        )
    run.template()  # does the mask select anything?
    source.evaluation(tasks.measured_split(programs.parts.task))  # not only after an epoch
    return run


class _Unhashed:
    """An argument that `_programs` is not cached by: the key beside it says all of it."""

    def __init__(self, config: ConfigDict) -> None:
        self.config = config

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Unhashed)


@functools.lru_cache(maxsize=16)
def _programs(
    key: str, unhashed: _Unhashed, fetch: Callable[..., Any], steps_per_epoch: int, devices: Devices
) -> Programs:
    config = unhashed.config
    task, optimizer = tasks.create(config), make_optimizer(config, steps_per_epoch)
    context = method_context(config)
    context["learning_rate"] = context["learning_rate"]._replace(
        schedule=make_schedule(config, steps_per_epoch)
    )
    method = methods.from_fields(
        dict(config.sam), steps_per_epoch=steps_per_epoch, axis_name=devices.axis_name, **context
    )
    parts = Parts(
        task=task,
        method=method,
        optimizer=optimizer,
        fetch=fetch,
        trainable=trainable_mask(config),
        batch_stats=config.sam.batch_stats,
        steps_per_epoch=steps_per_epoch,
        axis_name=devices.axis_name,
        gather=devices.gather,
        divide=devices.divide,
    )
    init = functools.partial(
        initial_state,
        init_model=task.init,
        init_optimizer=optimizer.init,
        init_method=method.init,
        sums=task.sums,
    )
    return Programs(parts, devices, jax.jit(init))


def dispatch_length(limit: int, steps_per_epoch: int) -> int:
    """Steps per call of the compiled program; the last call of an epoch may have fewer.

    A divisor of an epoch needs only one length to be compiled. If the largest one is less than half
    of the limit, the limit itself is used, and the rest of an epoch is a second length.

    Args:
      limit: most steps in a call.
      steps_per_epoch: steps in one epoch.

    Returns:
      The length, at most `steps_per_epoch`.

    Example:
      >>> dispatch_length(50, 390), dispatch_length(50, 97)
      (39, 50)
    """
    limit = min(limit, steps_per_epoch)
    divisor = max(n for n in range(1, limit + 1) if steps_per_epoch % n == 0)
    return divisor if 2 * divisor >= limit else limit
