"""Places: where the steps run. The learner is the same everywhere; a place says what it is compiled for.

State has one layout everywhere: all of it on every device, save `world`, whose environments are split.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from research.core.state import Metrics, State, Tree

AXIS = "devices"
"""The one axis that `pmap` and `shard_map` run over."""

PlaceName = Literal["jit", "pmap", "shard_map"]


class Place(NamedTuple):
    """Where steps run.

    axis      the mapped axis that `build(axis)` is told of, or None
    size      the devices on it; they divide a batch and the environments
    train     (f, batch_axis) -> compiled f: (State, data) -> (State, metrics); it donates the State.
              `batch_axis` is where data's leaves count examples (split), None for what every device sees whole
    evaluate  the same for f: (State, data) -> metrics
    put       a State, from anywhere, to its place; of shapes (`jax.ShapeDtypeStruct`), the same there, to compile for
    put_data  (data, batch_axis) -> data in its place, likewise
    """

    axis: str | None
    size: int
    train: Callable[[Callable[[State, Any], tuple[State, Metrics]], int | None], jax.stages.Wrapped]
    evaluate: Callable[[Callable[[State, Any], Metrics], int | None], Callable]
    put: Callable[[State], State]
    put_data: Callable[[Tree, int | None], Tree]


def place(name: PlaceName, devices: list[jax.Device] | None = None, seeds: bool = False) -> Place:
    """The place called `name`, on `devices` (all there are; `jit`: the first). `seeds`: States have that axis.

    Metrics are merged over the devices here, once: a learner's are those of its own share.
    """
    devices = devices or jax.devices()
    world_axis = 1 if seeds else 0
    if name == "jit":
        return _jitted(devices[0])
    return _mapped(devices, world_axis, _pmapped if name == "pmap" else _sharded)


def _jitted(device: jax.Device) -> Place:
    here = SingleDeviceSharding(device)
    return Place(
        axis=None,
        size=1,
        train=lambda f, batch_axis: jax.jit(f, donate_argnums=0),
        evaluate=lambda f, batch_axis: jax.jit(f),
        put=lambda state: _put(state, here),
        put_data=lambda data, batch_axis: _put(data, here),
    )


def _mapped(devices: list[jax.Device], world_axis: int, mapped: Callable) -> Place:
    mesh = Mesh(np.array(devices), (AXIS,))

    def split(batch_axis: int | None) -> PartitionSpec:
        return PartitionSpec() if batch_axis is None else PartitionSpec(*(None,) * batch_axis, AXIS)

    everywhere = PartitionSpec()
    spec = State(*(everywhere,) * 5, world=split(world_axis))  # type: ignore[arg-type]

    def train(f: Callable, batch_axis: int | None) -> jax.stages.Wrapped:
        def merged(state: State, data: Any) -> tuple[State, Metrics]:
            state, metrics = f(state, data)
            return state, jax.lax.psum(metrics, AXIS)

        return jax.jit(mapped(merged, mesh, (spec, split(batch_axis)), (spec, everywhere)), donate_argnums=0)

    def evaluate(f: Callable, batch_axis: int | None) -> Callable:
        def merged(state: State, data: Any) -> Metrics:
            return jax.lax.psum(f(state, data), AXIS)

        return jax.jit(mapped(merged, mesh, (spec, split(batch_axis)), everywhere))

    def put(tree: Tree, spec: PartitionSpec) -> Tree:
        return _put(tree, NamedSharding(mesh, spec))

    return Place(
        axis=AXIS,
        size=len(devices),
        train=train,
        evaluate=evaluate,
        put=lambda state: State(*(put(x, s) for x, s in zip(state, spec, strict=True))),
        put_data=lambda data, batch_axis: put(data, split(batch_axis)),
    )


def _put(tree: Tree, where: Sharding) -> Tree:
    """`tree`, all of it put `where`; of shapes, the shapes of arrays there."""
    if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(tree)):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)
    return jax.device_put(tree, where)


def _sharded(f: Callable, mesh: Mesh, in_specs: Any, out_specs: Any) -> Callable:
    # check_vma=False: gradients of what is replicated are this device's own, as under pmap; `descend` sums them.
    return jax.shard_map(f, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _pmapped(f: Callable, mesh: Mesh, in_specs: Any, out_specs: Any) -> Callable:
    """pmap with the signature of shard_map: it adds and removes the device axis itself."""
    is_spec = lambda x: isinstance(x, PartitionSpec)

    def axis(spec: PartitionSpec) -> int | None:
        return spec.index(AXIS) if AXIS in spec else None

    def reshaped(specs: Any, values: Any, shape: Callable) -> Any:
        def subtree(spec: PartitionSpec, tree: Tree) -> Tree:
            at = axis(spec)
            return tree if at is None else jax.tree.map(lambda x: x.reshape(shape(x.shape, at)), tree)

        return jax.tree.map(subtree, specs, values, is_leaf=is_spec)

    def stack(shape: tuple[int, ...], at: int) -> tuple[int, ...]:
        return (*shape[:at], mesh.size, shape[at] // mesh.size, *shape[at + 1 :])

    def unstack(shape: tuple[int, ...], at: int) -> tuple[int, ...]:
        return (*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :])

    axes = lambda specs: jax.tree.map(axis, specs, is_leaf=is_spec)
    # pmap insists on an argument that is split, and a State without a world and a resident feed have none.
    ranked = lambda rank, *values: f(*values)
    in_axes = (0, *axes(in_specs))
    mapped = jax.pmap(ranked, AXIS, in_axes=in_axes, out_axes=axes(out_specs), devices=list(mesh.devices.flat))

    def call(*values: Any) -> Any:
        found = mapped(jnp.arange(mesh.size), *reshaped(in_specs, values, stack))
        return reshaped(out_specs, found, unstack)

    return call
