"""Part 1: what a training step costs, of every method, beside PyTorch's."""

import contextlib
import functools
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from benchmarks import steps, timing
from benchmarks.accelerator import device
from benchmarks.accelerator.budget import Budget
from benchmarks.accelerator.peer import Peer, PeerError
from benchmarks.accelerator.report import Report, Result, number, table

# Methods of PyTorch to ours that do the same.
SAME = {"SGD": "SGD", "SAM": "SAM-all", "SAM-ON": "SAM-ON"}
# Times of rows are averaged over steps that take so long together.
ROUND_SECONDS = 0.2
ROUNDS = 10
# Of all minutes, for the rounds of one result; at least one round is taken.
TIMING_SHARE = 0.05


class Setting(NamedTuple):
    """What is measured at once.

    Attributes:
      model: of `samon_jax.models`.
      dtype: of the computation.
      batch: examples per step.
    """

    model: str
    dtype: str
    batch: int

    @property
    def key(self) -> str:
        """Names the result."""
        return f"speed {self.model} {self.dtype} {self.batch}"


class Row(NamedTuple):
    """A method.

    Attributes:
      about: what is known of it; see `finished`.
      seconds: takes so many steps and returns the seconds of one; None if it cannot.
      program: ours, where it is.
    """

    about: dict[str, Any]
    seconds: Callable[[int], float] | None
    program: timing.Program | None = None


def run(setting: Setting, report: Report, budget: Budget) -> None:
    """Measures a setting and reports it, also when only some of its rows could be measured."""
    shape = steps.image_shape(setting.model)
    classes = 1000 if shape[0] == 224 else 100
    report.say(f"{setting.key}: compiling ...")
    with contextlib.ExitStack() as opened:
        # PyTorch compiles in its process while XLA does here.
        pool = opened.enter_context(ThreadPoolExecutor(1))
        theirs = pool.submit(_peer_rows, setting, shape, classes, report, opened)
        ours = list(_our_rows(setting, shape, classes))
        rows = ours + theirs.result()
        timed = [(row, call) for row in rows if (call := _warmed_up(row)) is not None]
        calls = [call for _, call in timed]
        times = timing.take_turns(calls, ROUNDS, stop=budget.share(TIMING_SHARE))
        for (row, _), seconds in zip(timed, times, strict=True):
            row.about["seconds"] = seconds
            if row.program is not None and not row.program.finite:
                row.about["note"] = "parameters became infinite"
    abouts = [row.about for row in rows]
    values = {"model": setting.model, "dtype": setting.dtype, "batch": setting.batch}
    report.add("speed", setting.key, **values, rows=finished(abouts, setting.batch, setting.dtype))


def _our_rows(setting: Setting, shape: tuple[int, int, int], classes: int) -> Iterator[Row]:
    model, variables = steps.create(setting.model, classes, setting.dtype, shape)
    params = variables["params"]
    images, labels = steps.random_examples(shape, setting.batch, classes)
    wanted = steps.all_steps(model, variables, lr=1e-3)

    def compile_one(step: steps.Step) -> Row:
        about: dict[str, Any] = {"name": step.name, "framework": "ours"}
        if step.name.startswith("optax"):
            about["framework"] = "optax"
        try:
            program = timing.Program(step, params, images, labels, donate=True)
        except Exception as error:  # of the compiler or for want of memory; the next may work
            return Row(about | {"note": device.reason(error)}, None)
        about |= {
            "flops": program.flops,
            "peak_bytes": program.peak_bytes,
            "compile_seconds": program.compile_seconds,
        }
        return Row(about, program, program)

    with ThreadPoolExecutor(min(len(wanted), os.cpu_count() or 1)) as pool:
        yield from pool.map(compile_one, wanted)


def _peer_rows(
    setting: Setting,
    shape: tuple[int, int, int],
    classes: int,
    report: Report,
    opened: contextlib.ExitStack,
) -> list[Row]:
    try:
        peer = Peer()
    except PeerError as error:
        report.say(f"no rows of PyTorch: {error}")
        return []
    opened.callback(peer.close)
    rows = []
    for method in SAME:
        about: dict[str, Any] = {"name": method, "framework": f"PyTorch {peer.version}"}
        try:
            built = peer.ask(
                do="build",
                method=method,
                model=setting.model,
                classes=classes,
                dtype=setting.dtype,
                batch=setting.batch,
                shape=shape,
                compile=device.kind() != "cpu",
            )
        except PeerError as error:
            rows.append(Row(about | {"note": str(error)}, None))
            continue
        about |= {k: built[k] for k in ("note", "peak_bytes", "compile_seconds")}
        rows.append(Row(about, functools.partial(peer.seconds, built["row"])))
    return rows


def _warmed_up(row: Row) -> Callable[[int], float] | None:
    """What takes one round of a row, or None if the row cannot run, which its note then says."""
    call = row.seconds
    if call is None:
        return None
    try:
        call(2)
        length = max(1, min(50, math.ceil(ROUND_SECONDS / max(call(2), 1e-6))))
    except Exception as error:  # mostly for want of memory
        row.about["note"] = device.reason(error)
        if row.program is not None:
            row.program.forget()
        return None
    return lambda rounds: call(rounds * length)


def finished(abouts: list[dict[str, Any]], batch: int, dtype: str) -> list[dict[str, Any]]:
    """Adds to what was measured of rows what follows from it.

    Args:
      abouts: of each row "name", "framework" and, as far as there are, "flops", "peak_bytes",
        "compile_seconds", "seconds" (of each round) and "note".
      batch: examples per step.
      dtype: of the computation.

    Returns:
      The same with "ms", "images_per_second", "time" and "operations" (ratios to SGD of the same
      framework; optax's to ours), "share" (of the device's peak; PyTorch's by the operations of
      the same method here) and "speedup" (of ours over PyTorch's same method).
    """
    by_name = {(a["framework"].split()[0], a["name"]): a for a in abouts}
    peak = device.peak(device.kind(), dtype)
    rows = []
    for about in abouts:
        framework, name = about["framework"].split()[0], about["name"]
        torch = framework == "PyTorch"
        base = by_name.get(("PyTorch" if torch else "ours", "SGD"), {})
        counted = by_name.get(("ours", SAME[name]), {}) if torch else about
        first = by_name.get(("ours", "SGD"), {})
        row = {**about, "operations": _quotient(counted.get("flops"), first.get("flops"))}
        if times := about.get("seconds"):
            seconds = float(np.median(times))
            row |= {"ms": 1e3 * seconds, "images_per_second": batch / seconds}
            row["time"] = timing.ratio(times, base["seconds"]) if base.get("seconds") else None
            row["share"] = _quotient(counted.get("flops"), peak and peak * seconds)
        theirs = {ours: method for method, ours in SAME.items()}.get(name)
        other = by_name.get(("PyTorch", theirs or ""), {})
        if framework == "ours" and times and other.get("seconds"):
            row["speedup"] = timing.ratio(other["seconds"], times)
        rows.append(row)
    return rows


def _quotient(value: float | None, base: float | None) -> float | None:
    return value / base if value and base else None


def show(results: list[Result]) -> str:
    """A table for each setting, with what matters most in the line before it."""
    return "\n\n".join(
        f"## {r['model']}, {r['dtype']}, batch {r['batch']}\n\n{headline(r['rows'])}\n\n"
        + table(_HEAD, [_line(row) for row in r["rows"]])
        for r in results
    )


_HEAD = [
    "method",
    "time / SGD",
    "operations / SGD",
    "faster than PyTorch's",
    "share of peak",
    "ms per step",
    "images / s",
    "peak memory, GiB",
    "compiled in, s",
    "",
]


def headline(rows: list[dict[str, Any]]) -> str:
    """The ratios that matter most, in a sentence."""
    ours = {row["name"]: row for row in rows if row["framework"] == "ours"}
    on, said = ours.get("SAM-ON", {}), []
    if on.get("time"):
        said.append(f"SAM-ON costs {on['time']:.2f} times SGD ({on['operations']:.2f} counted)")
    if on.get("speedup"):
        said.append(f"it is {on['speedup']:.2f} times as fast as PyTorch's SAM-ON")
    if on.get("ms"):
        share = on.get("share")
        said.append(f"{100 * share:.0f} % of the device's peak" if share else "peak unknown")
    return "; ".join(said) or "SAM-ON could not be measured"


def _line(row: dict[str, Any]) -> list[str]:
    name = row["name"]
    gib = row["peak_bytes"] / 2**30 if row.get("peak_bytes") else None
    share = row.get("share")
    return [
        f"{row['framework']}: {name}" if row["framework"].startswith("PyTorch") else name,
        number(row.get("time"), ".2f"),
        number(row.get("operations"), ".3f"),
        number(row.get("speedup"), ".2f"),
        f"{100 * share:.0f} %" if share else "unknown" if row.get("ms") else "–",
        number(row.get("ms"), ".2f"),
        number(row.get("images_per_second"), ",.0f"),
        number(gib, ".2f"),
        number(row.get("compile_seconds"), ".0f"),
        row.get("note", ""),
    ]
