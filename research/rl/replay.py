"""Experience replay (Lin 1992; Mnih et al. 2015): a ring buffer of transitions for each environment.

Leaves are [num_envs, ...], so that the buffer splits over devices with its environments. Where it is written follows
from the step alone: every step writes `rollout_length` slots of every environment, a divisor of the slots.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from research.core.errors import UserError
from research.rl.rollout import Transition
from research.rl.vector import VectorEnv


class Buffer(NamedTuple):
    """The last transitions of each environment. What an action led to is stored once: it is what the next is chosen by.

    Attributes:
        observation: [num_envs, slots, ...], what actions were chosen by
        action: i32[num_envs, slots], or f32[num_envs, slots, *action_shape] where actions are continuous
        reward: f32[num_envs, slots]
        terminated: bool[num_envs, slots], see `Transition`
        done: bool[num_envs, slots], see `Transition`
        newest: [num_envs, ...], what the newest transition led to
        newest_slot: i32[num_envs], the slot of that transition
        final: [num_envs, cuts, ...], a ring of what the last transitions of truncated episodes led to
        final_place: i32[num_envs, slots], the place in `final` of such a transition
        cuts: i32[num_envs], the number of truncated episodes so far
    """

    observation: jax.Array
    action: jax.Array
    reward: jax.Array
    terminated: jax.Array
    done: jax.Array
    newest: jax.Array
    newest_slot: jax.Array
    final: jax.Array
    final_place: jax.Array
    cuts: jax.Array


class Sample(NamedTuple):
    """What a target is made of: return_ + discount * value(next_observation). Leaves [..., *].

    Attributes:
        observation: where the window starts
        action: i32, or f32 [..., *action_shape], what was done there
        return_: f32, the discounted rewards of n transitions, or of fewer where the episode is done before
        discount: f32, gamma to the number of those transitions; 0 where the last of them terminated
        next_observation: what the last of them led to; anything where it terminated
    """

    observation: jax.Array
    action: jax.Array
    return_: jax.Array
    discount: jax.Array
    next_observation: jax.Array


def check_whole_numbers(environment: VectorEnv) -> None:
    """Raises UserError where the first observation of an episode has other numbers than whole ones from 0 to 255."""
    with jax.ensure_compile_time_eval():  # also where a learner is being traced
        _, observation = jax.jit(environment.reset)(jax.random.split(jax.random.key(0), 1))
        values = np.asarray(observation)
    if (wrong := values[values != values.round().clip(0, 255)]).size:
        raise UserError(
            f"buffer_dtype uint8 is for observations of whole numbers from 0 to 255, and those of {environment.name} "
            f"have {wrong[0]:.4g}: choose --buffer-dtype float32"
        )


def empty(environment: VectorEnv, num_envs: int, slots: int, dtype: Any = jnp.float32) -> Buffer:
    """A buffer of zeros for the transitions of `environment`, whose observations it holds as `dtype`."""
    shape, per_slot = environment.observation_shape, (num_envs, slots)
    cuts = (slots - 1) // environment.least_truncated + 1  # the most that `slots` frames can have
    return Buffer(
        observation=jnp.zeros((*per_slot, *shape), dtype),
        action=jnp.zeros((*per_slot, *environment.action_shape), environment.action_dtype),
        reward=jnp.zeros(per_slot),
        terminated=jnp.zeros(per_slot, bool),
        done=jnp.zeros(per_slot, bool),
        newest=jnp.zeros((num_envs, *shape), dtype),
        newest_slot=jnp.zeros(num_envs, jnp.int32),
        final=jnp.zeros((num_envs, cuts, *shape), dtype),
        final_place=jnp.zeros(per_slot, jnp.int32),
        cuts=jnp.zeros(num_envs, jnp.int32),
    )


def cursor(step: jax.Array, rollout_length: int, slots: int) -> jax.Array:
    """The slot where a step writes its first transition, i32[]."""
    return step % (slots // rollout_length) * rollout_length


def filled(step: jax.Array, rollout_length: int, slots: int) -> jax.Array:
    """The number of slots written before a step, i32[]."""
    return jnp.minimum(step, slots // rollout_length) * rollout_length


def write(buffer: Buffer, transitions: Transition, step: jax.Array) -> Buffer:
    """The buffer with a step's transitions, leaves [num_envs, rollout_length, ...], cast to the buffer's dtypes."""
    length, slots, cuts = transitions.reward.shape[1], buffer.reward.shape[1], buffer.final.shape[1]
    at = cursor(step, length, slots)

    def ring(old: jax.Array, new: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), at, 1)

    def one(old: jax.Array, places: jax.Array, new: jax.Array) -> jax.Array:
        return old.at[places].set(new.astype(old.dtype), mode="drop")

    cut = transitions.done & ~transitions.terminated
    number = buffer.cuts[:, None] + jnp.cumsum(cut, 1)
    place = (number - 1) % cuts
    return Buffer(
        observation=ring(buffer.observation, transitions.observation),
        action=ring(buffer.action, transitions.action),
        reward=ring(buffer.reward, transitions.reward),
        terminated=ring(buffer.terminated, transitions.terminated),
        done=ring(buffer.done, transitions.done),
        newest=transitions.next_observation[:, -1].astype(buffer.newest.dtype),
        newest_slot=jnp.full_like(buffer.newest_slot, at + length - 1),
        final=jax.vmap(one)(buffer.final, jnp.where(cut, place, cuts), transitions.next_observation),
        final_place=ring(buffer.final_place, place),
        cuts=number[:, -1],
    )


def following(buffer: Buffer, slot: jax.Array) -> jax.Array:
    """What the transitions in slots i32[*] led to, [*, ...]; anything where they terminated.

    The buffer is that of one environment: leaves without their first axis.
    """
    along = lambda condition: condition.reshape(*slot.shape, *(1,) * (buffer.newest.ndim))
    found = buffer.observation[(slot + 1) % len(buffer.reward)]
    found = jnp.where(along(slot == buffer.newest_slot), buffer.newest, found)
    return jnp.where(along(buffer.done[slot]), buffer.final[buffer.final_place[slot]], found)


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


def sequences(buffer: Buffer, slots: jax.Array, length: int) -> Transition:
    """The `length` transitions from slots i32[num_envs, batches, samples] on; episodes may end within them.

    Leaves [batches, num_envs * samples, length, ...].
    """

    def one(buffer: Buffer, first: jax.Array) -> Transition:
        at = (first[..., None] + jnp.arange(length)) % len(buffer.reward)
        return Transition(
            buffer.observation[at],
            buffer.action[at],
            buffer.reward[at],
            buffer.terminated[at],
            buffer.done[at],
            following(buffer, at),
        )

    found = jax.vmap(one, out_axes=1)(buffer, slots)  # leaves [batches, num_envs, samples, length, ...]
    return jax.tree.map(lambda x: x.reshape(x.shape[0], -1, *x.shape[3:]), found)


def windows(buffer: Buffer, slots: jax.Array, n: int, gamma: float) -> Sample:
    """The windows of n transitions that begin at slots i32[num_envs, batches, samples].

    Leaves [batches, num_envs * samples, ...].
    """

    def one(buffer: Buffer, first: jax.Array) -> Sample:
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
        next_observation = following(buffer, slot(last))
        return Sample(buffer.observation[first], buffer.action[first], return_, discount, next_observation)

    # Under a vmap each environment's samples are gathered where its slots are: on a mesh, no device needs another's.
    samples = jax.vmap(one, out_axes=1)(buffer, slots)  # leaves [batches, num_envs, samples, ...]
    return jax.tree.map(lambda x: x.reshape(x.shape[0], -1, *x.shape[3:]), samples)
