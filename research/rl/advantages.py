"""Advantages for policy-gradient learners."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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


class ExplainedVariance(NamedTuple):
    """The metric 1 - Var(return - value) / Var(return): 1 where values are right, 0 where they are a constant.

    Leaves f32[]: the number of returns, the sums of returns and of errors, and of their squares.
    """

    number: jax.Array
    returns: jax.Array
    squared_returns: jax.Array
    errors: jax.Array
    squared_errors: jax.Array

    def compute(self, name: str) -> Mapping[str, Any]:
        """The number under the metric's own name; NaN where the returns are constant."""
        variance = lambda total, squares: squares / self.number - (total / self.number) ** 2
        with np.errstate(divide="ignore", invalid="ignore"):
            errors = variance(self.errors, self.squared_errors)
            return {name: 1 - errors / variance(self.returns, self.squared_returns)}


def explained_variance(returns: jax.Array, value: jax.Array) -> ExplainedVariance:
    """Of values and what they should have been, both of one shape."""
    error = returns - value
    number = jnp.float32(returns.size)
    return ExplainedVariance(number, returns.sum(), (returns**2).sum(), error.sum(), (error**2).sum())
