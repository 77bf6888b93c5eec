"""Is it the same everywhere? python -m experiments.places: every learner at every place, against one device.

Each learner, at the tiny setting of its own file (SGD, dropout on), makes a few steps on the same global batches on one
device, on eight CPU devices, and on four of each of two processes. A cell is the largest difference of a parameter, and
the collectives of the program.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from experiments.console import check_output, print_table, script, status
from experiments.results import place_cell, provenance
from research import learners
from research.core.errors import RunError, UserError
from research.core.experiment import Experiment
from research.core.files import write_json
from research.core.layout import Layout, Shard, make_mesh
from research.core.placement import Place, PlaceName, place
from research.training import aot
from research.training.processes import joined

DEVICES = 8

PLACES: dict[str, tuple[PlaceName, str, Shard]] = {
    "jit": ("jit", "data=8", "replicated"),
    "pmap": ("pmap", "data=8", "replicated"),
    "shard_map": ("shard_map", "data=8", "replicated"),
    "fsdp": ("jit", "data=8", "fsdp"),
    "fsdp, replica=2,data=4": ("jit", "replica=2,data=4", "fsdp"),
    "tensor, data=4,model=2": ("jit", "data=4,model=2", "tensor"),
}
"""By name: --place, --mesh and --shard."""

IN_PROCESSES: dict[str, Shard] = {"2 processes x 4": "replicated", "2 processes x 4, fsdp": "fsdp"}
"""By name: --shard, in several processes."""

PROCESSES = 2


def main(arguments: list[str]) -> int:
    """Returns the exit status, see `console.status`."""
    if arguments[:1] == ["--worker"]:  # a process of `in_processes`
        process, coordinator, directory, steps, *names = arguments[1:]
        return status(lambda: worker(int(process), coordinator, Path(directory), int(steps), names))
    return script("places", __doc__, compare)(arguments)


def compare(names: tyro.conf.Positional[tuple[str, ...]] = (), steps: int = 5, output: Path | None = None) -> None:
    """Prints the table.

    Args:
        names: tiny settings of research/learners; default: all
        steps: number of training steps
        output: JSON file that the figures are written to, for `experiments.results`
    """
    check_output(output)
    configure(DEVICES)
    known = learners.tiny()
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise UserError(f"there is no tiny setting {unknown[0]!r}: there are {', '.join(known)}")
    if steps < 1:
        raise UserError(f"--steps must be at least 1, not {steps}")
    title = f"largest difference of a parameter after {steps} steps; collectives"
    found: dict[str, dict[str, Any]] = {}
    names = names or tuple(known)
    with tempfile.TemporaryDirectory() as directory:
        in_processes(names, steps, Path(directory))
        for name in names:
            found[name] = dict(differences(name, known[name], steps, Path(directory)))
    rows = [(name, *map(place_cell, cells.values())) for name, cells in found.items()]
    print_table(("learner", *PLACES, *IN_PROCESSES), rows, title)
    if output is not None:
        about = provenance(" ".join(["python -m experiments.places", *names, f"--steps {steps}"]), "cpu")
        write_json(output, {"about": about, "steps": steps, "places": found})


def configure(devices: int) -> None:
    """Lets the CPU play so many devices."""
    jax.config.update("jax_platforms", "cpu")
    if jax.config.jax_num_cpu_devices != devices:  # type: ignore[attr-defined]
        jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_default_matmul_precision", "highest")


def differences(
    learner: str, experiment: Experiment, steps: int, directory: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, {"difference", "collectives"}) of an experiment at each of `PLACES` and, from the directory of
    `in_processes`, of `IN_PROCESSES`; {} where its net has no table."""
    alone, _ = trained(experiment, place("jit", Layout(make_mesh(jax.devices()[:1]))), steps)

    def difference(leaves: list[np.ndarray]) -> float:
        return max(float(np.abs(a - b).max()) for a, b in zip(alone, leaves, strict=True))

    for name, (how, mesh, shard) in PLACES.items():
        if shard == "tensor" and not experiment.tensor_axes():
            yield name, {}
            continue
        layout = Layout(make_mesh(jax.devices(), mesh), shard, min_size=1, tensor_axes=experiment.tensor_axes())
        leaves, collectives = trained(experiment, place(how, layout), steps)
        yield name, {"difference": difference(leaves), "collectives": collectives}
    for name, shard in IN_PROCESSES.items():
        with np.load(directory / f"{learner} {shard}.npz") as found:
            *leaves, collectives = found.values()
        yield name, {"difference": difference(leaves), "collectives": json.loads(str(collectives))}


def in_processes(names: Sequence[str], steps: int, directory: Path) -> None:
    """Trains learners at each of `IN_PROCESSES`, and leaves their parameters and collectives in the directory."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{listener.getsockname()[1]}"
    command = [sys.executable, "-m", "experiments.places", "--worker"]
    rest, pipe = [coordinator, str(directory), str(steps), *names], subprocess.PIPE
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(DEVICES // PROCESSES)}
    started = [
        subprocess.Popen([*command, str(process), *rest], env=environment, stdout=pipe, stderr=subprocess.STDOUT)
        for process in range(PROCESSES)
    ]
    said = [process.communicate()[0].decode() for process in started]
    if any(process.returncode for process in started):
        raise RunError(f"two processes can't train: {said[0][-500:]} {said[1][-500:]}")


def worker(process: int, coordinator: str, directory: Path, steps: int, names: Sequence[str]) -> None:
    """What one of these processes does."""
    configure(DEVICES // PROCESSES)
    with joined(str(PROCESSES), coordinator, process) as group:
        for name in names:
            for shard in IN_PROCESSES.values():
                layout = Layout(make_mesh(jax.devices()), shard, min_size=1)
                leaves, collectives = trained(learners.tiny()[name], place("jit", layout), steps)
                if group.primary:
                    np.savez(directory / f"{name} {shard}.npz", *leaves, np.array(json.dumps(collectives)))


def trained(experiment: Experiment, where: Place, steps: int) -> tuple[list[np.ndarray], dict[str, int]]:
    """The parameters on the host after so many steps at a place, and how many collectives of each kind a step has."""
    learner, feed = experiment.build(), experiment.feeds().train
    batch = lambda step: where.put_data(jax.device_get(feed.batch_at(step)), 0)
    state = where.put(jax.jit(learner.init)(jax.random.key(experiment.run.seed)))
    step = where.train(learner.step, 0).lower(state, batch(0)).compile()
    for at in range(steps):
        state, _ = step(state, batch(at))
    leaves = jax.tree.leaves(jax.device_get(where.own(state).params))
    found = aot.collectives(step.as_text() or "")
    return leaves, {kind: collective.count for kind, collective in found.items()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
