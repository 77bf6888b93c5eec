"""Running statistics that observations and rewards are normalised by, over all devices; they are part of the State."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from research.core.devices import summed

CLIP = 10.0
"""The magnitude that what is normalised is clipped to."""


class Moments(NamedTuple):
    """Of each number of an array of some shape, over all that was seen.

    count       f32[]
    mean        f32[*shape]
    deviations  f32[*shape], the sum of the squared deviations from the mean
    """

    count: jax.Array  # type: ignore[assignment]  # a field, not tuple's method
    mean: jax.Array
    deviations: jax.Array

    @property
    def std(self) -> jax.Array:
        """The standard deviation f32[*shape]; 1 where nothing was seen."""
        return jnp.where(self.count > 0, jnp.sqrt(self.deviations / jnp.maximum(self.count, 1) + 1e-8), 1)


def no_moments(shape: tuple[int, ...]) -> Moments:
    """Of nothing yet."""
    return Moments(jnp.float32(0), jnp.zeros(shape), jnp.zeros(shape))


def merged(moments: Moments, x: jax.Array) -> Moments:
    """The moments with those of the global batch x [..., *shape] merged in (Chan, Golub & LeVeque 1983)."""
    x = x.reshape(-1, *moments.mean.shape)
    total, count = summed((x.sum(0), jnp.float32(len(x))))
    mean = total / count
    deviations = summed(((x - mean) ** 2).sum(0))
    both, apart = moments.count + count, mean - moments.mean
    return Moments(
        both,
        moments.mean + apart * count / both,
        moments.deviations + deviations + apart**2 * moments.count * count / both,
    )


def normalised(moments: Moments, x: jax.Array) -> jax.Array:
    """x [..., *shape] with mean 0 and standard deviation 1, by these moments, clipped to `CLIP`."""
    return jnp.clip((x - moments.mean) / moments.std, -CLIP, CLIP)


def scaled(moments: Moments, x: jax.Array) -> jax.Array:
    """x [..., *shape] over the standard deviation, clipped to `CLIP`: of rewards, whose sign means something."""
    return jnp.clip(x / moments.std, -CLIP, CLIP)


def discounted_rewards(
    before: jax.Array, reward: jax.Array, done: jax.Array, gamma: float
) -> tuple[jax.Array, jax.Array]:
    """The running sum of an episode's rewards, each step discounting those before it: R = gamma R + reward.

    By its standard deviation rewards are scaled (Engstrom et al. 2020, arXiv:2005.12729).

    before        f32[num_envs], R as the rollout before left it
    reward, done  [num_envs, length]

    Returns R after this rollout, f32[num_envs], 0 where the episode is done; and all of them, f32[num_envs, length].
    """

    def one(before: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        reward, done = now
        found = gamma * before + reward
        return jnp.where(done, 0, found), found

    after, found = jax.lax.scan(one, before, (reward.T, done.T))
    return after, found.T
