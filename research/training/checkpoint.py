"""Checkpoints: the whole State of a step, written by orbax in the background, with checksums.

    checkpoints/300/        what orbax wrote: {"params/net/Dense_0/kernel": array, ...}
    checkpoints/300.json    its leaves, the sha256 of each file, whether it was the best so far; written last

A step counts as saved once its .json exists, which is written atomically and has a sha256 of its own. Older steps are
deleted after that, so that a run killed at any moment resumes from its newest checkpoint. A damaged step is detected
and the one before it is used. A checkpoint does not depend on the devices: `restore` reads each leaf to where it
is asked for, each device its part.

What can't be read, for want of memory or of permission, or because a disk or a bucket can't be reached, does not count
as damaged: it is an error. `directory` may be in a bucket (`core.bucket`); there too, files are read back to be hashed.
"""

import hashlib
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import suppress
from pathlib import Path, PurePath
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from research.core import console
from research.core.bucket import errors, in_bucket, located, write
from research.core.errors import RunError
from research.core.files import delete_tree, entries, failing, files_under, make_directory, reason, replacing
from research.core.state import State
from research.training.leaves import check_same, describe, named, plain, plain_shape, typed
from research.training.processes import ProcessGroup

T = TypeVar("T")
Warn = Callable[[str], None]


def _not_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname and "orbax" not in record.getMessage()


for _logger in ("absl", "asyncio"):
    # On a full disk, threads of orbax print some 500 lines of tracebacks; our RunError is one line.
    logging.getLogger(_logger).addFilter(_not_orbax)


SAVING = 20
"""Seconds that one of several processes, after an error, waits for a save that has begun."""


class Manifest(NamedTuple):
    """The content of a saved step's .json.

    best    whether the step was the best so far; the newest such step is the best of the run
    leaves  dtype and shape of the State's leaves by name, e.g. "float32[3,4]"
    files   the sha256 of each file, by its path in the step's directory
    """

    best: bool
    leaves: dict[str, str]
    files: dict[str, str]


class Checkpoints:
    """A context manager that saves the States of a run in `directory`, in the background.

    keep          number of newest checkpoints that are kept, at least 2; the best one is kept as well
    step          the step that the run resumes from. Entering the context deletes later steps, which are damaged
                  (`restore` would have returned them otherwise), and what killed saves have left
    group         the processes of the run: each of them makes the same calls, on one shared directory
    before_saved  called by the primary process, in the background, before each step counts as saved

    An error in the background is raised as a RunError by the next call, or when the context is left.
    """

    def __init__(
        self,
        directory: Path | str,
        keep: int,
        step: int,
        group: ProcessGroup | None = None,
        before_saved: Callable[[], None] = lambda: None,
    ) -> None:
        self._directory = absolute(directory)
        self._keep, self._step, self._group = keep, step, group or ProcessGroup()
        self._before_saved = before_saved
        self._pending: Future[None] | None = None

    def __enter__(self) -> Self:
        with failing("save to", self._directory):
            make_directory(self._directory)
            if self._group.primary:
                _tidy(self._directory, self._step)
            self._group.barrier("tidied")
            # Old steps are deleted here, after the checksum of a new one, so orbax keeps them all.
            options = ocp.CheckpointManagerOptions(max_to_keep=None)
            self._manager = ocp.CheckpointManager(self._directory, options=options)
        self._worker = ThreadPoolExecutor(1, "checkpoint")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None and self._group.size > 1:
            # The others may be waiting for this process elsewhere, and are to hear of its error.
            if self._pending is not None and wait_for([self._pending], SAVING).not_done:
                self._worker.shutdown(wait=False)
                return
            self._pending = None
        try:
            self.wait()
        except RunError:
            if error is None:  # otherwise the earlier error is the one to report
                raise
        finally:
            self._worker.shutdown()
            with suppress(Exception):  # wait() has reported its errors
                self._manager.close()
            with suppress(*errors(self._directory)):  # orbax's threads may have gone on writing a save that failed
                if self._group.primary:
                    _clear(self._directory)

    def steps(self) -> list[int]:
        """The steps that are saved, oldest first."""
        self.wait()
        return _steps(self._directory)[0]

    def cost(self, state: State) -> str:
        """How large a checkpoint of `state` is, and how long it takes at least to write and hash it, in a sentence."""
        with failing("save to", self._directory):
            seconds = own_bytes(state) / _speed(self._directory)
        longest = max(map(float, self._group.all_gather("cost", str(seconds)).values()))
        where = "in this bucket" if in_bucket(self._directory) else "on this disk"
        return (
            f"A checkpoint has {console.size(total_bytes(state))}, which takes at least {longest:.0f} s {where}: "
            "a run that is stopped by SIGTERM needs this time, and that of a dispatch, before SIGKILL (often 30 s)"
        )

    def described(self) -> str:
        """Which checkpoint a run can go on from, in a sentence."""
        saved = self.steps()
        return f"Step {saved[-1]} is saved in {self._directory}" if saved else "There is no checkpoint yet"

    def save(self, step: int, state: State, best: bool = False) -> None:
        """Start saving `state`, which may be donated at once, when the save before it has ended.

        step  none that is saved already
        best  whether to mark the step as the best so far
        """
        self.wait()
        leaves = named(state)
        described = {name: describe(leaf) for name, leaf in leaves.items()}
        saved = plain(leaves)
        if self._group.size == 1:
            saved = jax.tree.map(_one_replica, saved)
        try:
            started = self._manager.save(step, args=ocp.args.StandardSave(saved), force=True)
            assert started, f"orbax declined to save step {step}"
        except Exception as error:
            raise self._failure(step, error) from error
        self._pending = self._worker.submit(self._finish, step, described, best)

    def wait(self) -> None:
        """Wait until all checkpoints and their checksums are on the disk."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
            self._group.barrier("saved")

    def _finish(self, step: int, described: dict[str, str], best: bool) -> None:
        """In the background: wait for orbax, then write the checksums, and only then delete old steps."""
        try:
            self._manager.wait_until_finished()
            path = self._directory / str(step)
            sums = {name: _sum(path / name) for name in _own(self._group, files_under(path))}
            told = self._group.all_gather("checksums", json.dumps(sums))
            if self._group.primary:
                self._before_saved()
                sums = {name: sum for text in told.values() for name, sum in json.loads(text).items()}
                _write_manifest(self._directory, step, Manifest(best, described, dict(sorted(sums.items()))))
                _rotate(self._directory, self._keep)
        except Exception as error:
            failure = self._failure(step, error)
            with suppress(*errors(self._directory)):
                if self._group.primary:
                    _tidy(self._directory, step)  # the incomplete step takes up disk space
            raise failure from error

    def _failure(self, step: int, error: Exception) -> RunError:
        try:
            saved = _steps(self._directory)[0]
            left = f"step {saved[-1]} is its newest checkpoint" if saved else "there is no checkpoint yet"
        except errors(self._directory):
            left = "its checkpoints can't be listed"
        return RunError(f"could not save step {step} in {self._directory} ({left}): {reason(error, self._directory)}")


def restore(
    directory: Path | str,
    abstract: State,
    warn: Warn = console.warn,
    best: bool = False,
    group: ProcessGroup | None = None,
) -> tuple[int, State] | None:
    """The newest step in `directory` and its State; None where nothing was saved.

    abstract  the State's shapes, `jax.eval_shape(learner.init, key)`: leaves with a sharding are read to there, each
              device its own part, others to the host
    best      take the newest step that is marked as the best, where there is one
    group     the processes that restore it together, each of which verifies a part of the files

    Nothing is written. A damaged step is skipped, with one line to `warn`. Raises UserError where a checkpoint has
    other leaves than `abstract`, RunError where all of them are damaged, or one that is not can't be read.
    """
    leaves = named(abstract)

    def read(path: Path, manifest: Manifest) -> State:
        check_same(path, manifest.leaves, leaves)
        found = read_leaves(path, leaves)
        return jax.tree.unflatten(jax.tree.structure(abstract), [found[name] for name in leaves])

    return newest_or_best(absolute(directory), read, warn, best, group or ProcessGroup())


def total_bytes(state: State) -> int:
    """The bytes of a checkpoint of `state`, before they are compressed."""
    return sum(leaf.nbytes for leaf in plain(named(state)).values())


def own_bytes(state: State) -> int:
    """Those of them that this process writes."""
    shards = (shard for leaf in plain(named(state)).values() for shard in leaf.addressable_shards)
    return sum(shard.data.nbytes for shard in shards if shard.replica_id == 0)


def absolute(directory: Path | str) -> Path:
    """Where `directory` is, as orbax wants it."""
    path = located(directory)
    return path if in_bucket(path) else path.absolute()


_SPEED = ".speed-"
"""What the names of the objects begin with by which `_speed` measures that of a bucket."""


def _speed(directory: Path, count: int = 2**26) -> float:
    """Bytes a second that `directory` takes, and that are then hashed, as those of a checkpoint are."""
    content = os.urandom(count)
    if in_bucket(directory):
        path = directory / f"{_SPEED}{content[:8].hex()}"
        began = time.monotonic()
        write(path, content)
        _sum(path)
        seconds = time.monotonic() - began
        path.unlink()
        return count / seconds
    with tempfile.TemporaryFile(dir=directory) as file:
        began = time.monotonic()
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        hashlib.file_digest(file, "sha256")
        return count / (time.monotonic() - began)


def any_saved(directory: Path) -> bool:
    """Whether `directory` holds a checkpoint, even a damaged one."""
    with failing("read", directory):
        names = [path.name for path in entries(directory)]
    return any(name.removesuffix(".json").isdecimal() for name in names)


def newest(directory: Path) -> int:
    """The newest step with a checkpoint in `directory`, even a damaged one; 0 where there is none."""
    with failing("read", directory):
        return max((step for steps in _steps(directory) for step in steps), default=0)


class _Damaged(Exception):
    """A step can't be used, and why."""


def newest_or_best(
    directory: Path, read: Callable[[Path, Manifest], T], warn: Warn, best: bool, group: ProcessGroup
) -> tuple[int, T] | None:
    """`_newest`; with `best`, the one marked as the best where there is one."""
    with failing("read", directory):
        found = _newest(directory, read, warn, True, group) if best else None
        if found is None and (found := _newest(directory, read, warn, False, group)) is not None and best:
            warn(f"no checkpoint in {directory} is marked as the best: the newest is taken, step {found[0]}")
        return found


def _newest(
    directory: Path, read: Callable[[Path, Manifest], T], warn: Warn, best: bool, group: ProcessGroup
) -> tuple[int, T] | None:
    """The newest step that is undamaged (with `best`: and marked as the best), and the result of `read` on it.

    None where nothing was saved; with `best`, where no step is known to be marked.
    """
    saved, unsaved = _steps(directory)
    damage: list[tuple[int, str]] = []
    marked = not best
    for step in sorted(saved + unsaved, reverse=True):
        try:
            if step in unsaved:
                raise _Damaged("it has no checksum: it is being saved, or its save was cut short")
            manifest = _manifest(directory, step)
            if best and not manifest.best:
                continue
            marked = True
            _verify(directory / str(step), manifest, group)
            found = read(directory / str(step), manifest)
        except _Damaged as error:
            damage.append((step, str(error)))
            continue
        for damaged, why in damage:
            what = "not complete" if damaged in unsaved else "damaged"
            warn(f"checkpoint {directory / str(damaged)} is {what} ({why}): using step {step} instead")
        return step, found
    if not marked:
        return None
    if len(damage) == 1 and damage[0][0] in unsaved:
        warn(f"checkpoint {directory / str(damage[0][0])} is not used ({damage[0][1]}): there is none before it")
        return None
    if damage:
        reasons = "; ".join(f"step {step}: {why}" for step, why in damage)
        raise RunError(
            f"no {'best ' if best else ''}checkpoint in {directory} can be used ({reasons}): "
            "restore them from a backup, or start afresh with --overwrite"
        )
    return None


def read_leaves(path: Path, leaves: dict[str, Any]) -> dict[str, Any]:
    """Read the leaves of these names to where they say, or to the host. Orbax does not check shapes and dtypes."""
    shapes = {name: plain_shape(leaf) for name, leaf in leaves.items() if leaf.size}
    args = ocp.args.PyTreeRestore(
        shapes, restore_args={name: _restored_as(shape) for name, shape in shapes.items()}, partial_restore=True
    )
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            found = reader.restore(path / "default", args=args)
    except Exception as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise RunError(
            f"could not read {path} ({text}), whose files are as they were written: make room for it, in memory or on "
            "more devices, or mend what is named; then the same command goes on"
        ) from error
    return {name: typed(found[name] if name in shapes else None, leaf) for name, leaf in leaves.items()}


def _one_replica(leaf: Any) -> Any:
    """Of an array that all devices have, one device's. Of all, orbax would save a part of each, cut out by a program
    that is compiled for it."""
    return leaf.addressable_data(0) if isinstance(leaf, jax.Array) and leaf.is_fully_replicated else leaf


def _restored_as(shape: jax.ShapeDtypeStruct) -> ocp.RestoreArgs:
    if shape.sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(sharding=shape.sharding, global_shape=shape.shape, dtype=shape.dtype)


def _steps(directory: Path) -> tuple[list[int], list[int]]:
    """The steps that are saved, and those with a directory but no checksums; both oldest first."""
    names = {path.name for path in entries(directory)}
    steps = sorted(int(name) for name in names if name.isdecimal())
    saved = [step for step in steps if f"{step}.json" in names]
    return saved, [step for step in steps if step not in saved]


def _manifest_path(directory: Path, step: int) -> Path:
    return directory / f"{step}.json"


def _manifest(directory: Path, step: int) -> Manifest:
    """Raises _Damaged where the file is not as it was written."""
    try:
        written = json.loads(_manifest_path(directory, step).read_bytes())
        if written["sha256"] != _digest(written["manifest"]):
            raise ValueError
        manifest = Manifest(**written["manifest"])
        texts = [*manifest.leaves.items(), *manifest.files.items()]
        typed = isinstance(manifest.best, bool) and all(isinstance(text, str) for pair in texts for text in pair)
        if not typed or not all(map(_inside, manifest.files)):
            raise ValueError
        return manifest
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, FileNotFoundError, IsADirectoryError):
        raise _Damaged(f"{step}.json is not as it was written") from None


def _inside(name: str) -> bool:
    """Whether `name` can be that of a file in the directory of a step."""
    path = PurePath(name)
    return name.isprintable() and not path.is_absolute() and ".." not in path.parts


def _write_manifest(directory: Path, step: int, manifest: Manifest) -> None:
    content = manifest._asdict()
    with replacing(_manifest_path(directory, step)) as path:
        path.write_text(json.dumps({"sha256": _digest(content), "manifest": content}, indent=1) + "\n")


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _own(group: ProcessGroup, names: Iterable[str]) -> list[str]:
    """Those of the files of these names that this process has written, from orbax's paths. If there were more
    processes when they were written, each takes the files of several."""
    written_by = lambda name: int(found[1]) if (found := re.search(r"\bocdbt\.process_(\d+)\b", name)) else 0
    return [name for name in names if written_by(name) % group.size == group.index]


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(path: Path, manifest: Manifest, group: ProcessGroup) -> None:
    """Raises _Damaged, in all processes, where a file is not as it was written."""
    found = (_damage(path / name, name, manifest.files[name]) for name in _own(group, manifest.files))
    for damage in group.all_gather("verified", next(filter(None, found), None)).values():
        raise _Damaged(damage)


def _damage(path: Path, name: str, expected: str) -> str | None:
    """What is wrong with the file at `path`, which has this name in the checkpoint."""
    if not in_bucket(path) and not path.is_file():  # a device, say, would be read without end
        return f"{name} is missing"
    try:
        return None if _sum(path) == expected else f"{name} is not as it was written"
    except FileNotFoundError:
        return f"{name} is missing"


def _rotate(directory: Path, keep: int) -> None:
    """Delete all but the newest `keep` steps and the best one."""
    saved = _steps(directory)[0]
    kept = set(saved[-keep:])
    for step in reversed(saved):
        try:
            if _manifest(directory, step).best:
                kept.add(step)
                break
        except _Damaged:
            continue
    for step in saved:
        if step not in kept:
            _delete(directory, step)


def _delete(directory: Path, step: int) -> None:
    """Delete the checksums first, so that a step deleted in part does not count as saved."""
    _delete_file(_manifest_path(directory, step))
    delete_tree(directory / str(step))


def _delete_file(path: Path) -> None:
    """Delete a file where there is one, or the directory in its place."""
    try:
        path.unlink(missing_ok=True)
    except IsADirectoryError:
        delete_tree(path)


def _tidy(directory: Path, step: int) -> None:
    """Delete what killed saves have left, and the damaged steps after `step`."""
    saved, unsaved = _steps(directory)
    for stale in (*unsaved, *(s for s in saved if s > step)):
        _delete(directory, stale)
    _clear(directory)


def _clear(directory: Path) -> None:
    """Delete what orbax has not finished, and checksums without a step."""
    found = entries(directory)
    names = {path.name for path in found}
    for path in found:
        if ".orbax-checkpoint-tmp" in path.name and path.is_dir():
            delete_tree(path)
        elif (path.suffix == ".json" and path.stem not in names) or path.name.startswith(_SPEED):
            _delete_file(path)
