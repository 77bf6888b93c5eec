"""The files of a run whose directory is in a bucket: written to a local directory, uploaded from there."""

from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from research.core.bucket import write
from research.core.console import warn
from research.core.errors import RunError
from research.core.files import failing, files_under

LAST = "summary.json"
"""It says that the run has finished, and is uploaded after all else."""


class Mirror:
    """A context manager that keeps the files in `directory`, a run's, equal to those in `local`, except checkpoints.

    They are uploaded by `upload`, and at the end, also where that is an error or a signal.
    """

    def __init__(self, local: Path, directory: Path) -> None:
        self._local, self._directory = local, directory
        self._uploaded = self._found()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self.upload()
        except RunError as failure:
            if error is None:
                raise
            warn(str(failure))  # the earlier error is the one to report

    def upload(self) -> None:
        """Upload the files that have changed, each of them atomically, and delete those that were deleted.

        Raises RunError where that fails.
        """
        found = self._found()
        with failing("write to", self._directory):
            for name in sorted(found, key=lambda name: (name == LAST, name)):
                if found[name] != self._uploaded.get(name):
                    write(self._directory / name, (self._local / name).read_bytes())
            for name in self._uploaded.keys() - found.keys():
                (self._directory / name).unlink(missing_ok=True)
        self._uploaded = found

    def _found(self) -> dict[str, tuple[int, int]]:
        """When each file was changed, and its size; without hidden ones, which are temporary."""
        names = [name for name in files_under(self._local) if not any(x.startswith(".") for x in Path(name).parts)]
        found: dict[str, tuple[int, int]] = {}
        for name in names:
            with suppress(FileNotFoundError):  # deleted since
                about = (self._local / name).stat()
                found[name] = about.st_mtime_ns, about.st_size
        return found
