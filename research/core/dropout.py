"""Dropout, with a byte of luck for each number: random bits are what dropout takes its time for on a CPU."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


class Dropout(nn.Module):
    """Zeroes a share of the numbers and scales the others up to make good for it (Srivastava et al. 2014).

    The share is `rate` to the nearest 256th, and so is the scale.

    Attributes:
        rate: the share
        shared: axes along which numbers share their fate
    """

    rate: float
    shared: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, keys: jax.Array | None = None) -> jax.Array:
        """The same where not in training, or the rate is 0."""
        if not train or self.rate == 0:
            return x
        shape = tuple(1 if axis in self.shared else size for axis, size in enumerate(x.shape))
        dropped = round(256 * self.rate)
        kept = random_bytes(self.make_rng("dropout"), shape) >= dropped
        return jnp.where(kept, x * (256 / (256 - dropped)), 0).astype(x.dtype)


def random_bytes(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform u8 of a shape; four of each word that the generator makes."""
    size = math.prod(shape)
    words = jax.random.bits(key, (-(-size // 4),), jnp.uint32)
    return lax.bitcast_convert_type(words, jnp.uint8).reshape(-1)[:size].reshape(shape)
