"""Deep Q-learning with experience replay (Mnih et al. 2015, doi:10.1038/nature14236; 2013, arXiv:1312.5602).

`dqn` reads as their Algorithm 1 does: act epsilon-greedily, store, sample, descend, now and then reset Q̂ to Q. With it,
where the config asks for them: double Q-learning (van Hasselt, Guez & Silver 2015, arXiv:1509.06461) and n-step returns
(Sutton 1988; for DQN Hessel et al. 2017, arXiv:1710.02298).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from research.core.errors import Mistake
from research.core.experiment import Experiment, Feeds, Load, Report, Run, microbatch, positive
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
from research.rl.environments import Environment, Vector, make
from research.rl.evaluation import play
from research.rl.exploration import epsilon_greedy, linear_epsilon
from research.rl.replay import Sample
from research.rl.rollout import ActorState, Transition, reset, rollout


class World(NamedTuple):
    """What the agent acts in, and what it remembers.

    Attributes:
        actor: the environments, leaves [num_envs, ...]
        buffer: the replay memory, leaves [num_envs, slots, ...]
    """

    actor: ActorState
    buffer: Transition


@dataclass(frozen=True, kw_only=True)
class DQN(Experiment):
    """An experiment in deep Q-learning. A step acts `rollout` frames in every environment, then descends.

    Attributes:
        environment: what is played
        net: a Flax module: observations -> values, with a field `outputs` for the number of actions
        environments: played side by side
        rollout: frames of each environment a step
        ring: frames remembered, of all environments together
        stored: what the ring holds observations as; uint8 is for whole numbers from 0 to 255
        start: frames before learning starts
        batch: samples a descent, as many of each environment
        updates: descents a step
        target_every: steps between updates of the target net
        gamma: the discount
        n_step: rewards before the bootstrap
        double: the action is chosen by the net, and valued by the target net
        loss: of the temporal difference; huber is quadratic up to 1
        epsilon_start: the probability of a random action, at first; it falls linearly
        epsilon_end: to this
        epsilon_fraction: over this part of the run
        episodes: greedy episodes an evaluation
        test_episodes: greedy episodes, of other seeds, that judge the final State
    """

    environment: Environment = field(default_factory=Environment)
    net: nn.Module = field(default_factory=MLP)
    environments: int = 10
    rollout: int = 10
    ring: int = 10_000
    stored: Literal["float32", "uint8"] = "float32"
    start: int = 10_000
    batch: int = 120
    updates: int = 10
    target_every: int = 5
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

    def __post_init__(self) -> None:
        counts = ("environments", "rollout", "ring", "batch", "updates", "target_every", "n_step", "episodes")
        positive(self, "", *counts, "test_episodes")
        multiple(self, "batch", self.environments, "environments")
        multiple(self, "ring", self.environments * self.rollout, "environments * rollout")
        super().__post_init__()
        if self.n_step > self.slots:
            raise Mistake(f"n_step={self.n_step} is more than the {self.slots} frames that ring holds an environment")

    @property
    def slots(self) -> int:
        """Frames remembered of each environment."""
        return self.ring // self.environments

    @property
    def frames(self) -> int:
        """Frames a step, of all environments together."""
        return self.environments * self.rollout

    @property
    def waiting(self) -> int:
        """Steps that act and don't learn."""
        return max(-(-self.start // self.frames), -(-self.n_step // self.rollout)) - 1

    def build(self) -> Learner:
        """See `Experiment`."""
        return dqn(self, make(self.environment))

    def feeds(self) -> Feeds:
        """Seeds of episodes: 0, 1, ... to evaluate by, and from 1,000,000 on to test by."""
        plays = lambda first, count: episodes(first, count, self.episodes)
        return Feeds(Empty(), plays(0, self.episodes), plays(10**6, self.test_episodes))

    def divisible(self) -> dict[str, int]:
        """See `Experiment`."""
        return {
            "environments": self.environments,
            "batch": microbatch(self.batch, self.update),
            "episodes": self.episodes,
        }

    def reports(self, load: Load) -> Iterable[Report]:
        """See `Experiment`."""
        environment = make(self.environment)
        net = network(self.net.clone(outputs=environment.actions), self.update.dtype)
        return (episode(self.environment.name, environment, lambda params, x: net.apply(params, {}, x)[0]),)


def dqn(config: DQN, environment: Vector) -> Learner:
    """The learner: Algorithm 1 of Mnih et al. 2015.

    Q is `state.params["q"]`, Q̂ is `state.collections["target"]`, D is `state.world.buffer`.
    """
    net = network(config.net.clone(outputs=environment.actions), config.update.dtype)
    updates = max((config.run.steps - config.waiting) * config.updates, 1)
    init_state, update = updater(config.update, {"q": (config.optimizer, updates)})
    epsilon = linear_epsilon(config.epsilon_start, config.epsilon_end, config.epsilon_fraction * config.run.steps)

    def q(params: Tree, observation: jax.Array) -> jax.Array:
        return net.apply(params, {}, observation.astype(jnp.float32))[0]

    def init(key: jax.Array) -> State:
        params, _ = net.init(key, jnp.zeros((1, *environment.shape)))
        state = init_state(key, {"q": (params, {})}, {"target": jax.tree.map(jnp.copy, params)})
        actor = reset(environment, rng(state, "first"), config.environments)
        buffer = replay.empty(config.environments, config.slots, environment.shape, config.stored)
        return state._replace(world=World(actor, buffer))

    def act(state: State) -> tuple[State, Metrics]:
        """Act epsilon-greedily, and store the transitions in D."""

        def policy(observation: jax.Array, uniform: jax.Array) -> jax.Array:
            return epsilon_greedy(q(state.params["q"], observation), uniform, epsilon(state.step))

        actor, transitions, metrics = rollout(environment, policy, state.world.actor, rng(state, "act"), config.rollout)
        buffer = replay.write(state.world.buffer, transitions, state.step)
        return state._replace(world=World(actor, buffer)), metrics

    def sample(state: State) -> tuple[Sample, jax.Array]:
        """The minibatches of a step, and Q̂ of their next observations; leaves [updates, batch, ...]."""
        keys = example_keys(rng(state, "sample"), state.world.actor.env_id)
        shape = (config.updates, config.batch // config.environments)
        samples = replay.sample(
            state.world.buffer, keys, state.step, config.rollout, shape, config.n_step, config.gamma
        )
        # Q̂ stands still during a step, so it values all minibatches at once.
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
        """`learn` before learning starts: nothing moves, and the metrics count nothing."""
        _, metrics = jax.eval_shape(learn, state)
        return state._replace(world=()), jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics)

    def step(state: State, _: Batch) -> tuple[State, Metrics]:
        state, acted = act(state)
        # The branches leave the world out of what they return, or they would copy the replay.
        learned, metrics = jax.lax.cond(state.step >= config.waiting, learn, wait, state)
        state = learned._replace(world=state.world)
        # Every C steps reset Q̂ = Q
        params, target = state.params["q"], state.collections["target"]
        target = optax.periodic_update(params, target, state.step + 1, config.target_every)
        state = state._replace(collections={"target": target})
        return state, {**acted, **metrics, "epsilon": mean(epsilon(state.step))}

    def evaluate(state: State, batch: Batch) -> Metrics:
        """One whole greedy episode for each seed of `batch.index`."""
        return play(environment, lambda observation: q(state.params["q"], observation).argmax(-1), batch)

    return learner(init, step, evaluate)


def q_of_action(values: jax.Array, action: jax.Array) -> jax.Array:
    """The values [batch] of the actions i32[batch], of all actions' values [batch, actions]."""
    # A product, not an index: the gradient of an index is a scatter, a fifth of the whole descent on a CPU.
    return (values * jax.nn.one_hot(action, values.shape[-1])).sum(-1)


def multiple(config: DQN, name: str, unit: int, units: str) -> None:
    """Raises Mistake, naming the nearest right values, unless the field `name` is a multiple of `unit`."""
    value = getattr(config, name)
    if value % unit:
        below, above = value // unit * unit, -(-value // unit) * unit
        nearest = f"{below} or {above}" if below else f"{above}"
        raise Mistake(f"{name}={value} is not a multiple of {units}={unit}: the nearest are {nearest}")


def tiny() -> dict[str, Experiment]:
    """Tiny settings, for the tests of what holds for every learner: SGD; it learns from its second step on."""
    return {
        "dqn": DQN(
            net=MLP(widths=(16,)),
            environments=8,
            rollout=2,
            ring=8 * 16,
            start=32,
            batch=32,
            updates=2,
            target_every=2,
            n_step=2,
            double=True,
            episodes=16,
            optimizer=Optimizer(name="sgd", learning_rate=0.05),
            run=Run(steps=12, steps_per_dispatch=3, evaluate_every=6, save_every=6, metric="return"),
        )
    }
