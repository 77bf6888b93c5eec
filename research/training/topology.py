"""Names of devices to compile for, and the devices themselves, which need not be there.

The compilers come with pip's extras `tpu`, `cuda12` and `cuda13`. JAX must run on the CPU: JAX_PLATFORMS=cpu.
"""

import difflib
import importlib.util
import math
import os
import re
from typing import Any, Literal, NamedTuple

import jax
from jax.experimental import topologies

from research.core.errors import NotInstalled, UserError
from research.training.hardware import KINDS, Card, Device

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

    name     as it was asked for: "v5e:2x4", "v5litepod-8", "h100", "h100:8"
    devices  compile-only: for a `place`, not to put data on
    memory   bytes each of them has
    """

    name: str
    devices: list[jax.Device]
    memory: int


class Name(NamedTuple):
    """What the name of a topology says.

    kind   one of `hardware.KINDS`
    shape  of a TPU slice, "2x4"; of GPUs, how many there are
    """

    kind: str
    shape: str

    @property
    def platform(self) -> Literal["cuda", "tpu"]:
        """The platform of its devices."""
        return "cuda" if KINDS[self.kind].card else "tpu"


def parse(name: str) -> Name:
    """Read a name: KIND:SHAPE of a TPU slice ("v5e:2x4"), Google Cloud's own name of one ("v5litepod-8", "v5p-128",
    "v6e-8"), or GPUs of one machine ("h100", "h100:8").

    Raises UserError, which has the nearest names, where it is none.
    """
    kind, _, shape = name.partition(":")
    if kind in KINDS:
        if KINDS[kind].card:
            if (shape or "1").isdecimal() and int(shape or "1") and (shape or ":" not in name):
                return Name(kind, shape or "1")
        elif re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", shape):
            return Name(kind, shape)
    for kind, device in KINDS.items():
        if name in cloud_names(kind):
            return Name(kind, device.slices[cloud_names(kind).index(name) % len(device.slices)])
    raise unknown(name)


def cloud_names(kind: str) -> list[str]:
    """Google Cloud's names of the slices of a kind of TPU, smallest first; none of a GPU.

    Those of a v4 and a v5p count cores, two a chip: v5p-128 has 64 chips. A v5e's also come as GKE has them, v5e-16.
    """
    device = KINDS[kind]
    counts = [device.cores * math.prod(map(int, shape.split("x"))) for shape in device.slices]
    return [f"{prefix}-{count}" for prefix in dict.fromkeys((device.cloud, kind)) for count in counts]


def unknown(name: str) -> UserError:
    """The error of a name that is none, with the nearest names."""
    known = [name for kind in KINDS for name in _known(kind)]
    prefix, _, count = name.rpartition("-")
    same = [other for other in known if other.rpartition("-")[0] == prefix and count.isdecimal() and ":" not in other]
    near = sorted(same, key=lambda other: abs(int(other.rpartition("-")[2]) - int(count)))[:3]
    near = near or difflib.get_close_matches(name, known, 3, 0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(KINDS)}, such as v5e:2x4 or h100:8"
    return UserError(f"there is no topology {name!r}: {hint}")


def _known(kind: str) -> list[str]:
    return [kind, f"{kind}:8"] if KINDS[kind].card else [f"{kind}:{s}" for s in KINDS[kind].slices] + cloud_names(kind)


def topology(name: str) -> Topology:
    """The topology called `name`, see `parse`.

    Raises UserError where the compiler has none of that name, NotInstalled where there is no compiler for it.
    """
    asked = parse(name)
    device, gpu = KINDS[asked.kind], asked.platform == "cuda"
    compilers = ("jax_cuda12_plugin", "jax_cuda13_plugin") if gpu else ("libtpu",)
    if not any(map(importlib.util.find_spec, compilers)):
        raise NotInstalled(f"the compiler for {name} is not installed: pip install -e .[{'cuda12' if gpu else 'tpu'}]")
    on_cpu = NotInstalled("to compile for other hardware, JAX must run on the CPU: set JAX_PLATFORMS=cpu")
    if jax.default_backend() != "cpu":
        raise on_cpu
    try:
        if gpu:
            found = topologies.get_topology_desc(
                platform="cuda", target_config=target_config(device), topology=f"1x1x{asked.shape}"
            )
        else:
            for variable, value in _LIBTPU.items():
                os.environ.setdefault(variable, value)
            found = topologies.get_topology_desc(
                platform="tpu", topology_name=f"{asked.kind}:{asked.shape}", **_chips(device, asked.shape)
            )
    except NotImplementedError:  # JAX looked for a GPU, found none, and dropped the compiler
        raise on_cpu from None
    except jax.errors.JaxRuntimeError as error:
        if "INVALID_ARGUMENT" not in str(error):
            raise
        raise unknown(name) from None
    return Topology(name, list(found.devices), device.memory)


def _chips(device: Device, shape: str) -> dict[str, Any]:
    """Options of libtpu: both cores of a chip are one device, as JAX has them; one chip is a host of its own."""
    options: dict[str, Any] = {"chip_config_name": "megacore"} if device.cores > 1 else {}
    return options | ({"chips_per_host_bounds": (1, 1, 1)} if shape == "1x1" else {})


def target_config(device: Device) -> str:
    """The GpuTargetConfigProto of XLA as text: what the CUDA compiler has to know of a GPU."""
    card = device.card
    assert card is not None, "a TPU has none"
    return f"""
platform_name: "CUDA"
device_description_str: "{card.description}"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
runtime_version {{ major: 12 minor: 8 patch: 0 }}
gpu_device_info {{
  cuda_compute_capability {{ major: {card.capability} minor: 0 feature_extension: {_features(card)} }}
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  core_count: {card.cores}
  fpus_per_core: {card.lanes}
  clock_rate_ghz: {card.clock}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_core: {card.shared_memory}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {card.shared_memory - 1024}
  l2_cache_size: {card.l2_cache}
  memory_bandwidth: {device.bandwidth:.0f}
  device_memory_size: {device.memory}
}}
"""


def _features(card: Card) -> str:
    return "ACCELERATED_FEATURES" if card.accelerated else "NONE"
