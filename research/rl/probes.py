"""Probe environments: so small that every value is known, so that they show which part of an agent is wrong.

They follow gymnax's interface, and show what a new environment has to define. The observation is one number, x. With
discount g the optimal values are:

    Constant     one frame, reward 1                                          Q = 1
    Observed     one frame, x is 1 or -1, reward x                            Q(x) = x
    Delayed      x is 0, then 1; reward 1 for the second frame                Q(0) = g, Q(1) = 1
    Chosen       one frame, x is 0 or 1, reward 1 for action x, else -1       Q(x, a) = 1 if a = x else -1
    ChosenLater  x is 0, then 1; the second frame's reward is 1 for           Q(0, ·) = g, Q(1, a) = 1 if a = 1 else -1
                 action 1, else -1
    Truncating   Delayed, but truncated, not terminated, after two frames     Q(0) = g / (1 - g), Q(1) = 1 / (1 - g)
    Recalled     x is 1 or -1, then 0; reward 1 for the second frame's        Q(±1, ·) = g, and at 0, 1 or -1 by what x
                 action 1 after 1, 0 after -1, else -1                        was; for an agent without memory all are 0
    Near         one frame, x is 0.5 or -0.5, reward -(a - x)^2 for a           V(x) = 0 by a = x
                 continuous action a between -1 and 1
    Counting     x counts the frames, truncated after 7; reward x             (for tests of rollouts and replay)

In Truncating, an agent that treats truncation as termination finds Q(1) = 1, and one that bootstraps from the
observation after the reset, instead of the true next one, finds 1 / (1 - g²).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces


@struct.dataclass
class ProbeState(environment.EnvState):
    """x f32[], the observation; time i32[], the number of frames of this episode."""

    x: jax.Array


@struct.dataclass
class ProbeParams(environment.EnvParams):
    """max_steps_in_episode: more than any episode that terminates."""

    max_steps_in_episode: int = 1000


class Constant(environment.Environment[ProbeState, ProbeParams]):
    """See the module's docstring. The other probes redefine what differs."""

    length = 1
    actions = 1

    @property
    def default_params(self) -> ProbeParams:
        """The parameters that `make` uses."""
        return ProbeParams()

    def start(self, key: jax.Array) -> jax.Array:
        """The first x."""
        return jnp.float32(0)

    def next(self, x: jax.Array) -> jax.Array:
        """The x that follows x."""
        return x

    def reward(self, x: jax.Array, action: jax.Array) -> jax.Array:
        """The reward of an action at x."""
        return jnp.float32(1)

    def observed(self, x: jax.Array) -> jax.Array:
        """What of x is shown."""
        return x

    def reset_env(self, key: jax.Array, params: ProbeParams) -> tuple[jax.Array, ProbeState]:
        """A new episode."""
        state = ProbeState(time=jnp.int32(0), x=self.start(key))
        return self.observed(state.x)[None], state

    def step_env(
        self, key: jax.Array, state: ProbeState, action: jax.Array, params: ProbeParams
    ) -> tuple[jax.Array, ProbeState, jax.Array, jax.Array, dict[str, Any]]:
        """One frame, without the reset that gymnax adds."""
        next_state = ProbeState(time=state.time + 1, x=self.next(state.x))
        reward, terminated = self.reward(state.x, action), self.is_terminated(next_state, params)
        return self.observed(next_state.x)[None], next_state, reward, terminated, {}

    def is_terminated(self, state: ProbeState, params: ProbeParams) -> jax.Array:
        """Whether the episode ended."""
        return state.time >= self.length

    def action_space(self, params: ProbeParams | None = None) -> spaces.Discrete:
        """0 ... actions - 1."""
        return spaces.Discrete(self.actions)

    def observation_space(self, params: ProbeParams | None = None) -> spaces.Box:
        """One number."""
        return spaces.Box(-jnp.inf, jnp.inf, (1,), jnp.float32)


class Observed(Constant):
    """See the module's docstring."""

    def start(self, key: jax.Array) -> jax.Array:
        """1 or -1."""
        return jax.random.rademacher(key, (), jnp.float32)

    def reward(self, x: jax.Array, action: jax.Array) -> jax.Array:
        """The observation."""
        return x


class Delayed(Constant):
    """See the module's docstring."""

    length = 2

    def next(self, x: jax.Array) -> jax.Array:
        """1, from then on."""
        return jnp.ones_like(x)

    def reward(self, x: jax.Array, action: jax.Array) -> jax.Array:
        """1 at the second frame."""
        return x


class Chosen(Constant):
    """See the module's docstring."""

    actions = 2

    def start(self, key: jax.Array) -> jax.Array:
        """0 or 1."""
        return jax.random.bernoulli(key).astype(jnp.float32)

    def reward(self, x: jax.Array, action: jax.Array) -> jax.Array:
        """1 if the action is x, else -1."""
        return jnp.where(action == x, 1.0, -1.0)


class ChosenLater(Delayed):
    """See the module's docstring."""

    actions = 2

    def reward(self, x: jax.Array, action: jax.Array) -> jax.Array:
        """0 at x = 0; at x = 1, 1 if the action is 1, else -1."""
        return x * jnp.where(action == 1, 1.0, -1.0)


class Truncating(Delayed):
    """See the module's docstring."""

    def is_terminated(self, state: ProbeState, params: ProbeParams) -> jax.Array:
        """Never."""
        return jnp.bool_(False)

    def is_truncated(self, state: ProbeState, params: ProbeParams) -> jax.Array:
        """After two frames."""
        return state.time >= self.length


class Recalled(Observed):
    """See the module's docstring. Its state's x is 2 or -2 at the second frame, which the observation does not show."""

    length = 2
    actions = 2

    def next(self, x: jax.Array) -> jax.Array:
        """Twice as much."""
        return 2 * x

    def reward(self, x: jax.Array, action: jax.Array) -> jax.Array:
        """At the second frame, 1 for the action that x's sign names, else -1."""
        right = jnp.where(action == (x > 0), 1.0, -1.0)
        return jnp.where(jnp.abs(x) > 1, right, 0.0)

    def observed(self, x: jax.Array) -> jax.Array:
        """x at the first frame."""
        return jnp.where(jnp.abs(x) > 1, 0.0, x)


class Near(Constant):
    """See the module's docstring."""

    def start(self, key: jax.Array) -> jax.Array:
        """0.5 or -0.5."""
        return 0.5 * jax.random.rademacher(key, (), jnp.float32)

    def reward(self, x: jax.Array, action: jax.Array) -> jax.Array:
        """0 if the action is x, less the farther it is from it."""
        return -((action[0] - x) ** 2)

    def action_space(self, params: ProbeParams | None = None) -> spaces.Box:  # type: ignore[override]
        """One number."""
        return spaces.Box(-1.0, 1.0, (1,), jnp.float32)


class Counting(Truncating):
    """See the module's docstring."""

    length = 7

    def next(self, x: jax.Array) -> jax.Array:
        """One more."""
        return x + 1
