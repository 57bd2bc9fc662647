"""Runs of several local processes against runs of one: results, speed, faults and memory.

    python -m benchmarks.clusters layouts   # every method on 1 x 4, 2 x 2 and 4 x 1 devices
    python -m benchmarks.clusters speed     # 2 processes against 1 with 2 devices
    python -m benchmarks.clusters memory    # devices.fsdp=4 against replicated, ViT-S
    python -m benchmarks.clusters kill --runs=10   # a random process is killed at a random moment
    python -m benchmarks.clusters sigterm --runs=5

The processes meet over the network, as those of several hosts do. The model is a small network with
BatchNorm on digits, but for `memory`. docs/clusters.md has the tables.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from samon_jax import models
from samon_jax.processes import cluster
from samon_jax.processes.local import start
from samon_jax.training import loop, run
from samon_jax.training.config import default_config
from samon_jax.workdir import checkpoints

STEPS = 50
METHODS: dict[str, dict[str, Any]] = {
    "sgd": {"variant": "none"},
    "sam, all": {"variant": "sam", "mask": "all"},
    "sam-on": {"variant": "sam"},
    "elementwise_l2": {"variant": "elementwise_l2"},
    "elementwise_linf": {"variant": "elementwise_linf"},
    "layerwise_l2": {"variant": "layerwise_l2"},
    "fisher": {"variant": "fisher"},
    "m = 16": {"variant": "sam", "m": 16},
    "m = 64": {"variant": "sam", "m": 64},
    "gsam": {"variant": "sam", "gsam_alpha": 0.4},
    "esam": {"variant": "sam", "mask": "all", "esam_beta": 0.6, "esam_gamma": 0.5},
    "looksam": {"variant": "sam", "mask": "all", "look_every": 5},
    "ssam_f": {"variant": "sam", "mask": "all", "sparse": "ssam_f"},
    "ssam_d": {"variant": "sam", "mask": "all", "sparse": "ssam_d"},
    "momentum": {"variant": "sam", "direction": "momentum"},
}


class Small(nn.Module):
    """Two layers with BatchNorm."""

    num_classes: int

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Images [n, 8, 8, 1] to logits [n, classes]."""
        x = images.reshape(len(images), -1)
        for name in ("stage1", "stage2"):
            x = nn.Dense(64, use_bias=False, name=f"{name}_dense")(x)
            x = nn.relu(nn.BatchNorm(not train, momentum=0.9, name=f"{name}_norm")(x))
        return nn.Dense(self.num_classes, name="head")(x)


models.register("small", lambda num_classes, *, dtype: Small(num_classes))


def config(epochs: int = 5, **sam: Any) -> ConfigDict:
    """Eleven steps an epoch, on all devices."""
    config = default_config()
    config.model, config.data.name, config.epochs = "small", "digits", epochs
    config.data.crop_padding, config.data.flip = 1, False
    config.log.tensorboard = False
    config.sam.rho = 0.1
    config.sam.update(sam)
    return config


def _in_cluster(work: Sequence[str], processes: int, devices: int = 1, **options: Any) -> Any:
    command = [sys.executable, "-m", "benchmarks.clusters", *work]
    return start(command, processes, devices=devices, **options)


def _finish(running: Sequence[subprocess.Popen[str]]) -> list[int]:
    return [process.wait() for process in running]


def walk(folder: Path) -> None:
    """Parameters after 50 steps of every method, of this process's cluster."""
    jax.config.update("jax_disable_most_optimizations", True)
    for name, fields in METHODS.items():
        one = run.set_up(config(**fields))
        state, step = one.devices.place(one.initial_state()), 0
        for epoch in range(one.config.epochs):
            for call in one.calls(epoch, 0):
                if step < STEPS:
                    state, _ = one.programs.step(call.kind)((state, one.resident), call.raw)
                    jax.block_until_ready(state)  # not many programs that wait for each other
                    step += call.steps
        params = checkpoints.leaves_by_name(one.devices.to_host(state.params))
        if one.devices.is_writer:
            np.savez(folder / name, **{k.replace("/", "."): v for k, v in params.items()})


def layouts() -> None:
    """Prints by how much parameters differ between ways to have four devices."""
    shapes = ((1, 4), (2, 2), (4, 1))
    with tempfile.TemporaryDirectory() as temporary:
        folders = {shape: Path(temporary, f"{shape[0]}x{shape[1]}") for shape in shapes}
        for (processes, devices), folder in folders.items():
            folder.mkdir()
            statuses = _finish(_in_cluster(["walk", f"--folder={folder}"], processes, devices))
            assert not any(statuses), statuses
        print("| method | 2 x 2 against 1 x 4 | 4 x 1 against 1 x 4 |\n|---|---|---|")
        for name in METHODS:
            found = [np.load(folder / f"{name}.npz") for folder in folders.values()]
            first, cells = found[0], []
            for other in found[1:]:
                largest = max(float(np.abs(first[k] - other[k]).max()) for k in first)
                cells.append("same bits" if largest == 0 else f"{largest:.1e}")
            print(f"| {name} | {' | '.join(cells)} |")


def train(folder: Path, epochs: int, delay: float) -> None:
    """Trains, with pauses between steps so that faults have time to happen."""
    if delay:
        calls = run.Run.calls

        def slowly(self: run.Run, epoch: int, start: int) -> Any:
            for call in calls(self, epoch, start):
                time.sleep(delay)
                yield call

        run.Run.calls = slowly  # type: ignore[method-assign]
    loop.train(config(epochs, variant="sam"), folder)


def faults(number: signal.Signals, runs: int) -> None:
    """Prints what became of runs of two processes that were disturbed and started again."""
    with tempfile.TemporaryDirectory() as temporary:
        whole = Path(temporary, "whole")
        assert not any(_finish(_in_cluster(["train", f"--folder={whole}"], 2)))
        wanted = checkpoints.restore(whole).leaves  # type: ignore[union-attr]
        print("| run | signal to process | after s | statuses | ended within s | equal |")
        print("|---|---|---|---|---|---|")
        for i in range(runs):
            random.seed(i)
            folder, victim, after = (
                Path(temporary, str(i)),
                random.randrange(2),
                random.uniform(0, 15),
            )
            work = ["train", f"--folder={folder}", "--delay=0.4"]
            running = _in_cluster(work, 2, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            while not (folder / "config.json").exists():  # they have met, and begin
                time.sleep(0.1)
            time.sleep(after)
            running[victim].send_signal(number)
            begin = time.monotonic()
            statuses = _finish(running)
            took = time.monotonic() - begin
            again = _finish(
                _in_cluster(["train", f"--folder={folder}"], 2, stdout=subprocess.DEVNULL)
            )
            found = checkpoints.restore(folder).leaves  # type: ignore[union-attr]
            equal = again == [0, 0] and all(np.array_equal(wanted[k], found[k]) for k in wanted)
            print(
                f"| {i} | {victim} | {after:.0f} | {statuses} | {took:.1f} | {equal} |", flush=True
            )


def speed() -> None:
    """Prints examples per second of two processes and of one with two devices."""
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        for processes in (1, 2):
            folder = Path(temporary, str(processes))
            work = ["train", f"--folder={folder}", "--epochs=20"]
            assert not any(_finish(_in_cluster(work, processes, 2 // processes)))
            found[processes] = json.loads((folder / "summary.json").read_text())
    one, two = (found[n]["examples_per_second"] for n in (1, 2))
    print(f"1 x 2: {one:.0f}, 2 x 1: {two:.0f} examples/s, {two / one:.0%}")


def memory(model: str = "vit-s") -> None:
    """Prints bytes of the state of each device and bytes that collectives move, by XLA."""
    import collections
    import re

    sizes = {"f32": 4, "s32": 4, "u32": 4, "u8": 1, "pred": 1, "bf16": 2}
    for mask in ("only_norm", "all"):
        for fsdp in (1, 4):
            one = config(3, variant="sam", mask=mask)
            one.model, one.data.name, one.batch_size = model, "random10", 16
            one.data.crop_padding, one.data.train_examples = 0, 16
            one.devices.parallel, one.devices.fsdp, one.num_devices = "jit", fsdp, 4
            one.optimizer.name = "adamw"
            made = run.set_up(one)
            layout = made.devices._layout
            state = jax.tree.map(
                lambda x, layout=layout: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout(x)),
                made.template(),
            )
            call = next(made.calls(0, 0))
            lowered = made.programs.step(call.kind).lower((state, made.source.resident), call.raw)
            compiled = lowered.compile()
            images = sum(x.nbytes for x in jax.tree.leaves(made.source.resident))
            used = (compiled.memory_analysis().argument_size_in_bytes - images) / 2**20
            moved: dict[str, int] = collections.defaultdict(int)
            pattern = r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all)(?:-start)?\("
            for shapes, kind in re.findall(pattern, compiled.as_text()):
                for dtype, dimensions in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
                    count = int(np.prod([int(n) for n in dimensions.split(",") if n] or [1]))
                    moved[kind] += count * sizes.get(dtype, 4)
            parts = ", ".join(f"{k} {v / 2**20:.1f} MiB" for k, v in sorted(moved.items()))
            ratio = made.flops_per_step() or 0
            base = made.flops_per_step(perturb=False) or 1
            print(f"{mask}, fsdp={fsdp}: state {used:.1f} MiB a device; {parts}", flush=True)
            print(f"  operations {ratio / base:.3f} of plain", flush=True)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--model", default="vit-s")
    given = parser.parse_args()
    if given.what in ("walk", "train"):
        status = 0
        try:
            with cluster.joined(cluster.complete(cluster.Given())):
                if given.what == "walk":
                    walk(given.folder)
                else:
                    train(given.folder, given.epochs, given.delay)
        except Exception as error:
            cluster.fail(str(error), 1, lost=cluster.is_lost(error))
            status = 1
            raise
        sys.exit(status)
    commands = {"layouts": layouts, "speed": speed}
    if given.what in commands:
        commands[given.what]()
    elif given.what == "memory":
        memory(given.model)
    else:
        number = {"kill": signal.SIGKILL, "sigterm": signal.SIGTERM}[given.what]
        faults(number, given.runs)


if __name__ == "__main__":
    main()
