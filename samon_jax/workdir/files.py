"""The files of a work directory: config.json, metrics.jsonl, summary.json."""

import contextlib
import json
import math
import os
import textwrap
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from samon_jax.errors import UserError

CONFIG = "config.json"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError inside the block, as of a full disk, into a UserError that names `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None


def write_text(path: Path, text: str) -> None:
    """Writes a file so that a reader, or a crash at any moment, finds the old text or the new.

    Raises:
      UserError: the file cannot be written.
    """
    # Always the same name, so that what a crash leaves is overwritten.
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def keep(path: Path, content: bytes) -> None:
    """Writes a file that never changes while a work directory is used.

    Raises:
      UserError: there is one with another content, or it cannot be written.
    """
    if path.exists():
        with writing(path):
            kept = path.read_bytes()
        if kept != content:
            raise UserError(
                f"{path} is not the one that belongs to the data of this run: they have changed, "
                "or data.dir is another; choose another --workdir"
            )
        return
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        temporary.write_bytes(content)
        temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON as `write_text` does."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any | None:
    """The content of a JSON file, or None if there is no such file.

    Raises:
      UserError: the file is not JSON.
    """
    try:
        value = json.loads(path.read_bytes())
        if _is_deep(value):
            raise ValueError("it is nested more than 100 deep")
        return value
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # not UTF-8 among them
        reason = textwrap.shorten(" ".join(str(error).split()), 200)
        raise UserError(f"{path} cannot be read as JSON: {reason}") from None


def _is_deep(value: Any, levels: int = 100) -> bool:
    """Whether lists and objects lie in one another too deep for whoever walks through them."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return not levels or any(_is_deep(x, levels - 1) for x in inner)


def read_config(workdir: Path) -> dict[str, Any] | None:
    """The content of config.json, or None if there is no such file.

    Raises:
      UserError: it cannot be read, or holds something else.
    """
    try:
        for path in (workdir, *workdir.parents):
            if path.exists() and not path.is_dir():
                raise UserError(
                    f"workdir={str(workdir)!r} is not allowed: {path} is not a directory"
                )
    except OSError as error:  # a name that is too long, or a loop of links
        shown = textwrap.shorten(repr(str(workdir)), 120)
        raise UserError(f"workdir={shown} is not allowed: {error.strerror}") from None
    saved = read_json(workdir / CONFIG)
    if saved is not None and not isinstance(saved, dict):
        kind = type(saved).__name__
        raise UserError(f"{workdir / CONFIG} is not a config of samon_jax: it holds a {kind}")
    return saved


def read_summary(workdir: Path, metrics: Sequence[str] = ()) -> dict[str, Any] | None:
    """The content of summary.json, whose presence says that a run is complete, or None.

    Args:
      workdir: of the run.
      metrics: names that must be there, with finite numbers.

    Raises:
      UserError: it cannot be read, or is not the summary of a run.
    """
    path = workdir / SUMMARY
    summary = read_json(path)
    if summary is None:
        return None
    wrong = "it holds no object" if not isinstance(summary, dict) else ""
    for name in ("steps", *metrics) if not wrong else ():
        value = summary.get(name)
        if not _is_number(value) or not math.isfinite(value):
            wrong = f"{name} is {textwrap.shorten(repr(value), 40)}"
            break
    if wrong:
        raise UserError(f"{path} is not the summary of a run: {wrong}")
    return summary


def read_metrics(workdir: Path, say: Callable[[str], None] | None = None) -> list[dict[str, Any]]:
    """The records of metrics.jsonl that can be read, oldest first.

    Args:
      workdir: of the run.
      say: receives one line if some could not be read, or if steps go backwards, as where two
        processes wrote; of two records of one step the later one stays.

    Raises:
      UserError: there is something of that name that is no file, or it cannot be read.
    """
    path = workdir / METRICS
    try:
        lines = path.read_bytes().splitlines() if path.exists() else []
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    found = [_record(line) for line in lines]
    records = [record for record in found if record is not None]
    steps = [record["step"] for record in records]
    if say and len(records) < len(lines):
        say(f"{path}: {len(lines) - len(records)} of {len(lines)} lines are damaged and left out")
    if steps != sorted(set(steps)):
        if say:
            say(f"{path}: steps are out of order, as if two processes had written it")
        records = list({record["step"]: record for record in records}.values())
        records.sort(key=lambda record: record["step"])
    return records


def _record(line: bytes) -> dict[str, Any] | None:
    """The record of one line, or None if it is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    whole = all(isinstance(record.get(name), int) for name in ("step", "epoch"))
    numbers = all(_is_number(x) for n, x in record.items() if n != "examples_per_second")
    complete = {"seconds", "train_loss", "examples_per_second"} <= set(record)
    speed = record.get("examples_per_second")
    return (
        record if whole and numbers and complete and (speed is None or _is_number(speed)) else None
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def append_metrics(workdir: Path, record: dict[str, Any]) -> None:
    """Adds one record and waits until it is on disk, so that no later checkpoint lacks it."""
    path = workdir / METRICS
    with writing(path), path.open("a") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def trim_metrics(
    workdir: Path,
    step: int,
    say: Callable[[str], None] | None = None,
    names: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Drops the records after `step`, which the resumed run is about to repeat.

    Args:
      workdir: of the run.
      step: of the checkpoint that the run resumes from.
      say: as for `read_metrics`.
      names: what a record must hold besides; one that does not is damaged.

    Returns:
      The records that stay.
    """
    found = read_metrics(workdir, say)
    kept = [record for record in found if record["step"] <= step and set(names) <= set(record)]
    if (workdir / METRICS).exists():
        write_text(workdir / METRICS, "".join(json.dumps(record) + "\n" for record in kept))
    return kept
