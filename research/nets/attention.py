"""Attention as functions of queries, keys and values: XLA's, cuDNN's, and with dropout; and rotary positions."""

import importlib.util
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, causal: bool, flash: bool) -> jax.Array:
    """softmax(q k^T / sqrt(features)) v, [batch, time, heads, features]; k and v may have fewer heads.

    mask   bool, broadcast to [batch, heads, time, keys], True where a query may attend to a key; None: everywhere
    flash  whether programs for NVIDIA GPUs use cuDNN's attention where it takes these arrays, see `fits_cudnn`
    """

    def by(implementation: Literal["xla", "cudnn"], mask: jax.Array | None) -> Callable[..., jax.Array]:
        if implementation == "xla" and q.dtype == jnp.float16:  # JAX asks for an algorithm that no CPU has
            return lambda q, k, v: attend_with_dropout(q, k, v, mask, causal, drop=lambda weights: weights)
        return lambda q, k, v: jax.nn.dot_product_attention(
            q, k, v, mask=mask, is_causal=causal, implementation=implementation
        )

    if not flash or not cuda_installed() or not fits_cudnn(q, k):
        return by("xla", mask)(q, k, v)
    # cuDNN has no broadcast of a mask over the queries.
    pairs = None if mask is None else jnp.broadcast_to(mask, (*mask.shape[:2], q.shape[1], k.shape[1]))
    return jax.lax.platform_dependent(q, k, v, cuda=by("cudnn", pairs), default=by("xla", mask))


def attend_with_dropout(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    causal: bool,
    drop: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """`attend`, with `drop` applied to the weights f32[batch, heads, time, keys], which are held in memory."""
    v = jnp.repeat(v, q.shape[2] // v.shape[2], 2)
    weights = drop(attention_weights(q, k, causal, mask))
    return jnp.einsum("bhts,bshd->bthd", weights.astype(v.dtype), v)


def attention_weights(q: jax.Array, k: jax.Array, causal: bool = False, mask: jax.Array | None = None) -> jax.Array:
    """The weights f32[..., heads, time, keys] that `attend` gives to values, of q [..., time, heads, features] and k.

    k may have fewer heads, each of which serves a group of those of q. `mask` is that of `attend`.
    """
    k = jnp.repeat(k, q.shape[-2] // k.shape[-2], -2)
    scores = jnp.einsum("...thd,...shd->...hts", q, k, preferred_element_type=jnp.float32) / q.shape[-1] ** 0.5
    allowed = jnp.tri(scores.shape[-2], scores.shape[-1], dtype=bool) if causal else jnp.bool_(True)
    return nn.softmax(jnp.where(allowed if mask is None else allowed & mask, scores, jnp.finfo(jnp.float32).min))


def cuda_installed() -> bool:
    """Whether JAX's CUDA plugin is installed. Without it cuDNN's attention can't be traced, whatever the platform."""
    return any(map(importlib.util.find_spec, ("jax_cuda12_plugin", "jax_cuda13_plugin")))


def fits_cudnn(q: jax.Array, k: jax.Array) -> bool:
    """Whether cuDNN's attention takes these arrays, forward and backward.

    It takes 16-bit numbers, heads of up to 128 features (a multiple of 8), and even numbers of queries and keys.
    """
    even = q.shape[1] % 2 == 0 and k.shape[1] % 2 == 0
    return q.dtype.itemsize == 2 and q.shape[-1] <= 128 and q.shape[-1] % 8 == 0 and even


def rotary(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Rotary position embeddings of x [batch, time, heads, features] at positions i32[batch or 1, time].

    Feature i and feature i + features / 2 are rotated by the angle position * 10000^(-2i / features), so that products
    of queries and keys depend on their distance alone.
    """
    half = x.shape[-1] // 2
    angle = positions[:, :, None, None] * 10000.0 ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)
