"""The files of a work directory: config.json, metrics.jsonl, summary.json."""

import contextlib
import json
import os
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from samon_jax.errors import UserError
from samon_jax.training.config import REPORTING_FIELDS, default_config

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
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
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
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None


def load_config(workdir: Path) -> ConfigDict:
    """The config a run was started with.

    Raises:
      UserError: there is none, or it is not one of this program's.
    """
    saved = _saved_config(workdir)
    if saved is None:
        raise UserError(f"workdir={str(workdir)!r} holds no run: {CONFIG} is missing")
    config = default_config()
    try:
        with config.unlocked():
            config.compare.methods.update(saved.get("compare", {}).get("methods", {}))
        config.update(saved)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        reason = textwrap.shorten(str(error), 200)  # ml_collections shows all fields there are
        raise UserError(f"{workdir / CONFIG} is not a config of samon_jax: {reason}") from None
    return config


def _saved_config(workdir: Path) -> dict[str, Any] | None:
    """The content of config.json, or None."""
    for path in (workdir, *workdir.parents):
        if path.exists() and not path.is_dir():
            raise UserError(f"workdir={str(workdir)!r} is not allowed: {path} is not a directory")
    saved = read_json(workdir / CONFIG)
    if saved is not None and not isinstance(saved, dict):
        kind = type(saved).__name__
        raise UserError(f"{workdir / CONFIG} is not a config of samon_jax: it holds a {kind}")
    return saved


def claim(workdir: Path, config: ConfigDict) -> None:
    """Makes the directory this run's: writes config.json, or checks the one that is there.

    Args:
      workdir: created if missing.
      config: complete and resolved; fields that only say where data lie or what is shown may
        differ.

    Raises:
      UserError: the directory holds a run with another config, or cannot be written.
    """
    ours = json.loads(config.to_json())
    saved = _saved_config(workdir)
    if saved is not None:
        changed = [
            f"{field}: {theirs!r} there, {mine!r} now"
            for field, theirs, mine in differences(saved, ours)
            if not field.startswith(REPORTING_FIELDS)
        ]
        if changed:
            raise UserError(
                f"workdir={str(workdir)!r} holds a run with another config "
                f"({'; '.join(changed)}); choose another --workdir"
            )
        if (workdir / SUMMARY).exists() or saved == ours:
            return
    with writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / CONFIG, ours)


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl, oldest first, up to the first damaged or half-written line."""
    records = []
    path = workdir / METRICS
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            break
        if not isinstance(record, dict) or "step" not in record:
            break
        records.append(record)
    return records


def append_metrics(workdir: Path, record: dict[str, Any]) -> None:
    """Adds one record and waits until it is on disk, so that no later checkpoint lacks it."""
    path = workdir / METRICS
    with writing(path), path.open("a") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def trim_metrics(workdir: Path, step: int) -> list[dict[str, Any]]:
    """Drops the records after `step`, which the resumed run is about to repeat.

    Args:
      workdir: of the run.
      step: of the checkpoint that the run resumes from.

    Returns:
      The records that stay.
    """
    kept = [record for record in read_metrics(workdir) if record["step"] <= step]
    if (workdir / METRICS).exists():
        write_text(workdir / METRICS, "".join(json.dumps(record) + "\n" for record in kept))
    return kept


def differences(saved: Any, ours: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Fields in which two configs differ, with both values.

    Args:
      saved: nested dict.
      ours: nested dict.
      prefix: of the fields' names.

    Example:
      >>> list(differences({"seed": 0, "sam": {"rho": 0.1}}, {"seed": 0, "sam": {"rho": 0.2}}))
      [('sam.rho', 0.1, 0.2)]
    """
    if isinstance(saved, dict) and isinstance(ours, dict):
        for key in sorted({*saved, *ours}):
            missing = "(missing)"
            yield from differences(
                saved.get(key, missing),
                ours.get(key, missing),
                f"{prefix}.{key}" if prefix else key,
            )
    elif saved != ours:
        yield prefix, saved, ours
