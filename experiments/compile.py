"""Compile a config for hardware that is not there: python -m experiments.compile NAME [--topology v5e:2x4] [options].

It reports whether training fits the memory, and which collectives it has. `pip install -e .[tpu]` (or `.[cuda12]`)
installs the compiler; no TPU or GPU is needed, nor the data: where it isn't there, data of its shapes is made up.
"""

import dataclasses
import logging
import math
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any, Generic

import jax
import tyro

from experiments.console import print_table, status, unnamed
from research.core.console import say, size
from research.core.errors import RunError, UserError
from research.core.layout import Shard
from research.core.placement import PlaceName
from research.data import made_up
from research.training import aot, config, fit
from research.training.checks import check_dtype
from research.training.config import Config, Mesh
from research.training.topology import Topology, parse, topology


@dataclasses.dataclass(frozen=True)
class Command(Generic[Config]):
    """The options of `experiments.compile`.

    Attributes:
        config: the config to compile
        topology: a TPU slice by its shape (v5e:2x4, v4:2x2x2, v6e:16x16, ...) or by Google Cloud's name (v5litepod-8,
            v5p-128, ...), or GPUs of one machine (a100-40, a100-80, h100, h200, b200, h100:8, ...)
        place: how steps run on all devices: as one global program (jit), or by pmap or shard_map; jit runs microbatches
            by shard_map where the batch alone is split
        mesh: sizes of the axes that all devices are laid out by, such as replica=2,data=4; see experiments.train
        shard: where the weights and the state of the optimizer are: whole on every device (replicated), split over the
            axis data of the mesh (fsdp), or over its axes data and model (tensor)
        quick: whether to compile with the least effort, which takes a fraction of the time; the memory is then an
            estimate, somewhat above what the program takes in the end
        fit: whether to look for the largest batch that fits, or, where the config does not fit, for the nearest choice
            that does; the programs that are tried are compiled with the least effort
    """

    config: Annotated[Config, tyro.conf.arg(name="")]
    topology: str = "v5e:2x4"
    place: PlaceName = "jit"
    mesh: Mesh = None
    shard: Shard = "replicated"
    quick: tyro.conf.FlagCreatePairsOff[bool] = False
    fit: tyro.conf.FlagCreatePairsOff[bool] = False


def main(arguments: list[str]) -> int:
    """Returns the exit status, see `console.status`; 1 where the program does not fit."""
    if (ended := unnamed(arguments, "experiments.compile", lambda: print(__doc__))) is not None:
        return ended
    return status(lambda: _compile(*arguments))


def _compile(name: str, *arguments: str) -> None:
    jax.config.update("jax_platforms", "cpu")  # whatever devices are there
    logging.getLogger("jax").setLevel(logging.ERROR)
    command = _parsed(name, arguments)
    asked = parse(command.topology)
    check_dtype(command.config, asked.platform)
    where = topology(command.topology)
    with tempfile.TemporaryDirectory() as directory:
        if made_up.available(command.config, Path(directory))[1]:
            say(f"data.name {command.config.data.name} is not here: made-up data of its shapes is compiled for")
        try:
            show(name, where, needed(command, where, Path(directory)))
        except aot.CompilerError:
            raise
        except RunError as full:
            if not command.fit:
                raise RunError(f"{full}: --fit looks for the nearest choice that does") from full.__cause__
            say(f"{full}; looking for the nearest choice that does")
            print(_nearest(name, arguments, where, Path(directory)))
            raise
        if command.fit:
            print(_largest(name, arguments, where, Path(directory)))


def _parsed(name: str, arguments: Any) -> Any:
    return config.parse(name, list(arguments), Command, "compile")


def needed(command: Any, where: Topology, directory: Path) -> aot.Compiled:
    """What a command's program needs. Raises RunError where it does not fit."""
    experiment, _ = made_up.available(command.config, directory)
    facts = aot.compiled(experiment, where, command.place, mesh=command.mesh, shard=command.shard, quick=command.quick)
    if facts.memory > where.memory:  # the TPU's compiler says so itself, CUDA's doesn't
        raise RunError(f"it does not fit {where.name}: it needs {size(facts.memory)} of {size(where.memory)}")
    return facts


def _tried(name: str, arguments: list[str], where: Topology, directory: Path) -> aot.Compiled | None:
    """What the program of a command line needs, compiled with the least effort; None where it does not fit."""
    shown = " ".join(arguments)
    try:
        facts = needed(_parsed(name, [*arguments, "--quick"]), where, directory)
    except RunError:
        say(f"  {shown}: does not fit")
        return None
    say(f"  {shown}: {size(facts.memory)}")
    return facts


def _largest(name: str, arguments: tuple[str, ...], where: Topology, directory: Path) -> str:
    """The largest batch that fits, in a sentence."""
    command = _parsed(name, arguments)
    options = lambda size: fit.batch_options(command.config, size)
    unit = len(where.devices) * command.config.update.grad_accum_steps

    def fits(size: int) -> bool:
        try:
            return _tried(name, fit.replaced(arguments, options(size)), where, directory) is not None
        except UserError:  # more than there are examples, or than a config takes
            return False

    examples = made_up.available(command.config, directory)[0].feeds().train.size
    found = fit.largest(fits, unit, fit.batch(command.config), examples or 2**31)
    capped = f"; there are {examples} training examples" if examples and found == examples // unit * unit else ""
    if not found:
        return f"no batch fits: the smallest, for {len(where.devices)} devices, is {unit}{capped}"
    return f"the largest batch that fits: {' '.join(options(found))} ({found // len(where.devices)} a device{capped})"


def _nearest(name: str, arguments: tuple[str, ...], where: Topology, directory: Path) -> str:
    """The nearest choice that fits, as a command line."""
    command = _parsed(name, arguments)
    for options in fit.alternatives(command.config, len(where.devices), command.shard, command.place):
        tried = fit.replaced(arguments, options)
        try:
            if _tried(name, tried, where, directory) is not None:
                return f"the nearest that fits: python -m experiments.compile {' '.join([name, *tried])}"
        except UserError:
            continue
    return "none of these fits: use more devices"


def show(name: str, where: Topology, facts: aot.Compiled) -> None:
    """Prints the facts as a table."""
    bound = aot.bound(facts, where)
    rows = {
        "devices": str(facts.devices),
        "memory of each": size(where.memory),
        "needed": size(facts.memory),
        "  arguments": size(facts.arguments),
        "  outputs besides": size(facts.outputs),
        "  temporaries": size(facts.temporaries),
        **{kind: f"{found.count}, {size(found.bytes)}" for kind, found in facts.collectives.items()},
        **({"a step at the peak": f"{bound:.2g} s, in bfloat16: a bound, not a speed"} if math.isfinite(bound) else {}),
        "seconds to compile": f"{facts.seconds:.1f}",
    }
    print_table((), rows.items(), f"{name}, compiled for {where.name}")
    if facts.collectives:
        print("Collectives: how many, and the bytes of their results on a device. Those in a loop count once.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
