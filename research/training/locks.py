"""The lock of a run's directory: one process trains in it at a time."""

import contextlib
import errno
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from research.core.console import warn
from research.core.errors import RunError, UserError


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Within this context, no other process can enter it with the same directory, which is made."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / ".lock").open("w")
    except OSError as error:
        raise RunError(f"{directory} can't be written ({error.strerror}): choose another directory") from error
    with lock:
        taken = _taken(lock)
        if taken:
            time.sleep(0.1)  # a process that only looks, by `in_use`, has it for a moment
            taken = _taken(lock)
        if taken:
            raise UserError(f"another process is training in {directory}: wait for it, or choose another directory")
        if taken is None:
            warn(f"this disk has no locks: see to it that no other process trains in {directory}")
        yield


def _taken(lock: IO[str]) -> bool | None:
    """Whether another process holds the lock, which this one takes otherwise; None where the disk has no locks."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            return None
        raise
    return False


def in_use(directory: Path) -> bool:
    """Whether a process is training in `directory` (see `locked`)."""
    try:
        with (directory / ".lock").open("r+") as lock:
            return bool(_taken(lock))
    except FileNotFoundError:
        return False
