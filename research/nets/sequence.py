"""What nets for sequences share."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Memory(NamedTuple):
    """An encoded sequence, for another one to attend to.

    tokens  [batch, time, width]
    mask    bool[batch, time], True for tokens, False for padding
    """

    tokens: jax.Array
    mask: jax.Array


def pool(features: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean and maximum over the time where `mask` bool[batch, time] is True: [batch, time, width] -> [batch, 2 width].

    Of a text without tokens, zeros. The gradient of the maximum goes to the first place that has it. That of `max` is
    lost where XLA computes the features twice and rounds them in two ways: it compares them with the result.
    """
    there = mask[:, :, None]
    total = jnp.where(there, features, 0).sum(1)
    mean = total / jnp.maximum(there.sum(1), 1).astype(total.dtype)
    place = jnp.where(there, features, -jnp.inf).argmax(1, keepdims=True)
    highest = jnp.where(jnp.arange(features.shape[1])[:, None] == place, features, 0).sum(1)
    return jnp.concatenate([mean, jnp.where(mask.any(1, keepdims=True), highest, 0)], -1)
