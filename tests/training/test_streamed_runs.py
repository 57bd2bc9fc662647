"""Training on streamed pictures: devices, parts of a batch, and an end at any moment."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from samon_jax.training.config import default_config
from samon_jax.training.run import set_up
from samon_jax.workdir import checkpoints

ROOT = Path(__file__).resolve().parents[2]


def config_of(photographs, **changes):
    config = default_config()
    config.data.name, config.data.dir = "imagenet2012", str(photographs)
    config.data.image_size, config.data.crop_padding, config.data.threads = 16, 0, 2
    config.data.color_jitter = 0.4
    config.model, config.epochs, config.batch_size = "digits-resnet", 1, 16
    config.optimizer.lr, config.sam.rho, config.log.tensorboard = 0.05, 0.5, False
    for name, value in changes.items():
        config.update_from_flattened_dict({name: value})
    return config


def trained(config):
    """The state after an epoch of two steps."""
    run = set_up(config)
    state = run.devices.replicate(run.initial_state())
    for call in run.calls(0, 0):
        state, _ = run.programs.step(call.kind)((state, run.resident), call.raw)
    return jax.device_get(state)


@pytest.fixture
def eight_devices(photographs):
    """What eight devices with 2 of the 16 pictures each make of two steps."""
    return trained(config_of(photographs, num_devices=8)).variables


def test_parts_of_a_batch_on_one_device_equal_eight_devices(photographs, eight_devices):
    """Flip, jitter, ε and the statistics of BatchNorm are those of eight devices."""
    state = trained(config_of(photographs, num_devices=1, **{"sam.m": 2}))
    for a, b in zip(jax.tree.leaves(state.variables), jax.tree.leaves(eight_devices), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(photographs, tmp_path):
    """SIGKILL in the middle of an epoch, twice; the end is that of a run without interruption."""

    def command(directory):
        flags = [f"--config.{name}={value}" for name, value in FLAGS.items()]
        return [
            sys.executable,
            "main.py",
            "--config=configs/imagenet.py:resnet50,variant=sam,mask=all",
            f"--workdir={directory}",
            f"--config.data.dir={photographs}",
            *flags,
        ]

    environ = {**os.environ, "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("=8", "=1")}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(whole), cwd=ROOT, env=environ, check=True, capture_output=True)
    for _ in range(2):
        before = checkpoints.saved_steps(killed)
        process = subprocess.Popen(command(killed), cwd=ROOT, env=environ)
        while checkpoints.saved_steps(killed) == before and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command(killed), cwd=ROOT, env=environ, check=True, capture_output=True)
    ours, theirs = (checkpoints.restore(directory).leaves for directory in (killed, whole))
    assert ours.keys() == theirs.keys()
    for name, leaf in ours.items():
        np.testing.assert_array_equal(leaf, theirs[name])


FLAGS = {
    "model": "resnet-8",
    "data.image_size": 16,
    "batch_size": 6,
    "sam.m": 3,
    "epochs": 6,
    "schedule.warmup_epochs": 1,
    "schedule.cooldown_epochs": 1,
    "log.tensorboard": "False",
}
