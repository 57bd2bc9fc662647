"""What the checks of a run cost: operations, and their share of the time of README command 1.

    python -m benchmarks.checks

Operations are XLA's own count of the step with and without the check of parameters and statistics.
Times are those of the pieces inside one run of `configs/digits.py`; what cannot be told apart
there, the check inside the compiled step and the fetch of its result, is timed by itself after it,
dispatch included, and multiplied by how often it happens.
"""

import argparse
import contextlib
import functools
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from samon_jax.processes import environment
from samon_jax.training import cli, journal, loop, step
from samon_jax.training import run as runs
from samon_jax.workdir import checkpoints, lock

_REPEATED = 200


def operations(config: Any) -> tuple[float, float, int]:
    """Operations of a step with the check in it as XLA counts them, of the check, and its numbers.

    XLA counts both branches of a condition, as if the check were done at every step.
    """
    run = runs.set_up(config)
    state = run.template()
    leaves = jax.tree.leaves((state.params, state.model_state))
    with_check = run.flops_per_step() or 0.0
    runs._programs.cache_clear()
    with mock.patch.object(step, "_all_finite", return_value=jnp.ones((), bool)):
        without = runs.set_up(config).flops_per_step() or 0.0
    runs._programs.cache_clear()
    return with_check, with_check - without, sum(leaf.size for leaf in leaves)


class Clock:
    """Adds up seconds by name."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Times a block."""
        since = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - since

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self.time(name):
                return function(*args, **kwargs)

        return wrapper

    @contextlib.contextmanager
    def timed_lock(self, directory: Path, say: Callable[[str], None]) -> Iterator[None]:
        """The lock of a work directory, whose taking and giving back are timed."""
        with contextlib.ExitStack() as stack:
            with self.time("lock"):
                stack.enter_context(lock.locked(directory, say))
            yield
            with self.time("lock"):
                stack.close()


def pieces(config: Any, directory: Path) -> tuple[dict[str, float], float]:
    """Trains; seconds of each check, and of the whole, from set-up to summary."""
    clock = Clock()
    patches = (
        (loop, "locked", clock.timed_lock),
        (checkpoints, "_check_finite", clock.timed("before saving", checkpoints._check_finite)),
        (journal, "identity", clock.timed("identity", journal.identity)),
        (
            journal.Journal,
            "_check_finite",
            clock.timed("losses and metrics", journal.Journal._check_finite),
        ),
    )
    with contextlib.ExitStack() as stack:
        for place, name, value in patches:
            stack.enter_context(mock.patch.object(place, name, value))
        since = time.perf_counter()
        loop.train(config, directory)
        whole = time.perf_counter() - since
    return dict(clock.seconds), whole


def inside_the_step(config: Any) -> tuple[float, float]:
    """Seconds of one check of parameters and statistics, and of fetching one result."""
    run = runs.set_up(config)
    state = run.initial_state()
    check = jax.jit(step._all_finite)
    tree = (state.params, state.model_state)
    check(tree).block_until_ready()
    checking, fetching = [], []
    for _ in range(_REPEATED):
        since = time.perf_counter()
        found = check(tree).block_until_ready()
        between = time.perf_counter()
        np.all(np.asarray(found))
        checking.append(between - since)
        fetching.append(time.perf_counter() - between)
    return statistics.median(checking), statistics.median(fetching)


def main() -> None:
    """Prints two tables."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    environment.use_compilation_cache()
    environment.quiet_libraries()
    config = cli.load_config("configs/digits.py")
    counted, of_check, numbers = operations(config)
    run = runs.set_up(config)
    each = of_check / run.steps_per_epoch
    print(f"numbers checked once an epoch of {run.steps_per_epoch} steps: {numbers:,}")
    print(f"operations of a step as XLA counts them: {counted:,.0f}, of these the check")
    print(f"{of_check:,.0f} ({of_check / counted:.1e}); done once an epoch: {each / counted:.1e}")
    with tempfile.TemporaryDirectory() as folder:
        seconds, whole = pieces(config, Path(folder) / "run")
    checking, fetching = inside_the_step(config)
    seconds["inside the step"] = config.epochs * checking
    seconds["fetching that result"] = run.total_steps * fetching
    print(f"\n| check | ms of {whole:.1f} s | share (%) |\n|---|---:|---:|")
    for name, value in (seconds | {"all": sum(seconds.values())}).items():
        print(f"| {name} | {1e3 * value:.1f} | {100 * value / whole:.3f} |")


if __name__ == "__main__":
    main()
