"""What is saved beside the values of a checkpoint: whose they are, and whether they are whole."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 2  # of the tree and of what is beside it
_FIELDS = ("format", "crc32", "score", "identity")
_OWN = "own_crc32"


class DamagedError(Exception):
    """A checkpoint that can be parsed but is not what was saved."""


def checksum(leaves: Mapping[str, Any]) -> int:
    """CRC-32 over names, shapes, dtypes and bytes of all leaves, in the order of their names."""
    crc = 0
    for name in sorted(leaves):
        array = np.ascontiguousarray(leaves[name])
        crc = zlib.crc32(f"{name}{array.shape}{array.dtype}".encode(), crc)
        crc = zlib.crc32(array.tobytes(), crc)
    return crc


def write(
    leaves: Mapping[str, Any], score: float | None, identity: Mapping[str, Any]
) -> dict[str, Any]:
    """What goes beside the values, as JSON.

    Args:
      leaves: the values.
      score: of the task; None in the middle of an epoch.
      identity: of the run.
    """
    beside = dict(format=FORMAT, crc32=checksum(leaves), score=score, identity=dict(identity))
    return beside | {_OWN: _own_checksum(beside)}


def read(directory: Path) -> dict[str, Any]:
    """Format, checksum, score and identity of a checkpoint.

    Args:
      directory: of the checkpoint.

    Raises:
      DamagedError: it is not what was saved.
      OSError, ValueError, RecursionError: it cannot be read.
    """
    beside = json.loads((directory / "checksum" / "metadata").read_text())
    if not isinstance(beside, dict):
        raise DamagedError("no checksum")
    own = beside.pop(_OWN, None)  # older checkpoints have none
    if own is None and beside.get("format") != FORMAT:
        return dict.fromkeys(_FIELDS) | beside
    if not set(_FIELDS) <= set(beside) or own not in (None, _own_checksum(beside)):
        raise DamagedError("checksum differs")
    return beside


def read_if_whole(directory: Path) -> dict[str, Any] | None:
    """As `read`, or None where that is not possible."""
    try:
        return read(directory)
    except (OSError, ValueError, RecursionError, DamagedError):
        return None


def _own_checksum(beside: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(beside, sort_keys=True).encode())
