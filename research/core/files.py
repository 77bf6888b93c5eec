"""Atomic file writes and file system errors as one clear message, on disks and in buckets."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from research.core import bucket
from research.core.errors import RunError, UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which replaces `path` atomically when the context ends without an error.

    For a path in a bucket, the temporary one is on the local disk, and what was written there is uploaded.
    """
    if bucket.in_bucket(path):
        with tempfile.TemporaryDirectory() as directory:
            yield Path(directory) / path.name
            bucket.write(path, (Path(directory) / path.name).read_bytes())
        return
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


def entries(directory: Path) -> list[Path]:
    """What is in a directory; nothing where there is no directory."""
    try:
        return list(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def make_directory(directory: Path) -> None:
    """Make a directory, and those above it, where there is none. A bucket has none."""
    if not bucket.in_bucket(directory):
        directory.mkdir(parents=True, exist_ok=True)


def files_under(directory: Path) -> list[str]:
    """The paths of the files in a directory and those below it, relative to it, sorted."""
    if bucket.in_bucket(directory):
        return sorted(bucket.names_under(directory))
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def delete_tree(directory: Path) -> None:
    """Delete a directory with all that is in it, where there is one."""
    if bucket.in_bucket(directory):
        directory.rmtree(missing_ok=True)  # type: ignore[attr-defined]
    elif directory.is_symlink():
        raise OSError(f"{directory} is a symbolic link: delete it, and what it leads to")
    elif directory.exists():
        shutil.rmtree(directory)


def rename(path: Path, to: Path) -> None:
    """Rename a file; in a bucket, copy it, then delete it."""
    if bucket.in_bucket(path):
        bucket.write(to, path.read_bytes())
        path.unlink()
    else:
        path.rename(to)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically. Raises RunError where it can't be written."""
    with failing("write", path), replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The content of a file of JSON. Raises UserError where there is none, or it is damaged."""
    try:
        return json.loads(path.read_text())
    except bucket.errors(path, ValueError) as error:
        raise UserError(f"could not read {path}: {reason(error, path)}") from None


@contextmanager
def failing(what: str, path: Path, remedy: str | None = None) -> Iterator[None]:
    """Raise an error of this context in reading or writing (`bucket.errors`) as a RunError: "could not `what` `path`",
    the reason, and what to do.

    remedy  what to do; None for what helps a run, see `reason`
    """
    try:
        yield
    except bucket.errors(path) as error:
        why = reason(error, path) if remedy is None else f"{getattr(error, 'strerror', None) or error}; {remedy}"
        raise RunError(f"could not {what} {path}: {why}") from error


def reason(error: BaseException, path: Path | str = "") -> str:
    """Why an operation on a file, at `path`, failed and what to do about it, in one line.

    Libraries wrap OSErrors in exceptions of their own, therefore the text is searched too.
    """
    if bucket.in_bucket(path):
        return bucket.reason(error)
    text = " ".join(str(error).split())
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text or "RESOURCE_EXHAUSTED" in text:
        return "the disk is full; free some space and start again, the run goes on from its last checkpoint"
    if number in (errno.EROFS, errno.EACCES, errno.EPERM) or "Permission denied" in text or "Read-only" in text:
        return "permission is denied, or the disk is read-only; check its permissions, or choose another place"
    if number in (errno.ENOTDIR, errno.EEXIST) or "Not a directory" in text:
        return "there is a file where a directory should be; move it, or choose another place"
    return f"{type(error).__name__}: {text[:300]}"
