"""How actions are chosen while learning: each action takes one uniform draw from [0, 1)."""

import jax
import jax.numpy as jnp


def linear_epsilon(step: jax.Array, start: float, end: float, duration: float) -> jax.Array:
    """Epsilon f32[] at a step i32[]: linear from `start` to `end` over the first `duration` steps.

    A duration of 0 is `end` at once. The three may be traced, as in a sweep.
    """
    # The divisor is guarded as well as the result, or 0 / 0 would be NaN at step 0.
    fraction = jnp.where(step < duration, step / jnp.maximum(duration, 1e-8), 1.0)
    return start + (end - start) * fraction


def epsilon_greedy(q: jax.Array, uniform: jax.Array, epsilon: jax.Array) -> jax.Array:
    """A random action with probability epsilon, otherwise the best one: q [batch, actions] -> i32[batch].

    uniform  f32[batch]. One draw decides both: below epsilon, uniform / epsilon is uniform again.
    """
    random = (uniform / jnp.maximum(epsilon, 1e-8) * q.shape[-1]).astype(jnp.int32)
    random = jnp.minimum(random, q.shape[-1] - 1)  # a quotient that is rounded to 1 would be one action too many
    return jnp.where(uniform < epsilon, random, q.argmax(-1))


def probabilities(q: jax.Array, epsilon: jax.Array) -> jax.Array:
    """The probabilities f32[..., actions] by which `epsilon_greedy` chooses the actions of values q [..., actions]."""
    actions = q.shape[-1]
    return epsilon / actions + (1 - epsilon) * jax.nn.one_hot(q.argmax(-1), actions)


def categorical(logits: jax.Array, uniform: jax.Array) -> jax.Array:
    """An action by its probability: logits [batch, actions], uniform f32[batch] -> i32[batch].

    It is the number of actions whose cumulative probability is at most `uniform`.
    """
    cumulative = jnp.cumsum(jax.nn.softmax(logits), -1)[:, :-1]  # without the last, which rounding may keep below 1
    return (cumulative <= uniform[:, None]).sum(-1)
