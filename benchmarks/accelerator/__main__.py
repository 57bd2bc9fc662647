"""Measures on an accelerator what the minutes allow, most important first.

    python -m benchmarks.accelerator --minutes=9 --out=results

writes results.jsonl and report.md (and pictures where matplotlib is installed) after every result.
A further call with the same folder goes on with what is missing. It needs jax, flax and optax;
PyTorch's rows need PyTorch. Parts, in this order:

  speed   a step of every method beside PyTorch's: WRN-28-10, ResNet-50, ViT-S/16; bfloat16 and
          float32; batches of 128 and 512; and where the milliseconds of the slowest row are
  extras  what m-sharpness, three seeds at once and AutoAugment on the device cost
  cifar   with --data: ResNet-56 on CIFAR-100 with SGD, SAM-all and SAM-ON, three seeds at once, for
          as many epochs as fit; --only=cifar goes on with it. See `benchmarks.accelerator.cifar`.
"""

import argparse
import os
import sys
from pathlib import Path

# PyTorch needs memory beside JAX.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax

from benchmarks.accelerator import (
    cifar,
    cifar_data,
    device,
    extras,
    pictures,
    plan,
    profile,
    speed,
)
from benchmarks.accelerator.budget import Budget
from benchmarks.accelerator.report import Report
from samon_jax.errors import UserError

SECTIONS = {
    "speed": speed.show,
    "profile": profile.show,
    "extra": extras.show,
    "cifar": cifar.show,
}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The arguments of the command line.

    Raises:
      UserError: one of them is not allowed.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accelerator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="of this call, all in all")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--tiny", action="store_true", help="at toy size, to prove that it runs")
    parser.add_argument(
        "--only", default="", help=f"comma-separated parts: {', '.join(plan.PARTS)}"
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="CIFAR-100: a folder of TFDS, or the .npz of benchmarks.decode_cifar",
    )
    parser.add_argument("--cache", type=Path, help="of compiled programs; else <out>/compiled")
    args = parser.parse_args(arguments)
    if not 0 < args.minutes < float("inf"):
        raise UserError(f"--minutes={args.minutes:g} is not allowed; it must be above 0")
    if args.data is not None:
        cifar_data.find(args.data)  # said now and not when its turn comes
    args.only = tuple(filter(None, args.only.split(",")))
    if args.data is None and "cifar" in args.only:
        raise UserError("--only=cifar needs --data=<folder or .npz>")
    args.only = args.only or plan.PARTS
    for part in args.only:
        if part not in plan.PARTS:
            raise UserError(f"--only={part} is not allowed; choose from {', '.join(plan.PARTS)}")
    return args


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    try:
        return run(parse(arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(args: argparse.Namespace) -> int:
    """Measures what the minutes allow; 0 if there is a result."""
    budget = Budget(args.minutes)
    if args.tiny:
        jax.config.update("jax_disable_most_optimizations", True)  # they take longer than the steps
    report = Report(args.out, device.describe(), SECTIONS, pictures.draw)
    # Several parts compile the same step; the second time it is read from here.
    jax.config.update("jax_compilation_cache_dir", str(args.cache or args.out / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    before = len(report.results)
    report.say(f"{device.describe()}: {args.minutes:g} minutes; results in {args.out}")
    current = "nothing"

    def last_words() -> int:
        report.say(f"the time was over in the middle of: {current}")
        return _status(report, before, args.minutes)

    timer = budget.stop_then(last_words)
    try:
        for job in plan.jobs(args.tiny, args.data):
            if job.part not in args.only or report.find(job.key):
                continue
            if budget.over:
                report.say(f"the time is over; left for another call, first of all: {job.key}")
                break
            current = job.key
            try:
                job.run(report, budget)
            except UserError:
                raise
            except Exception as error:  # one result is missing; the next may be there
                report.say(f"{job.key}: {device.reason(error)}")
    finally:
        timer.cancel()
    return _status(report, before, args.minutes)


def _status(report: Report, before: int, minutes: float) -> int:
    if len(report.results) > before:
        report.say(f"{len(report.results) - before} new results: {report.out / 'report.md'}")
        return 0
    if report.results:
        report.say("nothing new was measured")
        return 0
    print(
        f"error: --minutes={minutes:g} is too little for the first result; nothing was measured",
        file=sys.stderr,
        flush=True,
    )
    return 2


if __name__ == "__main__":
    sys.exit(main())
