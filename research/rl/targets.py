"""Targets of values from rollouts."""

import jax
import jax.numpy as jnp

from research.rl.rollout import Transition


def lambda_returns(transitions: Transition, next_value: jax.Array, gamma: float, decay: float) -> jax.Array:
    """The lambda-returns of a rollout, f32[num_envs, length] (Sutton & Barto 2018, section 12.1).

    Each is reward + gamma * ((1 - decay) * next value + decay * next return). What terminated has neither, and what was
    truncated, or is the last of the rollout, goes on with the whole next value. With the value of the best action it is
    Peng's Q(lambda).

    transitions  leaves [num_envs, length, ...], as from `rollout`
    next_value   f32[num_envs, length], of `transitions.next_observation`
    """

    def one(later: jax.Array, now: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        reward, terminated, done, value = now
        follows = jnp.where(done, value, (1 - decay) * value + decay * later)
        return_ = reward + gamma * jnp.where(terminated, 0, follows)
        return return_, return_

    by_time = (transitions.reward.T, transitions.terminated.T, transitions.done.T, next_value.T)
    _, returns = jax.lax.scan(one, next_value[:, -1], by_time, reverse=True)
    return returns.T
