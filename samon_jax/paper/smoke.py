"""Proves that a cell can run, without training it.

The step of the real network at the real batch size is traced, which finds whatever does not fit
together; and a small network of the same kind trains two real steps on noise. Cells that differ
only in ρ, seed or number of classes share both proofs.
"""

import contextlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from samon_jax.errors import UserError
from samon_jax.paper.grid import Cell, StandIns, Table
from samon_jax.paper.runs import cell_config, radii
from samon_jax.processes import environment
from samon_jax.training import loop
from samon_jax.training.config import identity
from samon_jax.training.journal import Journal, claim, start_or_resume
from samon_jax.training.run import set_up

# The smallest network of each family that has all its parts. ResNet-18 and -101 are replaced by
# three-stage networks with the same kind of blocks: the smallest of their own family has 11 million
# parameters, and to sort them for SSAM takes minutes.
SMALLEST = {
    "wrn-28-10": "wrn-10-1",
    "wrn-10-2-stem2": "wrn-10-1-stem2",
    "resnet-56b": "resnet-8b",
    "resnext-29-32x4d": "resnext-11-2x4d",
    "densenet-100": "densenet-10",
    "vgg-13": "vgg-13",
    "vgg-16": "vgg-13",
    "vgg-19": "vgg-13",
    "vit-t": "vit-t",
    "vit-s": "vit-t",
    "resnet-18": "resnet-8b",
    "resnet-101": "resnext-11-2x4d",
}
_NOISE = {"cifar10": "random10", "cifar100": "random100"}
# With an m of its own, 16 examples leave room for every ratio of the papers' batch sizes to m.
_BATCH, _BATCH_WITH_M = 4, 16


class Smoke:
    """Proves cells, several at a time, and remembers what it has proven.

    Args:
      directory: where small runs may lie for a moment.
      workers: processes; 1 = this one.
    """

    def __init__(self, directory: Path, workers: int) -> None:
        for left in directory.glob(".smoke*"):  # by one that was killed; the directory is locked
            shutil.rmtree(left, ignore_errors=True)
        self._folder = tempfile.TemporaryDirectory(dir=directory, prefix=".smoke")
        self._reasons: dict[str, str] = {}
        self._futures: dict[str, Future[str]] = {}
        self._pool: ProcessPoolExecutor | None = None
        if workers > 1:
            # Spawned: JAX has threads, which a fork does not copy.
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(workers, spawn, initializer=_set_up_worker)

    def begin(self, cells: Iterable[tuple[Table, Cell]]) -> None:
        """Lets other processes begin with what these cells need."""
        if self._pool is None:
            return
        for key, what, config in (proof for cell in cells for proof in _proofs(*cell)):
            if key not in self._futures:
                folder = Path(self._folder.name)
                self._futures[key] = self._pool.submit(_reason_of_worker, what, config, folder)

    def prove(self, table: Table, cell: Cell) -> str:
        """Returns "" if the cell can run, else the reason why not."""
        for key, what, config in _proofs(table, cell):
            if key in self._futures:
                self._reasons[key] = self._futures.pop(key).result()
            elif key not in self._reasons:
                self._reasons[key] = _reason(what, config, Path(self._folder.name))
            if self._reasons[key]:
                return self._reasons[key]
        return ""

    def close(self) -> None:
        """Ends the other processes, what they are doing included, and removes their files."""
        if self._pool is not None:
            busy = bool(self._futures)
            self._pool.shutdown(wait=not busy, cancel_futures=True)
            for process in multiprocessing.active_children() if busy else ():
                process.kill()  # SIGTERM would ask a run to save what nobody wants
        self._folder.cleanup()


def processes() -> int:
    """How many processes prove at a time: one per core of a CPU, one where an accelerator is."""
    return min(os.cpu_count() or 1, 8) if jax.default_backend() == "cpu" else 1


def _proofs(table: Table, cell: Cell) -> list[tuple[str, str, ConfigDict]]:
    """(key, kind, config) of both proofs; cells whose keys agree share them."""
    config = full_config(table, cell)
    proofs = []
    for what, own in (("trace", config), ("run", small_config(table, cell))):
        fields = identity(own, without=("data.name", "sam.rho"))
        proofs.append((what + json.dumps(fields, sort_keys=True), what, own))
    return proofs


def _reason(what: str, config: ConfigDict, directory: Path) -> str:
    """Proves one thing; returns "" or, in one line, why it failed."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # of runs of two steps
            if what == "trace":
                trace_step(config)
            else:
                with tempfile.TemporaryDirectory(dir=directory, prefix=".smoke") as folder:
                    train_two_steps(config, Path(folder) / "run")
    except Exception as error:  # whatever it is, this cell cannot run
        return f"{what}: {type(error).__name__}: {' '.join(str(error).split())}"
    return ""


def _reason_of_worker(what: str, config: ConfigDict, directory: Path) -> str:
    """The same in a process that proves many, and would keep all it has traced."""
    try:
        return _reason(what, config, directory)
    finally:
        jax.clear_caches()


def _set_up_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command, which ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    environment.use_compilation_cache()
    environment.quiet_libraries()
    use_quick_compilation()


def _end_with_parent() -> None:
    """Waits until the command is gone, however it went, and ends this process of its pool."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def full_config(table: Table, cell: Cell) -> ConfigDict:
    """The config of a cell's first run, on noise in the place of its data."""
    config = cell_config(cell, radii(cell)[0], seed=0)
    config.update_from_flattened_dict(dict(_stand_ins(table, config).full))
    return config


def small_config(table: Table, cell: Cell) -> ConfigDict:
    """Two steps of a small network of the same family, with the same ratio of batch to m."""
    full = full_config(table, cell)
    small = ConfigDict(full.to_dict())
    small.batch_size = _BATCH_WITH_M if full.sam.m else _BATCH
    small.sam.m = full.sam.m * small.batch_size // full.batch_size
    small.sam.fisher_samples = _BATCH
    small.data.train_examples = 2 * small.batch_size
    small.data.test_examples = small.eval_batch_size = small.batch_size
    small.epochs = 1
    small.log.tensorboard = False
    small.update_from_flattened_dict(dict(_stand_ins(table, full).small))
    return small


def _stand_ins(table: Table, config: ConfigDict) -> StandIns:
    """Those of the table, or those of the networks of CIFAR."""
    if table.stand_ins is not None:
        return table.stand_ins
    noise = _NOISE.get(config.data.name, config.data.name)
    whole = {"data.name": noise, "data.part": 0, "data.held_back": 0}  # noise has 2,048 images
    return StandIns(whole, {"model": SMALLEST.get(config.model, config.model)})


def trace_step(config: ConfigDict) -> None:
    """Traces the training steps of a run for the real shapes, and computes nothing.

    Raises:
      UserError: the config is not allowed.
    """
    run = set_up(config)
    resident = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), run.source.resident)
    call = next(run.calls(0, 0))
    for kind in run.programs.parts.method.kinds:
        jax.eval_shape(run.programs.step(kind), (run.template(), resident), call.raw)


def train_two_steps(config: ConfigDict, directory: Path) -> None:
    """Trains through the loop of every run; only plots and summary.json are left out.

    Raises:
      UserError: as `loop.train`, or the loop has not done two steps.
    """
    run = set_up(config)
    claim(directory, run.config)
    state = start_or_resume(run, directory)
    with contextlib.closing(Journal(run, directory, state)) as journal:
        state = loop.train_epochs(run, state, journal)
    if int(state.step) != 2 or len(journal.records) != 1:
        raise UserError(f"{int(state.step)} steps and {len(journal.records)} evaluations were done")


@contextlib.contextmanager
def quick_compilation() -> Iterator[None]:
    """Compiles without optimization, and keeps every program on disk."""
    unoptimized = jax.config.read("jax_disable_most_optimizations")
    cache: Any = jax.config
    longer_than = cache.jax_persistent_cache_min_compile_time_secs
    use_quick_compilation()
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", unoptimized)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", longer_than)


def use_quick_compilation() -> None:
    """The same from now on."""
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
