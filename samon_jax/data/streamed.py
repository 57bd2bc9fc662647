"""Data sets of encoded pictures that are read, decoded and cropped while the devices compute.

The threads are our own, not grain's. What grain would bring is order, sharding and iterators that
can be saved; here the order of an epoch is a function of (seed, epoch), a batch one of (seed,
epoch, step), so that a resumed run just begins at its step, and a process takes its rows of every
batch. What remains is a pool that writes into batches, which costs 15 µs a picture where grain's
copies and queues cost 150.

What is random about a picture is drawn for the whole batch before any thread sees it, so a batch
does not depend on how many threads there are. Flip and colours are left to the device; each picture
brings its seed for them, so that they do not depend on the number of devices either.
"""

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from samon_jax.data import pictures
from samon_jax.data.dataset import Split
from samon_jax.data.resident import epoch_order
from samon_jax.data.source import Examples, Share
from samon_jax.errors import UserError

_log = logging.getLogger(__name__)

CHUNK = 4  # pictures that a thread takes at once
AHEAD = 3  # batches in work at a time


class Record(NamedTuple):
    """An encoded picture.

    Attributes:
      name: by which a message may call it.
      data: of a JPEG or PNG file.
      label: in [0, classes).
    """

    name: str
    data: bytes
    label: int


class Records(Protocol):
    """The encoded pictures of a split; safe to be read by several threads."""

    def __len__(self) -> int:
        """How many there are."""

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Some of them."""


def take(resident: tuple[()], raw: Any) -> Split:
    """The identity, as a `fetch`: what a step is fed holds the pictures."""
    return Split(raw["images"], raw["labels"], raw.get("seeds"))


class StreamedSource:
    """Batches of pictures, decoded ahead by threads; see `data.source.Source` for the methods.

    A picture of the training split that cannot be decoded is replaced by the next one that can,
    and counted; in a split to be evaluated it is an error.

    Args:
      open_split: name of a split to its records.
      size: side of the pictures that come out, in pixels.
      crop: of the evaluation, see `pictures.write_centre`.
      batch_size: examples per step over all devices.
      eval_batch_size: examples per evaluation step over all devices, at most.
      threads: that decode; 0 = one for each core.
      devices: that share an evaluation step, on all processes.
      share: of each batch that this process feeds.
      limits: split to how many of its first examples there are; without entry or 0, all.
      border: pixels that are cut off on every side of a picture before all else.

    Attributes:
      damaged: name of each training picture that could not be decoded so far, and why.
    """

    resident: tuple[()] = ()
    fetch: Callable[[Any, Any], Any] = staticmethod(take)

    def __init__(
        self,
        open_split: Callable[[str], Records],
        *,
        size: int,
        crop: float = 0.875,
        batch_size: int,
        eval_batch_size: int,
        threads: int = 0,
        devices: int = 1,
        share: Share = Share(),  # noqa: B008
        limits: dict[str, int] | None = None,
        border: int = 0,
    ) -> None:
        self._open_split, self._opened = open_split, dict[str, Records]()
        self._size, self._crop, self._border = size, crop, border
        self._batch_size, self._eval_batch_size = batch_size, eval_batch_size
        self._threads = threads or len(os.sched_getaffinity(0))
        self._devices, self._share = devices, share
        self._limits = limits or {}
        self.damaged: dict[str, str] = {}
        self._naming = threading.Lock()

    @property
    def num_examples(self) -> int:
        """Of the training split."""
        return self._count("train")

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches; UserError if there is not even one."""
        if self._batch_size > self.num_examples:
            raise UserError(
                f"batch_size={self._batch_size} is not allowed; the training split has "
                f"{self.num_examples} examples"
            )
        return self.num_examples // self._batch_size

    def shapes(self) -> list[tuple[dict[str, Any], int]]:
        """One kind of batch."""
        rows = self._batch_size // self._share.processes
        shape = {
            "images": jax.ShapeDtypeStruct((rows, self._size, self._size, 3), np.uint8),
            "labels": jax.ShapeDtypeStruct((rows,), np.int32),
            "seeds": jax.ShapeDtypeStruct((rows,), np.uint32),
        }
        return [(shape, self.steps_per_epoch)]

    def epoch(
        self, seed: int, epoch: int, start: int = 0
    ) -> Generator[dict[str, np.ndarray], None, None]:
        """Images, labels and seeds of each step, as `Split` describes them."""
        count, records = self.num_examples, self._records("train")
        order = epoch_order(seed, epoch, count, self._batch_size)

        def fill(indices: np.ndarray, draws: np.ndarray, batch: dict[str, np.ndarray]) -> None:
            found = records.read(indices.tolist())
            for row, (index, record) in enumerate(zip(indices.tolist(), found, strict=True)):
                picture, label = self._readable(records, index, record, count)
                box, resampling = pictures.training_crop(
                    picture.shape[0], picture.shape[1], draws[row]
                )
                pictures.write_crop(picture, box, resampling, batch["images"][row])
                batch["labels"][row] = label

        def work() -> Iterator[_Work]:
            for step in range(start, len(order)):
                # Of the whole batch, so that every process draws the same.
                rng = np.random.default_rng((seed, epoch, step, 2))
                draws = rng.random((self._batch_size, pictures.DRAWS))
                seeds = rng.integers(2**32, size=self._batch_size, dtype=np.uint32)
                own = self._share.of(order[step])
                batch = {**self._batch(np.empty, len(own)), "seeds": self._share.of(seeds)}
                yield _Work(fill, own, self._share.of(draws), batch)

        return self._in_threads(work())

    def evaluation(self, split: str = "test") -> Examples:
        """A split and its batches; a picture that cannot be decoded is a UserError."""
        return Examples((), take, self._eval_batches(split))

    def _eval_batches(self, split: str) -> Generator[dict[str, np.ndarray], None, None]:
        records, count = self._records(split), self._count(split)

        def fill(indices: np.ndarray, valid: np.ndarray, batch: dict[str, np.ndarray]) -> None:
            rows = np.flatnonzero(valid).tolist()
            for row, record in zip(rows, records.read(indices[rows].tolist()), strict=True):
                try:
                    picture = self._decode(record)
                except pictures.UnreadableError as error:
                    raise UserError(
                        f"picture {record.name!r} of split {split!r} cannot be decoded ({error}); "
                        "an evaluation without it would be another one: replace the file"
                    ) from error
                pictures.write_centre(picture, self._crop, batch["images"][row])
                batch["labels"][row] = record.label

        def work() -> Iterator[_Work]:
            per_device = -(-min(self._eval_batch_size, count) // self._devices)
            size = per_device * self._devices
            for start in range(0, count, size):
                own = self._share.of(np.arange(start, start + size))
                valid = own < count
                # Rows that are not filled are black and of class 0.
                batch = {**self._batch(np.zeros, len(own)), "valid": valid}
                yield _Work(fill, own, valid, batch)

        return self._in_threads(work())

    def _in_threads(self, work: Iterator["_Work"]) -> Generator[dict[str, np.ndarray], None, None]:
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="pictures")
        ahead: deque[tuple[dict[str, np.ndarray], list[Future[None]]]] = deque()
        try:
            for item in work:
                ahead.append((item.batch, [pool.submit(part) for part in item.parts()]))
                if len(ahead) == AHEAD:
                    yield _finished(*ahead.popleft())
            while ahead:
                yield _finished(*ahead.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _readable(
        self, records: Records, index: int, record: Record, count: int
    ) -> tuple[np.ndarray, int]:
        """The picture, or the next one that can be decoded, and its label."""
        for further in range(1, count + 1):
            try:
                return self._decode(record), record.label
            except pictures.UnreadableError as error:
                with self._naming:
                    new = record.name not in self.damaged
                    self.damaged[record.name] = str(error)
                if new:
                    _log.warning(
                        "picture %r cannot be decoded (%s) and is replaced by the next; %d so far",
                        record.name,
                        error,
                        len(self.damaged),
                    )
            (record,) = records.read([(index + further) % count])
        raise UserError("no picture of the training split can be decoded")

    def _decode(self, record: Record) -> np.ndarray:
        picture, b = pictures.decode(record.data), self._border
        if b and min(picture.shape[:2]) <= 2 * b:
            raise pictures.UnreadableError(f"nothing is left without its border of {b} pixels")
        return picture[b:-b, b:-b] if b else picture

    def _records(self, split: str) -> Records:
        if split not in self._opened:
            self._opened[split] = self._open_split(split)
        return self._opened[split]

    def _count(self, split: str) -> int:
        available, limit = len(self._records(split)), self._limits.get(split, 0)
        if limit > available:
            raise UserError(
                f"data.{split}_examples={limit} is not allowed; the split has {available}"
            )
        return limit or available

    def _batch(self, make: Callable[..., np.ndarray], rows: int) -> dict[str, np.ndarray]:
        images = make((rows, self._size, self._size, 3), np.uint8)
        return {"images": images, "labels": make(rows, np.int32)}


class _Work(NamedTuple):
    """A batch to be filled: `fill(indices, second, batch)` for some of its rows at a time."""

    fill: Callable[[np.ndarray, np.ndarray, dict[str, np.ndarray]], None]
    indices: np.ndarray
    second: np.ndarray
    batch: dict[str, np.ndarray]

    def parts(self) -> Iterator[Callable[[], None]]:
        """A call for each `CHUNK` rows."""
        for start in range(0, len(self.indices), CHUNK):
            yield self._part(slice(start, start + CHUNK))

    def _part(self, rows: slice) -> Callable[[], None]:
        views = {name: array[rows] for name, array in self.batch.items()}
        return lambda: self.fill(self.indices[rows], self.second[rows], views)


def _finished(batch: dict[str, np.ndarray], futures: list[Future[None]]) -> dict[str, np.ndarray]:
    for future in futures:
        future.result()
    return batch
