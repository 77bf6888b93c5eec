"""Advantages for policy-gradient learners."""

import jax
import jax.numpy as jnp

from research.core.devices import summed
from research.rl.rollout import Transition


def gae(transitions: Transition, value: jax.Array, next_value: jax.Array, gamma: float, gae_lambda: float) -> jax.Array:
    """Generalised advantage estimates (Schulman et al. 2016, arXiv:1506.02438), f32[num_envs, length].

    A truncated episode bootstraps from its true next observation; a terminated one does not.

    transitions        leaves [num_envs, length, ...], as from `rollout`
    value, next_value  f32[num_envs, length], of `transitions.observation` and `transitions.next_observation`
    """
    error = transitions.reward + gamma * jnp.where(transitions.terminated, 0, next_value) - value
    decay = gamma * gae_lambda * ~transitions.done

    def one(later: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        error, decay = now
        advantage = error + decay * later
        return advantage, advantage

    _, advantages = jax.lax.scan(one, jnp.zeros_like(error[:, 0]), (error.T, decay.T), reverse=True)
    return advantages.T


def normalised(advantages: jax.Array) -> jax.Array:
    """The advantages with mean 0 and standard deviation 1 over the global batch, of whatever shape."""

    def mean(x: jax.Array) -> jax.Array:
        total, count = summed((x.sum(), jnp.float32(x.size)))
        return total / count

    centred = advantages - mean(advantages)
    return centred / (jnp.sqrt(mean(centred**2)) + 1e-8)
