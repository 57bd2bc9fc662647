"""What a program of ours sets up before it computes: where programs are kept, who may speak."""

import contextlib
import io
import logging
import os
import re
import sys
import threading
import warnings
from typing import Any

import jax
from absl import logging as absl_logging

from samon_jax.data.cache import cache_dir
from samon_jax.errors import UserError

_log = logging.getLogger(__name__)


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk, unless JAX_COMPILATION_CACHE_DIR already says where."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))


def check_platform() -> None:
    """Raises a UserError if JAX finds no device of the platform that it is told to use."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        asked = os.environ.get("JAX_PLATFORMS", "")
        reason = " ".join(str(error).split())[:200] or "there is no such device"
        raise UserError(
            f"JAX_PLATFORMS={asked!r} is not allowed here: {reason}; leave it out or say cpu"
        ) from None


def print_anything() -> None:
    """Lets stdout escape what its encoding lacks, as Python's stderr does: ρ, ±, odd file names."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def quiet_libraries() -> None:
    """Silences the notices of Orbax and absl; ours go to stdout.

    Errors too: they arrive as exceptions besides, and Orbax logs each with several tracebacks.
    """
    absl_logging.set_verbosity(absl_logging.FATAL)
    # Imported late by TFDS or Orbax, these would otherwise print through Python's last-resort
    # handler.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    threading.excepthook = _of_a_thread
    sys.unraisablehook = _unraisable
    warnings.showwarning = _show_warning


def _of_a_thread(arguments: threading.ExceptHookArgs) -> None:
    """Where a library's thread fails, as Orbax's on a full disk, its caller hears of it too."""
    _log.debug("thread %s: %r", arguments.thread, arguments.exc_value)


def _unraisable(arguments: Any) -> None:
    """What is left of coroutines that such a failure ended."""
    _log.debug("%s: %r", arguments.err_msg, arguments.exc_value)


_show = warnings.showwarning
_said: set[str] = set()


def _show_warning(message: Warning | str, *args: Any, **kwargs: Any) -> None:
    """Says once, in one line, that programs are compiled anew as their cache is full or damaged."""
    match = re.match(r"Error (read|writ)ing persistent compilation cache.*?: (.*)", str(message))
    if match is None:
        _show(message, *args, **kwargs)
    elif match[1] not in _said:
        _said.add(match[1])
        what = "read" if match[1] == "read" else "written"
        with contextlib.suppress(OSError):
            print(f"the cache of compiled programs cannot be {what} ({match[2]}): compiling anew")
