"""Pixels as the numbers that nets read."""

import jax
import jax.numpy as jnp

from research.data.images import ImageSpec


def scaled(pixels: jax.Array) -> jax.Array:
    """u8 [...] -> f32 [...] in [0, 1]."""
    return pixels.astype(jnp.float32) / 255


def centred(pixels: jax.Array) -> jax.Array:
    """u8 [...] -> f32 [...] in [-1, 1]."""
    return pixels.astype(jnp.float32) / 127.5 - 1


def standardised(images: jax.Array, spec: ImageSpec) -> jax.Array:
    """Images [..., channels] less each channel's mean, over its standard deviation."""
    return (images - jnp.array(spec.mean)) / jnp.array(spec.std)
