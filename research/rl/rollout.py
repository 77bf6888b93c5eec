"""Acting in many environments at once: a rollout is one `jax.lax.scan`, for value-based and policy-gradient learners.

What is random about an environment is drawn with a key folded by its global index, so that a rollout does not depend
on the device that an environment is on.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from research.core.metrics import Metrics, added, mean
from research.core.state import example_keys
from research.core.types import Tree
from research.rl.environments import VectorEnv

Policy = Callable[[jax.Array, jax.Array], jax.Array]
"""(observation f32[num_envs, ...], uniform f32[num_envs, *action_shape], draws from [0, 1)) -> action.

A discrete action, i32[num_envs], takes one uniform draw (`exploration.epsilon_greedy`, `exploration.categorical`), a
continuous one, f32[num_envs, *action_shape], one for each of its numbers.
"""


class ActorState(NamedTuple):
    """The environments that an agent acts in, as one rollout leaves them to the next. Leaves [num_envs, ...].

    Attributes:
        env_id: i32, each environment's global index
        env_state: the environments' own states
        observation: f32, what the next action is chosen by
        episode_return: f32, the sum of the environment's own rewards of the episode so far, neither scaled nor clipped
        episode_length: f32, the number of its frames so far
    """

    env_id: jax.Array
    env_state: Tree
    observation: jax.Array
    episode_return: jax.Array
    episode_length: jax.Array


class Transition(NamedTuple):
    """What one action led to. Leaves [..., *].

    Attributes:
        observation: what the action was chosen by
        action: i32, or f32 [..., *action_shape], before it is clipped to its bounds
        reward: f32
        terminated: bool, the episode ended: nothing follows, and a target does not bootstrap
        done: bool, the episode ended or was cut short (truncated)
        next_observation: the true next observation, never that of a new episode
    """

    observation: jax.Array
    action: jax.Array
    reward: jax.Array
    terminated: jax.Array
    done: jax.Array
    next_observation: jax.Array


def reset(environment: VectorEnv, key: jax.Array, num_envs: int) -> ActorState:
    """The environments at the start of their first episodes."""
    env_id = jnp.arange(num_envs)
    env_state, observation = environment.reset(example_keys(key, env_id))
    return ActorState(env_id, env_state, observation, jnp.zeros(num_envs), jnp.zeros(num_envs))


def rollout(
    environment: VectorEnv, policy: Policy, actor: ActorState, key: jax.Array, length: int
) -> tuple[ActorState, Transition, Metrics]:
    """Act `length` frames in every environment. An episode that is done is followed by a new one.

    Where resets are costly (see `VectorEnv`), episodes of one environment that begin in the same rollout start alike.

    Returns the actor state after them, the transitions with leaves [num_envs, length, ...], and the mean "return" and
    "length" of the episodes that were done within them.
    """

    def frame(
        actor: ActorState, random: tuple[jax.Array, jax.Array, Any]
    ) -> tuple[ActorState, tuple[Transition, Metrics]]:
        keys, uniform, starts = random
        action = policy(actor.observation, uniform)
        env_state, timestep = environment.step(keys, actor.env_state, action, starts if shared is None else shared)
        done = timestep.terminated | timestep.truncated
        transition = Transition(
            actor.observation, action, timestep.reward, timestep.terminated, done, timestep.next_observation
        )
        reward = timestep.reward if timestep.own_reward is None else timestep.own_reward
        episode_return, episode_length = actor.episode_return + reward, actor.episode_length + 1
        metrics: Metrics = {"return": mean(episode_return, done), "length": mean(episode_length, done)}
        actor = ActorState(
            actor.env_id,
            env_state,
            timestep.observation,
            episode_return=jnp.where(done, 0, episode_return),
            episode_length=jnp.where(done, 0, episode_length),
        )
        return actor, (transition, metrics)

    # Everything random about a rollout is drawn before it, leaves [length, num_envs, ...]: many small draws are slow.
    keys = jax.vmap(lambda key: jax.random.split(key, 2 * length + 1), out_axes=1)(example_keys(key, actor.env_id))
    draws = (length, *environment.action_shape)
    uniform = jax.vmap(lambda key: jax.random.uniform(key, draws), out_axes=1)(keys[-1])
    shared = environment.reset(keys[0]) if environment.costly_reset else None
    starts = None if environment.costly_reset else jax.vmap(environment.reset)(keys[:length])
    actor, (transitions, metrics) = jax.lax.scan(frame, actor, (keys[length:-1], uniform, starts))
    by_env = jax.tree.map(lambda x: x.swapaxes(0, 1), transitions)
    return actor, by_env, added(metrics)
