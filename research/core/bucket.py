"""Directories in buckets of Google Cloud Storage, gs://bucket/run, in the place of local ones.

A bucket has no directories, locks, renames or appending: it has objects, each written as a whole and atomically. Only
what is used here of `pathlib.Path` works there: names, `/`, iterdir, glob, and reading, writing and deleting files.
"""

import functools
import importlib.util
import logging
import os
import re
from pathlib import Path
from typing import Any, cast

from research.core.errors import NotInstalled, RunError, UserError


def in_bucket(path: Path | str) -> bool:
    """Whether `path` is one that `located` has found to be in a bucket."""
    return str(path).startswith("gs://")


def located(path: Path | str) -> Path:
    """`path`; where it begins with gs://, an `epath.Path`, with which the functions of `files` work like with others.

    Raises UserError for an address of another kind of storage, NotInstalled where the package gcsfs is missing.
    """
    address = re.match(r"([a-z0-9]+):/+", str(path))  # a Path has one slash there
    if address is None:
        return path if isinstance(path, Path) else Path(path)
    text = f"{address[1]}://{str(path)[address.end() :]}"
    if address[1] != "gs":
        raise UserError(f"{text} is neither a local directory nor one in a bucket of Google Cloud Storage, gs://…")
    if not re.fullmatch(r"gs://[^/]+/.*[^/]/*", text):
        raise UserError(f"{text} names no directory in a bucket: give gs://BUCKET/DIRECTORY")
    if importlib.util.find_spec("gcsfs") is None:
        raise NotInstalled(f'{text} needs the package gcsfs: pip install -e ".[gcs]"')
    return cast(Path, _epath().Path(text.rstrip("/")))


@functools.cache
def _epath() -> Any:
    """The module `etils.epath`, which reaches buckets by gcsfs."""
    os.environ["EPATH_USE_TF"] = "false"  # its errors would be TensorFlow's
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # asks a second service about each bucket
    for name in ("gcsfs", "google.auth"):  # they log the errors that they raise, with tracebacks
        logging.getLogger(name).setLevel(logging.CRITICAL)
    import fsspec.config
    from etils import epath

    # Orbax and the other processes write there too, which a cached listing would not show.
    fsspec.config.conf.setdefault("gs", {})["use_listings_cache"] = False
    return epath


def write(path: Path, content: bytes) -> None:
    """Write an object, atomically."""
    import fsspec

    fsspec.filesystem("gs").pipe_file(str(path), content)  # what `open` gives would try again when it is collected


def names_under(directory: Path) -> list[str]:
    """The names of the objects below a directory, relative to it."""
    import fsspec

    prefix = f"{str(directory).removeprefix('gs://')}/"
    return [name.removeprefix(prefix) for name in fsspec.filesystem("gs").find(str(directory))]


def errors(path: Path | str, *more: type[Exception]) -> tuple[type[Exception], ...]:
    """What reading and writing `path` may raise: OSError, and in a bucket the errors of the libraries that reach it.

    more  further classes, for an `except` clause
    """
    if not in_bucket(path):
        return (OSError, *more)
    import aiohttp
    from gcsfs.retry import HttpError
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError

    return (OSError, HttpError, GoogleAPIError, GoogleAuthError, aiohttp.ClientError, *more)


def check_bucket(path: Path) -> None:
    """Raises RunError where the bucket of `path` doesn't exist or can't be used from here, within half a minute."""
    from google.cloud import storage
    from google.cloud.storage.retry import DEFAULT_RETRY

    name = path.parts[2]
    try:
        # Orbax makes the same request.
        storage.Client().get_bucket(name, timeout=30, retry=DEFAULT_RETRY.with_timeout(30))
    except errors(path) as error:
        raise RunError(f"the bucket of {path} can't be used: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Why a bucket couldn't be used and what to do about it, in one line."""
    text = " ".join(str(error).split())[:300]
    status = getattr(error, "code", None)
    if type(error).__module__.startswith("google.auth") or status == 401 or "Anonymous caller" in text:
        return f"there are no valid credentials; run `gcloud auth application-default login` ({text})"
    if status == 403 or text.startswith("Forbidden"):
        return f"permission is denied; the account needs Storage Object Admin and storage.buckets.get ({text})"
    if status == 404 or isinstance(error, FileNotFoundError):
        return f"there is no such bucket or object ({text})"
    return f"{type(error).__name__}: {text}"
