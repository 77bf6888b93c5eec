"""Distributions of actions: what a stochastic policy is made of. An action takes one uniform draw for each number."""

import math
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from research.rl.exploration import categorical


class Distribution(Protocol):
    """Of one action for each observation of a batch."""

    def sample(self, uniform: jax.Array) -> jax.Array:
        """Actions [batch, *action_shape], from uniform draws from [0, 1) of that shape."""
        ...

    def mode(self) -> jax.Array:
        """The most likely actions [batch, *action_shape]."""
        ...

    def log_prob(self, action: jax.Array) -> jax.Array:
        """The logarithm f32[batch] of the probability, or of its density, of actions."""
        ...

    def entropy(self) -> jax.Array:
        """The entropy f32[batch], in nats; of a density the differential one."""
        ...


class Categorical(NamedTuple):
    """Discrete actions i32[batch], by their logits f32[batch, actions]."""

    logits: jax.Array

    def sample(self, uniform: jax.Array) -> jax.Array:
        """See `Distribution`."""
        return categorical(self.logits, uniform)

    def mode(self) -> jax.Array:
        """See `Distribution`."""
        return self.logits.argmax(-1)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """See `Distribution`."""
        # A product, not an index: the gradient of an index is a scatter, which is slow on a CPU.
        return (jax.nn.log_softmax(self.logits) * jax.nn.one_hot(action, self.logits.shape[-1])).sum(-1)

    def entropy(self) -> jax.Array:
        """See `Distribution`."""
        return -(jax.nn.softmax(self.logits) * jax.nn.log_softmax(self.logits)).sum(-1)


class Gaussian(NamedTuple):
    """Continuous actions f32[batch, size], each number independently normal.

    mean     f32[batch, size]
    log_std  f32[size] or f32[batch, size], the logarithm of the standard deviation
    """

    mean: jax.Array
    log_std: jax.Array

    def sample(self, uniform: jax.Array) -> jax.Array:
        """See `Distribution`."""
        # Draws are multiples of 2^-23: half of that keeps them off 0, and apart from 1.
        normal = math.sqrt(2) * jax.lax.erf_inv(2 * (uniform + 2.0**-24) - 1)
        return self.mean + jnp.exp(self.log_std) * normal

    def mode(self) -> jax.Array:
        """See `Distribution`."""
        return self.mean

    def log_prob(self, action: jax.Array) -> jax.Array:
        """See `Distribution`."""
        z = (action - self.mean) * jnp.exp(-self.log_std)
        return (-0.5 * z**2 - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> jax.Array:
        """See `Distribution`."""
        each = self.log_std + 0.5 * math.log(2 * math.pi * math.e)
        return jnp.broadcast_to(each.sum(-1), self.mean.shape[:1])


class TanhGaussian(NamedTuple):
    """Continuous actions f32[batch, size] between -1 and 1: tanh of those of a Gaussian (Haarnoja et al. 2018,
    arXiv:1812.05905, appendix C)."""

    gaussian: Gaussian

    def sample(self, uniform: jax.Array) -> jax.Array:
        """See `Distribution`."""
        return jnp.tanh(self.gaussian.sample(uniform))

    def mode(self) -> jax.Array:
        """Tanh of the most likely actions of the Gaussian: actions without noise."""
        return jnp.tanh(self.gaussian.mode())

    def sample_and_log_prob(self, uniform: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`sample`, and the logarithm f32[batch] of the density of these actions."""
        u = self.gaussian.sample(uniform)
        log_derivative = 2 * (math.log(2) - u - jax.nn.softplus(-2 * u))  # log(1 - tanh(u)^2)
        return jnp.tanh(u), self.gaussian.log_prob(u) - log_derivative.sum(-1)
