"""Compiling for hardware that is not there: the real TPU and CUDA compilers run on a machine with neither.

What comes out are facts about the program (memory, collectives, the HLO itself), not times. The compilers come with
pip's extras `tpu`, `cuda12` and `cuda13`. JAX must run on the CPU: JAX_PLATFORMS=cpu.
"""

import importlib.util
import os
import re
import time
from collections import Counter
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from research.core.errors import RunError, UserError
from research.core.experiment import Experiment
from research.core.layout import Layout, Shard, make_mesh
from research.core.placement import Place, PlaceName, place
from research.core.types import Tree
from research.training.checks import check_divisible
from research.training.dispatch import dispatch

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

MEMORY = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32, "h100": 80}
"""GiB of memory a device has, by kind."""

# An XLA GpuTargetConfigProto for an H100 SXM: what the compiler has to know of a card that it can't ask.
_H100 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 10 patch: 0 }
runtime_version { major: 12 minor: 8 patch: 0 }
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  l2_cache_size: 52428800
  memory_bandwidth: 3350000000000
  device_memory_size: 85899345920
}
"""


_LIBTPU = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}
"""The environment of libtpu. No TPU is opened: several processes may compile at once, and it need neither ask nor warn
that it can't find out which machine this is."""


class Topology(NamedTuple):
    """Devices to compile for.

    name     as it was asked for: "v5e:2x4", "h100", "h100:8"
    devices  compile-only: for a `place`, not to put data on
    memory   bytes each of them has
    """

    name: str
    devices: list[jax.Device]
    memory: int


class NotInstalled(UserError):
    """The compiler for a topology can't be used here; the message says how it could."""


class Compiled(NamedTuple):
    """Facts about a compiled program, a device's.

    devices      how many it runs on
    arguments    bytes of State and data
    outputs      bytes of what it returns, less what takes the place of an argument (the State is donated)
    temporaries  bytes it needs besides while it runs
    collectives  how many of each kind are in the program; one in a loop counts once
    seconds      compiling took
    hlo          the program
    """

    devices: int
    arguments: int
    outputs: int
    temporaries: int
    collectives: dict[str, int]
    seconds: float
    hlo: str

    @property
    def memory(self) -> int:
        """Bytes in all."""
        return self.arguments + self.outputs + self.temporaries

    @property
    def convolutions(self) -> int:
        """How many convolutions are in the program. (To a TPU matrix products are too, but have no window.)"""
        return len(re.findall(r' convolution\(.*window=|custom_call_target="__cudnn\$conv', self.hlo))


def platform(name: str) -> Literal["cuda", "tpu"]:
    """The platform of the topology called `name`. Raises UserError where there is no such kind of device."""
    kind, _, shape = name.partition(":")
    gpu = kind == "h100"
    if kind not in MEMORY or (gpu and not (shape or "1").isdigit()):
        raise UserError(f"there is no topology {name!r}: say v5e:2x4, or another shape of {', '.join(MEMORY)}")
    return "cuda" if gpu else "tpu"


def topology(name: str) -> Topology:
    """The topology called `name`: a TPU slice, KIND:SHAPE ("v5e:2x4"), or GPUs of one machine, "h100" or "h100:8".

    Raises UserError where there is none of that name, NotInstalled where there is no compiler for it.
    """
    gpu = platform(name) == "cuda"
    kind, _, shape = name.partition(":")
    compilers = ("jax_cuda12_plugin", "jax_cuda13_plugin") if gpu else ("libtpu",)
    if not any(map(importlib.util.find_spec, compilers)):
        raise NotInstalled(f"the compiler for {name} is not installed: pip install -e .[{'cuda12' if gpu else 'tpu'}]")
    on_cpu = NotInstalled("to compile for other hardware, JAX must run on the CPU: set JAX_PLATFORMS=cpu")
    if jax.default_backend() != "cpu":
        raise on_cpu
    try:
        if gpu:
            slices = f"1x1x{shape or 1}"
            found = topologies.get_topology_desc(platform="cuda", target_config=_H100, topology=slices)
        else:
            for variable, value in _LIBTPU.items():
                os.environ.setdefault(variable, value)
            found = topologies.get_topology_desc(platform="tpu", topology_name=name)
    except NotImplementedError:  # JAX looked for a GPU, found none, and dropped the compiler
        raise on_cpu from None
    except jax.errors.JaxRuntimeError as error:
        if "INVALID_ARGUMENT" not in str(error):
            raise
        raise UserError(f"there is no topology {name!r}: {str(error).splitlines()[0]}") from None
    return Topology(name, list(found.devices), MEMORY[kind] * 2**30)


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

    Raises UserError where the devices don't divide a batch, RunError where the program doesn't fit their memory.
    """
    target = place(how, Layout(make_mesh(where.devices, mesh), shard, tensor_axes=experiment.tensor_axes()))
    check_divisible(experiment, target)
    lowered = lower(experiment, target, steps or experiment.run.steps_per_dispatch)
    options: Any = {"exec_time_optimization_effort": -1.0} if quick else None
    started = time.monotonic()
    try:
        program = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise RunError(f"it does not fit {where.name}: {str(error).splitlines()[0]}") from error
    seconds = time.monotonic() - started
    memory, hlo = program.memory_analysis(), program.as_text()
    assert memory is not None and hlo is not None, "these compilers report both"
    return Compiled(
        devices=target.devices,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        collectives=collectives(hlo),
        seconds=seconds,
        hlo=hlo,
    )


def lower(experiment: Experiment, target: Place, steps: int) -> jax.stages.Lowered:
    """A dispatch of the experiment's training at a place of which only the devices' kind need be known."""
    learner, feed = experiment.build(), experiment.feeds().train
    state, compiled = jax.eval_shape(learner.init, jax.random.key(0)), dispatch(learner, target, feed, steps)
    if feed.resident:
        data = target.put_data(shapes(feed), None)
    else:
        stacked = lambda x: jax.ShapeDtypeStruct((steps, *x.shape), x.dtype)
        data = target.put_data(jax.tree.map(stacked, shapes(feed.batch_at(0))), 1)
    return compiled.lower(target.put(state), data)


def shapes(tree: Tree) -> Tree:
    """The tree with shapes in place of its arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.result_type(x)), tree)


def operations(hlo: str) -> Counter[str]:
    """How often each operation occurs in a program: {"all-reduce": 2, "convolution": 20, …}."""
    return Counter(re.findall(r"^ *(?:ROOT )?%?[\w.-]+ = .*?[\]})] ([a-z][a-z0-9-]*)\(", hlo, re.MULTILINE))


def collectives(hlo: str) -> dict[str, int]:
    """How many collectives of each kind are in a program; one in a loop counts once."""
    count = operations(hlo)
    return {name: n for name in COLLECTIVES if (n := count[name] + count[f"{name}-start"])}
