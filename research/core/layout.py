"""Layouts: how a State and a batch lie over a mesh of devices.

A mesh has four named axes, each of size 1 unless it is asked for:

    replica  each has all of the State, and a part of the batch; outermost, for what is between slices or nodes
    seed     each has some of the seeds of `per_seed`
    data     each has a part of the batch and, by FSDP, of the State
    model    each has a part of the weights, and of the activations between them; innermost, as it communicates most
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from research.core.devices import AXIS, BATCH_AXES, MODEL_AXIS
from research.core.errors import UserError
from research.core.patterns import path_name
from research.core.state import State
from research.core.types import Tree

AXES = ("replica", "seed", AXIS, MODEL_AXIS)
"""The axes of every mesh, outermost first."""

Shard = Literal["replicated", "fsdp", "tensor"]

FSDP_MIN_SIZE = 2**12
"""Leaves of fewer numbers are on every device: gathering them would take longer than it saves memory."""


def mesh_shape(text: str) -> dict[str, int]:
    """The sizes of all axes: "replica=2,data=4" -> {"replica": 2, "seed": 1, "data": 4, "model": 1}.

    Raises UserError where the text is no such list.
    """
    given: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = part.strip().partition("=")
        if name not in AXES or name in given or not size.isdecimal() or not int(size):
            raise UserError(f"--mesh {text}: expected sizes of some of {', '.join(AXES)}, such as replica=2,{AXIS}=4")
        given[name] = int(size)
    return {axis: given.get(axis, 1) for axis in AXES}


def make_mesh(devices: Sequence[jax.Device], text: str | None = None) -> Mesh:
    """The mesh of these devices that `text` describes, see `mesh_shape`; None: all of them share the batch.

    Devices that are near each other are neighbours on the inner axes. Where there are several slices or nodes,
    replicas are whole ones if their number allows it.

    Raises UserError unless the product of the sizes is the number of devices.
    """
    shape = mesh_shape(text or f"{AXIS}={len(devices)}")
    count = math.prod(shape.values())
    if count != len(devices):
        raise UserError(f"--mesh {text} is a mesh of {count} devices, and there are {len(devices)}")
    sizes = tuple(shape.values())
    slices = len({getattr(device, "slice_index", device.process_index) for device in devices})
    if slices > 1 and shape["replica"] % slices == 0:
        inner, outer = (shape["replica"] // slices, *sizes[1:]), (slices, *(1,) * (len(AXES) - 1))
        by_process = not hasattr(devices[0], "slice_index")
        grid = mesh_utils.create_hybrid_device_mesh(
            inner, outer, devices, process_is_granule=by_process, allow_split_physical_axes=True
        )
    else:
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(np.asarray(grid), AXES, axis_types=(AxisType.Auto,) * len(AXES))


class Layout(NamedTuple):
    """How a State and a batch lie over a mesh.

    mesh   of the axes `AXES`
    shard  replicated: the State is whole on every device, save its environments, which are split; fsdp: each large
           leaf is split as well, along its largest axis that the devices divide (Rajbhandari et al. 2020,
           arXiv:1910.02054, stage 3); tensor: each leaf in `tensor_axes` is split over "model", and each large leaf
           over the data axis besides, as by FSDP, along another of its axes
    seeds  whether States have the axis of `per_seed`
    min_size  see `FSDP_MIN_SIZE`
    tensor_axes  {how a leaf's name ends: which of its axes tensor parallelism splits}, beside the net. Names are
           regular expressions, such as "qkv/(kernel|bias)". Axes are counted from the last, -1, so that they hold for
           stacked layers too. Moments and averages are named as their parameter. An axis that "model" does not divide
           is left whole
    """

    mesh: Mesh
    shard: Shard = "replicated"
    seeds: bool = False
    min_size: int = FSDP_MIN_SIZE
    tensor_axes: Mapping[str, int] = MappingProxyType({})

    def at(self, *axes: Any) -> NamedSharding:
        """Where an array lies whose dimensions are split over these axes of the mesh; None: not split."""
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    def batch(self, batch_axis: int | None) -> NamedSharding:
        """Where the leaves of a batch lie that count examples along `batch_axis`; None: whole on every device."""
        return self.at() if batch_axis is None else self.at(*(None,) * batch_axis, BATCH_AXES)

    def state(self, state: State) -> State:
        """Where each leaf of a State lies, of arrays or of shapes: shardings in their places."""
        lead = ("seed",) if self.seeds else ()

        def each(tree: Tree, axes: Callable[[str, tuple[int, ...]], tuple]) -> Tree:
            def leaf(path: tuple, x: Any) -> NamedSharding:
                return self.at(*lead, *axes(path_name(path), x.shape[len(lead) :]))

            return jax.tree.map_with_path(leaf, tree)

        weights = lambda tree: each(tree, self._weight)
        return State(
            step=self.at(),  # type: ignore[arg-type]
            key=self.at(*lead),  # type: ignore[arg-type]
            params=weights(state.params),
            opt_state=weights(state.opt_state),
            collections=weights(state.collections),
            world=each(state.world, lambda name, shape: (BATCH_AXES,)),
        )

    def _weight(self, name: str, shape: tuple[int, ...]) -> tuple[str | None, ...]:
        """What the axes of one leaf of the weights are split over."""
        split: dict[int, str] = {}

        def free(over: str) -> list[int]:
            parts = self.mesh.shape[over]
            return [axis for axis, size in enumerate(shape) if axis not in split and size % parts == 0]

        if self.shard == "tensor":
            # Muon's parts of a kernel are named by the kernel and a number.
            matches = (axis for end, axis in self.tensor_axes.items() if re.fullmatch(rf"(.*/)?({end})(/\d+)?", name))
            split |= {len(shape) + axis: MODEL_AXIS for axis in matches if len(shape) + axis in free(MODEL_AXIS)}
        if self.shard != "replicated" and math.prod(shape) >= self.min_size and free(AXIS):
            split[max(free(AXIS), key=lambda axis: shape[axis])] = AXIS
        return tuple(split.get(axis) for axis in range(max(split, default=-1) + 1))


def put(tree: Tree, where: Tree) -> Tree:
    """`tree`, its leaves put where `where` says, a tree of the same structure or one sharding for all of it.

    Of shapes (`jax.ShapeDtypeStruct`), the same there, to compile for.
    """
    if isinstance(where, NamedSharding):
        where = jax.tree.map(lambda _: where, tree)

    def leaf(x: Any, there: NamedSharding) -> Any:
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there)
        if there.is_fully_addressable:
            return jax.device_put(x, there)
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(leaf(jax.random.key_data(x), there), impl=jax.random.key_impl(x))
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jax.device_put(x, there)
        host = np.asarray(x)  # every process has all of it, and puts its devices' parts there
        return jax.make_array_from_callback(host.shape, there, lambda index: host[index])

    return jax.tree.map(leaf, tree, where)


def constrained(tree: Tree, where: Tree) -> Tree:
    """`put`, inside a compiled function."""
    return jax.lax.with_sharding_constraint(tree, where) if jax.tree.leaves(tree) else tree
