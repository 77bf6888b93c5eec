"""The interface of environments: many of one kind at once, as pure functions."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from research.core.errors import UserError
from research.core.types import Tree


class Box(NamedTuple):
    """Continuous actions: arrays of one shape between bounds, f32[*shape]; a bound may be infinite."""

    low: np.ndarray
    high: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one action."""
        return self.low.shape


class Timestep(NamedTuple):
    """What environments return for their actions. Leaves [num_envs, ...].

    Attributes:
        observation: f32, what the next action is chosen by; the first of a new episode where the old one is done
        next_observation: f32, what the action led to, before any reset
        reward: f32
        terminated: bool, the episode ended: nothing follows it
        truncated: bool, the episode was cut short: what would have followed still has a value
        own_reward: f32, the environment's own reward where a wrapper has changed `reward`, else None
    """

    observation: jax.Array
    next_observation: jax.Array
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    own_reward: jax.Array | None = None


class VectorEnv(NamedTuple):
    """Many environments of one kind, as pure functions. Each environment has its own key.

    Attributes:
        reset: keys [num_envs] -> (states, observations f32[num_envs, *observation_shape]), the start of episodes
        step: (keys [num_envs], states, actions, starts) -> (states, Timestep). Actions are i32[num_envs], or
            f32[num_envs, *shape] of a box, which are clipped to its bounds. `starts` are as from `reset`; an
            environment whose episode is done continues from its part of them
        observation_shape: the shape of one observation
        actions: the number of actions, or the box of continuous ones
        max_steps: number of frames of the longest episode
        name: the environment's name, for messages
        least_truncated: number of frames of the shortest episode that can be truncated
        costly_reset: whether resets are so costly that a rollout draws one start for each environment, not one for each
            of its frames
    """

    reset: Callable[[jax.Array], tuple[Tree, jax.Array]]
    step: Callable[[jax.Array, Tree, jax.Array, tuple[Tree, jax.Array]], tuple[Tree, Timestep]]
    observation_shape: tuple[int, ...]
    actions: int | Box
    max_steps: int
    name: str = ""
    least_truncated: int = 1
    costly_reset: bool = False

    @property
    def num_actions(self) -> int:
        """The number of actions. Raises UserError if they are continuous."""
        if isinstance(self.actions, Box):
            raise UserError(
                f"environment.name: the actions of {self.name} are continuous, and this learner's are discrete: choose "
                "another environment, or PPO, which takes both"
            )
        return self.actions

    @property
    def action_shape(self) -> tuple[int, ...]:
        """The shape of one action, () for a discrete one."""
        return self.actions.shape if isinstance(self.actions, Box) else ()

    @property
    def action_dtype(self) -> DTypeLike:
        """The dtype of an action: i32 of a discrete one, f32 of a continuous one."""
        return jnp.float32 if isinstance(self.actions, Box) else jnp.int32
