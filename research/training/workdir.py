"""A run's directory: who owns it, what made it, and whether it may be gone on with."""

import contextlib
import fcntl
import json
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from research.core.errors import Failure, Mistake
from research.core.experiment import Experiment
from research.core.files import failing, replacing
from research.training import config, log

FORMAT = 1
"""Of a run's directory; one of another format is refused."""

PACKAGES = ("samestep", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "gymnax", "numpy")


@contextlib.contextmanager
def owned(directory: Path, name: str, command: config.Command[Experiment]) -> Iterator[None]:
    """Makes `directory` this run's, with its config.json, or checks that it is; no other process may use it meanwhile.

    Raises Mistake where it was made by another config or version, or holds something else; Failure where it can't
    be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / ".lock").open("w")
    except OSError as error:
        raise Failure(f"{directory} can't be written ({error.strerror}): choose another with --workdir") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Mistake(
                f"another process is training in {directory}: wait for it, or choose another --workdir"
            ) from None
        there = about(directory)
        if there is None and any(path.name != ".lock" for path in directory.iterdir()):
            raise Mistake(f"{directory} holds something else than a run: choose another --workdir")
        if there is not None and command.overwrite:
            _clear(directory)
            there = None
        if there is None:
            log.write_json(directory / "config.json", _describe(name, command))
        else:
            _check_same(directory, name, command, there)
        yield


def about(directory: Path) -> dict[str, Any] | None:
    """The content of config.json; None where there is none. Raises Mistake where it is no such file, or of another
    version."""
    path = directory / "config.json"
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise Mistake(f"{path} can't be read ({error}): --overwrite starts afresh") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise Mistake(
            f"{directory} was made by another version of samestep (format {found}, this one has {FORMAT}): "
            "--overwrite starts afresh, --workdir chooses another directory"
        )
    if not isinstance(content.get("name"), str) or "config" not in content or "seeds" not in content:
        raise Mistake(f"{path} is damaged: --overwrite starts afresh")
    return content


def keep(directory: Path, texts: Mapping[str, str]) -> None:
    """Writes the texts that a run's State says nothing without (`Feeds.kept`) to its directory, by file name.

    Raises Mistake where another is there: then the data are not those that the run in `directory` was made with.
    """
    check_kept(directory, texts)
    for name, text in texts.items():
        if not (directory / name).exists():
            with failing("write", directory / name), replacing(directory / name) as temporary:
                temporary.write_text(text)


def check_kept(directory: Path, texts: Mapping[str, str]) -> None:
    """Raises Mistake where the run in `directory` keeps another text of one of these names: another tokenizer."""
    for name, text in texts.items():
        path = directory / name
        if path.exists() and path.read_bytes() != text.encode():
            raise Mistake(
                f"{path} is not the {path.stem} that this data makes, and the checkpoints there understand no other: "
                "use the data (and the version of samestep) that the run was made with, or another --workdir"
            )


def _describe(name: str, command: config.Command[Experiment]) -> dict[str, Any]:
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "format": FORMAT,
        "name": name,
        "config": config.to_json(command.config),
        "seeds": command.seeds,
        "place": command.place,
        "init_from": None if command.init_from is None else str(command.init_from),
        "device": device(),
        "python": platform.python_version(),
        "versions": versions,
        "git": _revision(),
    }


def device() -> str:
    """The devices of this process, in words."""
    devices = jax.devices()
    kind = platform.processor() or platform.machine() if devices[0].platform == "cpu" else devices[0].device_kind
    return f"{len(devices)} x {devices[0].platform} ({kind})"


def _revision() -> str | None:
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
    with contextlib.suppress(OSError):
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        return found.stdout.strip() or None
    return None


def _check_same(directory: Path, name: str, command: config.Command[Experiment], there: dict[str, Any]) -> None:
    if there["name"] != name:
        differ = [f"it is a run of {there['name']}, not of {name}"]
    else:
        differ = config.differences(command.config, there["config"])
        if there["seeds"] != command.seeds:
            differ.append(f"seeds: {there['seeds']} there, {command.seeds} now")
    if differ:
        raise Mistake(
            f"{directory} was made by another config ({'; '.join(differ)}): "
            "choose another --workdir, or start afresh with --overwrite"
        )


def _clear(directory: Path) -> None:
    for part in ("checkpoints", "tensorboard", "history"):
        shutil.rmtree(directory / part, ignore_errors=True)
    for pattern in ("*.json", "metrics.jsonl", "*.png", "*.gif", "*.txt"):
        for path in directory.glob(pattern):
            path.unlink()
