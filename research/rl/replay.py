"""Experience replay (Lin 1992; Mnih et al. 2015): a ring buffer of transitions for each environment.

Leaves are [num_envs, slots, ...], so that the buffer splits over devices with its environments. Where it is written
follows from the step alone: every step writes `rollout_length` slots of every environment, a divisor of the slots.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from research.rl.rollout import Transition


class Sample(NamedTuple):
    """What a target is made of: return_ + discount * value(next_observation). Leaves [..., *].

    Attributes:
        observation: where the window starts
        action: i32, what was done there
        return_: f32, the discounted rewards of n transitions, or of fewer where the episode is done before
        discount: f32, gamma to the number of those transitions; 0 where the last of them terminated
        next_observation: what the last of them led to
    """

    observation: jax.Array
    action: jax.Array
    return_: jax.Array
    discount: jax.Array
    next_observation: jax.Array


def empty(num_envs: int, slots: int, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Transition:
    """A buffer of zeros for observations of `shape`, which it holds as `dtype`. Leaves [num_envs, slots, ...]."""
    zeros = lambda shape, dtype: jnp.zeros((num_envs, slots, *shape), dtype)
    return Transition(
        observation=zeros(shape, dtype),
        action=zeros((), jnp.int32),
        reward=zeros((), jnp.float32),
        terminated=zeros((), bool),
        done=zeros((), bool),
        next_observation=zeros(shape, dtype),
    )


def cursor(step: jax.Array, rollout_length: int, slots: int) -> jax.Array:
    """The slot where a step writes its first transition, i32[]."""
    return step % (slots // rollout_length) * rollout_length


def filled(step: jax.Array, rollout_length: int, slots: int) -> jax.Array:
    """The number of slots written before a step, i32[]."""
    return jnp.minimum(step, slots // rollout_length) * rollout_length


def write(buffer: Transition, transitions: Transition, step: jax.Array) -> Transition:
    """The buffer with a step's transitions, leaves [num_envs, rollout_length, ...], cast to the buffer's dtypes."""

    def one(buffer: jax.Array, new: jax.Array) -> jax.Array:
        at = cursor(step, new.shape[1], buffer.shape[1])
        return jax.lax.dynamic_update_slice_in_dim(buffer, new.astype(buffer.dtype), at, 1)

    return jax.tree.map(one, buffer, transitions)


def uniform(
    keys: jax.Array, step: jax.Array, rollout_length: int, slots: int, shape: tuple[int, int], n: int
) -> jax.Array:
    """Slots i32[num_envs, *shape] where whole windows of n transitions begin, drawn uniformly after that step's write.

    keys   [num_envs], so that the draws of an environment do not depend on the device that it is on
    shape  (batches, samples of an environment in a batch)

    No window crosses the seam between the newest transition and the oldest.
    """
    full = filled(step + 1, rollout_length, slots)
    oldest = jnp.where(full == slots, cursor(step + 1, rollout_length, slots), 0)

    def one(key: jax.Array) -> jax.Array:
        age = (jax.random.uniform(key, shape) * (full - n + 1)).astype(jnp.int32)
        return (oldest + age) % slots

    return jax.vmap(one)(keys)


def sequences(buffer: Transition, slots: jax.Array, length: int) -> Transition:
    """The `length` transitions from slots i32[num_envs, batches, samples] on; episodes may end within them.

    Leaves [batches, num_envs * samples, length, ...].
    """

    def one(buffer: Transition, first: jax.Array) -> Transition:
        at = (first[..., None] + jnp.arange(length)) % len(buffer.reward)
        return jax.tree.map(lambda x: x[at], buffer)

    found = jax.vmap(one, out_axes=1)(buffer, slots)  # leaves [batches, num_envs, samples, length, ...]
    return jax.tree.map(lambda x: x.reshape(x.shape[0], -1, *x.shape[3:]), found)


def windows(buffer: Transition, slots: jax.Array, n: int, gamma: float) -> Sample:
    """The windows of n transitions that begin at slots i32[num_envs, batches, samples].

    Leaves [batches, num_envs * samples, ...].
    """

    def one(buffer: Transition, first: jax.Array) -> Sample:
        """Those of one environment, from its own slots: leaves [slots, ...] -> [batches, samples, ...]."""
        slot = lambda offset: (first + offset) % len(buffer.reward)
        return_, discount = jnp.zeros(first.shape), jnp.ones(first.shape)
        done, last = jnp.zeros(first.shape, bool), jnp.zeros(first.shape, jnp.int32)
        for offset in range(n):
            at = slot(offset)
            return_ += jnp.where(done, 0, discount * buffer.reward[at])
            discount = jnp.where(done, discount, discount * gamma * ~buffer.terminated[at])
            last = jnp.where(done, last, offset)
            done |= buffer.done[at]
        end = slot(last)
        return Sample(buffer.observation[first], buffer.action[first], return_, discount, buffer.next_observation[end])

    # Under a vmap each environment's samples are gathered where its slots are: on a mesh, no device needs another's.
    samples = jax.vmap(one, out_axes=1)(buffer, slots)  # leaves [batches, num_envs, samples, ...]
    return jax.tree.map(lambda x: x.reshape(x.shape[0], -1, *x.shape[3:]), samples)
