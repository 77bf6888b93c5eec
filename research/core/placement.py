"""Places: where the steps run. The learner is the same everywhere; a place says what it is compiled for.

State has one layout everywhere: all of it on every device, save `world`, whose environments are split.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from research.core.devices import AXIS
from research.core.metrics import Metrics
from research.core.state import Batch, State
from research.core.types import Tree

PlaceName = Literal["jit", "pmap", "shard_map"]


class Place(NamedTuple):
    """Where steps run.

    size      the number of devices; it divides a batch and the environments
    train     (f, batch_axis) -> compiled f: (State, data) -> (State, metrics); it donates the State.
              `batch_axis` is where data's leaves count examples (split), None for what every device sees whole
    evaluate  the same for f: (State, data) -> metrics
    put       a State, from anywhere, to its place; of shapes (`jax.ShapeDtypeStruct`), the same there, to compile for
    put_data  (data, batch_axis) -> data in its place, likewise
    split     lays a batch that is computed inside a step over the devices; the identity under `pmap` and `shard_map`,
              where each device computes its own part
    """

    size: int
    train: Callable[[Callable[[State, Any], tuple[State, Metrics]], int | None], jax.stages.Wrapped]
    evaluate: Callable[[Callable[[State, Any], Metrics], int | None], Callable]
    put: Callable[[State], State]
    put_data: Callable[[Tree, int | None], Tree]
    split: Callable[[Batch], Batch]


def place(name: PlaceName, devices: list[jax.Device] | None = None, seeds: bool = False) -> Place:
    """The place called `name`, on `devices` (default: all there are). `seeds`: States have the axis of `per_seed`.

    jit is one global program over all devices; pmap and shard_map run the program of one device on each of them, and
    merge metrics, gradients and batch statistics over them.
    """
    mesh = Mesh(np.array(devices or jax.devices()), (AXIS,), axis_types=(AxisType.Auto,))
    replicated = PartitionSpec()

    def split(batch_axis: int | None) -> PartitionSpec:
        return replicated if batch_axis is None else PartitionSpec(*(None,) * batch_axis, AXIS)

    def put(tree: Tree, spec: PartitionSpec) -> Tree:
        return _put(tree, NamedSharding(mesh, spec))

    state_spec = State(*(replicated,) * 5, world=split(1 if seeds else 0))  # type: ignore[arg-type]
    mapped = {"jit": _global, "pmap": _pmapped, "shard_map": _sharded}[name]
    return Place(
        size=mesh.size,
        train=lambda f, batch_axis: jax.jit(
            mapped(f, mesh, (state_spec, split(batch_axis)), (state_spec, replicated)), donate_argnums=0
        ),
        evaluate=lambda f, batch_axis: jax.jit(mapped(f, mesh, (state_spec, split(batch_axis)), replicated)),
        put=lambda state: State(*(put(x, spec) for x, spec in zip(state, state_spec, strict=True))),
        put_data=lambda data, batch_axis: put(data, split(batch_axis)),
        split=(lambda batch: _constrained(batch, NamedSharding(mesh, split(0))))
        if name == "jit"
        else lambda batch: batch,
    )


def _constrained(tree: Tree, sharding: Any) -> Tree:
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, sharding), tree)


def _global(f: Callable, mesh: Mesh, in_specs: Any, out_specs: Any) -> Callable:
    """`f` as one program over the mesh: batch statistics, losses and gradients are global because the arrays are."""

    def laid_out(specs: Any, values: Any) -> Any:
        is_spec = lambda x: isinstance(x, PartitionSpec)
        lay = lambda spec, tree: _constrained(tree, NamedSharding(mesh, spec))
        return jax.tree.map(lay, specs, values, is_leaf=is_spec)

    return lambda *values: laid_out(out_specs, f(*laid_out(in_specs, values)))


def _put(tree: Tree, where: Sharding) -> Tree:
    """`tree`, all of it put `where`; of shapes, the shapes of arrays there."""
    if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(tree)):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)
    return jax.device_put(tree, where)


def _sharded(f: Callable, mesh: Mesh, in_specs: Any, out_specs: Any) -> Callable:
    # check_vma=False: gradients of what is replicated are this device's own, as under pmap; `update` sums them.
    return jax.shard_map(_merging(f), mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _merging(f: Callable) -> Callable:
    """`f`, its metrics added up over the devices: a learner's are those of its own share."""

    def merged(state: State, data: Any) -> Any:
        found = f(state, data)
        return (found[0], jax.lax.psum(found[1], AXIS)) if isinstance(found, tuple) else jax.lax.psum(found, AXIS)

    return merged


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
    merging = _merging(f)
    ranked = lambda rank, *values: merging(*values)
    in_axes = (0, *axes(in_specs))
    mapped = jax.pmap(ranked, AXIS, in_axes=in_axes, out_axes=axes(out_specs), devices=list(mesh.devices.flat))

    def call(*values: Any) -> Any:
        found = mapped(jnp.arange(mesh.size), *reshaped(in_specs, values, stack))
        return reshaped(out_specs, found, unstack)

    return call
