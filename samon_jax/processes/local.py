"""Starts several processes of a command on this machine, as a cluster would on its hosts.

    python -m samon_jax.processes.local 2 -- python main.py --config=configs/digits.py ...

Each gets a share of the machine's simulated CPU devices, and JAX's variables. A signal goes to all
of them; the status is that of the first by number that failed.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import Any


def start(
    command: Sequence[str],
    processes: int,
    *,
    devices: int = 1,
    environment: Mapping[str, str] | None = None,
    **options: Any,
) -> list[subprocess.Popen[str]]:
    """Starts the processes of a cluster.

    Args:
      command: that each runs.
      processes: how many.
      devices: simulated CPU devices of each.
      environment: further variables.
      **options: of `subprocess.Popen`.

    Returns:
      The processes, the one that the others meet at first.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(processes),
        **(environment or {}),
    }
    flags = shared.get("XLA_FLAGS", "").split()
    shared["XLA_FLAGS"] = " ".join(flag for flag in flags if "device_count" not in flag)
    return [
        subprocess.Popen(command, env=shared | {"JAX_PROCESS_ID": str(i)}, text=True, **options)
        for i in range(processes)
    ]


@contextlib.contextmanager
def _passing_on(running: Sequence[subprocess.Popen[str]]) -> Iterator[None]:
    """Within this context, SIGTERM goes to all of them; Ctrl-C reaches them anyway."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in running:
            process.send_signal(number)

    before = signal.signal(signal.SIGTERM, pass_on)
    ignored = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, ignored)


def main(argv: Sequence[str]) -> int:
    """Runs a command in several processes and waits for them."""
    if len(argv) < 4 or not argv[1].isdigit() or argv[2] != "--":
        print(__doc__, file=sys.stderr)
        return 2
    running = start(argv[3:], int(argv[1]))
    with _passing_on(running):
        statuses = [process.wait() for process in running]
    # A process that a signal has ended: as a shell says it.
    return next((s if s > 0 else 128 - s for s in statuses if s), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
