"""THE gradient update: microbatches, merging over devices, precision, clipping, norms."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from research.core.state import Mean, Metrics, Tree

Loss = Callable[[Tree, dict[str, Tree], Any, jax.Array], tuple[Mean, tuple[dict[str, Tree], Metrics]]]
"""(params, collections, batch, key) -> (loss, (collections, metrics)); the Means are of this part alone."""


@dataclass(frozen=True)
class Descent:
    """How an update is computed.

    Attributes:
        micro: parts the batch is cut into, one after the other, to save memory; it divides a device's batch
        clip: the global norm that gradients are clipped to, or None
        dtype: what the net computes in; parameters, loss and gradients stay float32
    """

    micro: int = 1
    clip: float | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if self.micro < 1:
            raise ValueError(f"descent.micro must be at least 1, not {self.micro}")


def descend(
    loss: Loss,
    tx: optax.GradientTransformation,
    params: Tree,
    opt_state: Tree,
    collections: dict[str, Tree],
    batch: Any,
    key: jax.Array,
    how: Descent = Descent(),
    axis: str | None = None,
) -> tuple[Tree, Tree, dict[str, Tree], Metrics]:
    """One step of `tx` down the mean of `loss` over the global batch.

    The gradient is that of the summed losses of all parts on all devices, divided once by their summed count:
    uneven masks come out right, and a count of 0 leaves a gradient of 0.

    loss    gets `params` in the compute dtype, and `key` folded by device and part (for dropout)
    batch   leaves [batch, ...]: this device's share
    axis    the mapped axis the devices share, None where there is one program for all

    Returns params, opt_state, collections, and this device's metrics: those of `loss`, "loss", "gradient_norm".
    """
    if axis is not None:
        key = jax.random.fold_in(key, jax.lax.axis_index(axis))

    def total(params: Tree, collections: dict[str, Tree], part: Any, key: jax.Array):
        value, (collections, metrics) = loss(cast(params, how.dtype), collections, part, key)
        return value.total.astype(jnp.float32), (collections, {"loss": value, **metrics})

    def one(collections: dict[str, Tree], part_and_key: tuple[Any, jax.Array]):
        gradient, (collections, metrics) = jax.grad(total, has_aux=True)(params, collections, *part_and_key)
        return collections, (gradient, metrics)

    if how.micro == 1:
        collections, (gradient, metrics) = one(collections, (batch, key))
    else:

        def accumulate(carry: tuple[dict[str, Tree], Tree], part_and_key: tuple[Any, jax.Array]):
            collections, (gradient, metrics) = one(carry[0], part_and_key)
            return (collections, jax.tree.map(jnp.add, carry[1], gradient)), metrics

        parts = jax.tree.map(lambda x: x.reshape(how.micro, -1, *x.shape[1:]), batch)
        start = (collections, jax.tree.map(jnp.zeros_like, params))
        (collections, gradient), metrics = jax.lax.scan(accumulate, start, (parts, jax.random.split(key, how.micro)))
        metrics = jax.tree.map(lambda x: x.sum(0), metrics)

    count = metrics["loss"].count
    if axis is not None:
        gradient, count = summed((gradient, count), axis)
    gradient = jax.tree.map(lambda g: g / jnp.maximum(count, 1e-8), gradient)
    # As products, not sums of squares: XLA's long sums are slow on a CPU (17 % of a whole descent of DQN).
    norm = jnp.sqrt(sum(jnp.tensordot(g, g, g.ndim, precision="highest") for g in jax.tree.leaves(gradient)))
    if how.clip is not None:
        factor = jnp.minimum(1, how.clip / jnp.maximum(norm, 1e-8))
        gradient = jax.tree.map(lambda g: g * factor, gradient)
    updates, opt_state = tx.update(gradient, opt_state, params)
    metrics["gradient_norm"] = Mean(norm, jnp.ones_like(norm))
    return optax.apply_updates(params, updates), opt_state, collections, metrics


def summed(tree: Tree, axis: str) -> Tree:
    """The sum of `tree`, leaves float32, over the devices of `axis`.

    On a CPU as one array: there a sum costs the waiting for the other devices, not the copying.
    """

    def at_once(tree: Tree) -> Tree:
        flat, back = ravel_pytree(tree)
        return back(jax.lax.psum(flat, axis))

    return jax.lax.platform_dependent(tree, cpu=at_once, default=lambda tree: jax.lax.psum(tree, axis))


def cast(tree: Tree, dtype: Any) -> Tree:
    """`tree` with its floating leaves in `dtype`."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)
