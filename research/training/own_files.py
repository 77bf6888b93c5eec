"""Where each process of a run keeps the run's files: in its directory, or in a temporary copy of it."""

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from research.core.bucket import in_bucket
from research.core.errors import UserError
from research.core.experiment import Experiment
from research.core.files import entries, failing
from research.training import config, provenance
from research.training.mirror import Mirror
from research.training.processes import ProcessGroup
from research.training.workdir import owned


class Files(NamedTuple):
    """Where a process keeps the files of a run, its checkpoints aside.

    directory  in which it reads and writes them: that of the run, or a temporary one
    upload     where the primary process has a temporary one, copy what has changed to the run's directory
    """

    directory: Path
    upload: Callable[[], None] = lambda: None


@contextlib.contextmanager
def shared(directory: Path, name: str, command: config.Command[Experiment], group: ProcessGroup) -> Iterator[Files]:
    """`workdir.owned`, for several processes; yields where this process reads and writes the run's files.

    Only the primary process owns and writes `directory`. The others run the same code on a temporary copy of its files,
    which is deleted at the end; so does the primary one where `directory` is in a bucket, but its copy is uploaded.
    Checkpoints are not copied: all processes share them.

    Raises UserError where a process does not see the directory, or has another config, code or package version.
    """
    if group.primary:
        with owned(directory, name, command):
            _check_processes(directory, name, command, group)
            group.barrier("copied")  # before anything is written
            if in_bucket(directory):
                with (
                    _copied(directory, ("tensorboard/*", "wandb/id", "history/*/samples.png")) as own,
                    Mirror(own, directory) as mirror,
                ):
                    yield Files(own, mirror.upload)
            else:
                yield Files(directory)
        return
    _check_processes(directory, name, command, group)
    with _copied(directory) as own:
        group.barrier("copied")
        yield Files(own)


@contextlib.contextmanager
def _copied(directory: Path, more: Iterable[str] = ()) -> Iterator[Path]:
    """A temporary copy of the files of `directory` that a run reads when it resumes, in a directory of the same name.

    more  patterns of further files
    """
    with tempfile.TemporaryDirectory() as temporary:
        own = Path(temporary) / directory.name
        with failing("read", directory):
            found = [path for path in entries(directory) if path.suffix in (".json", ".jsonl", ".txt")]
            for path in (*found, *(path for pattern in more for path in directory.glob(pattern))):
                copy = own / path.relative_to(directory)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes())
        yield own


def _check_processes(directory: Path, name: str, command: config.Command[Experiment], group: ProcessGroup) -> None:
    """Raise UserError where this process differs from the primary one in config, code, packages or directory."""
    if group.size == 1:
        return
    names = ("seeds", "over", "init_from", "init_paths", "place", "mesh", "shard")
    options = {option: str(getattr(command, option)) for option in names}
    code = {"code": provenance.code(), **provenance.versions()}
    now = {"config": name, **config.leaves(command.config), **options, **code}
    there = json.loads(group.broadcast("config", json.dumps(now)))
    fields = [field for field in (*there, *now) if there.get(field) != now.get(field)]
    if fields:
        differ = "; ".join(f"{x}: {there.get(x)!r} there, {now.get(x)!r} here" for x in dict.fromkeys(fields))
        raise UserError(
            f"process {group.index} differs from process 0 ({differ}): use the same command, code and packages"
        )
    about = directory / "config.json"
    with failing("read", about):
        mark = group.broadcast("directory", about.read_text() if group.primary else "")
        if not about.exists() or about.read_text() != mark:
            raise UserError(
                f"process {group.index} does not see what process 0 has written to {directory}: "
                "give a --workdir on a disk that all processes share, or in a bucket"
            )
