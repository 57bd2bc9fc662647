"""Parameters after 50 steps on four devices, by how many processes these belong to."""

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.clusters.small import METHODS, config, finish, in_cluster
from samon_jax.training import devices, run
from samon_jax.workdir import checkpoints

STEPS = 50
SHAPES = ((1, 4), (2, 2), (4, 1))  # processes, devices of each
# What is walked: fields of the section `devices`, and the methods, all where none is named.
WAYS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "pmap": ({}, ()),
    "jit": ({"parallel": "jit"}, ("sam-on",)),
    "fsdp=2": ({"parallel": "jit", "fsdp": 2}, ("sam-on", "sam, all")),
}


def walk(folder: Path, way: str) -> None:
    """Writes the parameters after the steps of every method, in a process of a cluster."""
    jax.config.update("jax_disable_most_optimizations", True)
    devices._DIVIDED_ELEMENTS = 64  # or nothing of this network were divided
    fields, names = WAYS[way]
    for name in names or METHODS:
        if (folder / f"{name}.npz").exists():
            continue
        chosen = config(**METHODS[name])
        chosen.devices.update(fields)
        one = run.set_up(chosen)
        state, step = one.devices.place(one.initial_state()), 0
        for epoch in range(one.config.epochs):
            for call in one.calls(epoch, 0):
                if step < STEPS:
                    state, metrics = one.programs.step(call.kind)((state, one.resident), call.raw)
                    jax.block_until_ready(metrics)
                    step += call.steps
        params = checkpoints.leaves_by_name(one.devices.to_host(state.params))
        if one.devices.is_writer:
            print(name, flush=True)
            partial = folder / "partial.npz"
            np.savez(partial, **{k.replace("/", "."): v for k, v in params.items()})
            os.replace(partial, folder / f"{name}.npz")


def layouts(folder: Path, only: str | None) -> None:
    """Walks, and prints by how much parameters differ between ways to have four devices.

    Args:
      folder: keeps what was walked, so that the command can be continued.
      only: such a part as "pmap 2x2"; None for all.
    """
    for way in WAYS:
        for processes, each in SHAPES:
            part = f"{way} {processes}x{each}"
            if only not in (None, part):
                continue
            (folder / part).mkdir(parents=True, exist_ok=True)
            work = ["walk", f"--folder={folder / part}", f"--way={way}"]
            statuses = finish(in_cluster(work, processes, each))
            assert not any(statuses), statuses
    _table(folder)


def _table(folder: Path) -> None:
    pairs = ((1, 0), (2, 0), (2, 1))
    heads = [" against ".join(f"{SHAPES[i][0]} x {SHAPES[i][1]}" for i in pair) for pair in pairs]
    print(f"| devices | method | {' | '.join(heads)} |\n|---|---|---|---|---|")
    for way, (_, names) in WAYS.items():
        for name in names or METHODS:
            parts = [folder / f"{way} {p}x{d}" / f"{name}.npz" for p, d in SHAPES]
            found = [dict(np.load(part)) if part.exists() else None for part in parts]
            cells = [_difference(found[i], found[j]) for i, j in pairs]
            print(f"| {way} | {name} | {' | '.join(cells)} |")


def _difference(one: dict[str, np.ndarray] | None, other: dict[str, np.ndarray] | None) -> str:
    if one is None or other is None:
        return "not run"
    if all(np.array_equal(one[k], other[k]) for k in one):
        return "same bits"
    return f"{max(float(np.abs(one[k] - other[k]).max()) for k in one):.1e}"
