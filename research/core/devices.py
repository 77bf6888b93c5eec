"""Sums and gathers over the devices that a mapped step runs on; in one global program they do nothing.

Under `pmap` and `shard_map` a step sees one device's part of the batch, and the axis `AXIS` is bound: the functions
here are collectives over it. Under plain `jit` arrays are global, no axis is bound, and they return their argument.
Which of the two applies is known when the step is traced.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

AXIS = "data"
"""The name of the mapped axis that `pmap` and `shard_map` run over."""


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
