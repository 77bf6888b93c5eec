"""What the nets for sequences share."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Memory(NamedTuple):
    """An encoded sequence, which a decoder attends to.

    tokens  [batch, time, width], the features of each token
    mask    bool[batch, time], True for tokens, False for padding
    """

    tokens: jax.Array
    mask: jax.Array


def pool(features: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean and the maximum over time of features [batch, time, width]: [batch, 2 * width].

    mask: bool[batch, time], True for the tokens that count. Where none does, the result is 0.

    The gradient of the maximum goes to its first position. The gradient of `max` would be lost where XLA computes the
    features twice and rounds them differently, since it compares them with the result.
    """
    each_token = mask[:, :, None]
    total = jnp.where(each_token, features, 0).sum(1)
    mean = total / jnp.maximum(each_token.sum(1), 1).astype(total.dtype)
    position = jnp.where(each_token, features, -jnp.inf).argmax(1, keepdims=True)
    highest = jnp.where(jnp.arange(features.shape[1])[:, None] == position, features, 0).sum(1)
    return jnp.concatenate([mean, jnp.where(mask.any(1, keepdims=True), highest, 0)], -1)
