"""Which examples each device sees, and on which device arrays live."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

PyTree = Any


def replicate(tree: PyTree, devices: Sequence[jax.Device]) -> PyTree:
    """Copies a pytree to every device once, laid out as `jax.pmap` wants unmapped arguments.

    Arrays laid out otherwise would be copied again at every call.

    Args:
      tree: arrays on the host or on one device.
      devices: the devices that `jax.pmap` runs on, in that order.

    Returns:
      The same pytree as replicated arrays.
    """
    return jax.device_put(tree, replicated(devices))


def replicated(devices: Sequence[jax.Device]) -> NamedSharding:
    """The layout that `replicate` gives, as an argument for `jax.jit(out_shardings=...)`."""
    return NamedSharding(Mesh(np.asarray(devices), ("batch",)), PartitionSpec())


def epoch_rows(
    seed: int, epoch: int, *, num_examples: int, batch_size: int, num_devices: int
) -> np.ndarray:
    """Order of the training examples in one epoch; the last, partial batch is left out.

    Args:
      seed: seed of the run.
      epoch: counted from 0.
      num_examples: size of the training set.
      batch_size: examples per step over all devices.
      num_devices: devices that share a batch.

    Returns:
      int32 [devices, steps, batch_size / devices]; every example at most once.

    Example:
      >>> epoch_rows(0, 0, num_examples=10, batch_size=4, num_devices=2).shape
      (2, 2, 2)
    """
    order = np.random.default_rng((seed, epoch)).permutation(num_examples).astype(np.int32)
    steps = num_examples // batch_size
    batches = order[: steps * batch_size].reshape(steps, num_devices, -1)
    return np.ascontiguousarray(batches.swapaxes(0, 1))


def fisher_rows(
    seed: int, epoch: int, *, num_examples: int, samples: int, num_devices: int
) -> np.ndarray:
    """Training examples behind the Fisher information of an epoch, without repetition.

    Args:
      seed: seed of the run.
      epoch: counted from 0.
      num_examples: size of the training set.
      samples: how many are drawn.
      num_devices: devices; each gets the same examples.

    Returns:
      int32 [devices, 1, samples].
    """
    rng = np.random.default_rng((seed, epoch, 1))  # not the numbers that order the epoch
    rows = rng.permutation(num_examples)[:samples].astype(np.int32)
    return np.broadcast_to(rows, (num_devices, 1, samples))


def eval_batches(
    num_examples: int, *, batch_size: int, num_devices: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches that cover every example exactly once.

    Args:
      num_examples: size of the test set.
      batch_size: largest number of examples per step over all devices.
      num_devices: devices that share a batch.

    Yields:
      `(rows, valid)`: int32 and bool [devices, per_device]; `valid` is False where a batch is
      filled up.
    """
    per_device = -(-min(batch_size, num_examples) // num_devices)
    for start in range(0, num_examples, per_device * num_devices):
        rows = np.arange(start, start + per_device * num_devices, dtype=np.int32)
        valid = rows < num_examples
        rows = np.where(valid, rows, 0)
        yield rows.reshape(num_devices, -1), valid.reshape(num_devices, -1)


def dispatch_length(setting: int, steps_per_epoch: int, platform: str) -> int:
    """Steps per call of the compiled program; the last call of an epoch may have fewer.

    A divisor of an epoch needs only one length to be compiled. If the largest one is less than half
    of the setting, the setting itself is used, and the rest of an epoch is a second length.

    Args:
      setting: `config.steps_per_dispatch`; 0 = 1 on CPU (where XLA runs convolutions inside loops
        several times slower) and at most 50 elsewhere.
      steps_per_epoch: steps in one epoch.
      platform: "cpu", "gpu" or "tpu".

    Returns:
      The length, at most `steps_per_epoch`.

    Example:
      >>> dispatch_length(0, 390, "gpu"), dispatch_length(0, 97, "gpu")
      (39, 50)
    """
    limit = min(setting or (1 if platform == "cpu" else 50), steps_per_epoch)
    divisor = max(n for n in range(1, limit + 1) if steps_per_epoch % n == 0)
    return divisor if 2 * divisor >= limit else limit


def chunks(length: int, position: int, steps_per_epoch: int) -> Iterator[tuple[int, int]]:
    """Steps [start, stop) of each call in the rest of an epoch.

    The boundaries do not depend on `position`, so that a resumed run rounds as one that was never
    interrupted.

    Args:
      length: of a call, from `dispatch_length`.
      position: steps of the epoch done already.
      steps_per_epoch: steps in one epoch.

    Example:
      >>> list(chunks(4, 4, 10))
      [(4, 8), (8, 10)]
    """
    while position < steps_per_epoch:
        stop = min(position - position % length + length, steps_per_epoch)
        yield position, stop
        position = stop
