"""Returns and advantages of rollouts: targets of values, and of policies."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from research.core.devices import summed
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


def gae(transitions: Transition, value: jax.Array, next_value: jax.Array, gamma: float, gae_lambda: float) -> jax.Array:
    """Generalised advantage estimates (Schulman et al. 2016, arXiv:1506.02438), f32[num_envs, length].

    They are what lambda-returns have above the values of `transitions.observation`, f32[num_envs, length].
    """
    return lambda_returns(transitions, next_value, gamma, gae_lambda) - value


def normalised(advantages: jax.Array) -> jax.Array:
    """The advantages with mean 0 and standard deviation 1 over the global batch, of whatever shape."""
    centred = advantages - _mean(advantages)
    return centred / (jnp.sqrt(_mean(centred**2)) + 1e-8)


def _mean(x: jax.Array) -> jax.Array:
    """The mean over all devices."""
    total, count = summed((x.sum(), jnp.float32(x.size)))
    return total / count


class ExplainedVariance(NamedTuple):
    """The metric 1 - Var(return - value) / Var(return): 1 where values are right, 0 where they are a constant.

    Leaves f32[]: the sums of squares of errors and of returns, each less its mean over the rollout that it is of.
    """

    errors: jax.Array
    returns: jax.Array

    def compute(self, name: str) -> Mapping[str, Any]:
        """The number under the metric's own name; NaN where the returns are constant."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return {name: 1 - self.errors / self.returns}


def explained_variance(returns: jax.Array, value: jax.Array) -> ExplainedVariance:
    """Of values and what they should have been, both of one shape, of one rollout."""
    # Less their mean before they are squared: returns of thousands would leave no digits for what values explain.
    squares = lambda x: ((x - _mean(x)) ** 2).sum()
    return ExplainedVariance(squares(returns - value), squares(returns))
