"""Kills commands at random moments until they finish by themselves: is the end the undisturbed one?

    python -m benchmarks.kills --kills=30

Every mode that promises to continue is run with a tiny network on digits: train, compare, reproduce
and analyze. A command is killed, by SIGKILL mostly, by SIGTERM and Ctrl-C now and then, at a moment
drawn between its start and the time that it needs undisturbed; it is repeated until it finishes,
and what it leaves is compared with what an undisturbed one left: every file, times aside, and the
parameters of the newest checkpoint to the bit. The commands run in forks of a process that has
imported everything, and call `main.main`.
"""

import argparse
import dataclasses
import functools
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# Small programs too are compiled once for all forks, which are made before BLAS has threads.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
from flax import linen as nn

import main as program
from samon_jax import models
from samon_jax.analysis import measure, report
from samon_jax.paper import catalog
from samon_jax.paper.grid import NO_RHO, Cell, Rho, Table, label
from samon_jax.training import compare, loop, reading
from samon_jax.workdir import checkpoints, seal

_LATE = (compare, loop, reading)  # what the commands import late

ASIDE = ("seconds", "examples_per_second", "directory")  # what runs of one kind may differ in
HANGS_AFTER = 180.0  # seconds
SIGNALS = (signal.SIGKILL,) * 8 + (signal.SIGTERM, signal.SIGINT)
SIZES = measure.Sizes(
    sharpness_examples=32,
    m=32,
    steps=2,
    samples=2,
    attack_examples=20,
    attack_steps=2,
    rank_examples=40,
    surface_examples=20,
    surface_points=3,
)
CONFIG = """
from samon_jax.training.config import default_config

def get_config(methods=""):
    config = default_config()
    config.model, config.data.name = "tiny", "digits"
    config.data.crop_padding, config.data.flip = 1, False
    config.data.train_examples, config.data.test_examples = 256, 100
    config.epochs, config.batch_size, config.num_devices = 3, 64, 1
    config.sam.variant, config.sam.rho = "sam", 0.5
    if methods:
        config.epochs, config.compare.seeds = 2, 1
        with config.unlocked():
            config.compare.methods.update({"SGD": {"variant": "none"}, "SAM-ON": {"rho": 0.5}})
    return config
"""


class Tiny(nn.Module):
    """A network that is traced quickly."""

    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Images [n, H, W, C] to logits [n, classes]."""
        x = images.reshape(len(images), -1)
        x = nn.Dense(16, use_bias=False, name="stem")(x)
        x = nn.relu(nn.BatchNorm(not train, momentum=0.9, name="norm")(x))
        return nn.Dense(self.num_classes, name="head")(x)


def table() -> Table:
    """A table of two cells that are trained in seconds."""
    fields = {"model": "tiny", "data.name": "digits", "data.crop_padding": 1, "data.flip": False}
    fields |= {"data.train_examples": 256, "data.test_examples": 100}
    fields |= {"batch_size": 64, "num_devices": 1}
    sam = fields | {"sam.variant": "sam", "sam.mask": "only_norm"}
    cells = (
        Cell(label("SGD"), label("digits"), fields | {"sam.variant": "none"}, NO_RHO),
        Cell(label("SAM-ON"), label("digits"), sam, Rho("known", (0.5,))),
    )
    return Table("toy", "A toy", cells, seeds=1)


@dataclasses.dataclass
class Outcome:
    """What happened to the commands of a mode.

    Attributes:
      mode: its name.
      alone: seconds of the undisturbed command.
      signals: how many of each kind hit a running command.
      finished: commands that finished by themselves after kills.
      equal: of these, those that left what the undisturbed one left.
      wrong: what was not as it should be, in words.
    """

    mode: str
    alone: float
    signals: Counter[str] = dataclasses.field(default_factory=Counter)
    finished: int = 0
    equal: int = 0
    wrong: list[str] = dataclasses.field(default_factory=list)

    def row(self) -> str:
        """A row of the table."""
        kinds = ", ".join(f"{count} {name}" for name, count in sorted(self.signals.items()))
        bad = len(self.wrong)
        return (
            f"| {self.mode} | {self.alone:.1f} | {sum(self.signals.values())} ({kinds}) | "
            f"{self.finished} | {self.equal} | {bad} |"
        )


def fork(work: Callable[[], int]) -> int:
    """Starts a process that does the work and ends with the status it returns."""
    process = os.fork()
    if process == 0:
        status = 70
        try:
            status = work()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return process


class Command:
    """A command line in forks of this process.

    Args:
      arguments: of main.py, without the work directory.
      log: file that receives what it prints.
    """

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        self._arguments, self._log = list(arguments), log

    def start(self, workdir: Path) -> int:
        """Starts it; returns the process."""

        def work() -> int:
            self._redirect()
            try:
                return program.main(["main.py", *self._arguments, f"--workdir={workdir}"])
            except SystemExit as stopped:  # a run that was asked to stop
                return stopped.code if isinstance(stopped.code, int) else 1

        return fork(work)

    def _redirect(self) -> None:
        file = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)

    def said(self) -> str:
        """What the newest process printed."""
        return self._log.read_text(errors="replace")


def wait(process: int, seconds: float) -> int | None:
    """The status of a process, negative for a signal, or None if it still runs then."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return None


def run_killed(command: Command, workdir: Path, outcome: Outcome, chance: random.Random) -> None:
    """Repeats a command, hit by a signal at a random moment, until it finishes."""
    while True:
        process, number = command.start(workdir), chance.choice(SIGNALS)
        status = wait(process, chance.uniform(0, outcome.alone))
        if status is not None:
            if status:
                outcome.wrong.append(f"status {status}: {command.said()[-300:]}")
            return
        os.kill(process, number)
        outcome.signals[signal.Signals(number).name] += 1
        status = wait(process, HANGS_AFTER)
        if status is None:
            outcome.wrong.append(f"hung after {signal.Signals(number).name}: {command.said()}")
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        elif number != signal.SIGKILL:
            said = command.said()
            # Before main has its handlers, and after its end, a signal does what it always does.
            if status not in (0, 128 + number, -number) or "Traceback" in said:
                outcome.wrong.append(f"{signal.Signals(number).name}: {status}: {said[-300:]}")
            if status == 0:
                return


def untimed(value: Any) -> Any:
    """JSON without times and the place where it lies."""
    if isinstance(value, dict):
        return {name: untimed(x) for name, x in value.items() if name not in ASIDE}
    return [untimed(x) for x in value] if isinstance(value, list) else value


def snapshot(folder: Path) -> dict[str, Any]:
    """`look` in a process of its own: reading checkpoints starts threads."""
    file = folder.with_name("snapshot.json")
    file.unlink(missing_ok=True)
    process = fork(lambda: int(not file.write_text(json.dumps(look(folder)))))
    if wait(process, HANGS_AFTER) != 0:
        return {"snapshot": "failed"}
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def look(folder: Path) -> dict[str, Any]:
    """What there is below a folder, but for TensorBoard's events and older checkpoints."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            if path.name == checkpoints.DIRECTORY:
                newest = checkpoints.saved_steps(path.parent)[-1]
                leaves = checkpoints.read(path.parent, newest).leaves
                found[name] = newest, seal.checksum(leaves)
                others = (x.name for x in path.iterdir() if not x.name.isdigit())
                found |= {f"{name}/{other}": "left behind" for other in others}
        elif "/checkpoints/" in f"/{name}" or "/tensorboard/" in f"/{name}":
            continue
        elif path.suffix == ".json":
            found[name] = untimed(json.loads(path.read_text()))
        elif path.suffix == ".jsonl":
            found[name] = [untimed(json.loads(line)) for line in path.read_text().splitlines()]
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def differences(one: dict[str, Any], other: dict[str, Any]) -> Iterator[str]:
    """Names of what differs."""
    for name in sorted({*one, *other}):
        if one.get(name) != other.get(name):
            yield name


def try_mode(mode: str, arguments: Sequence[str], folder: Path, kills: int, seed: int) -> Outcome:
    """Kills a mode's command until it was hit so often.

    Args:
      mode: its name.
      arguments: of main.py.
      folder: where its work directories may lie.
      kills: least number of signals.
      seed: of the moments.
    """
    folder.mkdir()
    command = Command(arguments, folder / "log.txt")

    def begin(name: str) -> Path:
        # All of one name, which the report of analyze says; it begins with a trained run.
        (workdir := folder / name / "run").parent.mkdir()
        if mode == "analyze":
            shutil.copytree(folder.parent / "trained", workdir)
        return workdir

    for name in ("warm", "alone"):  # the first one compiles
        workdir, since = begin(name), time.monotonic()
        if status := wait(command.start(workdir), 600):
            raise SystemExit(f"{mode} alone ends with {status}: {command.said()}")
    outcome, chance = Outcome(mode, time.monotonic() - since), random.Random(f"{mode}{seed}")
    wanted = snapshot(folder / "alone" / "run")
    if different := list(differences(wanted, snapshot(folder / "warm" / "run"))):
        outcome.wrong.append(f"two undisturbed ones differ: {', '.join(different)}")
    while sum(outcome.signals.values()) < kills:
        workdir = begin(f"killed{outcome.finished}")
        run_killed(command, workdir, outcome, chance)
        different = list(differences(wanted, snapshot(workdir)))
        outcome.finished += 1
        outcome.equal += not different
        if different:
            outcome.wrong.append(f"{workdir}: {', '.join(different)}")
    return outcome


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a row per mode, and everything that was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30, help="of each mode")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--modes", default="train,compare,reproduce,analyze")
    arguments = parser.parse_args(argv)
    warnings.filterwarnings("ignore", "os.fork")  # of JAX, which has not begun here
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    (folder / "config.py").write_text(CONFIG)
    (folder / "data").mkdir()
    os.environ |= {"SAMON_CACHE_DIR": str(folder / "cache"), "TFDS_DATA_DIR": str(folder / "data")}
    models.register("tiny", Tiny)
    catalog.register(lambda: (table(),))
    report.analyze = functools.partial(report.analyze, sizes=SIZES)
    config = f"--config={folder}/config.py"
    commands = {
        "train": (config,),
        "compare": (f"{config}:methods",),
        "reproduce": ("--mode=reproduce", "--table=toy", "--epochs=2"),
        "analyze": ("--mode=analyze",),
    }
    print("| mode | undisturbed (s) | signals | finished | equal | wrong |")
    print("|---|---:|---:|---:|---:|---:|")
    if wait(Command((config,), folder / "log.txt").start(folder / "trained"), 600):
        raise SystemExit((folder / "log.txt").read_text())
    wrong = []
    for mode in arguments.modes.split(","):
        outcome = try_mode(mode, commands[mode], folder / mode, arguments.kills, arguments.seed)
        print(outcome.row(), flush=True)
        wrong += [f"{mode}: {text}" for text in outcome.wrong]
    print("\n".join(wrong) or f"{folder} can be deleted")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
