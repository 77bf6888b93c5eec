"""Compiling for hardware that is not there: the real TPU and CUDA compilers run on a machine with neither.

What comes out are facts about the program (memory, collectives, the HLO itself), not times. `topology` has the devices.
"""

import math
import re
import time
from typing import Any, NamedTuple

import jax

from research.core.errors import RunError
from research.core.experiment import Experiment
from research.core.layout import Layout, Shard, make_mesh
from research.core.placement import Place, PlaceName, place
from research.training.checks import check_divisible
from research.training.dispatch import dispatch
from research.training.flops import flops
from research.training.hardware import KINDS
from research.training.topology import Topology, parse

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


class CompilerError(RunError):
    """The compiler gave up, for another reason than the memory."""


class Collective(NamedTuple):
    """The collectives of one kind in a program; one in a loop counts once.

    count  how many there are
    bytes  of their results, a device's
    """

    count: int  # type: ignore[assignment]  # a field, not tuple's method
    bytes: int


class Compiled(NamedTuple):
    """Facts about a compiled program, a device's.

    devices      how many it runs on
    arguments    bytes of State and data
    outputs      bytes of what it returns, less what takes the place of an argument (the State is donated)
    temporaries  bytes it needs besides while it runs
    collectives  by kind
    flops        of a step on all devices, see `training.flops`
    seconds      compiling took
    hlo          the program
    """

    devices: int
    arguments: int
    outputs: int
    temporaries: int
    collectives: dict[str, Collective]
    flops: float
    seconds: float
    hlo: str

    @property
    def memory(self) -> int:
        """Bytes in all."""
        return self.arguments + self.outputs + self.temporaries


def compiled(
    experiment: Experiment,
    where: Topology,
    how: PlaceName = "jit",
    steps: int | None = None,
    mesh: str | None = None,
    shard: Shard = "replicated",
    quick: bool = False,
) -> Compiled:
    """The experiment's training, `steps` of them a dispatch (the config's own number), compiled for the topology.

    how, mesh, shard  see the command line of `experiments.train`
    quick             compile with the least effort: sooner, for a program that needs somewhat more memory

    Raises UserError where the devices don't divide a batch, RunError where the program doesn't fit their memory,
    CompilerError where the compiler fails.
    """
    layout = Layout(make_mesh(where.devices, mesh), shard, tensor_axes=experiment.tensor_axes())
    target = place(how, layout, experiment.update.grad_accum_steps)
    check_divisible(experiment, target)
    steps = steps or experiment.run.steps_per_dispatch
    traced = trace(experiment, target, steps)
    lowered = traced.lower()
    options: dict[str, Any] = {"exec_time_optimization_effort": -1.0} if quick else {}
    if parse(where.name).platform == "cuda":
        # Without a card Triton's tiles can't be tuned, and for some products the compiler finds none.
        options |= {"xla_gpu_enable_triton_gemm": False}
    started = time.monotonic()
    try:
        program = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        if "RESOURCE_EXHAUSTED" not in reason:
            raise CompilerError(f"the compiler for {where.name} failed: {reason}") from error
        raise RunError(f"it does not fit {where.name}: {reason}") from error
    seconds = time.monotonic() - started
    hlo = program.as_text()
    assert hlo is not None, "these compilers report it"
    arguments, outputs, temporaries = needed(program)
    return Compiled(
        devices=target.devices,
        arguments=arguments,
        outputs=outputs,
        temporaries=temporaries,
        collectives=collectives(hlo),
        flops=flops(traced.jaxpr) / steps,
        seconds=seconds,
        hlo=hlo,
    )


def needed(program: jax.stages.Compiled) -> tuple[int, int, int]:
    """The bytes that a program needs on a device: for its arguments, its outputs besides, and its temporaries."""
    memory = program.memory_analysis()
    assert memory is not None, "every compiler reports it"
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes, outputs, memory.temp_size_in_bytes


def bound(facts: Compiled, where: Topology) -> float:
    """Seconds of a step if all devices computed at their published peak in bfloat16: a bound, not a speed."""
    return facts.flops / (facts.devices * KINDS[parse(where.name).kind].bfloat16)


def trace(experiment: Experiment, target: Place, steps: int) -> jax.stages.Traced:
    """A dispatch of the experiment's training at a place of which only the devices' kind need be known."""
    learner, feed = experiment.build(), experiment.feeds().train
    shapes = lambda tree: jax.eval_shape(lambda x: x, tree)
    state, compiled = jax.eval_shape(learner.init, jax.random.key(0)), dispatch(learner, target, feed, steps)
    if feed.resident:
        data = target.put_data(shapes(feed), None)
    else:
        stacked = lambda x: jax.ShapeDtypeStruct((steps, *x.shape), x.dtype)
        data = target.put_data(jax.tree.map(stacked, shapes(feed.batch_at(0))), 1)
    return compiled.trace(target.put(state), data)


def collectives(hlo: str) -> dict[str, Collective]:
    """The collectives of each kind in a program.

    A TPU's compiler may write one as several steps between others' work, all of them on the same channel: one counts.
    """
    found: dict[str, dict[str, int]] = {}
    for line, shape, kind, start in re.findall(
        rf"^( *(?:ROOT )?%?[\w.-]+ = (.*?[\]}})]) ({'|'.join(COLLECTIVES)})(-start)?\(.*)", hlo, re.MULTILINE
    ):
        # What starts an all-gather or a permute gives its operands too, before the results.
        both = start and kind in ("all-gather", "collective-permute")
        channel = re.search(r"channel_id=\d+", line)
        found.setdefault(kind, {})[channel[0] if channel else line] = _bytes(_parts(shape)[1] if both else shape)
    return {kind: Collective(len(each), sum(each.values())) for kind in COLLECTIVES if (each := found.get(kind))}


def _parts(shape: str) -> list[str]:
    """The elements of a tuple's shape: "(f32[2], (s32[], s32[]))" -> ["f32[2]", " (s32[], s32[])"]."""
    parts, depth = [""], 0
    for character in shape[1:-1]:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _bytes(shape: str) -> int:
    """The bytes of an array, or of all arrays of a tuple."""
    bits = {"pred": 8}
    arrays = re.findall(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]", shape)
    sizes = (
        int(digits or bits[dtype]) * math.prod(map(int, filter(None, dims.split(","))))
        for dtype, digits, dims in arrays
    )
    return sum(-(-size // 8) for size in sizes)
