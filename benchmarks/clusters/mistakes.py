"""What processes of main.py say that do not fit each other."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from samon_jax.processes.local import start

ROOT = Path(__file__).parents[2]
# Name -> what a shell runs in process $JAX_PROCESS_ID; $main is main.py with a config, $work a
# folder for them alone.
MISTAKES = {
    "another learning rate": '$main --workdir="$work/run" '
    "--config.optimizer.lr=0.$((JAX_PROCESS_ID + 1))",
    "another code of samon_jax": 'cd "$work/code$JAX_PROCESS_ID" && $main --workdir="$work/run"',
    "other data": 'SAMON_CACHE_DIR="$work/cache$JAX_PROCESS_ID" $main --workdir="$work/run"',
    "another number of devices": "JAX_NUM_CPU_DEVICES=$((JAX_PROCESS_ID + 1)) "
    '$main --workdir="$work/run"',
    "a batch of 127": '$main --workdir="$work/run" --config.batch_size=127',
    "one device for two processes": '$main --workdir="$work/run" --config.num_devices=1',
    "a folder of its own": '$main --workdir="$work/run$JAX_PROCESS_ID"',
    "process 1 does not come (5 s)": '[ "$JAX_PROCESS_ID" = 1 ] || '
    '$main --workdir="$work/run" --coordinator_timeout=5',
    "process 0 does not come (5 s)": '[ "$JAX_PROCESS_ID" = 0 ] || '
    '$main --workdir="$work/run" --coordinator_timeout=5',
}
# Digits whose grey levels end with another bit.
PREPARE = """
from samon_jax import data
from samon_jax.data import digits
plain = digits.to_uint8
digits.to_uint8 = lambda levels: plain(levels) ^ {change}
data.load("digits").read("train")
"""


def mistakes() -> None:
    """Prints statuses, times and lines; a status 0 of who does not come is its shell's."""
    print("| mistake | statuses | all ended after s | said |\n|---|---|---|---|")
    for name, command in MISTAKES.items():
        with tempfile.TemporaryDirectory() as temporary:
            work = Path(temporary)
            _prepare(name, work)
            main = f"{sys.executable} main.py --config=configs/digits.py --config.num_devices=0"
            begin = time.monotonic()
            running = start(
                ["bash", "-c", command],
                2,
                environment={"main": main, "work": temporary},
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=(work / "errors").open("w"),
            )
            statuses = [process.wait() for process in running]
            took = time.monotonic() - begin
            lines = (work / "errors").read_text().splitlines()
            print(f"| {name} | {statuses} | {took:.0f} | {'<br>'.join(lines)} |", flush=True)


def _prepare(name: str, work: Path) -> None:
    if name == "another code of samon_jax":
        for process in range(2):
            folder = work / f"code{process}"
            for part in ("samon_jax", "configs"):
                shutil.copytree(ROOT / part, folder / part)
            shutil.copy(ROOT / "main.py", folder)
        with (work / "code1/samon_jax/errors.py").open("a") as file:
            file.write("# changed\n")
    elif name == "other data":
        for process in range(2):
            variables = os.environ | {"SAMON_CACHE_DIR": str(work / f"cache{process}")}
            code = PREPARE.format(change=process)
            subprocess.run([sys.executable, "-c", code], env=variables, cwd=ROOT, check=True)
