"""Runs of two processes that are disturbed, and started again with the same command."""

import dataclasses
import os
import random
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.clusters.small import config, finish, in_cluster
from samon_jax.training import loop, run
from samon_jax.workdir import checkpoints

SIGNALS = {"kill": signal.SIGKILL, "sigterm": signal.SIGTERM, "stop": signal.SIGSTOP}


def train(folder: Path, epochs: int, delay: float, raises: int) -> None:
    """Trains in a process of a cluster.

    Args:
      folder: work directory.
      epochs: of eleven steps.
      delay: seconds between steps, so that faults have time to happen.
      raises: process 1 raises an exception before its so manieth step; 0 for never.
    """
    process = int(os.environ.get("JAX_PROCESS_ID", "0"))
    calls, count = run.Run.calls, [0]

    def slowly(self: run.Run, epoch: int, start: int) -> Any:
        for call in calls(self, epoch, start):
            time.sleep(delay)
            count[0] += 1
            if process == 1 and count[0] == raises:
                raise RuntimeError("raised on purpose")
            yield call

    if delay or raises:
        run.Run.calls = slowly  # type: ignore[method-assign]
    loop.train(config(epochs, variant="sam"), folder)


def faults(what: str, runs: int) -> None:
    """Prints what became of runs that were disturbed and started again.

    Args:
      what: "kill", "sigterm", "stop" (each to a random process at a random moment) or "raise".
      runs: how many.
    """
    with tempfile.TemporaryDirectory() as temporary:
        whole = Path(temporary, "whole")
        assert not any(finish(in_cluster(["train", f"--folder={whole}"], 2)))
        wanted = checkpoints.restore(whole).leaves  # type: ignore[union-attr]
        print("| run | process | after s | statuses | ended within s | equal | said |")
        print("|---|---|---|---|---|---|---|")
        for i in range(runs):
            folder = Path(temporary, str(i))
            found = _disturbed(what, i, folder)
            again = finish(
                in_cluster(["train", f"--folder={folder}"], 2, stdout=subprocess.DEVNULL)
            )
            leaves = checkpoints.restore(folder).leaves  # type: ignore[union-attr]
            equal = again == [0, 0] and all(np.array_equal(wanted[k], leaves[k]) for k in wanted)
            cells = [found.victim, f"{found.after:.0f}", found.statuses, f"{found.took:.1f}"]
            print("|", *[f"{x} |" for x in (i, *cells, equal, found.said)], flush=True)


@dataclasses.dataclass
class _Found:
    """What a disturbed run did: the statuses are -9 for the process that was stopped."""

    victim: int
    after: float
    statuses: list[int]
    took: float
    said: str


def _disturbed(what: str, seed: int, folder: Path) -> _Found:
    random.seed(seed)
    victim, after = random.randrange(2), random.uniform(0, 10)
    work = ["train", f"--folder={folder}", "--delay=0.4"]
    if what == "raise":
        victim = 1
        work.append("--raises=5")
    output = folder.with_suffix(".errors").open("w+")
    running = in_cluster(work, 2, stderr=output, stdout=subprocess.DEVNULL)
    while not (folder / "config.json").exists():  # they have met, and begin
        time.sleep(0.1)
    if what == "raise":
        while all(process.poll() is None for process in running):
            time.sleep(0.02)
    else:
        time.sleep(after)
        running[victim].send_signal(SIGNALS[what])
    begin = time.monotonic()
    others = [p for i, p in enumerate(running) if what != "stop" or i != victim]
    finish(others)
    took = time.monotonic() - begin
    if what == "stop":
        running[victim].kill()
    statuses = finish(running)
    output.seek(0)
    lines = [line.strip() for line in output if line.startswith("error: ")]
    return _Found(victim, after, statuses, took, " / ".join(dict.fromkeys(lines)))
