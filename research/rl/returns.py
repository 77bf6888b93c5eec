"""What a Q-network says of an action's return: its expectation, or its distribution by `atoms` numbers."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class ReturnDistribution(NamedTuple):
    """How the `atoms` numbers that a net gives for the return of an action are read, and learned.

    atoms  their number
    mean   f32[..., atoms] -> f32[...], the expected return
    error  (predicted f32[batch, atoms], return_ f32[batch], discount f32[batch], next f32[batch, atoms])
           -> (loss f32[batch], td_error f32[batch]): of the distribution of return_ + discount * next, in which no
           gradient flows; the td_error, never negative, is what replay is prioritised by
    """

    atoms: int
    mean: Callable[[jax.Array], jax.Array]
    error: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def expectation(huber: bool) -> ReturnDistribution:
    """The expected return. The loss is the squared temporal difference, or Huber's: half of it up to 1, then linear."""
    loss = optax.huber_loss if huber else optax.squared_error

    def error(
        predicted: jax.Array, return_: jax.Array, discount: jax.Array, next_: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        y = return_ + discount * next_[:, 0]
        return loss(predicted[:, 0], y), jnp.abs(y - predicted[:, 0])

    return ReturnDistribution(1, lambda x: x[..., 0], error)


def categorical(atoms: int, v_min: float, v_max: float) -> ReturnDistribution:
    """Logits of `atoms` returns, evenly from v_min to v_max (C51; Bellemare, Dabney & Munos 2017, arXiv:1707.06887).

    The loss, which serves as the td_error too, is the cross-entropy to the target's distribution, projected onto these
    returns (Algorithm 1). Hessel et al. 2018 take the KL divergence as the priority, without the target's entropy.
    """
    support, gap = jnp.linspace(v_min, v_max, atoms), (v_max - v_min) / (atoms - 1)

    def error(
        predicted: jax.Array, return_: jax.Array, discount: jax.Array, next_: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        target = jax.lax.stop_gradient(project(return_, discount, jax.nn.softmax(next_)))
        loss = optax.softmax_cross_entropy(predicted, target)
        return loss, loss

    def project(return_: jax.Array, discount: jax.Array, probability: jax.Array) -> jax.Array:
        """The probability of each return + discount * support, shared by the two atoms that it lies between."""
        moved = jnp.clip(return_[:, None] + discount[:, None] * support, v_min, v_max)
        # As a product with the share that each atom [batch, to, from] takes, not a scatter.
        share = jnp.clip(1 - jnp.abs(moved[:, None, :] - support[:, None]) / gap, 0, 1)
        return jnp.einsum("btf,bf->bt", share, probability, precision="highest")

    return ReturnDistribution(atoms, lambda x: jnp.matmul(jax.nn.softmax(x), support, precision="highest"), error)


def quantiles(atoms: int) -> ReturnDistribution:
    """Its quantiles at (i + 1/2) / atoms (QR-DQN; Dabney, Rowland, Bellemare & Munos 2018, arXiv:1710.10044).

    The loss is the quantile Huber loss of Algorithm 1 with kappa 1: summed over the predicted quantiles, a mean over
    the target's. The td_error is the absolute difference of the means.
    """
    tau = (jnp.arange(atoms) + 0.5) / atoms

    def error(
        predicted: jax.Array, return_: jax.Array, discount: jax.Array, next_: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        y = jax.lax.stop_gradient(return_[:, None] + discount[:, None] * next_)
        u = y[:, None, :] - predicted[:, :, None]  # [batch, predicted, target]
        weight = jnp.abs(tau[:, None] - (u < 0))
        loss = (weight * optax.huber_loss(u)).mean(-1).sum(-1)
        return loss, jnp.abs(y.mean(-1) - predicted.mean(-1))

    return ReturnDistribution(atoms, lambda x: x.mean(-1), error)
