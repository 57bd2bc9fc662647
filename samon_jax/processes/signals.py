"""SIGTERM and Ctrl-C ask a run to stop where it can continue."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGTERM and Ctrl-C instead of dying of them; a second one ends the program at once.

    At once means also in the middle of a step, where Python's own handlers have to wait.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(number)

    with _second_ends(remember):
        yield received


@contextlib.contextmanager
def _second_ends(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Within this context, `handler` gets the first signal, and the second one ends the program."""
    ours, pythons = os.pipe()
    os.set_blocking(pythons, False)
    threading.Thread(target=_end_at_second, args=(ours,), daemon=True).start()
    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    wakeup = signal.set_wakeup_fd(pythons, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, previous in before.items():
            signal.signal(number, previous)
        os.close(pythons)  # which ends the thread


def _end_at_second(descriptor: int) -> None:
    """Reads the numbers of signals as they come in, and exits at the second one."""
    count = 0
    with os.fdopen(descriptor, "rb", buffering=0) as numbers:
        while number := numbers.read(1):
            count += number[0] in (signal.SIGTERM, signal.SIGINT)
            if count == 2:
                name = signal.Signals(number[0]).name
                message = f"{name} again: ended at once; what is on disk is kept\n"
                with contextlib.suppress(OSError):
                    os.write(2, message.encode())
                os._exit(128 + number[0])


class Stopped(BaseException):
    """A signal asks a command to end that has nothing to save; not an error, hence no Exception.

    Attributes:
      number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"{signal.Signals(number).name}: stopped; what is finished stays")
        self.number = number


@contextlib.contextmanager
def raise_on_signals() -> Iterator[None]:
    """Within this context, SIGTERM and Ctrl-C raise `Stopped`, so that everything is cleaned up.

    A second one ends the program at once. `stop_signals` may be used inside, where a run can save
    what it has.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    with _second_ends(stop):
        yield
