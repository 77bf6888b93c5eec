"""Atomic file writes, and file system errors as one clear message."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from research.core.errors import RunError, UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which replaces `path` atomically when the context ends without an error."""
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        if temporary.exists():
            temporary.unlink()


def sync(path: Path) -> None:
    """Write a file, or the entries of a directory, through to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically. Raises RunError where it can't be written."""
    with failing("write", path), replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The content of a file of JSON. Raises UserError where there is none, or it is damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"could not read {path}: {reason(error)}") from None


@contextmanager
def failing(what: str, path: Path, remedy: str | None = None) -> Iterator[None]:
    """Raise any OSError of this context as a RunError: "could not `what` `path`", the reason, and what to do.

    remedy  what to do; None for what helps a run, see `reason`
    """
    try:
        yield
    except OSError as error:
        why = reason(error) if remedy is None else f"{error.strerror or error}; {remedy}"
        raise RunError(f"could not {what} {path}: {why}") from error


def reason(error: BaseException) -> str:
    """Why a file operation failed and what to do about it, in one line.

    Libraries wrap OSErrors in exceptions of their own, therefore the text is searched too.
    """
    text = " ".join(str(error).split())
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text or "RESOURCE_EXHAUSTED" in text:
        return "the disk is full; free some space and start again, the run goes on from its last checkpoint"
    if number in (errno.EROFS, errno.EACCES, errno.EPERM) or "Permission denied" in text or "Read-only" in text:
        return "it can't be written to; check its permissions, or choose another --workdir"
    if number in (errno.ENOTDIR, errno.EEXIST) or "Not a directory" in text:
        return "there is a file where a directory should be; move it, or choose another --workdir"
    return f"{type(error).__name__}: {text[:300]}"
