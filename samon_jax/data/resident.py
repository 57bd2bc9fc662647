"""Small data sets of images, which lie on every device as a whole."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from samon_jax.data.dataset import Dataset, Split
from samon_jax.data.source import Examples, Share
from samon_jax.errors import UserError

PyTree = Any


def gather(resident: Split, raw: dict[str, Any]) -> Split:
    """The examples in the rows that `raw["rows"]` names, a gather on the device."""
    rows = raw["rows"]
    return Split(resident.images[rows], resident.labels[rows])


class ResidentSource:
    """A data set whose images stay on the device; what goes there with a step is row numbers.

    Args:
      dataset: a split is read when it is first looked at.
      batch_size: examples per step over all devices.
      eval_batch_size: examples per evaluation step over all devices, at most.
      devices: that share an evaluation step, on all processes.
      share: of each batch that this process feeds.

    Attributes:
      dataset: as given.
      fetch: `gather`.
    """

    fetch: Callable[[Any, Any], Any] = staticmethod(gather)

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch_size: int,
        eval_batch_size: int,
        devices: int = 1,
        share: Share = Share(),  # noqa: B008
    ) -> None:
        self.dataset = dataset
        self._batch_size, self._eval_batch_size = batch_size, eval_batch_size
        self._devices, self._share = devices, share

    @property
    def num_examples(self) -> int:
        """Of the training split, which is read for it."""
        return self.dataset.num_train

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches; UserError if there is not even one."""
        if self._batch_size > self.num_examples:
            raise UserError(
                f"batch_size={self._batch_size} is not allowed; data.name={self.dataset.name!r} "
                f"has {self.num_examples} training examples"
            )
        return self.num_examples // self._batch_size

    @property
    def resident(self) -> Split:
        """The training split."""
        return self.dataset.train

    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Rows int32 [batch_size / processes] of each step; see `data.source.Source`."""
        for rows in epoch_order(seed, epoch, self.num_examples, self._batch_size)[start:]:
            yield {"rows": self._share.of(rows)}

    def shapes(self) -> list[tuple[dict[str, Any], int]]:
        """One kind of batch."""
        rows = (self._batch_size // self._share.processes,)
        return [({"rows": jax.ShapeDtypeStruct(rows, np.int32)}, self.steps_per_epoch)]

    def evaluation(self, split: str = "test") -> Examples:
        """A split and its batches."""
        whole = self.dataset.split(split)
        return Examples(whole, gather, self._eval_batches(len(whole.labels)))

    def _eval_batches(self, count: int) -> Iterator[dict[str, np.ndarray]]:
        per_device = -(-min(self._eval_batch_size, count) // self._devices)
        size = per_device * self._devices
        for start in range(0, count, size):
            rows = np.arange(start, start + size, dtype=np.int32)
            valid = rows < count
            yield {"rows": self._share.of(np.where(valid, rows, 0)), "valid": self._share.of(valid)}


def epoch_order(seed: int, epoch: int, num_examples: int, batch_size: int) -> np.ndarray:
    """Order of the training examples in one epoch; the last, partial batch is left out.

    Args:
      seed: of the run.
      epoch: counted from 0.
      num_examples: size of the training set.
      batch_size: examples per step over all devices.

    Returns:
      int32 [steps, batch_size]; every example at most once.

    Example:
      >>> epoch_order(0, 0, num_examples=10, batch_size=4).shape
      (2, 4)
    """
    order = np.random.default_rng((seed, epoch)).permutation(num_examples).astype(np.int32)
    steps = num_examples // batch_size
    return order[: steps * batch_size].reshape(steps, batch_size)
