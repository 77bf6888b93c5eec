"""What learners with experience replay have in common, and what Q-learners among them add.

`act_and_learn` and `with_target` are the outer loop of Algorithm 1 of Mnih et al. 2015 (doi:10.1038/nature14236): act,
store and learn from samples; and every C steps reset Q̂ to Q.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from research.core.errors import UserError, between, positive
from research.core.experiment import microbatch
from research.core.metrics import Metrics
from research.core.state import Batch, State, Step, example_keys, rng
from research.core.update import Updater, updater
from research.learners.q_learning import QLearning
from research.learners.reinforcement import Reinforcement, multiple
from research.rl import priorities, replay
from research.rl.replay import Buffer
from research.rl.rollout import ActorState, Transition, reset
from research.rl.vector import VectorEnv


class World(NamedTuple):
    """What devices split by environments.

    Attributes:
        actor: the environments, leaves [num_envs, ...]
        buffer: the replay buffer, leaves [num_envs, ...]
        priorities: sum trees of the transitions' priorities, f32[num_envs, 2 * leaves]; () for uniform replay
    """

    actor: ActorState
    buffer: Buffer
    priorities: jax.Array | tuple[()] = ()


@dataclass(frozen=True, kw_only=True)
class OffPolicy(Reinforcement):
    """An experiment with experience replay. A step acts `rollout_length` frames in every environment, then learns.

    Attributes:
        buffer_size: number of transitions in the replay buffer, of all environments together
        learning_starts: number of frames before learning starts, of all environments together
        batch: number of samples per update, the same number from each environment
        updates: number of updates per step
    """

    buffer_size: int = 10_240
    learning_starts: int = 10_240
    batch: int = 128
    updates: int = 10

    def __post_init__(self) -> None:
        positive(self, "", "buffer_size", "batch", "updates")
        between(self, "", 0, math.inf, "learning_starts")
        super().__post_init__()
        multiple(self, "batch", self.num_envs, "num_envs")
        multiple(self, "buffer_size", self.frames, "num_envs * rollout_length")
        if self.batch > self.buffer_size:
            raise UserError(f"batch={self.batch} is more than the buffer_size={self.buffer_size} of the replay")
        name, length = self.window
        if length > self.slots:
            raise UserError(f"{name}={length} is more than the {self.slots} transitions of an environment's buffer")

    @property
    def window(self) -> tuple[str, int]:
        """What the length of a sample is called, and that length, in transitions."""
        return "a sample", 1

    @property
    def slots(self) -> int:
        """Number of transitions in the replay buffer of each environment."""
        return self.buffer_size // self.num_envs

    @property
    def share(self) -> int:
        """Number of samples per update of each environment."""
        return self.batch // self.num_envs

    @property
    def warmup_steps(self) -> int:
        """Number of steps that act without learning."""
        return max(-(-self.learning_starts // self.frames), -(-self.window[1] // self.rollout_length)) - 1

    @property
    def total_updates(self) -> int:
        """Number of updates in the whole run, at least 1."""
        return max((self.run.steps - self.warmup_steps) * self.updates, 1)

    def warnings(self) -> tuple[str, ...]:
        """See `Experiment`."""
        if self.run.steps > self.warmup_steps:
            return ()
        return (
            f"nothing is learned in {self.run.steps} steps, since the first {self.warmup_steps} only fill the replay "
            "buffer: give more --steps or a smaller --learning-starts",
        )

    def divisible(self) -> dict[str, int]:
        """See `Experiment`."""
        return {**super().divisible(), "batch": microbatch(self.batch, self.update)}


def with_world(
    config: OffPolicy, environment: VectorEnv, state: State, dtype: str = "float32", prioritised: bool = False
) -> State:
    """`state` with its first `World`: environments that begin an episode, and an empty replay buffer."""
    return state._replace(
        world=World(
            reset(environment, rng(state, "first"), config.num_envs),
            replay.empty(environment, config.num_envs, config.slots, dtype),
            priorities.empty(config.num_envs, config.slots) if prioritised else (),
        )
    )


def uniform_slots(config: OffPolicy, state: State) -> jax.Array:
    """Where in the buffer the samples of a step begin, i32[num_envs, updates, share], drawn uniformly."""
    keys, shape = example_keys(rng(state, "sample"), state.world.actor.env_id), (config.updates, config.share)
    return replay.uniform(keys, state.step, config.rollout_length, config.slots, shape, config.window[1])


def act_and_learn(
    config: OffPolicy,
    act: Callable[[State], tuple[ActorState, Transition, Metrics]],
    learn: Callable[[State], tuple[State, Metrics]],
) -> Step:
    """The step that acts, stores, and learns once there is enough to learn from. The State's world is a `World`.

    act    what `rollout` returns, of the environments of `state.world.actor`
    learn  updates parameters, and the world's priorities if it has any
    """

    def store(state: State, actor: ActorState, transitions: Transition) -> State:
        """Store the transitions in D."""
        _, buffer, trees = state.world
        buffer = replay.write(buffer, transitions, state.step)
        if not isinstance(trees, tuple):
            length, slots = config.rollout_length, config.slots
            trees = priorities.write(trees, state.step, length, slots, config.window[1])
        return state._replace(world=World(actor, buffer, trees))

    def learn_without_buffer(state: State) -> tuple[State, Metrics]:
        """`learn`, which returns the priorities alone of the world: a branch of a `cond` copies what it returns."""
        learned, metrics = learn(state)
        return learned._replace(world=learned.world.priorities), metrics

    def wait(state: State) -> tuple[State, Metrics]:
        """In place of `learn` before learning starts: nothing changes, and the metrics have a count of 0."""
        _, metrics = jax.eval_shape(learn, state)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics)
        return state._replace(world=state.world.priorities), zeros

    def step(state: State, _: Batch) -> tuple[State, Metrics]:
        actor, transitions, acted = act(state)
        state = store(state, actor, transitions)
        learned, metrics = jax.lax.cond(state.step >= config.warmup_steps, learn_without_buffer, wait, state)
        return learned._replace(world=state.world._replace(priorities=learned.world)), {**acted, **metrics}

    return step


@dataclass(frozen=True, kw_only=True)
class ReplayLearning(OffPolicy, QLearning):
    """An experiment in Q-learning with experience replay and a target net.

    Attributes:
        target_update_interval: number of steps between updates of the target net
        tau: how far an update moves the target net towards the net; 1 resets it to the net
    """

    target_update_interval: int = 5
    tau: float = 1.0

    def __post_init__(self) -> None:
        positive(self, "", "target_update_interval")
        between(self, "", 0, 1, "tau")
        super().__post_init__()

    def updater(self) -> Updater:
        """`init` and `update` of one net, called "q"."""
        return updater(self.update, {"q": (self.optimizer, self.total_updates)}, {"q": self.average})


def with_target(config: ReplayLearning, step: Step) -> Step:
    """`step`, and then the target net's: every C steps reset Q̂ = Q, or move it there by a part tau."""

    def both(state: State, batch: Batch) -> tuple[State, Metrics]:
        state, metrics = step(state, batch)
        target = state.collections["target"]
        moved = optax.incremental_update(state.params["q"], target, config.tau)
        target = optax.periodic_update(moved, target, state.step + 1, config.target_update_interval)
        return state._replace(collections=state.collections | {"target": target}), metrics

    return both
