"""Places: where the steps run. The learner is the same everywhere; a place says what it is compiled for."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from research.core.devices import AXIS, MODEL_AXIS
from research.core.errors import UserError
from research.core.layout import AXES, Layout, Shard, constrained, make_mesh, put
from research.core.metrics import Metrics
from research.core.state import State
from research.core.types import Tree

PlaceName = Literal["jit", "pmap", "shard_map"]


class Place(NamedTuple):
    """Where steps run.

    devices   the number of devices
    size      the number of devices that share a batch; it divides a batch and the environments
    init      (init, key) -> a first State, born in its place
    train     (f, batch_axis) -> compiled f: (State, data) -> (State, metrics); it donates the State.
              `batch_axis` is where data's leaves count examples (split), None for what every device sees whole
    evaluate  the same for f: (State, data) -> metrics
    put       a State, from anywhere, to its place; of shapes (`jax.ShapeDtypeStruct`), the same there, to compile for
    put_data  (data, batch_axis) -> data in its place, likewise
    own       a State, from its place -> the same on this process's devices alone, where nothing that is done with it
              concerns another process: each has a part of the large leaves, unless the place has them on every device.
              It has neither the optimizer's state nor a world
    put_rows  (rows -> data, leaves [steps, rows, ...], batch) -> data of a batch of that size in its place: it is
              called for the rows i64[rows] of the batch that this process has devices for; None where that is all
    """

    devices: int
    size: int
    init: Callable[[Callable[[jax.Array], State], jax.Array], State]
    train: Callable[[Callable[[State, Any], tuple[State, Metrics]], int | None], jax.stages.Wrapped]
    evaluate: Callable[[Callable[[State, Any], Metrics], int | None], Callable]
    put: Callable[[State], State]
    put_data: Callable[[Tree, int | None], Tree]
    own: Callable[[State], State]
    put_rows: Callable[[Callable[[np.ndarray | None], Tree], int], Tree]


def place(name: PlaceName = "jit", layout: Layout | None = None, microbatches: int = 1) -> Place:
    """The place called `name`, on the devices of the layout's mesh (default: all there are, replicated).

    jit is one global program over all devices; pmap and shard_map run the program of one device on each of them, and
    merge metrics, gradients and batch statistics over them.

    microbatches  how many an update has. A global program may sum gradients over the devices after each of several, so
                  where the batch alone is split, shard_map takes its place, which sums them once an update

    Raises UserError where `pmap` or `shard_map` are to do more than split the batch, and where weights are to be split
    over the mesh's axis "model" without `--shard tensor`, or by a net that does not say how.
    """
    layout = layout or Layout(make_mesh(jax.devices()))
    mesh = layout.mesh
    if name != "jit" and (layout.shard != "replicated" or mesh.shape[AXIS] != mesh.size):
        raise UserError(f"--place {name} splits the batch alone: --mesh may have {AXIS} only, without --shard")
    if layout.shard == "tensor" and not layout.tensor_axes:
        raise UserError("--shard tensor: the net has no table of the axes to split; choose --shard fsdp")
    if layout.shard != "tensor" and mesh.shape[MODEL_AXIS] > 1:
        raise UserError(f"--mesh has the axis {MODEL_AXIS}, which splits weights by --shard tensor alone")
    batch_alone = layout.shard == "replicated" and mesh.shape[AXIS] == mesh.size > 1
    if name == "jit" and microbatches > 1 and batch_alone and not jax.config.values["jax_disable_jit"]:
        name = "shard_map"
    mapped = {"jit": _global, "pmap": _pmapped, "shard_map": _sharded}[name]

    def init(init: Callable[[jax.Array], State], key: jax.Array) -> State:
        return jax.jit(init, out_shardings=layout.state(jax.eval_shape(init, key)))(key)

    return Place(
        devices=mesh.size,
        size=mesh.shape["replica"] * mesh.shape[AXIS],
        init=init,
        train=lambda f, batch_axis: jax.jit(mapped(f, layout, batch_axis, True), donate_argnums=0),
        evaluate=lambda f, batch_axis: jax.jit(mapped(f, layout, batch_axis, False)),
        put=lambda state: put(state, layout.state(state)),
        put_data=lambda data, batch_axis: put(data, layout.batch(batch_axis)),
        own=lambda state: _own(state._replace(opt_state={}, world=()), layout),
        put_rows=lambda make, batch: _put_rows(make, batch, layout.batch(1)),
    )


def _own(state: State, layout: Layout) -> State:
    devices = sorted(layout.mesh.devices.flat, key=lambda device: (device.process_index, device.id))
    processes = sorted({device.process_index for device in devices})
    shard: Shard = "replicated" if layout.shard == "replicated" else "fsdp"
    grid = np.array(devices).reshape(len(processes), 1, -1, 1)
    on = lambda grid: layout._replace(mesh=Mesh(grid, AXES, axis_types=layout.mesh.axis_types), shard=shard)
    each = put(state, on(grid).state(state))  # every process has all of it
    here = processes.index(jax.process_index())

    def leaf(x: jax.Array, there: NamedSharding) -> jax.Array:
        return jax.make_array_from_single_device_arrays(x.shape, there, [part.data for part in x.addressable_shards])

    return jax.tree.map(leaf, each, on(grid[here : here + 1]).state(state))


def _put_rows(make: Callable[[np.ndarray | None], Tree], batch: int, there: NamedSharding) -> Tree:
    if there.is_fully_addressable:
        return put(make(None), there)
    parts = {at[1].indices(batch) for at in there.addressable_devices_indices_map((1, batch)).values() if at}
    rows = np.concatenate([np.arange(*part) for part in sorted(parts)])

    def leaf(x: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(there, x, (x.shape[0], batch, *x.shape[2:]))

    return jax.tree.map(leaf, make(rows))


def _global(f: Callable, layout: Layout, batch_axis: int | None, trains: bool) -> Callable:
    """`f` as one program over the mesh: batch statistics, losses and gradients are global because the arrays are."""
    # Where seeds are split over devices, their metrics stay where they are, unless another process has to read them.
    stay = layout.mesh.shape["seed"] > 1 and layout.at().is_fully_addressable
    shown = lambda metrics: metrics if stay else constrained(metrics, layout.at())

    def call(state: State, data: Any) -> Any:
        with jax.sharding.use_abstract_mesh(layout.mesh.abstract_mesh):  # which `devices.shard_batch` reads
            found = f(constrained(state, layout.state(state)), constrained(data, layout.batch(batch_axis)))
        return (constrained(found[0], layout.state(found[0])), shown(found[1])) if trains else shown(found)

    return call


def _specs(layout: Layout, batch_axis: int | None, trains: bool) -> tuple[Any, Any]:
    """What (State, data) and the results of a data-parallel step are split over."""
    whole, environments = PartitionSpec(), PartitionSpec(None, AXIS) if layout.seeds else PartitionSpec(AXIS)
    state = State(*(whole,) * 5, world=environments)  # type: ignore[arg-type]
    data = whole if batch_axis is None else PartitionSpec(*(None,) * batch_axis, AXIS)
    return (state, data), (state, whole) if trains else whole


def _sharded(f: Callable, layout: Layout, batch_axis: int | None, trains: bool) -> Callable:
    in_specs, out_specs = _specs(layout, batch_axis, trains)
    # check_vma=False: gradients of what is replicated are this device's own, as under pmap; `update` sums them.
    return jax.shard_map(_merging(f), mesh=layout.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _merging(f: Callable) -> Callable:
    """`f`, its metrics added up over the devices: a learner's are those of its own share."""

    def merged(state: State, data: Any) -> Any:
        found = f(state, data)
        return (found[0], jax.lax.psum(found[1], AXIS)) if isinstance(found, tuple) else jax.lax.psum(found, AXIS)

    return merged


def _pmapped(f: Callable, layout: Layout, batch_axis: int | None, trains: bool) -> Callable:
    """pmap with the signature of shard_map: it adds and removes the device axis itself."""
    devices = list(layout.mesh.devices.flat)
    in_specs, out_specs = _specs(layout, batch_axis, trains)
    is_spec = lambda x: isinstance(x, PartitionSpec)

    def axis(spec: PartitionSpec) -> int | None:
        return spec.index(AXIS) if AXIS in spec else None

    def reshaped(specs: Any, values: Any, shape: Callable) -> Any:
        def subtree(spec: PartitionSpec, tree: Tree) -> Tree:
            at = axis(spec)
            return tree if at is None else jax.tree.map(lambda x: x.reshape(shape(x.shape, at)), tree)

        return jax.tree.map(subtree, specs, values, is_leaf=is_spec)

    def stack(shape: tuple[int, ...], at: int) -> tuple[int, ...]:
        return (*shape[:at], len(devices), shape[at] // len(devices), *shape[at + 1 :])

    def unstack(shape: tuple[int, ...], at: int) -> tuple[int, ...]:
        return (*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :])

    axes = lambda specs: jax.tree.map(axis, specs, is_leaf=is_spec)
    # pmap insists on an argument that is split, and a State without a world and a resident feed have none.
    merging = _merging(f)
    ranked = lambda rank, *values: merging(*values)
    mapped = jax.pmap(ranked, AXIS, in_axes=(0, *axes(in_specs)), out_axes=axes(out_specs), devices=devices)

    def call(*values: Any) -> Any:
        found = mapped(jnp.arange(len(devices)), *reshaped(in_specs, values, stack))
        return reshaped(out_specs, found, unstack)

    return call
