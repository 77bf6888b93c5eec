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

from research.core.errors import UserError, positive
from research.core.experiment import Experiment, Feeds, Inference, Load, Report, Run, microbatch, multiples
from research.core.metrics import Mean, Metrics, mean
from research.core.modules import network
from research.core.optimizers import Optimizer
from research.core.state import Batch, Learner, State, example_keys, learner, rng
from research.core.types import Tree
from research.core.update import Aux, scan_updates, updater
from research.data.feed import Empty, episodes
from research.evaluation.episodes import episode
from research.nets.q import MLP
from research.rl import replay
from research.rl.environments import Environment, VectorEnv, make
from research.rl.evaluation import episode_keys, play
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


@dataclass(frozen=True, kw_only=True)
class DQN(Experiment):
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
    run: Run = field(default_factory=lambda: Run(metric="return"))

    dtypes = ("float32", "bfloat16", "float16")

    def __post_init__(self) -> None:
        positive(self, "", "num_envs", "rollout_length", "buffer_size", "batch", "updates", "target_update_interval")
        positive(self, "", "n_step", "episodes", "test_episodes")
        multiple(self, "batch", self.num_envs, "num_envs")
        multiple(self, "buffer_size", self.num_envs * self.rollout_length, "num_envs * rollout_length")
        super().__post_init__()
        if self.n_step > self.slots:
            raise UserError(
                f"n_step={self.n_step} is more than the {self.slots} transitions of an environment's buffer"
            )

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

    def build(self) -> Learner:
        """See `Experiment`."""
        return dqn(self, make(self.environment))

    def units_per_step(self, batch: int) -> dict[str, int]:
        """See `Experiment`."""
        return {"frames": self.frames}

    def feeds(self) -> Feeds:
        """The seeds of episodes: 0, 1, ... for evaluation, and from 1,000,000 on for the test."""
        plays = lambda first, count: episodes(first, count, self.episodes)
        return Feeds(Empty(), plays(0, self.episodes), plays(10**6, self.test_episodes))

    def divisible(self) -> dict[str, int]:
        """See `Experiment`."""
        return {
            "num_envs": self.num_envs,
            "batch": microbatch(self.batch, self.update),
            "episodes": self.episodes,
        }

    def reports(self, load: Load) -> Iterable[Report]:
        """See `Experiment`."""
        environment = make(self.environment)
        net = network(self.net.clone(outputs=environment.num_actions), self.update.dtype)
        return (episode(self.environment.name, environment, lambda params, x: net.apply(params, {}, x)[0]),)

    def inference(self, state: State) -> dict[str, Inference]:
        """See `Experiment`."""
        environment = make(self.environment)
        net = network(self.net.clone(outputs=environment.num_actions), self.update.dtype)
        starts = lambda seeds: environment.reset(jax.vmap(episode_keys)(seeds)[0])[1]
        return {
            "inference": Inference(
                lambda observation: net.apply(state.params["q"], {}, observation)[0],
                lambda batch: {"observation": starts(batch.index)},
                "q",
                f"Observations are those of {self.environment.name}. Each action has a value q; the largest is that of "
                "the greedy action.",
            )
        }


def dqn(config: DQN, environment: VectorEnv) -> Learner:
    """The learner: Algorithm 1 of Mnih et al. 2015.

    Q is `state.params["q"]`, Q̂ is `state.collections["target"]`, D is `state.world.buffer`.
    """
    net = network(config.net.clone(outputs=environment.num_actions), config.update.dtype)
    updates = max((config.run.steps - config.warmup_steps) * config.updates, 1)
    init_state, update = updater(config.update, {"q": (config.optimizer, updates)})
    epsilon = linear_epsilon(config.epsilon_start, config.epsilon_end, config.epsilon_fraction * config.run.steps)

    def q(params: Tree, observation: jax.Array) -> jax.Array:
        return net.apply(params, {}, observation.astype(jnp.float32))[0]

    def init(key: jax.Array) -> State:
        params, _ = net.init(key, jnp.zeros((1, *environment.observation_shape)))
        state = init_state(key, {"q": (params, {})}, {"target": jax.tree.map(jnp.copy, params)})
        actor = reset(environment, rng(state, "first"), config.num_envs)
        buffer = replay.empty(config.num_envs, config.slots, environment.observation_shape, config.buffer_dtype)
        return state._replace(world=World(actor, buffer))

    def act(state: State) -> tuple[State, Metrics]:
        """Act epsilon-greedily, and store the transitions in D."""

        def policy(observation: jax.Array, uniform: jax.Array) -> jax.Array:
            return epsilon_greedy(q(state.params["q"], observation), uniform, epsilon(state.step))

        actor, transitions, metrics = rollout(
            environment, policy, state.world.actor, rng(state, "act"), config.rollout_length
        )
        buffer = replay.write(state.world.buffer, transitions, state.step)
        return state._replace(world=World(actor, buffer)), metrics

    def sample(state: State) -> tuple[Sample, jax.Array]:
        """The minibatches of a step, and Q̂ of their next observations; leaves [updates, batch, ...]."""
        keys = example_keys(rng(state, "sample"), state.world.actor.env_id)
        shape = (config.updates, config.batch // config.num_envs)
        samples = replay.sample(
            state.world.buffer, keys, state.step, config.rollout_length, shape, config.n_step, config.gamma
        )
        # Q̂ does not change during a step, so it values all minibatches at once.
        return samples, jax.vmap(q, (None, 0))(state.collections["target"], samples.next_observation)

    def td_loss(params: Tree, state: State, batch: tuple[Sample, jax.Array], rng: jax.Array) -> tuple[Mean, Aux]:
        """The squared (or Huber) temporal difference y - Q(observation, action)."""
        sample, next_q = batch
        if config.double:
            best = jax.lax.stop_gradient(q(params, sample.next_observation)).argmax(-1)
            y = sample.return_ + sample.discount * q_of_action(next_q, best)
        else:
            y = sample.return_ + sample.discount * next_q.max(-1)
        value = q_of_action(q(params, sample.observation), sample.action)
        error = optax.squared_error(value, y) if config.loss == "squared" else optax.huber_loss(value, y)
        return mean(error), Aux({"q": mean(value)})

    def learn(state: State) -> tuple[State, Metrics]:
        """A gradient descent step on each minibatch."""
        state, aux = scan_updates(update, state, "q", td_loss, sample(state))
        return state._replace(world=()), dict(aux.metrics)

    def wait(state: State) -> tuple[State, Metrics]:
        """In place of `learn` before learning starts: nothing changes, and the metrics have a count of 0."""
        _, metrics = jax.eval_shape(learn, state)
        return state._replace(world=()), jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics)

    def step(state: State, _: Batch) -> tuple[State, Metrics]:
        state, acted = act(state)
        # The branches leave the world out of what they return, or they would copy the replay buffer.
        learned, metrics = jax.lax.cond(state.step >= config.warmup_steps, learn, wait, state)
        state = learned._replace(world=state.world)
        # Every C steps reset Q̂ = Q
        params, target = state.params["q"], state.collections["target"]
        target = optax.periodic_update(params, target, state.step + 1, config.target_update_interval)
        state = state._replace(collections={"target": target})
        return state, {**acted, **metrics, "epsilon": mean(epsilon(state.step))}

    def evaluate(state: State, batch: Batch) -> Metrics:
        """One whole greedy episode for each seed of `batch.index`."""
        return play(environment, lambda observation: q(state.params["q"], observation).argmax(-1), batch)

    return learner(init, step, evaluate)


def q_of_action(values: jax.Array, action: jax.Array) -> jax.Array:
    """The values [batch] of the actions i32[batch], of all actions' values [batch, actions]."""
    # A product, not an index: the gradient of an index is a scatter, which took a fifth of an update on a CPU.
    return (values * jax.nn.one_hot(action, values.shape[-1])).sum(-1)


def multiple(config: DQN, name: str, unit: int, units: str) -> None:
    """Raises UserError, with the nearest valid values, unless the field `name` is a multiple of `unit`."""
    value = getattr(config, name)
    if value % unit:
        nearest = multiples(value, unit)
        raise UserError(f"{name}={value} is not a multiple of {units}={unit}: the nearest are {nearest}")


def tiny() -> dict[str, Experiment]:
    """Tiny settings, for the tests of what holds for every learner: SGD; it learns from its second step on."""
    return {
        "dqn": DQN(
            net=MLP(widths=(16,)),
            num_envs=8,
            rollout_length=2,
            buffer_size=8 * 16,
            learning_starts=32,
            batch=32,
            updates=2,
            target_update_interval=2,
            n_step=2,
            double=True,
            episodes=16,
            optimizer=Optimizer(name="sgd", learning_rate=0.05),
            run=Run(steps=12, steps_per_dispatch=3, evaluate_every=6, save_every=6, metric="return"),
        )
    }
