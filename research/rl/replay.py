"""Experience replay (Lin 1992; Mnih et al. 2015): a ring of frames for each environment.

Leaves are [environment, slot, ...], so a ring splits over devices with its environments. Where it is written follows
from the step alone: every step writes `frames` slots of every environment, and they divide the slots.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Frame(NamedTuple):
    """What one action led to, leaves [..., *].

    observation  what the action was chosen by, in the dtype it is stored in
    action       i32
    reward       f32
    terminated   bool, nothing comes after
    over         bool, terminated or cut short
    final        the true next observation, that of no new episode
    """

    observation: jax.Array
    action: jax.Array
    reward: jax.Array
    terminated: jax.Array
    over: jax.Array
    final: jax.Array


class Sample(NamedTuple):
    """What a target is made of, leaves [..., *]: return_ + discount * value(final).

    return_   f32, the discounted rewards of n frames, or of fewer where the episode is over before
    discount  f32, gamma to the number of those frames; 0 where the last of them terminated
    final     what the last of them led to
    """

    observation: jax.Array
    action: jax.Array
    return_: jax.Array
    discount: jax.Array
    final: jax.Array


def empty(frame: Frame, environments: int, slots: int) -> Frame:
    """A ring for frames like `frame` (arrays or their shapes)."""
    return jax.tree.map(lambda x: jnp.zeros((environments, slots, *x.shape), x.dtype), frame)


def cursor(step: jax.Array, frames: int, slots: int) -> jax.Array:
    """The slot where a step writes its first frame, i32[]."""
    return step % (slots // frames) * frames


def filled(step: jax.Array, frames: int, slots: int) -> jax.Array:
    """The slots written before a step, i32[]."""
    return jnp.minimum(step, slots // frames) * frames


def write(ring: Frame, written: Frame, step: jax.Array) -> Frame:
    """The ring with a step's frames, leaves [environments, frames, ...], in it."""

    def one(ring: jax.Array, written: jax.Array) -> jax.Array:
        at = cursor(step, written.shape[1], ring.shape[1])
        return jax.lax.dynamic_update_slice_in_dim(ring, written, at, 1)

    return jax.tree.map(one, ring, written)


def sample(
    ring: Frame, keys: jax.Array, step: jax.Array, frames: int, shape: tuple[int, int], n: int, gamma: float
) -> Sample:
    """Draws, after that step's write, uniformly and with replacement, `shape` windows of n frames of each environment.

    keys   [environments], so that a draw does not depend on where the environment is
    shape  (batches, samples of an environment in a batch)

    Leaves [batches, samples * environments, ...]. No window crosses the seam between the newest and the oldest frame.
    """
    environments, slots = ring.reward.shape
    full = filled(step + 1, frames, slots)
    oldest = jnp.where(full == slots, cursor(step + 1, frames, slots), 0)
    drawn = jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)  # [environments, batches, samples]
    age = (drawn * (full - n + 1)).astype(jnp.int32).transpose(1, 0, 2)
    environment = jnp.broadcast_to(jnp.arange(environments)[:, None], age.shape)
    environment, age = (x.reshape(shape[0], -1) for x in (environment, age))
    slot = lambda offset: (oldest + age + offset) % slots

    return_, discount = jnp.zeros(age.shape), jnp.ones(age.shape)
    over, last = jnp.zeros(age.shape, bool), jnp.zeros_like(age)
    for offset in range(n):
        at = environment, slot(offset)
        return_ += jnp.where(over, 0, discount * ring.reward[at])
        discount = jnp.where(over, discount, discount * gamma * ~ring.terminated[at])
        last = jnp.where(over, last, offset)
        over |= ring.over[at]
    start, end = (environment, slot(0)), (environment, slot(last))
    return Sample(ring.observation[start], ring.action[start], return_, discount, ring.final[end])
