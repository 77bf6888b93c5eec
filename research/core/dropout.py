"""Dropout, keyed by the example, with one random byte for each number."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


class Dropout(nn.Module):
    """Sets a random fraction `rate` of the numbers to 0 and scales the others by 1 / (1 - rate).

    Srivastava, Hinton, Krizhevsky, Sutskever & Salakhutdinov 2014. An example's mask depends on its own key alone,
    not on where in a batch, a microbatch or on which device it is computed. The rate is rounded to a 256th: one byte
    is drawn for each number, since random bits are most of dropout's cost on a CPU.

    Attributes:
        rate: the fraction that is set to 0
        shared: axes along which all numbers of an example are dropped or kept together
        batch_axis: the axis of the examples
    """

    rate: float
    shared: tuple[int, ...] = ()
    batch_axis: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, keys: jax.Array | None = None) -> jax.Array:
        """`x` with dropout in training; `x` itself in evaluation, or where the rate is 0.

        keys: typed PRNG keys [batch], one for each example. Each layer folds a number of its own into them, drawn from
        the rng stream "dropout". None: keys are derived from that stream by the example's place in this batch.
        """
        if not train or self.rate == 0:
            return x
        batch, layer_key = x.shape[self.batch_axis], self.make_rng("dropout")
        if keys is None:
            keys = jax.vmap(jax.random.fold_in, (None, 0))(layer_key, jnp.arange(batch))
        elif keys.shape != (batch,):
            raise ValueError(f"dropout of {batch} examples was given keys of shape {keys.shape}")
        else:
            keys = jax.vmap(jax.random.fold_in, (0, None))(keys, jax.random.bits(layer_key))
        shape = [1 if axis in self.shared else size for axis, size in enumerate(x.shape)]
        del shape[self.batch_axis]
        dropped = round(256 * self.rate)
        kept = jax.vmap(lambda key: random_bytes(key, tuple(shape)) >= dropped, out_axes=self.batch_axis)(keys)
        return jnp.where(kept, x * (256 / (256 - dropped)), 0).astype(x.dtype)


def random_bytes(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform u8 of a shape: four for each random word."""
    size = math.prod(shape)
    words = jax.random.bits(key, (-(-size // 4),), jnp.uint32)
    return lax.bitcast_convert_type(words, jnp.uint8).reshape(-1)[:size].reshape(shape)
