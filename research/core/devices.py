"""What a step says of the devices that it runs on; on one device it does nothing.

Under `pmap` and `shard_map` a step sees one device's part of the batch, and the axis `AXIS` is bound: `summed` and
`gathered` are collectives over it. In one global program arrays are global and no axis is bound: these two return their
argument, while `shard_batch` and `replicated` say how an array lies over the devices. Which of the two applies is known
when the step is traced.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.sharding import PartitionSpec

AXIS = "data"
"""The name of the mapped axis that `pmap` and `shard_map` run over."""

BATCH_AXES = ("replica", AXIS)
"""The axes of a global program's mesh that a batch and the environments are split over."""


MODEL_AXIS = "model"
"""The axis of a global program's mesh that tensor parallelism splits the weights over."""


def axis_if_bound() -> str | None:
    """`AXIS` where it is bound, else None: the `axis_name` of a Flax layer that averages over the batch."""
    try:
        lax.axis_size(AXIS)
    except NameError:
        return None
    return AXIS


def devices() -> int:
    """The number of devices on the mapped axis; 1 where no such axis is bound."""
    return 1 if axis_if_bound() is None else lax.axis_size(AXIS)


def summed(tree: Any) -> Any:
    """The sum of each leaf of `tree` over the devices; `tree` itself where no axis is bound.

    On a CPU, leaves of one dtype are summed as one array: most of the time of a sum is spent waiting for other devices.
    """
    leaves = jax.tree.leaves(tree)
    if axis_if_bound() is None or not leaves:
        return tree

    def leaf_by_leaf(tree: Any) -> Any:
        return lax.psum(tree, AXIS)

    def as_one_array(tree: Any) -> Any:
        flat, unravel = ravel_pytree(tree)
        return unravel(lax.psum(flat, AXIS))

    one_dtype = len({jnp.result_type(leaf) for leaf in leaves}) == 1
    return lax.platform_dependent(tree, cpu=as_one_array if one_dtype else leaf_by_leaf, default=leaf_by_leaf)


def gathered(tree: Any) -> Any:
    """The leaves of all devices, joined along axis 0; `tree` itself where no axis is bound."""
    return tree if axis_if_bound() is None else lax.all_gather(tree, AXIS, tiled=True)


def position(count: int) -> jax.Array:
    """The positions i32[count] in the global batch of this device's `count` examples."""
    positions = jnp.arange(count, dtype=jnp.int32)
    return positions if axis_if_bound() is None else lax.axis_index(AXIS) * count + positions


def shard_batch(tree: Any, axis: int = 0) -> Any:
    """`tree`, whose leaves count examples along `axis`: in one global program they are split there over the devices.

    The other axes are left to the compiler, which would else have to guess which of a product's axes stays split where
    the weights are split too.
    """
    mesh = _mesh()
    if mesh is None:
        return tree
    parts = math.prod(mesh.shape[name] for name in BATCH_AXES)

    def leaf(x: jax.Array) -> jax.Array:
        if x.shape[axis] % parts:
            return x
        spec: list[Any] = [PartitionSpec.UNCONSTRAINED] * x.ndim
        spec[axis] = BATCH_AXES
        return lax.with_sharding_constraint(x, PartitionSpec(*spec))

    return jax.tree.map(leaf, tree)


def replicated(tree: Any) -> Any:
    """`tree`, whole on every device of one global program: weights that a loop reads at each of its turns."""
    return tree if _mesh() is None else lax.with_sharding_constraint(tree, PartitionSpec())


def _mesh() -> Any:
    """The mesh of the global program that is traced; None where there is none, or where nothing is traced (--debug)."""
    mesh = jax.sharding.get_abstract_mesh()
    debugging = jax.config.jax_disable_jit  # type: ignore[attr-defined]
    return None if mesh.empty or debugging or axis_if_bound() is not None else mesh
