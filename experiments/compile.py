"""Compile a config for hardware that is not there: python -m experiments.compile NAME [--topology v5e:2x4] [options].

It reports whether training fits the memory, and which collectives it has. `pip install -e .[tpu]` (or `.[cuda12]`)
installs the compiler; no TPU or GPU is needed.
"""

import dataclasses
import sys
from typing import Annotated, Generic

import jax
import tyro
from rich.console import Console
from rich.table import Table

from experiments.console import status
from research.core.errors import RunError
from research.core.layout import Shard
from research.core.placement import PlaceName
from research.training import aot, config
from research.training.checks import check_dtype
from research.training.config import Config, Mesh


@dataclasses.dataclass(frozen=True)
class Command(Generic[Config]):
    """The options of `experiments.compile`.

    Attributes:
        config: the config to compile
        topology: a TPU slice (v5e:2x4, v4:2x2x2, v6e:16x16, ...), or GPUs of one machine (h100, h100:8)
        place: how steps run on all devices: as one global program (jit), or by pmap or shard_map
        mesh: sizes of the axes that all devices are laid out by, such as replica=2,data=4; see experiments.train
        shard: where the weights and the state of the optimizer are: whole on every device (replicated), split over the
            axis data of the mesh (fsdp), or over its axes data and model (tensor)
        quick: whether to compile with the least effort, which takes a fraction of the time; the memory is then an
            estimate, somewhat above what the program takes in the end
    """

    config: Annotated[Config, tyro.conf.arg(name="")]
    topology: str = "v5e:2x4"
    place: PlaceName = "jit"
    mesh: Mesh = None
    shard: Shard = "replicated"
    quick: tyro.conf.FlagCreatePairsOff[bool] = False


def main(arguments: list[str]) -> int:
    """Returns the exit status, see `console.status`; 1 where the program does not fit."""
    if not arguments or arguments[0].startswith("-"):
        print(__doc__)
        return 0 if arguments else 2
    return status(lambda: _compile(*arguments))


def _compile(name: str, *arguments: str) -> None:
    jax.config.update("jax_platforms", "cpu")  # whatever devices are there
    command = config.parse(name, list(arguments), Command, "compile")
    check_dtype(command.config, aot.platform(command.topology))
    where = aot.topology(command.topology)
    facts = aot.compiled(
        command.config, where, command.place, mesh=command.mesh, shard=command.shard, quick=command.quick
    )
    show(name, where, facts)
    if facts.memory > where.memory:  # the TPU's compiler says so itself, CUDA's doesn't
        raise RunError(
            f"it does not fit {where.name}: reduce the batch, raise --update.grad-accum-steps, or use more devices"
        )


def show(name: str, where: aot.Topology, facts: aot.Compiled) -> None:
    """Prints the facts as a table."""
    rows = {
        "devices": str(facts.devices),
        "memory of each": size(where.memory),
        "needed": size(facts.memory),
        "  arguments": size(facts.arguments),
        "  outputs besides": size(facts.outputs),
        "  temporaries": size(facts.temporaries),
        **{kind: str(count) for kind, count in facts.collectives.items()},
        "seconds to compile": f"{facts.seconds:.1f}",
    }
    table = Table(title=f"{name}, compiled for {where.name}", title_justify="left", show_header=False)
    for row in rows.items():
        table.add_row(*row)
    Console().print(table)


def size(count: int) -> str:
    """Bytes as people read them."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.2f} MiB"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
