"""Deep Q-learning with experience replay (Mnih et al. 2015, doi:10.1038/nature14236; 2013, arXiv:1312.5602).

`dqn` follows their Algorithm 1: act epsilon-greedily, store, sample, update, and every C steps reset Q̂ to Q.
Options are double Q-learning (van Hasselt, Guez & Silver 2015, arXiv:1509.06461) and n-step returns (Sutton 1988; for
DQN Hessel et al. 2017, arXiv:1710.02298).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from research.core.errors import Mistake
from research.core.experiment import Feeds, Report, Run, positive
from research.core.modules import forward, initialise
from research.core.optimizers import Optimizer, optimizer, schedule
from research.core.state import Batch, Learner, Mean, Metrics, State, Tree, each, mean, stream
from research.core.update import Descent, descend
from research.data.feed import Empty, episodes
from research.evaluation.episodes import episode
from research.nets.q import MLP
from research.rl import replay
from research.rl.environments import Environment, VectorEnv, make
from research.rl.evaluation import play
from research.rl.exploration import epsilon_greedy, linear_epsilon
from research.rl.replay import Sample
from research.rl.rollout import ActorState, Transition, reset, rollout


class World(NamedTuple):
    """What devices split by environments.

    Attributes:
        actor: the environments, leaves [num_envs, ...]
        buffer: the replay buffer, leaves [num_envs, slots, ...]
    """

    actor: ActorState
    buffer: Transition


@dataclass(frozen=True)
class DQN:
    """An experiment in deep Q-learning. A step acts `rollout_length` frames in every environment, then learns.

    Attributes:
        environment: the environment to learn
        net: a net from observations to the values of the actions, with a field `outputs` for the number of actions
        num_envs: number of environments that act in parallel
        rollout_length: number of frames of each environment per step
        buffer_size: number of transitions in the replay buffer, of all environments together
        buffer_dtype: dtype of the observations in the replay buffer; uint8 is for whole numbers from 0 to 255
        learning_starts: number of frames before learning starts, of all environments together
        batch: number of samples per update, the same number from each environment
        updates: number of updates per step
        target_update_interval: number of steps between updates of the target net
        gamma: discount factor
        n_step: number of rewards in a return before it bootstraps
        double: whether the net chooses the action that the target net values (double Q-learning)
        loss: loss of the temporal difference; huber is quadratic up to 1 and linear beyond
        epsilon_start: initial epsilon, the probability of a random action
        epsilon_end: final epsilon
        epsilon_fraction: fraction of the run over which epsilon decays linearly
        episodes: number of greedy episodes per evaluation
        test_episodes: number of greedy episodes of the final test, with seeds that evaluation does not use
    """

    environment: Environment = field(default_factory=Environment)
    net: nn.Module = field(default_factory=MLP)
    num_envs: int = 10
    rollout_length: int = 10
    buffer_size: int = 10_000
    buffer_dtype: Literal["float32", "uint8"] = "float32"
    learning_starts: int = 10_000
    batch: int = 120
    updates: int = 10
    target_update_interval: int = 5
    gamma: float = 0.99
    n_step: int = 1
    double: bool = False
    loss: Literal["squared", "huber"] = "squared"
    epsilon_start: float = 1.0
    epsilon_end: float = 0.05
    epsilon_fraction: float = 0.5
    episodes: int = 32
    test_episodes: int = 100
    optimizer: Optimizer = field(default_factory=Optimizer)
    descent: Descent = field(default_factory=Descent)
    run: Run = field(default_factory=lambda: Run(metric="return"))

    def __post_init__(self) -> None:
        positive(self, "", "num_envs", "rollout_length", "buffer_size", "batch", "updates", "target_update_interval")
        positive(self, "", "n_step", "episodes", "test_episodes")
        multiple(self, "batch", self.num_envs, "num_envs")
        multiple(self, "buffer_size", self.num_envs * self.rollout_length, "num_envs * rollout_length")
        if self.batch % self.descent.micro:
            raise Mistake(f"descent.micro={self.descent.micro} does not divide batch={self.batch}")
        if self.n_step > self.slots:
            raise Mistake(f"n_step={self.n_step} is more than the {self.slots} transitions of an environment's buffer")

    @property
    def slots(self) -> int:
        """Number of transitions in the replay buffer of each environment."""
        return self.buffer_size // self.num_envs

    @property
    def frames(self) -> int:
        """Number of frames per step, of all environments together."""
        return self.num_envs * self.rollout_length

    @property
    def warmup_steps(self) -> int:
        """Number of steps that act without learning."""
        return max(-(-self.learning_starts // self.frames), -(-self.n_step // self.rollout_length)) - 1

    def build(self, axis: str | None = None) -> Learner:
        """See `Experiment`."""
        return dqn(self, make(self.environment), axis)

    def feeds(self) -> Feeds:
        """The seeds of episodes: 0, 1, ... for evaluation, and from 1,000,000 on for the test."""
        plays = lambda first, count: episodes(first, count, self.episodes)
        return Feeds(Empty(), plays(0, self.episodes), plays(10**6, self.test_episodes))

    def divisible(self) -> dict[str, int]:
        """See `Experiment`."""
        return {"num_envs": self.num_envs, "episodes": self.episodes}

    def reports(self) -> Iterable[Report]:
        """See `Experiment`."""
        environment = make(self.environment)
        net = self.net.clone(outputs=environment.num_actions)
        return (episode(self.environment.name, environment, lambda params, x: forward(net, params, {}, x)[0]),)


def dqn(config: DQN, environment: VectorEnv, axis: str | None = None) -> Learner:
    """The learner: Algorithm 1 of Mnih et al. 2015.

    Q is `state.params`, Q̂ is `state.collections["target"]`, D is `state.world.buffer`.
    """
    net = config.net.clone(outputs=environment.num_actions)
    updates = max((config.run.steps - config.warmup_steps) * config.updates, 1)
    tx, rate = optimizer(config.optimizer, updates), schedule(config.optimizer, updates)
    epsilon = linear_epsilon(config.epsilon_start, config.epsilon_end, config.epsilon_fraction * config.run.steps)

    def q(params: Tree, observation: jax.Array) -> jax.Array:
        return forward(net, params, {}, observation.astype(jnp.float32))[0]

    def init(key: jax.Array) -> State:
        params, _ = initialise(net, key, jnp.zeros((1, *environment.observation_shape)))
        state = State(jnp.int32(0), key, params, tx.init(params), {"target": jax.tree.map(jnp.copy, params)}, ())
        actor = reset(environment, stream(state, "first"), config.num_envs)
        buffer = replay.empty(config.num_envs, config.slots, environment.observation_shape, config.buffer_dtype)
        return state._replace(world=World(actor, buffer))

    def act(state: State) -> tuple[State, Metrics]:
        """Act epsilon-greedily, and store the transitions in D."""

        def policy(observation: jax.Array, uniform: jax.Array) -> jax.Array:
            return epsilon_greedy(q(state.params, observation), uniform, epsilon(state.step))

        actor, transitions, metrics = rollout(
            environment, policy, state.world.actor, stream(state, "act"), config.rollout_length
        )
        buffer = replay.write(state.world.buffer, transitions, state.step)
        return state._replace(world=World(actor, buffer)), metrics

    def sample(state: State) -> tuple[Sample, jax.Array]:
        """The minibatches of a step, and Q̂ of their next observations; leaves [updates, batch, ...]."""
        keys = each(stream(state, "sample"), state.world.actor.env_id)
        shape = (config.updates, config.batch // config.num_envs)
        samples = replay.sample(
            state.world.buffer, keys, state.step, config.rollout_length, shape, config.n_step, config.gamma
        )
        # Q̂ does not change during a step, so it values all minibatches at once.
        return samples, jax.vmap(q, (None, 0))(state.collections["target"], samples.next_observation)

    def loss(
        params: Tree, collections: dict[str, Tree], batch: tuple[Sample, jax.Array], key: jax.Array
    ) -> tuple[Mean, tuple[dict[str, Tree], Metrics]]:
        """The squared (or Huber) temporal difference y - Q(observation, action)."""
        sample, next_q = batch
        if config.double:
            best = jax.lax.stop_gradient(q(params, sample.next_observation)).argmax(-1)
            y = sample.return_ + sample.discount * q_of_action(next_q, best)
        else:
            y = sample.return_ + sample.discount * next_q.max(-1)
        value = q_of_action(q(params, sample.observation), sample.action)
        error = optax.squared_error(value, y) if config.loss == "squared" else optax.huber_loss(value, y)
        return mean(error), (collections, {"q": mean(value)})

    def learn(state: State) -> tuple[Tree, Tree, Metrics]:
        """A gradient descent step on each minibatch."""

        def update(carry: tuple[Tree, Tree], batch: tuple[Sample, jax.Array]) -> tuple[tuple[Tree, Tree], Metrics]:
            key = stream(state, "descend")
            params, opt_state, _, metrics = descend(loss, tx, *carry, {}, batch, key, config.descent, axis)
            return (params, opt_state), metrics

        carry, metrics = jax.lax.scan(update, (state.params, state.opt_state), sample(state))
        return *carry, jax.tree.map(lambda x: x.sum(0), metrics)

    def wait(state: State) -> tuple[Tree, Tree, Metrics]:
        """In place of `learn` before learning starts: nothing changes, and the metrics have a count of 0."""
        nothing = Mean(jnp.float32(0), jnp.float32(0))
        return state.params, state.opt_state, dict.fromkeys(("loss", "q", "gradient_norm"), nothing)

    def step(state: State, _: Batch) -> tuple[State, Metrics]:
        state, metrics = act(state)
        params, opt_state, learned = jax.lax.cond(state.step >= config.warmup_steps, learn, wait, state)
        # Every C steps reset Q̂ = Q
        target = optax.periodic_update(
            params, state.collections["target"], state.step + 1, config.target_update_interval
        )
        metrics |= learned
        metrics["epsilon"] = mean(epsilon(state.step))
        metrics["learning_rate"] = mean(rate(jnp.maximum(state.step - config.warmup_steps, 0) * config.updates))
        return State(state.step + 1, state.key, params, opt_state, {"target": target}, state.world), metrics

    def evaluate(state: State, batch: Batch) -> Metrics:
        """One whole greedy episode for each seed of `batch.index`."""
        return play(environment, lambda observation: q(state.params, observation).argmax(-1), batch)

    return Learner(init, step, evaluate)


def q_of_action(values: jax.Array, action: jax.Array) -> jax.Array:
    """The values [batch] of the actions i32[batch], of all actions' values [batch, actions]."""
    # A product, not an index: the gradient of an index is a scatter, which took a fifth of an update on a CPU.
    return (values * jax.nn.one_hot(action, values.shape[-1])).sum(-1)


def multiple(config: DQN, name: str, unit: int, units: str) -> None:
    """Raises Mistake, with the nearest valid values, unless the field `name` is a multiple of `unit`."""
    value = getattr(config, name)
    if value % unit:
        below, above = value // unit * unit, -(-value // unit) * unit
        nearest = f"{below} or {above}" if below else f"{above}"
        raise Mistake(f"{name}={value} is not a multiple of {units}={unit}: the nearest are {nearest}")
