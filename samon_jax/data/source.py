"""Where examples come from, and in which order."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

PyTree = Any


class Share(NamedTuple):
    """Which part of every batch this process feeds: rows [p/n, (p+1)/n) of it."""

    process: int = 0
    processes: int = 1

    def of(self, rows: Any) -> Any:
        """This process's rows of an array whose first axis divides by the processes."""
        return rows.reshape(self.processes, -1, *rows.shape[1:])[self.process]


class Examples(NamedTuple):
    """A split to be evaluated.

    Attributes:
      resident: arrays that stay on the device; () when streamed.
      fetch: `fetch(resident, raw) -> raw`, inside the program, on one device.
      batches: cover the split exactly once; each is a pytree of NumPy arrays
        [eval_batch_size / processes, ...] in a dict, whose entry "valid" (bool) is False where the
        last one is filled up.
    """

    resident: PyTree
    fetch: Callable[[PyTree, PyTree], PyTree]
    batches: Iterator[dict[str, Any]]


class Source(Protocol):
    """Examples of one data set.

    Attributes:
      num_examples: of the training split.
      steps_per_epoch: batches in an epoch, the same in every epoch.
      resident: arrays that stay on the device; () when streamed.
    """

    @property
    def num_examples(self) -> int:
        """See above."""

    @property
    def steps_per_epoch(self) -> int:
        """See above."""

    @property
    def resident(self) -> PyTree:
        """See above."""

    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[PyTree]:
        """This process's share of the batches of an epoch, from step `start` of it on.

        A pytree of NumPy arrays [batch_size / processes, ...] for each step. What is in a batch,
        and in which order, is a function of (seed, epoch, step) alone. Closing the iterator ends
        the threads behind it.
        """

    def shapes(self) -> list[tuple[PyTree, int]]:
        """Kinds of batches: what a step of this process is fed, and how many of an epoch are alike.

        Shapes are `jax.ShapeDtypeStruct`s. Reads no examples.
        """

    @property
    def fetch(self) -> Callable[[PyTree, PyTree], PyTree]:
        """`fetch(resident, raw) -> raw` inside the step, on one device.

        A gather from `resident`, or the identity; the same function for all sources of a kind.
        """

    def evaluation(self, split: str = "test") -> Examples:
        """A split, "test" or another that the data set has, to be evaluated."""
