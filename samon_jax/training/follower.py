"""What the processes of a cluster agree on, and what those do that write nothing."""

import hashlib
import json
import os
import time
import zlib
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import samon_jax
from samon_jax import tasks
from samon_jax.errors import UserError
from samon_jax.processes import cluster, messages
from samon_jax.training.config import flat
from samon_jax.training.journal import first_state, measure
from samon_jax.training.run import Run
from samon_jax.training.state import TrainState
from samon_jax.training.step import StepMetrics
from samon_jax.workdir import checkpoints, lock, seal

VISIBLE_SECONDS = 10.0
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def agree(what: str, facts: Callable[[], Mapping[str, Any]]) -> None:
    """Compares what must be the same in all processes.

    Args:
      what: is compared.
      facts: gives them by name, as JSON can hold them.

    Raises:
      UserError: in every process, naming the first fact in which two differ.

    Example:
      >>> agree("versions", lambda: {"jax": jax.__version__})  # alone, one agrees
    """
    if jax.process_count() == 1:
        return
    values = messages.collect(what, [cluster.name().rstrip(": "), facts()])
    if values is None:
        difference = messages.hear(what)
    else:
        difference = _difference(values)
        messages.tell(what, difference)
    if difference:
        raise UserError(difference)


def _difference(values: list[tuple[str, Mapping[str, Any]]]) -> str | None:
    (first, ours), *others = values
    for other, theirs in others:
        for name in sorted({*ours, *theirs}):
            if ours.get(name) != theirs.get(name):
                return (
                    f"the processes do not agree on {name}: {ours.get(name)!r} is that of {first}, "
                    f"{theirs.get(name)!r} that of {other}"
                )
    return None


def machine() -> dict[str, Any]:
    """Versions, our code and the devices of this process."""
    digest = hashlib.sha256()
    folder = Path(samon_jax.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    kinds = sorted({device.device_kind for device in jax.local_devices()})
    return {
        **{f"the version of {name}": metadata.version(name) for name in _PACKAGES},
        "the code of samon_jax": digest.hexdigest()[:12],
        "the devices": f"{jax.local_device_count()} x {', '.join(kinds)}",
    }


def fields_of(config: ConfigDict) -> dict[str, Any]:
    """Every field of a config that hosts have in common."""
    fields = dict(flat(json.loads(config.to_json())))
    fields.pop("data.dir")
    return fields


def settings(run: Run) -> dict[str, Any]:
    """Every field of the config, the data, and what the task keeps, such as its vocabulary."""
    fields = fields_of(run.config)
    for name, content in tasks.files(run.task).items():
        fields[name] = f"CRC-32 {zlib.crc32(content):08x}"
    crc = 0
    for leaf in jax.tree.leaves(run.source.resident):
        crc = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), crc)
    return fields | {"the data": f"{run.source.num_examples} examples, CRC-32 {crc:08x}"}


def weights(run: Run, state: TrainState) -> dict[str, Any]:
    """What training starts from, read from files that hosts may have of their own.

    Every process has to call it.
    """
    leaves = checkpoints.leaves_by_name(run.devices.to_host(state.variables))
    return {"the weights to start from": f"CRC-32 {seal.checksum(leaves):08x}"}


def start(run: Run, directory: Path) -> tuple[TrainState | None, dict[str, Any] | None]:
    """The state that process 0 starts from, read here too; or the summary of a finished run.

    Raises:
      UserError: this host does not see the work directory.
    """
    _check_visible(directory, messages.hear("lock"))
    found = messages.hear("start")
    if "summary" in found:
        return None, found["summary"]
    if found["step"] == 0:
        return first_state(run), None
    saved = checkpoints.read(directory, found["step"])
    return run.devices.place(checkpoints.fit(saved, run.template(), directory)), None


def _check_visible(directory: Path, wanted: str | None) -> None:
    """Whether the lock that process 0 holds is there; network file systems may take a moment."""
    until = time.monotonic() + VISIBLE_SECONDS
    while wanted is not None and lock.text(directory) != wanted:
        if time.monotonic() > until:
            raise UserError(
                f"workdir={str(directory)!r} is not the folder that process 0 sees under that "
                "name; it must lie on a file system that all hosts share"
            )
        os.listdir(directory.parent if directory.parent.is_dir() else "/")
        time.sleep(0.1)


class Follower:
    """A journal that writes nothing, but computes what the one of process 0 computes.

    Args:
      run: from `set_up`.
      state: of the run, to begin with.
    """

    def __init__(self, run: Run, state: TrainState) -> None:
        self._run = run
        if messages.hear("again"):
            measure(run, state)

    def steps(self, step: int, metrics: StepMetrics) -> None:
        """Waits for the steps; process 0 looks at the numbers."""
        jax.block_until_ready(metrics)

    def epoch(self, state: TrainState, speed: float, seconds: float, save: bool) -> None:
        """Takes part in the evaluation, and in bringing parameters together."""
        measure(self._run, state)
        if save:
            self.save(state)

    def save(self, state: TrainState) -> None:
        """Takes part in bringing parameters together."""
        self._run.devices.to_host(state)

    def interrupted(self, signal_name: str, step: int) -> None:
        """Nothing: process 0 waits for the disk, and the others for process 0."""

    def finish(self, state: TrainState) -> dict[str, Any]:
        """The summary that process 0 has written."""
        self._run.devices.to_host(state.params)
        return messages.hear("summary")
