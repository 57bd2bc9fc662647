"""python cluster_main.py CONFIG WORKDIR ...: main.py with the tiny model, and ways to go wrong.

MOMENT, a variable, says what happens to which process when: "1:raise:5" raises in process 1 at its
fifth call of a program; "1:SIGKILL:5" sends it a signal.
"""

import importlib.util
import os
import signal
import sys
import time
from pathlib import Path

if "FAKE_SLURM" in os.environ:  # as srun would say it; JAX makes a port of the job's number
    os.environ |= {
        "SLURM_JOB_ID": os.environ["FAKE_SLURM"],
        "SLURM_STEP_NODELIST": "localhost,node2",
        "SLURM_STEP_NUM_NODES": "2",
        "SLURM_NTASKS": os.environ["JAX_NUM_PROCESSES"],
        "SLURM_STEP_NUM_TASKS": os.environ.pop("JAX_NUM_PROCESSES"),
        "SLURM_PROCID": os.environ.pop("JAX_PROCESS_ID"),
        "SLURM_LOCALID": "0",
    }
    del os.environ["JAX_COORDINATOR_ADDRESS"]

import tiny

import samon_jax.models
from samon_jax import drawing
from samon_jax.training import devices

samon_jax.models.create = tiny.create
drawing.learning_curve = drawing.norm_parameters = lambda *args: None


def arrange(moment: str) -> None:
    process, what, at = moment.split(":")
    if process != os.environ.get("JAX_PROCESS_ID", os.environ.get("SLURM_PROCID")):
        return
    compile_, count = devices.Devices.compile, [0]

    def compiled(self, step, **options):
        program = compile_(self, step, **options)
        if "rows_axis" not in options:  # not a step
            return program

        class Counting:
            lower = program.lower

            def __call__(self, *args):
                count[0] += 1
                if count[0] == int(at):
                    if what == "raise":
                        raise RuntimeError("the test wants it")
                    os.kill(os.getpid(), getattr(signal, what))
                if count[0] > int(at):  # JAX looks once a second whether it was asked to stop
                    time.sleep(0.3)
                return program(*args)

        return Counting()

    devices.Devices.compile = compiled


if __name__ == "__main__":
    if os.environ.get("MOMENT"):
        arrange(os.environ["MOMENT"])
    spec = importlib.util.spec_from_file_location(
        "main", Path(__file__).parents[2].joinpath("main.py")
    )
    main = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(main)
    sys.exit(main.main(sys.argv))
