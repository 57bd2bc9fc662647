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
    "jit": ({"parallel": "jit"}, ("sam-on", "m = 64")),
    "fsdp=2": ({"parallel": "jit", "fsdp": 2}, ("sam-on", "sam, all", "m = 64")),
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
      only: such a part as "pmap 2x2"; None for all, and the table.
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
    if only is None:
        _table(folder)


def _table(folder: Path) -> None:
    print("| devices | method | 2 x 2 against 1 x 4 | 4 x 1 against 1 x 4 |\n|---|---|---|---|")
    for way, (_, names) in WAYS.items():
        for name in names or METHODS:
            parts = [folder / f"{way} {p}x{d}" / f"{name}.npz" for p, d in SHAPES]
            first, *others = [dict(np.load(part)) for part in parts]
            cells = []
            for other in others:
                largest = max(float(np.abs(first[k] - other[k]).max()) for k in first)
                same = all(np.array_equal(first[k], other[k]) for k in first)
                cells.append("same bits" if same else f"{largest:.1e}")
            print(f"| {way} | {name} | {' | '.join(cells)} |")
