"""Products of 8-bit integers: int8 x int8 -> int32, with the gradient of the product of the numbers themselves.

The weights of a layer are symmetric, with a scale for each output, those of each head; its inputs are symmetric, with
one scale for all (Jacob et al. 2018, arXiv:1712.05877; Krishnamoorthi 2018, arXiv:1806.08342). Rounding has the
gradient of the identity (the straight-through estimator, Bengio, Leonard & Courville 2013, arXiv:1308.3432), and
clipping has its own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from research.core.devices import axis_if_bound

RANGES = "ranges"
"""The collection of the largest magnitudes of the layers' inputs, f32[] each."""

LIMIT = 127
"""The largest integer, and minus it the smallest."""

DECAY = 0.99
"""Of the running mean of the ranges of training batches."""


class Linear(NamedTuple):
    """What a layer computes before it adds its bias.

    product  (x, kernel) -> outputs, linear in both; of int8 it is int32
    first    whether the result's first axis counts outputs, as the kernel's last one does; else the kernel's first axis
             counts inputs, and its others are the result's last ones
    """

    product: Callable[[jax.Array, jax.Array], jax.Array]
    first: bool

    def scales(self, kernel: jax.Array) -> jax.Array:
        """The step between the integers of each output's weights."""
        return scale_of(_largest(kernel, tuple(range(kernel.ndim - 1)) if self.first else 0))

    def along(self, outputs: jax.Array, ndim: int) -> jax.Array:
        """Numbers of outputs in the shape in which they are broadcast over a result of `ndim` axes."""
        return outputs.reshape(-1, *(1,) * (ndim - 1)) if self.first else outputs


def linear(layer: nn.Module) -> Linear | None:
    """Of Flax's dense layers, and of a layer that has a method `product`, whose outputs come first; of others None."""
    if isinstance(layer, nn.Dense) or (isinstance(layer, nn.DenseGeneral) and layer.axis == -1):
        return Linear(_dense, False)
    return Linear(layer.product, True) if hasattr(layer, "product") else None


def _dense(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())), preferred_element_type=wide(x.dtype))


def wide(dtype: Any) -> Any:
    """The dtype in which products are summed: int32 of int8; of others None, the default."""
    return jnp.int32 if dtype == jnp.int8 else None


def largest_input(layer: nn.Module, call: Callable[..., Any], x: jax.Array) -> Any:
    """Calls a layer as it is, and lets its range include `x`."""
    before = layer.get_variable(RANGES, "inputs", jnp.float32(0))
    layer.put_variable(RANGES, "inputs", jnp.maximum(before, _largest(x)))
    return call(x)


def int8_layer(layer: nn.Module, form: Linear, call: Callable[..., Any], train: bool, x: jax.Array) -> jax.Array:
    """What a layer makes of `x` by a product of int8.

    In training its inputs' range is that of the batch, and its running mean is kept, by which it is evaluated.
    """
    if layer.is_initializing():
        layer.put_variable(RANGES, "inputs", jnp.float32(0))
        return call(x)
    bound: Any = layer.get_variable(RANGES, "inputs")
    if train:
        seen = lax.stop_gradient(_largest(x))
        seen = seen if axis_if_bound() is None else lax.pmax(seen, axis_if_bound())
        kept = jnp.where(bound == 0, seen, DECAY * bound + (1 - DECAY) * seen)
        layer.put_variable(RANGES, "inputs", kept)
        bound = seen
    y = int8_product(form, x, layer.get_variable("params", "kernel"), bound)
    bias: Any = layer.get_variable("params", "bias")
    return y if bias is None else y + form.along(bias, y.ndim)


def int8_product(form: Linear, x: jax.Array, kernel: jax.Array, bound: jax.Array) -> jax.Array:
    """`form.product(x, kernel)` in the dtype of `x`, from integers; inputs beyond `bound` f32[] are clipped to it.

    Its gradient is that of the product of the rounded numbers, which passes through the rounding.
    """

    @jax.custom_vjp
    def product(x: jax.Array, kernel: jax.Array, bound: jax.Array) -> jax.Array:
        return forward(x, kernel, bound)[0]

    def forward(x: jax.Array, kernel: jax.Array, bound: jax.Array) -> tuple[jax.Array, Any]:
        by_input, by_output = scale_of(bound), form.scales(kernel)
        whole = integers(x, by_input), integers(kernel, by_output)
        sums = form.product(*whole)
        y = sums.astype(jnp.float32) * form.along(by_input * by_output, sums.ndim)
        return y.astype(x.dtype), (*whole, by_input, by_output, jnp.abs(x) <= bound, kernel[:0], bound)

    def backward(saved: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        inputs, weights, by_input, by_output, inside, empty, bound = saved
        x, kernel = (inputs * by_input).astype(gradient.dtype), (weights * by_output).astype(empty.dtype)
        dx, dkernel = jax.vjp(form.product, x, kernel)[1](gradient)
        return jnp.where(inside, dx, 0), dkernel, jnp.zeros_like(bound)

    product.defvjp(forward, backward)
    return product(x, kernel, bound)


def scale_of(bound: jax.Array) -> jax.Array:
    """The step between integers f32[...] so that the largest one is `bound`."""
    return jnp.maximum(bound, jnp.finfo(jnp.float32).tiny * LIMIT) / LIMIT


def integers(x: jax.Array, scale: jax.Array) -> jax.Array:
    """x / scale, rounded and clipped, in int8."""
    return jnp.clip(jnp.round(x.astype(jnp.float32) / scale), -LIMIT, LIMIT).astype(jnp.int8)


def _largest(x: jax.Array, axes: Any = None) -> jax.Array:
    return jnp.abs(x).max(axes).astype(jnp.float32)
