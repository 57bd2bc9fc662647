"""A thread that ends this process when another one of its cluster has failed or is dead.

The processes write signs of life into the coordinator's store. Collectives alone would not do: a
process that waits for a stopped one waits forever.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from typing import Any

PREFIX = "samon_jax"
BEAT_SECONDS = 0.5
DEAD_SECONDS = 15.0
_SILENT = f"has given no sign of life for {DEAD_SECONDS:.0f} s: it was killed or hangs"


def start(client: Any, process: int, processes: int) -> threading.Event:
    """Starts to write signs of life and to watch those of the others.

    Args:
      client: of the coordinator's store.
      process: this one.
      processes: how many there are.

    Returns:
      An event that, once set, ends the thread.
    """
    ended = threading.Event()
    watching = threading.Thread(
        target=_watch, args=(client, process, processes, ended), daemon=True
    )
    watching.start()
    return ended


def tell_failure(client: Any, process: int, processes: int, line: str, status: int) -> None:
    """Tells the others that this process ends, and why.

    Process 0, with which the store goes, waits until they have read it.
    """
    said = f"process {process} on {socket.gethostname()}: {line}"
    _publish(client, f"failed/{process}", said, status)
    if process == 0:
        _wait_for_ended(client, processes - 1)


def _publish(client: Any, key: str, line: str, status: int) -> None:
    """Writes down why all have to end; what another has written stays."""
    with contextlib.suppress(Exception):
        client.key_value_set(f"{PREFIX}/{key}", json.dumps({"line": line, "status": status}))


def _wait_for_ended(client: Any, processes: int) -> None:
    """Waits until so many have read why they end, or for some seconds."""
    until = time.monotonic() + 6 * BEAT_SECONDS
    while time.monotonic() < until:
        if len(client.key_value_dir_get(f"{PREFIX}/ended/")) >= processes:
            break
        time.sleep(0.05)


def _leave(client: Any, process: int, processes: int, line: str, status: int) -> None:
    """Ends this process because of another one; process 0, with which the store goes, last."""
    with contextlib.suppress(Exception):
        client.key_value_set(f"{PREFIX}/ended/{process}", "")
        if process == 0:
            _wait_for_ended(client, processes - 1)  # itself among them, the other one not
    end(line, status)


def _watch(client: Any, process: int, processes: int, ended: threading.Event) -> None:
    beat, hosts = 0, {}
    seen = {other: ("", time.monotonic()) for other in range(processes) if other != process}
    while not ended.wait(BEAT_SECONDS):
        beat += 1
        sign = json.dumps({"beat": beat, "host": socket.gethostname()})
        # Where process 0 hangs, so does the store, and whoever asks it.
        hangs = f"process 0, at which all meet, {_SILENT}"
        guard = threading.Timer(DEAD_SECONDS, end, (hangs, 1))
        guard.daemon = True
        guard.start()
        try:
            client.key_value_set(f"{PREFIX}/alive/{process}", sign, allow_overwrite=True)
            signs = dict(client.key_value_dir_get(f"{PREFIX}/alive/"))
            failures = client.key_value_dir_get(f"{PREFIX}/failed/")
            dead = client.key_value_dir_get(f"{PREFIX}/dead/")
        except Exception:  # the store went with process 0
            if not ended.wait(2 * BEAT_SECONDS):
                end("process 0, at which all meet, has ended or cannot be reached", 1)
            return
        finally:
            guard.cancel()
        if any(key.rpartition("/")[2] == str(process) for key, _ in failures):
            return  # this one has failed itself, and says so
        for _, text in [*failures, *dead]:
            if not ended.is_set():
                what = json.loads(text)
                _leave(client, process, processes, what["line"], what["status"])
        now = time.monotonic()
        for other, (last, since) in seen.items():
            sign = signs.get(f"{PREFIX}/alive/{other}", "")
            if sign != last:
                seen[other] = (sign, now)
                hosts[other] = json.loads(sign)["host"]
            elif now - since > DEAD_SECONDS and not ended.is_set():
                line = f"process {other} on {hosts.get(other, 'an unknown host')} {_SILENT}"
                _publish(client, f"dead/{other}", line, 1)
                _leave(client, process, processes, line, 1)


def end(line: str, status: int) -> None:
    """Says why and ends the program from any thread, whatever the others wait for.

    Args:
      line: of an error.
      status: to end with.
    """
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        print(f"error: {line}", file=sys.stderr, flush=True)
    os._exit(status)
