"""What the input of ImageNet costs: pictures per second, and how long a step waits for them.

    python -m benchmarks.input --threads=2

prints two Markdown tables. The first has, on one thread, the time of each part of a picture's way:
reading its record, decoding, crop and resize. The second has, by number of threads, pictures per
second of the whole source, pictures per second of processor time (what a core that does nothing
else would do), what of that time is in none of the parts, and the share of the time for which
training waits, where a step computes for --step seconds. Pictures are of 500x375 pixels, the usual
size in ImageNet, cut from photographs that scikit-learn and matplotlib ship. Last comes the largest
memory of the process, with --batch=512 that of the recipe for ResNet-50.

The times of the first table are of the processor, so they hold on a busy machine as well.
"""

import argparse
import dataclasses
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from samon_jax.data import pictures
from samon_jax.data.imagenet_records import PreparedRecords
from samon_jax.data.photographs import prepare_photographs
from samon_jax.data.streamed import Record, Records, StreamedSource

SIZE = 224


def seconds_of(call: Callable[[], object], minimum: float = 1.0) -> float:
    """Processor time of a call, the median of as many as fit into the time."""
    times: list[float] = []
    while sum(times) < minimum or len(times) < 3:
        start = time.thread_time()
        call()
        times.append(time.thread_time() - start)
    return float(np.median(times))


def parts(records: PreparedRecords) -> list[tuple[str, float]]:
    """Microseconds a picture of each part, on this thread."""
    rows = list(range(min(len(records), 96)))
    found = records.read(rows)
    decoded = [pictures.decode(record.data) for record in found]
    draws = np.random.default_rng(0).random((len(rows), pictures.DRAWS))
    out = np.empty((SIZE, SIZE, 3), np.uint8)

    def resize(resampling: pictures.Image.Resampling) -> None:
        for picture, draw in zip(decoded, draws, strict=True):
            box, _ = pictures.training_crop(picture.shape[0], picture.shape[1], draw)
            pictures.write_crop(picture, box, resampling, out)

    timed = [
        ("read", seconds_of(lambda: records.read(rows))),
        ("decode", seconds_of(lambda: [pictures.decode(record.data) for record in found])),
        ("crop and resize, bilinear", seconds_of(lambda: resize(pictures.BILINEAR))),
        ("crop and resize, bicubic", seconds_of(lambda: resize(pictures.BICUBIC))),
    ]
    return [(name, 1e6 * seconds / len(rows)) for name, seconds in timed]


@dataclasses.dataclass
class Repeated:
    """The same pictures again and again: as long an epoch as one of ImageNet is for a benchmark.

    At the end of an epoch the threads have nothing to do for a moment, which must not be measured
    every 200 pictures.
    """

    records: PreparedRecords
    times: int = 100

    def __len__(self) -> int:
        """As many pictures as it says."""
        return self.times * len(self.records)

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Some of them."""
        return self.records.read([i % len(self.records) for i in indices])


class Speed(NamedTuple):
    """Of a source: pictures per second, and of processor time; share of the time waited."""

    per_second: float
    per_cpu_second: float
    waited: float


def speed(records: Records, threads: int, batch: int, step: float) -> Speed:
    """Measures a source for some seconds.

    Args:
      records: of the training split.
      threads: that decode.
      batch: examples of a step.
      step: seconds for which a step computes; 0 to measure the source alone.
    """
    source = StreamedSource(
        lambda split: records, size=SIZE, batch_size=batch, eval_batch_size=batch, threads=threads
    )
    begin, cpu, count = time.perf_counter(), time.process_time(), 0
    for _ in source.epoch(0, 0):
        count += batch
        time.sleep(step)
        if time.perf_counter() - begin > 6:
            break
    total = time.perf_counter() - begin
    cpu = time.process_time() - cpu
    return Speed(count / total, count / cpu, 1 - count // batch * step / total)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", type=Path, help="TFDS directory with imagenet2012")
    parser.add_argument("--threads", type=int, default=2, help="measure 1 to so many threads")
    parser.add_argument("--batch", type=int, default=96, help="examples of a step")
    parser.add_argument("--step", type=float, default=0.5, help="seconds that a step computes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        data_dir = arguments.data_dir
        if data_dir is None:
            data_dir = Path(directory)
            prepare_photographs(
                data_dir, {"train": max(64, -(-arguments.batch // 3)), "val": 1}, side=375
            )
        records = PreparedRecords("imagenet2012", data_dir, "train")
        timed = parts(records)
        print("| part | µs a picture |\n| --- | ---: |")
        for name, microseconds in timed:
            print(f"| {name} | {microseconds:.0f} |")
        read, decode, bilinear, bicubic = (microseconds for _, microseconds in timed)
        alone = 1e6 / (read + decode + (bilinear + bicubic) / 2)
        print(f"\nparts alone, on one thread: {alone:.0f} pictures/s")
        print("\n| threads | pictures/s | of a core | beside the parts | waited |")
        print("| ---: | ---: | ---: | ---: | ---: |")
        for threads in range(1, arguments.threads + 1):
            found = speed(Repeated(records), threads, arguments.batch, 0.0)
            waited = speed(Repeated(records), threads, arguments.batch, arguments.step).waited
            beside = 1e6 / found.per_cpu_second - 1e6 / alone
            print(
                f"| {threads} | {found.per_second:.0f} | {found.per_cpu_second:.0f} | "
                f"{beside:.0f} µs | {100 * waited:.0f} % |"
            )
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"\nlargest memory of the process, batch {arguments.batch}: {peak:.2f} GiB")


if __name__ == "__main__":
    main()
