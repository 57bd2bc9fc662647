"""One run at a time in a work directory.

The file `.lock` says who runs there. On one host the operating system holds the lock, so it ends
with its process, however that ends. For other hosts, on a shared file system, the owner touches the
file every few seconds: a run whose file nobody has touched for half a minute is dead.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from samon_jax.errors import UserError

LOCK = ".lock"
BEAT_SECONDS = 5.0
DEAD_SECONDS = 30.0
_SETTLED_SECONDS = 1.0
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def locked(directory: Path, say: Callable[[str], None] = print) -> Iterator[None]:
    """Holds the lock of a work directory; reading a run needs none.

    Where nothing can be written there is nothing to guard: whoever then writes says why it fails.
    On a file system that has no locks, the owner's sign of life is all there is.

    Args:
      directory: created if missing.
      say: receives a line if the lock was left by a run on another host, and one is waiting to see
        whether that run is dead.

    Raises:
      UserError: another run, of this program or another, works there; it says which.

    Example:
      >>> import tempfile
      >>> directory = Path(tempfile.mkdtemp())
      >>> with locked(directory):
      ...     sorted(file.name for file in directory.iterdir())
      ['.lock']
      >>> sorted(directory.iterdir())
      []
    """
    path = directory / LOCK
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor, held = _open(path)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM) and os.access(directory, os.W_OK):
            raise UserError(
                f"{path} cannot be opened ({error.strerror}): it is another user's, who may work "
                "there; choose another --workdir, or remove the file"
            ) from None
        yield
        return
    ended = threading.Event()
    try:
        with contextlib.suppress(OSError):  # of a full disk
            _check_owner(directory, descriptor, held, say)
            _write(descriptor)
            if not held:
                _check_still_owner(directory, descriptor)
        beat = threading.Thread(target=_beat, args=(descriptor, ended), daemon=True)
        beat.start()
        try:
            yield
        finally:
            ended.set()
            beat.join()
            with contextlib.suppress(OSError):
                path.unlink()
    finally:
        os.close(descriptor)


def text(directory: Path) -> str | None:
    """What the lock of a directory says, or None if there is none."""
    try:
        return (directory / LOCK).read_text()
    except OSError:
        return None


def _open(path: Path) -> tuple[int, bool]:
    """The file, and whether no other process of this host can hold it from now on."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = _owner(descriptor)
            # A file server may hold the lock of a dead host for minutes: ask for a sign of life.
            elsewhere = owner.get("host", socket.gethostname()) != socket.gethostname()
            busy = error.errno in (errno.EWOULDBLOCK, errno.EACCES)
            if error.errno in _NO_LOCKS or (busy and elsewhere):
                return descriptor, False
            os.close(descriptor)
            if busy:
                raise _in_use(path.parent, owner) from None
            raise
        # Whoever held it may have removed the file in between: then this is no longer the file.
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor, True
        os.close(descriptor)


def _check_owner(directory: Path, descriptor: int, held: bool, say: Callable[[str], None]) -> None:
    """Raises a UserError if a run of another host is alive; waits for a sign of life if need be."""
    owner = _owner(descriptor)
    if not owner or (held and owner.get("host") == socket.gethostname()):
        return
    seen = _touched(directory)
    age = _clock(directory) - seen
    if age >= DEAD_SECONDS:
        return
    wait = DEAD_SECONDS - max(age, 0)
    say(f"{directory} was in use by {_describe(owner)}: waiting {wait:.0f} s for a sign of life")
    until = time.monotonic() + wait
    while time.monotonic() < until:
        time.sleep(min(1.0, wait))
        if _touched(directory) != seen:
            raise _in_use(directory, owner)


def _check_still_owner(directory: Path, descriptor: int) -> None:
    """Raises a UserError if another run took the lock over in the same second."""
    own = os.pread(descriptor, 4096, 0)
    time.sleep(_SETTLED_SECONDS)
    if text(directory) != own.decode():
        raise _in_use(directory, _owner(descriptor))


def _touched(directory: Path) -> float:
    """When the lock was last touched, by the file system's clock, inf if it was removed.

    The file is opened, because that is when NFS asks its server.
    """
    try:
        with (directory / LOCK).open("rb") as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return float("inf")


def _clock(directory: Path) -> float:
    """The time by the clock of the file system, which need not be this host's."""
    with tempfile.TemporaryFile(dir=directory) as file:
        return os.fstat(file.fileno()).st_mtime


def _write(descriptor: int) -> None:
    since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    owner = {"host": socket.gethostname(), "process": os.getpid(), "since": since}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(owner).encode(), 0)
    os.fsync(descriptor)


def _beat(descriptor: int, ended: threading.Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(descriptor)


def _owner(descriptor: int) -> dict[str, Any]:
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _describe(owner: dict[str, Any]) -> str:
    if not owner:
        return "another run"
    return f"process {owner.get('process')} on {owner.get('host')} since {owner.get('since')}"


def _in_use(directory: Path, owner: dict[str, Any]) -> UserError:
    return UserError(
        f"workdir={str(directory)!r} is in use by {_describe(owner)}; wait for it, end it, or "
        "choose another --workdir"
    )
