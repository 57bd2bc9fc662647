"""Many processes as one run: how they find each other and end together.

Every process runs the same program. They meet at the coordinator, which process 0 runs, and whose
small key-value store carries what is said (`messages`); arrays go from device to device.
"""

import contextlib
import itertools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import NamedTuple

import jax
from jax._src import distributed  # the store has no public name
from jax.experimental import multihost_utils

from samon_jax.errors import UserError
from samon_jax.processes import messages, watch
from samon_jax.processes.signals import stop_signals

# Longer than `watch.DEAD_SECONDS`, which names the dead; JAX's defaults are minutes.
_HEARTBEAT_SECONDS = 40
_SHUTDOWN_SECONDS = 30


# JAX wants numbers that rise, also from one run of a comparison to the next: a signal between them
# stops all processes at the number after the highest.
_asked = itertools.count(1)


class Given(NamedTuple):
    """What the command line says about a cluster; None where it says nothing.

    Attributes:
      distributed: whether this is one process of several.
      coordinator: host:port at which process 0 listens.
      processes: how many there are.
      process: which of them this is, from 0.
      timeout: seconds to wait for the coordinator, or for the other processes.
    """

    distributed: bool | None = None
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    timeout: int = 120


ALONE = Given(distributed=False)


def complete(given: Given, environment: Mapping[str, str] = os.environ) -> Given:
    """Fills in what JAX's variables say, and whether this is one process of several.

    It is, if that is said, or the number of processes, or if SLURM or Open MPI started several.

    Args:
      given: of the command line.
      environment: variables.

    Raises:
      UserError: a variable or a flag is not allowed.

    Example:
      >>> complete(Given(), {"SLURM_STEP_NUM_TASKS": "4"}).distributed
      True
      >>> complete(Given(), {}).distributed
      False
    """

    def number(name: str) -> int | None:
        text = environment.get(name)
        if text is None or text == "":
            return None
        if not text.isdigit():
            raise UserError(f"{name}={text!r} is not allowed; it must be an integer >= 0")
        return int(text)

    processes = given.processes if given.processes is not None else number("JAX_NUM_PROCESSES")
    process = given.process if given.process is not None else number("JAX_PROCESS_ID")
    coordinator = given.coordinator or environment.get("JAX_COORDINATOR_ADDRESS") or None
    of_launcher = max(number("SLURM_STEP_NUM_TASKS") or 0, number("OMPI_COMM_WORLD_SIZE") or 0)
    several = bool(coordinator) or (processes or 0) > 1 or of_launcher > 1
    wanted = several if given.distributed is None else given.distributed
    _check(coordinator, processes, process)
    if given.timeout < 1:
        raise UserError(
            f"--coordinator_timeout={given.timeout} is not allowed; it must be at least 1 (second)"
        )
    if given.process is not None and not wanted:
        raise UserError(
            f"--process_id={given.process} has no effect here; it needs --num_processes, or "
            "--distributed where JAX detects the cluster"
        )
    return Given(wanted, coordinator, processes, process, given.timeout)


def _check(coordinator: str | None, processes: int | None, process: int | None) -> None:
    if processes is not None and processes < 1:
        raise UserError(f"--num_processes={processes} is not allowed; it must be at least 1")
    if process is not None and processes is not None and not 0 <= process < processes:
        raise UserError(
            f"--process_id={process} is not allowed; it must be 0 to {processes - 1}, as there are "
            f"{processes} processes"
        )
    port = (coordinator or ":1").rpartition(":")[2]
    if coordinator is not None and (":" not in coordinator or not port.isdigit()):
        raise UserError(
            f"--coordinator_address={coordinator} is not allowed; it must be host:port, for "
            "example node1:1234"
        )


@contextlib.contextmanager
def joined(given: Given) -> Iterator[None]:
    """Within this context, the process is one of a cluster; JAX must not have computed before.

    At its end, all processes wait for each other. An exception other than SystemExit passes, and
    whoever handles it calls `fail`.

    Args:
      given: from `complete`; nothing happens if it is not `distributed`.

    Raises:
      UserError: the coordinator cannot be reached, or the processes do not fit each other.
    """
    if not given.distributed:
        yield
        return
    _connect(given)
    # Not from JAX's functions, which start the devices: they may be what fails.
    us = distributed.global_state
    watching = watch.start(messages.client(), us.process_id, us.num_processes)
    status: int | None = None
    try:
        yield
    except SystemExit as end:  # all of them end so: a signal asked for it
        status = end.code if isinstance(end.code, int) else 0
    messages.put(f"done/{us.process_id}", "")
    for process in range(us.num_processes):
        messages.wait_for(f"done/{process}")
    watching.set()
    jax.distributed.shutdown()
    if status is not None:
        raise SystemExit(status)


def fail(line: str, status: int, *, lost: bool = False) -> None:
    """Ends this process and tells the others why, so that they end too; alone, it does nothing.

    Not by raising: on its way out, Python would wait for the others for minutes.

    Args:
      line: what went wrong; it is on stderr already, unless `lost`.
      status: to end with.
      lost: what went wrong is that another process did not answer. Whoever watches knows which, or
        will soon; it ends the program.
    """
    if not jax.distributed.is_initialized():
        return
    with contextlib.suppress(Exception):
        if lost:
            time.sleep(watch.DEAD_SECONDS + 3)
            print(f"error: {name()}{line}", file=sys.stderr)  # it was something else, then
        us = distributed.global_state
        watch.tell_failure(messages.client(), us.process_id, us.num_processes, line, status)
    _flush()
    os._exit(status)


def is_lost(error: BaseException) -> bool:
    """Whether an error looks as if another process did not answer."""
    words = ("Gloo", "gloo", "NCCL", "onnection", "peer", "UNAVAILABLE", "DEADLINE_EXCEEDED")
    several = jax.distributed.is_initialized() and distributed.global_state.num_processes > 1
    return several and any(
        # A file system, too, speaks of connections and peers.
        isinstance(cause, jax.errors.JaxRuntimeError) and any(word in str(cause) for word in words)
        for cause in _causes(error)
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def name() -> str:
    """What errors of this process begin with: "process 1 on node7: "; nothing if it is alone."""
    if not jax.distributed.is_initialized():
        return ""
    state = distributed.global_state
    return f"process {state.process_id} on {socket.gethostname()}: "


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], int | None]]:
    """Within this context, signals ask a run to stop where it can continue.

    Yields:
      A function to be asked after each call of a program, which gives the signal because of which
      the run must stop now, or None. With several processes, a signal to one of them stops all
      after the same call.
    """
    if jax.process_count() == 1:
        with stop_signals() as received:
            yield lambda: received[0] if received else None
        return

    # JAX hears SIGTERM itself, unless Python has a handler for it.
    def as_sigterm(number: int, frame: FrameType | None) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGINT, as_sigterm)
    try:
        yield (
            lambda: (
                signal.SIGTERM
                if multihost_utils.reached_preemption_sync_point(next(_asked))
                else None
            )
        )
    finally:
        signal.signal(signal.SIGINT, before)


def _connect(given: Given) -> None:
    """Meets the others; UserError if that fails."""
    if given.coordinator and given.process:  # where JAX finds the number out, it may be 0
        _reach(given.coordinator, given.timeout)
    # JAX itself would end the program with a stack trace of its own.
    where = f" at coordinator_address={given.coordinator}" if given.coordinator else ""
    who = f"process {given.process} on {socket.gethostname()}: " if given.process else ""
    late = f"{who}the {given.processes or 'other'} processes did not all arrive{where}"
    guard = threading.Timer(given.timeout, watch.end, (f"{late} within {given.timeout} s", 2))
    guard.daemon = True
    guard.start()
    try:
        jax.distributed.initialize(
            given.coordinator,
            given.processes,
            given.process,
            initialization_timeout=given.timeout + 10,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except (ValueError, TypeError, RuntimeError) as error:
        text = " ".join(str(error).split())
        if "should be defined" in text or "must be defined" in text:
            raise UserError(
                "--distributed needs --coordinator_address, --num_processes and --process_id (or "
                "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID) where JAX does not "
                "detect the cluster"
            ) from None
        raise UserError(f"the cluster could not be joined: {text[:300]}") from None
    finally:
        guard.cancel()
    if distributed.global_state.num_processes == 1:  # simulated devices need no network then
        jax.config.update("jax_cpu_collectives_implementation", None)


def _reach(address: str, timeout: int) -> None:
    """Waits until somebody listens at the coordinator's address."""
    host, _, port = address.rpartition(":")
    until = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise UserError(
                    f"coordinator_address={address} cannot be reached within {timeout} s: "
                    f"{error.strerror or error}"
                ) from None
            time.sleep(0.2)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
