"""What a run is made with: packages, devices, XLA flags, and the code itself."""

import contextlib
import hashlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from research.core.console import warn

PACKAGES = ("samestep", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "gymnax", "numpy")

LIBRARY = Path(__file__).parents[1]
"""The directory of the package `research`."""


def describe() -> dict[str, Any]:
    """What config.json says of it, by name."""
    return {
        "device": device(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "deterministic_ops": deterministic_ops(),
        "python": platform.python_version(),
        "versions": versions(),
        "git": _revision(),
        "code": code(),
    }


def versions() -> dict[str, str]:
    """The versions of `PACKAGES`, those that are installed."""
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def device(count: int | None = None) -> str:
    """The devices of this run in words; `count` of them, or all there are."""
    devices = jax.devices()
    kind = platform.processor() or platform.machine() if devices[0].platform == "cpu" else devices[0].device_kind
    return f"{count or len(devices)} x {devices[0].platform} ({kind})"


def deterministic_ops() -> bool:
    """Whether XLA_FLAGS has --xla_gpu_deterministic_ops=true."""
    flags = [flag.partition("=") for flag in os.environ.get("XLA_FLAGS", "").split()]
    values = [value for name, _, value in flags if name == "--xla_gpu_deterministic_ops"]
    return bool(values) and values[-1].lower() in ("", "true", "1")


def check_deterministic() -> None:
    """Warn on a GPU where its operations are not set to be deterministic."""
    if jax.devices()[0].platform == "gpu" and not deterministic_ops():
        warn(
            "XLA_FLAGS lacks --xla_gpu_deterministic_ops=true: on this GPU, two runs of one command, or a resumed run "
            "and one that was never stopped, may differ by rounding"
        )


def code(directory: Path = LIBRARY) -> str:
    """A hash of the names and contents of the .py files under `directory`."""
    found = hashlib.sha256()
    for path in sorted(directory.rglob("*.py")):
        content = path.read_bytes()
        found.update(f"{path.relative_to(directory).as_posix()} {len(content)}\n".encode() + content)
    return found.hexdigest()[:16]


def data(batches: Any) -> str:
    """A hash of a tree of batches: of what is whole numbers in it, which is the same on every machine."""
    found = hashlib.sha256()
    for leaf in map(np.asarray, jax.tree.leaves(batches)):
        if leaf.dtype.kind in "iu":
            found.update(f"{leaf.dtype} {leaf.shape}".encode() + leaf.tobytes())
    return found.hexdigest()[:16]


def check_code(directory: Path, there: str) -> None:
    """Warn where the run in `directory` was started by other code than this; `there` is that code's hash."""
    if there != code():
        warn(
            f"the code in {LIBRARY.name}/ has changed since {directory} was started: its results may not be what "
            "the code as it is now would give"
        )


def _revision() -> str | None:
    """The git revision of the code, with "-dirty" where it was edited since; None outside of a repository."""
    command = ["git", "-C", str(LIBRARY), "describe", "--always", "--dirty", "--abbrev=12"]
    with contextlib.suppress(OSError):
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        return found.stdout.strip() or None
    return None
