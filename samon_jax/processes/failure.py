"""What the command line says when something happens that nobody foresaw."""

import contextlib
import os
import platform
import sys
import tempfile
import traceback
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

REPORT = "error.log"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")


def one_line(error: BaseException, config: Any = None) -> str:
    """An exception in one line; for want of memory, what needs it.

    Args:
      error: of any kind.
      config: of the run, if there is one.
    """
    text = " ".join(str(error).split())
    if "RESOURCE_EXHAUSTED" in text or isinstance(error, MemoryError):
        what = f" with batch_size={config.batch_size} and model={config.model!r}" if config else ""
        return f"out of memory{what}; a smaller batch_size, sam.m or model needs less"
    text = text if len(text) <= 300 else f"{text[:299]}…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def write_report(
    error: BaseException, argv: Sequence[str], folder: Path | None, config: Any = None
) -> Path | None:
    """Writes traceback, versions, the command line and the config for whoever looks into it.

    Args:
      error: of any kind.
      argv: of the program.
      folder: work directory, if there is one that exists; else a temporary file is written.
      config: of the run, if there is one.

    Returns:
      The file, or None if nothing can be written anywhere.
    """
    text = "\n".join(
        [
            "command: " + " ".join(argv),
            f"python {platform.python_version()} on {platform.platform()}",
            *(f"{name} {_version(name)}" for name in _PACKAGES),
            f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}",
            "",
            "".join(traceback.format_exception(error)),
            f"config:\n{config}" if config else "",
        ]
    )
    for path in ([folder / REPORT] if folder else []) + [None]:
        with contextlib.suppress(OSError, ValueError):
            if path is None:
                descriptor, name = tempfile.mkstemp(prefix="samon_jax-", suffix=".log")
                os.close(descriptor)
                path = Path(name)
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
            return path
    return None


def explain(
    error: BaseException, argv: Sequence[str], folder: Path | None, config: Any, who: str = ""
) -> None:
    """Prints the line, and where the report lies, to stderr; `who` says which process it is."""
    path = write_report(error, argv, folder, config)
    where = f"; the full report is in {path}" if path else ""
    print(f"error: {who}{one_line(error, config)}{where}", file=sys.stderr)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "is not installed"
