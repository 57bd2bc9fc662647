"""Accuracy and loss on the test set."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from samon_jax.errors import UserError
from samon_jax.training import batches, checkpoints, workdir
from samon_jax.training.reporting import say
from samon_jax.training.setup import Run, set_up

PyTree = Any


class Evaluation(NamedTuple):
    """Result on a whole data set.

    Attributes:
      loss: mean cross-entropy without label smoothing, in nats.
      accuracy: share of examples classified correctly, in [0, 1].
    """

    loss: float
    accuracy: float


def evaluate(run: Run, params: PyTree, batch_stats: PyTree) -> Evaluation:
    """Evaluates every test example exactly once.

    Args:
      run: from `set_up`.
      params: parameters.
      batch_stats: running statistics.

    Returns:
      Loss and accuracy on the test set.
    """
    inputs = (params, batch_stats, run.test_set)
    sums = [
        run.programs.evaluate(inputs, batch)
        for batch in batches.eval_batches(
            len(run.dataset.test.labels),
            batch_size=run.config.eval_batch_size,
            num_devices=len(run.devices),
        )
    ]
    count = sum(int(s.examples) for s in sums)
    loss = float(np.sum([float(s.loss) for s in sums])) / count
    return Evaluation(loss, sum(int(s.correct) for s in sums) / count)


def evaluate_checkpoint(
    directory: Path, which: str, overrides: Mapping[str, Any] | None = None
) -> Evaluation:
    """Evaluates a finished or interrupted run from its work directory, and prints the result.

    Args:
      directory: work directory of the run; its config is read from there.
      which: "newest" or "best" checkpoint.
      overrides: values of fields among `config.EVAL_FIELDS`. If the run's `data.dir` is gone and
        none is given here, TFDS_DATA_DIR counts.

    Returns:
      Loss and accuracy on the test set.

    Raises:
      UserError: there is no run, or no checkpoint that can be read.
    """
    config = workdir.load_config(directory)
    if config.data.dir and not Path(config.data.dir).is_dir() and "TFDS_DATA_DIR" in os.environ:
        config.data.dir = ""
    config.update_from_flattened_dict(overrides or {})
    # The batch need not fit the devices of this machine: only the test set is used.
    config.num_devices, config.sam.m = 0, 0
    config.batch_size = jax.local_device_count()
    run = set_up(config)
    found = checkpoints.restore(directory, run.template(), which=which, say=say)
    if found is None:
        raise UserError(f"workdir={str(directory)!r} holds no checkpoint yet")
    state, step = found
    result = evaluate(run, *batches.replicate((state.params, state.batch_stats), run.devices))
    say(f"step {step}: test accuracy {100 * result.accuracy:.2f} %, test loss {result.loss:.4f}")
    return result
