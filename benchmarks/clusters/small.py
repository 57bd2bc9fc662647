"""A run that is over quickly, and starting it in several local processes."""

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax
from flax import linen as nn
from ml_collections import ConfigDict

from samon_jax import models
from samon_jax.processes.local import start
from samon_jax.training.config import default_config

METHODS: dict[str, dict[str, Any]] = {
    "sgd": {"variant": "none"},
    "sam, all": {"variant": "sam", "mask": "all"},
    "sam-on": {"variant": "sam"},
    "m = 16": {"variant": "sam", "m": 16},
    "m = 64": {"variant": "sam", "m": 64},
    "gsam": {"variant": "sam", "gsam_alpha": 0.4},
    "esam": {"variant": "sam", "mask": "all", "esam_beta": 0.6, "esam_gamma": 0.5},
    "looksam": {"variant": "sam", "mask": "all", "look_every": 5},
    "ssam_f": {"variant": "sam", "mask": "all", "sparse": "ssam_f"},
    "ssam_d": {"variant": "sam", "mask": "all", "sparse": "ssam_d"},
    "momentum": {"variant": "sam", "direction": "momentum"},
    "elementwise_l2": {"variant": "elementwise_l2"},
    "elementwise_linf": {"variant": "elementwise_linf"},
    "layerwise_l2": {"variant": "layerwise_l2"},
    "fisher": {"variant": "fisher"},
}


class Small(nn.Module):
    """Two layers with BatchNorm.

    Not with ReLU: where a sum is rounded otherwise, a unit at its kink may switch, which is then
    all that one sees. A change of every parameter by 1e-7 grew to 2e-3 in 50 steps of SAM so.
    """

    num_classes: int

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Images [n, 8, 8, 1] to logits [n, classes]."""
        x = images.reshape(len(images), -1)
        for name in ("stage1", "stage2"):
            x = nn.Dense(64, use_bias=False, name=f"{name}_dense")(x)
            x = nn.softplus(nn.BatchNorm(not train, momentum=0.9, name=f"{name}_norm")(x))
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


def in_cluster(
    work: Sequence[str], processes: int, devices: int = 1, **options: Any
) -> list[subprocess.Popen[str]]:
    """Starts this program once more, in several processes that train together."""
    command = [sys.executable, "-m", "benchmarks.clusters", *work]
    return start(command, processes, devices=devices, **options)


def finish(running: Sequence[subprocess.Popen[str]]) -> list[int]:
    """The statuses of all."""
    return [process.wait() for process in running]
