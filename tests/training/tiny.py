"""A model that compiles quickly, a run that uses it, and a way to die at a chosen moment."""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from samon_jax import drawing, models
from samon_jax.processes import environment
from samon_jax.training import journal, loop
from samon_jax.training.config import default_config
from samon_jax.training.run import Call
from samon_jax.workdir import checkpoints, files
from samon_jax.workdir.checkpoints import Checkpoints

create_model = models.create


class Tiny(nn.Module):
    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images, train):
        x = images.reshape(len(images), -1)
        x = nn.Dense(16, use_bias=False, name="stem", dtype=self.dtype)(x)
        norm = nn.BatchNorm(not train, momentum=0.9, name="stage1_norm", dtype=self.dtype)
        x = nn.relu(norm(x))
        x = nn.Dense(16, use_bias=False, name="middle", dtype=self.dtype)(x)
        norm = nn.BatchNorm(not train, momentum=0.9, name="stage2_norm", dtype=self.dtype)
        return nn.Dense(self.num_classes, name="head")(nn.relu(norm(x)).astype(jnp.float32))


def create(name, num_classes, *, dtype=jnp.float32):
    return (
        Tiny(num_classes, dtype) if name == "tiny" else create_model(name, num_classes, dtype=dtype)
    )


def config(**fields) -> ConfigDict:
    """Two epochs of eleven steps on digits; `sam__rho=1.0` sets config.sam.rho."""
    config = default_config()
    config.model = "tiny"
    config.num_devices = 1
    config.epochs = 2
    config.batch_size = 128
    config.eval_batch_size = 100  # does not divide the 360 test examples
    config.data.name = "digits"
    config.data.crop_padding = 1
    config.data.flip = False
    config.sam.variant = "sam"
    config.log.tensorboard = False
    with config.unlocked():
        for field, value in fields.items():
            *sections, name = field.split("__")
            section = config
            for part in sections:
                section = section[part]
            section[name] = value
    return config


def first_calls(run, steps=1) -> list[Call]:
    """The first steps of a run as calls of one step each."""
    calls, found = run.calls(0, 0), []
    for call in calls:
        found += [
            Call(call.kind, 1, jax.tree.map(lambda x, i=i: x[:, i : i + 1], call.raw))
            for i in range(call.steps)
        ]
        if len(found) >= steps:
            break
    return found[:steps]


def in_one_call(run, steps) -> Call:
    """The first steps of a run, all of one kind, as one call."""
    calls = first_calls(run, steps)
    assert len({call.kind for call in calls}) == 1
    raw = jax.tree.map(lambda *x: np.concatenate(x, axis=1), *(call.raw for call in calls))
    return Call(calls[0].kind, steps, raw)


def batch_rows(run, step=0) -> np.ndarray:
    """The examples of one of the first steps, in the order of the devices: int32 [batch]."""
    return first_calls(run, step + 1)[step].raw["rows"].reshape(-1)


def start(run) -> Any:
    return run.devices.replicate(run.initial_state())


def trained(run, steps=1, kind=None) -> Any:
    """State and metrics after the first steps of a run, in one call of its program."""
    call = in_one_call(run, steps)
    return run.programs.step(kind or call.kind)((start(run), run.resident), call.raw)


def walk(run, steps, kind=None) -> tuple[Any, list[float]]:
    """The same in calls of one step, which need one compilation: the last state, all losses."""
    state, losses = start(run), []
    for call in first_calls(run, steps):
        program = run.programs.step(kind or call.kind)
        state, metrics = program((state, run.resident), call.raw)
        losses.append(float(metrics.loss[0]))
    return state, losses


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """Collects what XLA compiles within the context; a first program shows that it hears."""
    heard: list[str] = []

    def listen(event, duration, **kwargs):
        if "backend_compile" in event:
            heard.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        jax.jit(lambda x: x * 1.2345)(1.0)
        assert len(heard) == 1
        heard.clear()
        yield heard
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def assert_trees_close(one, other, **tolerance) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), one, other)


def final_state(run, directory: Path) -> Any:
    return checkpoints.fit(checkpoints.restore(directory), run.template(), directory)


def signal_after(patch, count: int, number: int = signal.SIGTERM) -> None:
    """Sends this process a signal when the metrics of so many calls were looked at."""
    steps, seen = journal.Journal.steps, []

    def then_signal(self, *args):
        steps(self, *args)
        seen.append(args)
        if len(seen) == count:
            os.kill(os.getpid(), number)

    patch.setattr(journal.Journal, "steps", then_signal)


def _die_at(moment: str) -> None:
    """Arranges SIGKILL at the n-th time that something happens: "dispatch:3"."""
    what, _, count = moment.partition(":")
    left = [int(count)]

    def then_die(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args, **kwargs):
            result = function(*args, **kwargs)
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGTERM if what == "sigterm" else signal.SIGKILL)
            return result

        return wrapped

    if what in ("dispatch", "sigterm"):
        journal.Journal.steps = then_die(journal.Journal.steps)
    elif what == "metrics":
        files.append_metrics = then_die(files.append_metrics)
    elif what == "save":  # the files are still being written in the background
        Checkpoints.save = then_die(Checkpoints.save)
    elif what == "plots":
        drawing.norm_parameters = then_die(drawing.norm_parameters)
    else:
        raise ValueError(moment)


if __name__ == "__main__":
    # python tiny.py WORKDIR MOMENT FIELDS: trains as main.py does.
    models.create = create
    drawing.learning_curve = drawing.norm_parameters = lambda *args: None
    if sys.argv[2]:
        _die_at(sys.argv[2])
    environment.use_compilation_cache()
    environment.quiet_libraries()
    loop.train(config(**json.loads(sys.argv[3])), Path(sys.argv[1]))
