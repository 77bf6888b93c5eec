"""Dense layers whose kernel's gradient is one matrix product of arrays as they lie in memory."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
from jax import lax

from research.core.devices import shard_batch


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: jax.Array, kernel: jax.Array, batch_axis: int = 0) -> jax.Array:
    """x [..., inputs] and kernel [inputs, *outputs] -> [..., *outputs].

    JAX's own gradient of the kernel is the transpose of another product, for which XLA's CPU compiler copies both
    arrays: a fifth of a small Transformer's training time. Here x and the gradient are flattened to [rows, inputs]
    and [rows, *outputs], which copies nothing. Outputs of several axes stay as they are: one of them may be split over
    devices, and would be gathered.

    batch_axis: the axis of x that counts examples. Where it is not the first, nothing is flattened: the batch may be
    split over devices, and XLA would gather it to flatten [time, batch].
    """
    return _product(x, kernel)


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


def _forward(x: jax.Array, kernel: jax.Array, batch_axis: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _product(x, kernel), (x, kernel)


def _backward(batch_axis: int, saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    outputs = tuple(range(x.ndim - 1, gradient.ndim)), tuple(range(1, kernel.ndim))
    dx = lax.dot_general(gradient, kernel, (outputs, ((), ())))
    if batch_axis == 0:
        x, gradient = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, *kernel.shape[1:])
    leading = tuple(range(x.ndim - 1))
    return dx, lax.dot_general(x, gradient, ((leading, leading), ((), ())))


product.defvjp(_forward, _backward)


def _dot_general(x: jax.Array, kernel: jax.Array, dimensions: Any, precision: Any = None) -> jax.Array:
    return shard_batch(product(shard_batch(x), kernel))


Dense = partial(nn.Dense, dot_general=_dot_general)
"""Flax's dense layer for [batch, ..., inputs], by `product`."""

DenseGeneral = partial(nn.DenseGeneral, dot_general=_dot_general)
"""The same with outputs [batch, ..., *features] and a kernel [inputs, *features]."""
