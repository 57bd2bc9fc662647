"""A run of all toys at once, in a package that holds them; prints what it found as JSON."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

import samon_jax as samon
from samon_jax import methods
from samon_jax.training import loop
from samon_jax.training.config import default_config, identity
from samon_jax.training.journal import start_or_resume
from samon_jax.training.run import set_up

jax.config.update("jax_disable_most_optimizations", True)

params = {"w": jnp.array([3.0, -4.0])}
ascent = samon.variant("toy", 0.5)
epsilon, _ = ascent.update(params, ascent.init(params), params)

config = default_config()
before = identity(config)
config.task = "toy"
config.toy.weight = 0.5
config.model = "toy-8"
config.data.name = "toy"
config.num_devices = 1
config.epochs, config.batch_size = 6, 16
config.optimizer.lr = 0.02
config.sam.variant, config.sam.mask, config.sam.rho, config.sam.toy_every = "toy", "all", 0.01, 4
config.log.tensorboard = False
directory = Path(sys.argv[1])
summary = loop.train(config, directory)

run = set_up(config)
state = start_or_resume(run, directory)
lines = (directory / "metrics.jsonl").read_text().splitlines()
print(
    json.dumps(
        {
            "variant": epsilon["w"].tolist(),
            "sharp_steps": int(state.method_state["sharp"]),
            "kinds": [run.programs.parts.method.kind(step) for step in range(5)],
            "described": methods.describe(dict(config.sam), epochs=6, batch_size=16),
            "width": run.task.model.width,
            "model": type(run.task.model).__name__,
            "test_images": len(run.source.evaluation().resident.labels),
            "data": run.source.dataset.test.labels.tolist(),
            "task": run.task.name,
            "losses": [json.loads(line)["test_loss"] for line in lines],
            "train_closeness": json.loads(lines[-1])["train_closeness"],
            "summary": summary,
            "identity_of_the_default": before,
        }
    )
)
