"""Environments so small that every value is known: they show which part of an agent is wrong.

They follow gymnax's interface, and show what an environment of one's own has to define. Their observation is one
number, x. With discount g the optimal values are:

    Constant     one frame, reward 1                                          Q = 1
    Seen         one frame, x is 1 or -1, reward x                            Q(x) = x
    Delayed      x is 0, then 1; reward 1 for the second frame                Q(0) = g, Q(1) = 1
    Chosen       one frame, x is 0 or 1, reward 1 for action x, else -1       Q(x, a) = 1 if a = x else -1
    ChosenLater  x is 0, then 1; the second frame's reward is 1 for           Q(0, ·) = g, Q(1, a) = 1 if a = 1 else -1
                 action 1, else -1
    Truncating   Delayed, but cut short, not ended, after the second frame    Q(0) = g / (1 - g), Q(1) = 1 / (1 - g)
    Counting     x counts the frames, cut short after 7; reward x             (for tests of what replay hands out)

Who takes truncation for termination finds Q(1) = 1 in Truncating; who bootstraps from the observation after the reset
instead of the true next one finds 1 / (1 - g²).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces


@struct.dataclass
class ProbeState(environment.EnvState):
    """x f32[], what is seen; time i32[], frames of this episode."""

    x: jax.Array


@struct.dataclass
class ProbeParams(environment.EnvParams):
    """max_steps_in_episode: far off; what ends, ends by itself."""

    max_steps_in_episode: int = 1000


class Constant(environment.Environment[ProbeState, ProbeParams]):
    """See the file's head. The others redefine what differs."""

    length = 1
    actions = 1

    @property
    def default_params(self) -> ProbeParams:
        """The parameters `make` takes."""
        return ProbeParams()

    def start(self, key: jax.Array) -> jax.Array:
        """The first x."""
        return jnp.float32(0)

    def next(self, x: jax.Array) -> jax.Array:
        """The x after x."""
        return x

    def reward(self, x: jax.Array, action: jax.Array) -> jax.Array:
        """Of an action at x."""
        return jnp.float32(1)

    def reset_env(self, key: jax.Array, params: ProbeParams) -> tuple[jax.Array, ProbeState]:
        """A new episode."""
        state = ProbeState(time=jnp.int32(0), x=self.start(key))
        return state.x[None], state

    def step_env(
        self, key: jax.Array, state: ProbeState, action: jax.Array, params: ProbeParams
    ) -> tuple[jax.Array, ProbeState, jax.Array, jax.Array, dict[str, Any]]:
        """One frame, without the reset, which gymnax adds."""
        moved = ProbeState(time=state.time + 1, x=self.next(state.x))
        return moved.x[None], moved, self.reward(state.x, action), self.is_terminated(moved, params), {}

    def is_terminated(self, state: ProbeState, params: ProbeParams) -> jax.Array:
        """Whether the episode ended."""
        return state.time >= self.length

    def action_space(self, params: ProbeParams | None = None) -> spaces.Discrete:
        """0 ... actions - 1."""
        return spaces.Discrete(self.actions)

    def observation_space(self, params: ProbeParams | None = None) -> spaces.Box:
        """One number."""
        return spaces.Box(-jnp.inf, jnp.inf, (1,), jnp.float32)


class Seen(Constant):
    """See the file's head."""

    def start(self, key: jax.Array) -> jax.Array:
        """1 or -1."""
        return jax.random.rademacher(key, (), jnp.float32)

    def reward(self, x: jax.Array, action: jax.Array) -> jax.Array:
        """What is seen."""
        return x


class Delayed(Constant):
    """See the file's head."""

    length = 2

    def next(self, x: jax.Array) -> jax.Array:
        """1, for good."""
        return jnp.ones_like(x)

    def reward(self, x: jax.Array, action: jax.Array) -> jax.Array:
        """1 at the second frame."""
        return x


class Chosen(Constant):
    """See the file's head."""

    actions = 2

    def start(self, key: jax.Array) -> jax.Array:
        """0 or 1."""
        return jax.random.bernoulli(key).astype(jnp.float32)

    def reward(self, x: jax.Array, action: jax.Array) -> jax.Array:
        """Is the action x?"""
        return jnp.where(action == x, 1.0, -1.0)


class ChosenLater(Delayed):
    """See the file's head."""

    actions = 2

    def reward(self, x: jax.Array, action: jax.Array) -> jax.Array:
        """Nothing at 0; at 1, is the action 1?"""
        return x * jnp.where(action == 1, 1.0, -1.0)


class Truncating(Delayed):
    """See the file's head."""

    def is_terminated(self, state: ProbeState, params: ProbeParams) -> jax.Array:
        """Never."""
        return jnp.bool_(False)

    def is_truncated(self, state: ProbeState, params: ProbeParams) -> jax.Array:
        """After two frames."""
        return state.time >= self.length


class Counting(Truncating):
    """See the file's head."""

    length = 7

    def next(self, x: jax.Array) -> jax.Array:
        """One more."""
        return x + 1
