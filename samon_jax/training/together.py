"""Trains runs that differ only in their seed, or in ρ, at once."""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from samon_jax.errors import UserError
from samon_jax.training import batches, loop, workdir
from samon_jax.training.reporting import say
from samon_jax.training.setup import Programs, Run, parallel, resolve, set_up
from samon_jax.training.state import TrainState

PyTree = Any


def train_together(
    configs: Sequence[ConfigDict], directories: Sequence[Path]
) -> list[dict[str, Any]]:
    """Trains several seeds, or radii, in one program: small models then keep an accelerator busy.

    Every directory ends up as `loop.train` would leave it, with the same result but for the
    rounding of float32; in metrics.jsonl, `examples_per_second` is what this one run gets. It can
    be evaluated, analyzed or continued on its own. An interrupted call continues where it stopped:
    finished runs are left alone, and the others go on together if they stand at the same step, else
    one after the other. That is also what happens if the memory of a device does not hold them all.

    On CPU this is slower than one run after the other, for XLA has no fast convolution there whose
    kernels differ within a batch: on two cores, a step of three seeds took 1.1 times as long as
    three steps with digits-resnet and 3.1 times as long with ResNet-20.

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
    first = set_up(configs[0])
    runs = [dataclasses.replace(first, config=config) for config in configs]
    for run, directory in zip(runs, directories, strict=True):
        workdir.claim(directory, run.config)
    left = [
        (run, directory)
        for run, directory in zip(runs, directories, strict=True)
        if loop.finished(directory) is None
    ]
    if len(left) > 1:
        _train_from_same_step(left)
    return [
        workdir.read_json(directory / workdir.SUMMARY) or loop.train(config, directory)
        for config, directory in zip(configs, directories, strict=True)
    ]


def stack(states: Sequence[TrainState]) -> TrainState:
    """Puts the states of several runs after the same step into one.

    Counters, such as `step`, stay single: they are the same for every seed, and as long as they
    are, a `lax.cond` on one of them computes one branch, not both.

    Args:
      states: of runs that differ in their seed only.

    Returns:
      A state whose leaves have a leading axis [seeds], except counters.
    """
    return jax.tree.map(
        lambda axis, *leaves: leaves[0] if axis is None else jnp.stack(leaves, axis),
        seed_axes(states[0]),
        *states,
        is_leaf=lambda axis: axis is None,
    )


def unstack(state: TrainState, axes: TrainState, seeds: int) -> list[TrainState]:
    """The states of the single runs.

    Args:
      state: from `stack`, or what became of it.
      axes: `seed_axes` of a single state.
      seeds: number of runs.
    """

    def pick(seed: int) -> TrainState:
        return jax.tree.map(
            lambda axis, leaf: leaf if axis is None else leaf[seed],
            axes,
            state,
            is_leaf=lambda axis: axis is None,
        )

    return [pick(seed) for seed in range(seeds)]


def seed_axes(state: TrainState) -> TrainState:
    """Where the stacked state has its axis of seeds: 0, or None for counters, as `jax.vmap` wants.

    Counters are the integer scalars but `seed` itself and the sum of correct examples.

    Args:
      state: of a single run; shapes and dtypes suffice.
    """

    def axis(path: tuple[Any, ...], leaf: Any) -> int | None:
        counter = (
            path[0].name in ("step", "opt_state", "ascent_state")
            and leaf.ndim == 0
            and jnp.issubdtype(leaf.dtype, jnp.integer)
        )
        return None if counter else 0

    return jax.tree_util.tree_map_with_path(axis, state)


def programs_together(run: Run) -> Programs:
    """The programs of a run for stacked states and rows [devices, seeds, steps, per_device]."""
    return _programs(run.programs, run.devices)


@functools.lru_cache(maxsize=16)
def _programs(single: Programs, devices: tuple[jax.Device, ...]) -> Programs:
    axes = seed_axes(jax.eval_shape(single.init, np.uint32(0), np.float32(0)))

    def over_seeds(step: Callable[..., Any], out_axes: Any) -> Callable[..., Any]:
        return jax.vmap(step, in_axes=((axes, None), 0), out_axes=out_axes)

    step, step_plain = (over_seeds(s, (axes, 0)) for s in (single.step, single.step_plain))
    renew_step = over_seeds(single.renew_step, axes) if single.renew_step else None
    return dataclasses.replace(
        single,
        train=parallel(step, devices),
        train_plain=parallel(step_plain, devices),
        step=step,
        step_plain=step_plain,
        look=None,
        renew_mask=parallel(renew_step, devices, out_axes=None) if renew_step else None,
        renew_step=renew_step,
    )


def _train_from_same_step(left: Sequence[tuple[Run, Path]]) -> None:
    """Trains unfinished runs to their end, if they stand at the same step and fit into memory."""
    out_of_memory = False
    try:
        states = [loop.start_or_resume(run, directory) for run, directory in left]
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
    run = left[0][0]
    axes, sharding = seed_axes(states[0]), batches.replicated(run.devices)
    split = jax.jit(functools.partial(unstack, axes=axes, seeds=len(left)), out_shardings=sharding)
    layout = loop.Layout(join=lambda rows: np.stack(rows, axis=1), split=split)
    names = _names([each.config for each, _ in left])
    members: list[loop.Member] = []
    with contextlib.ExitStack() as opened:
        for (each, directory), state, name in zip(left, states, names, strict=True):
            members.append(loop.Member(each, directory, state, name=name, bar=not members))
            opened.enter_context(contextlib.closing(members[-1]))
        state = jax.jit(stack, out_shardings=sharding)(states)
        states.clear()  # they would only take up memory
        state = loop.train_members(members, state, programs_together(run), layout)
    flops = loop.flops_of(run)
    for trained, own in zip(members, split(state), strict=True):
        loop.finish(trained, own, flops)


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
    dicts = [json.loads(config.to_json()) for config in configs]
    for other in dicts[1:]:
        for field, theirs, mine in workdir.differences(dicts[0], other):
            if field not in allowed:
                raise UserError(
                    f"{field} is {theirs!r} in one config and {mine!r} in another; runs that are "
                    f"trained together may only differ in {' and '.join(allowed)}"
                )
