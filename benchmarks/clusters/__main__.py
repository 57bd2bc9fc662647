"""Runs of several local processes against runs of one: results, speed, faults and memory.

    python -m benchmarks.clusters layouts --folder=FOLDER  # four devices, of 1, 2 and 4 processes
    python -m benchmarks.clusters speed       # 2 processes against 1 with 2 devices
    python -m benchmarks.clusters operations  # of SAM-ON, by layout
    python -m benchmarks.clusters memory      # state of a device, and what collectives move
    python -m benchmarks.clusters kill --runs=10   # a random process is killed at a random moment
    python -m benchmarks.clusters sigterm --runs=5
    python -m benchmarks.clusters stop --runs=3    # it is stopped: it hangs
    python -m benchmarks.clusters raise --runs=2   # process 1 raises an exception
    python -m benchmarks.clusters mistakes    # processes that do not fit each other

The processes meet over the network, as those of several hosts do. The model is a small network with
BatchNorm on digits, but for `memory` and `operations`. docs/clusters.md has the tables.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # as main.py does

import jax

from benchmarks.clusters import faults, layouts, mistakes, programs, speed
from samon_jax.processes import cluster

FAULTS = [*faults.SIGNALS, "raise"]


def of_a_cluster(given: argparse.Namespace) -> int:
    """What the processes do that the other commands start; returns the status."""
    try:
        with cluster.joined(cluster.complete(cluster.Given())):
            if given.what == "walk":
                layouts.walk(given.folder, given.way)
            else:
                faults.train(given.folder, given.epochs, given.delay, given.raises)
    except Exception as error:
        lost = cluster.is_lost(error)
        if not lost:
            print(f"error: {cluster.name()}{error}", file=sys.stderr, flush=True)
        cluster.fail(str(error), 1, lost=lost)
        return 1
    return 0


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ["layouts", "speed", "operations", "memory", *FAULTS, "mistakes", "walk", "train"]
    parser.add_argument("what", choices=names)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", help="layouts: such a part as 'pmap 2x2'")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--model", default="vit-s", help="memory: which")
    for name in ("delay", "raises"):
        parser.add_argument(f"--{name}", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--way", default="pmap", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.what in ("walk", "train"):
        return of_a_cluster(given)
    if given.what in FAULTS:
        faults.faults(given.what, given.runs)
    elif given.what == "layouts":
        layouts.layouts(given.folder or Path("runs/layouts"), given.only)
    elif given.what in ("memory", "operations"):
        jax.config.update("jax_num_cpu_devices", 4)
        programs.memory(given.model) if given.what == "memory" else programs.operations()
    elif given.what == "speed":
        speed.speed(given.epochs)
    else:
        mistakes.mistakes()
    return 0


if __name__ == "__main__":
    sys.exit(main())
