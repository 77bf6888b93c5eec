"""Wrappers: functions from environments to environments. The fields of `Environment` switch them on.

What a wrapper remembers of an episode stands in the states beside those of the environment that it wraps, and starts
anew where the episode is done.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from research.core.errors import UserError
from research.core.types import Tree
from research.rl.vector import Box, Timestep, VectorEnv

Starts = tuple[Tree, jax.Array]


def rewards(environment: VectorEnv, changed: Callable[[jax.Array], jax.Array]) -> VectorEnv:
    """Rewards f32[num_envs] as `changed` makes them; returns are reported with `own_reward`, which they were before."""

    def step(keys: jax.Array, states: Tree, actions: jax.Array, starts: Starts) -> tuple[Tree, Timestep]:
        states, timestep = environment.step(keys, states, actions, starts)
        return states, timestep._replace(reward=changed(timestep.reward), own_reward=timestep.reward)

    return environment._replace(step=step)


def sticky_actions(environment: VectorEnv, probability: float) -> VectorEnv:
    """With this probability a frame executes the action of the frame before (Machado et al. 2018, arXiv:1709.06009).

    Before the first frame of an episode, that action is 0.
    """
    dtype = environment.action_dtype

    def reset(keys: jax.Array) -> Starts:
        states, observation = environment.reset(keys)
        return (states, jnp.zeros((len(observation), *environment.action_shape), dtype)), observation

    def step(keys: jax.Array, states: Tree, actions: jax.Array, starts: Starts) -> tuple[Tree, Timestep]:
        (inner, last), ((first, none), observation) = states, starts
        keys, draws = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        executed = _where(jax.vmap(jax.random.uniform)(draws) < probability, last, actions.astype(dtype))
        inner, timestep = environment.step(keys, inner, executed, (first, observation))
        return (inner, _where(_done(timestep), none, executed)), timestep

    return environment._replace(reset=reset, step=step)


def time_limit(environment: VectorEnv, max_steps: int) -> VectorEnv:
    """Episodes that last for `max_steps` frames are truncated then."""

    def reset(keys: jax.Array) -> Starts:
        states, observation = environment.reset(keys)
        return (states, jnp.zeros(len(observation), jnp.int32)), observation

    def step(keys: jax.Array, states: Tree, actions: jax.Array, starts: Starts) -> tuple[Tree, Timestep]:
        (inner, time), ((first, zero), observation) = states, starts
        inner, timestep = environment.step(keys, inner, actions, (first, observation))
        timestep = timestep._replace(truncated=timestep.truncated | (time + 1 >= max_steps))
        done = _done(timestep)
        timestep = timestep._replace(observation=_where(done, observation, timestep.observation))
        return _where(done, (first, zero), (inner, time + 1)), timestep

    return environment._replace(
        reset=reset,
        step=step,
        max_steps=min(max_steps, environment.max_steps),
        least_truncated=min(max_steps, environment.least_truncated),
    )


def terminal_limit(environment: VectorEnv) -> VectorEnv:
    """Episodes that would be truncated terminate instead (what that costs: Pardo et al. 2018, arXiv:1712.00378)."""

    def step(keys: jax.Array, states: Tree, actions: jax.Array, starts: Starts) -> tuple[Tree, Timestep]:
        states, timestep = environment.step(keys, states, actions, starts)
        return states, timestep._replace(terminated=_done(timestep), truncated=jnp.zeros_like(timestep.truncated))

    return environment._replace(step=step)


def frame_stack(environment: VectorEnv, frames: int) -> VectorEnv:
    """Observations are the last `frames` ones, joined along the last axis, the newest last (Mnih et al. 2015).

    At the start of an episode its first observation stands in for those before it. Raises UserError where an
    observation is one number, without an axis.
    """
    if not environment.observation_shape:
        raise UserError(f"environment.frame_stack: observations of {environment.name} have no axis to be joined along")
    *shape, size = environment.observation_shape

    def reset(keys: jax.Array) -> Starts:
        states, observation = environment.reset(keys)
        stack = jnp.concatenate([observation] * frames, -1)
        return (states, stack), stack

    def step(keys: jax.Array, states: Tree, actions: jax.Array, starts: Starts) -> tuple[Tree, Timestep]:
        (inner, stack), ((first, first_stack), _) = states, starts
        inner, timestep = environment.step(keys, inner, actions, (first, first_stack[..., -size:]))
        next_stack = jnp.concatenate([stack[..., size:], timestep.next_observation], -1)
        stack = _where(_done(timestep), first_stack, next_stack)
        return (inner, stack), timestep._replace(observation=stack, next_observation=next_stack)

    return environment._replace(reset=reset, step=step, observation_shape=(*shape, size * frames))


def append_memory(environment: VectorEnv, recall: Callable[[jax.Array], jax.Array], size: int) -> VectorEnv:
    """Observations are flat, and end in the memory of what an agent has seen before in the episode, at first 0.

    recall  such observations f32[num_envs, features + size] -> the memory f32[num_envs, size] after them
    """
    length = math.prod(environment.observation_shape)

    def joined(observation: jax.Array, memory: jax.Array) -> jax.Array:
        return jnp.concatenate([observation.reshape(len(observation), -1), memory], -1)

    def reset(keys: jax.Array) -> Starts:
        states, observation = environment.reset(keys)
        start = joined(observation, jnp.zeros((len(observation), size)))
        return (states, start), start

    def step(keys: jax.Array, states: Tree, actions: jax.Array, starts: Starts) -> tuple[Tree, Timestep]:
        (inner, seen), ((first, start), _) = states, starts
        start_alone = start[:, :length].reshape(-1, *environment.observation_shape)
        inner, timestep = environment.step(keys, inner, actions, (first, start_alone))
        next_seen = joined(timestep.next_observation, recall(seen))
        seen = _where(_done(timestep), start, next_seen)
        return (inner, seen), timestep._replace(observation=seen, next_observation=next_seen)

    return environment._replace(reset=reset, step=step, observation_shape=(length + size,))


def rescaled_actions(environment: VectorEnv) -> VectorEnv:
    """Actions between -1 and 1 where the environment's have finite bounds; discrete ones as they are."""
    box = environment.actions
    if not isinstance(box, Box):
        return environment
    ones, bounded = np.ones_like(box.low), np.isfinite(box.low) & np.isfinite(box.high)

    def step(keys: jax.Array, states: Tree, actions: jax.Array, starts: Starts) -> tuple[Tree, Timestep]:
        return environment.step(keys, states, unscaled_actions(box, actions), starts)

    return environment._replace(
        step=step, actions=Box(np.where(bounded, -ones, box.low), np.where(bounded, ones, box.high))
    )


def unscaled_actions(box: Box, actions: jax.Array) -> jax.Array:
    """Actions [..., *shape] of `rescaled_actions` as those of the environment itself, within its bounds."""
    bounded = np.isfinite(box.low) & np.isfinite(box.high)
    low, high = jnp.where(bounded, box.low, -1), jnp.where(bounded, box.high, 1)
    return jnp.clip(low + (actions + 1) / 2 * (high - low), box.low, box.high)


def _done(timestep: Timestep) -> jax.Array:
    return timestep.terminated | timestep.truncated


def _where(condition: jax.Array, chosen: Tree, other: Tree) -> Tree:
    """Per environment: condition [num_envs], leaves [num_envs, ...]."""

    def leaf(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.where(condition.reshape(-1, *(1,) * (x.ndim - 1)), x, y)

    return jax.tree.map(leaf, chosen, other)
