"""Is it the same everywhere? python -m experiments.places: every learner at every place, against one device.

Each learner, at the tiny setting of its own file (SGD, dropout on), makes a few steps on the same global batches on one
device and on eight CPU devices. A cell is the largest difference of a parameter, and the collectives of the program.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from experiments.console import status
from experiments.results import placed, provenance
from research import learners
from research.core.errors import UserError
from research.core.experiment import Experiment
from research.core.files import write_json
from research.core.layout import Layout, Shard, make_mesh
from research.core.placement import Place, PlaceName, place
from research.core.state import State
from research.training import aot

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


def main(arguments: list[str]) -> int:
    """Returns the exit status, see `console.status`."""
    return status(lambda: tyro.cli(compare, args=arguments, prog="python -m experiments.places", description=__doc__))


def compare(names: tyro.conf.Positional[tuple[str, ...]] = (), steps: int = 5, output: Path | None = None) -> None:
    """Prints the table.

    Args:
        names: tiny settings of research/learners; default: all
        steps: number of training steps
        output: JSON file that the figures are written to, for `experiments.results`
    """
    jax.config.update("jax_platforms", "cpu")
    if jax.config.jax_num_cpu_devices != DEVICES:  # type: ignore[attr-defined]
        jax.config.update("jax_num_cpu_devices", DEVICES)
    jax.config.update("jax_default_matmul_precision", "highest")
    known = learners.tiny()
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise UserError(f"there is no tiny setting {unknown[0]!r}: there are {', '.join(known)}")
    table = Table("learner", *PLACES, title=f"largest difference of a parameter after {steps} steps; collectives")
    found: dict[str, dict[str, Any]] = {}
    for name in names or known:
        found[name] = dict(differences(known[name], steps))
        table.add_row(name, *map(placed, found[name].values()))
    Console().print(table)
    if output is not None:
        about = provenance(" ".join(["python -m experiments.places", *names, f"--steps {steps}"]), "cpu")
        write_json(output, {"about": about, "steps": steps, "places": found})


def differences(experiment: Experiment, steps: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, {"difference", "collectives"}) of an experiment at each of `PLACES`; {} where its net has no table."""
    alone, _ = trained(experiment, place("jit", Layout(make_mesh(jax.devices()[:1]))), steps)
    for name, (how, mesh, shard) in PLACES.items():
        if shard == "tensor" and not experiment.tensor_axes():
            yield name, {}
            continue
        layout = Layout(make_mesh(jax.devices(), mesh), shard, min_size=1, tensor_axes=experiment.tensor_axes())
        state, collectives = trained(experiment, place(how, layout), steps)
        pairs = zip(jax.tree.leaves(alone.params), jax.tree.leaves(state.params), strict=True)
        yield name, {"difference": max(float(np.abs(a - b).max()) for a, b in pairs), "collectives": collectives}


def trained(experiment: Experiment, where: Place, steps: int) -> tuple[State, dict[str, int]]:
    """The State on the host after so many steps at a place, and how many collectives of each kind a step has."""
    learner, feed = experiment.build(), experiment.feeds().train
    batch = lambda step: where.put_data(jax.device_get(feed.batch_at(step)), 0)
    state = where.put(jax.jit(learner.init)(jax.random.key(experiment.run.seed)))
    step = where.train(learner.step, 0).lower(state, batch(0)).compile()
    for at in range(steps):
        state, _ = step(state, batch(at))
    host = jax.device_get(state._replace(key=jax.random.key_data(state.key)))
    found = aot.collectives(step.as_text() or "")
    return host, {kind: collective.count for kind, collective in found.items()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
