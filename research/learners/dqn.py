"""Deep Q-learning with experience replay (Mnih et al. 2015, doi:10.1038/nature14236; 2013, arXiv:1312.5602).

`dqn` reads as their Algorithm 1 does: act epsilon-greedily, store, sample, descend, now and then reset Q̂ to Q. With it,
where the config asks for them: double Q-learning (van Hasselt, Guez & Silver 2015, arXiv:1509.06461) and n-step returns
(Sutton 1988; for DQN Hessel et al. 2017, arXiv:1710.02298).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from research.core.errors import Mistake
from research.core.experiment import Experiment, Feeds, Load, Report, Run, microbatch, positive
from research.core.metrics import Mean, Metrics, added, mean
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
from research.rl.replay import Frame, Sample


class World(NamedTuple):
    """What the agent acts in, leaves [environments, ...].

    number       i32, each environment's global index
    states       the environments' states
    observation  f32, what the next actions are chosen by
    return_      f32, the sum of the rewards of the episode so far
    length       f32, its frames
    ring         the replay memory, leaves [environments, slots, ...]
    """

    number: jax.Array
    states: Tree
    observation: jax.Array
    return_: jax.Array
    length: jax.Array
    ring: Frame


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

    Q is `state.params["q"]`, Q̂ is `state.collections["target"]`, D is `state.world.ring`.
    """
    net = network(config.net.clone(outputs=environment.actions), config.update.dtype)
    descents = max((config.run.steps - config.waiting) * config.updates, 1)
    init_state, update = updater(config.update, {"q": (config.optimizer, descents)})
    share = config.batch // config.environments
    stored = jnp.dtype(config.stored)

    def q(params: Tree, observation: jax.Array) -> jax.Array:
        return net.apply(params, {}, observation.astype(jnp.float32))[0]

    def epsilon(step: jax.Array) -> jax.Array:
        fall = step / (config.epsilon_fraction * config.run.steps)
        return config.epsilon_start + (config.epsilon_end - config.epsilon_start) * jnp.minimum(fall, 1.0)

    def init(key: jax.Array) -> State:
        params, _ = net.init(key, jnp.zeros((1, *environment.shape)))
        state = init_state(key, {"q": (params, {})}, {"target": jax.tree.map(jnp.copy, params)})
        index = jnp.arange(config.environments)
        states, observation = environment.reset(example_keys(rng(state, "first"), index))
        seen, over = jnp.zeros(environment.shape, stored), jnp.zeros((), bool)
        frame = Frame(seen, jnp.zeros((), jnp.int32), jnp.zeros(()), over, over, seen)
        ring = replay.empty(frame, config.environments, config.slots)
        zeros = jnp.zeros(config.environments)
        return state._replace(world=World(index, states, observation, zeros, zeros.copy(), ring))

    def act(state: State) -> tuple[World, Metrics]:
        """`rollout` frames of every environment into the ring."""

        def frame(world: World, luck: tuple[jax.Array, jax.Array, Any]) -> tuple[World, tuple[Frame, Metrics]]:
            keys, draw, starts = luck
            # With probability epsilon select a random action, otherwise the best one. One draw decides both:
            # below epsilon, draw / epsilon is uniform again.
            chance = epsilon(state.step)
            anything = (draw / jnp.maximum(chance, 1e-8) * environment.actions).astype(jnp.int32)
            action = jnp.where(draw < chance, anything, q(state.params["q"], world.observation).argmax(-1))
            states, after = environment.step(keys, world.states, action, starts)
            over = after.terminated | after.truncated
            seen, final = world.observation.astype(stored), after.final.astype(stored)
            return_, length = world.return_ + after.reward, world.length + 1
            metrics = {"return": mean(return_, over), "length": mean(length, over)}
            world = world._replace(
                states=states,
                observation=after.observation,
                return_=jnp.where(over, 0, return_),
                length=jnp.where(over, 0, length),
            )
            return world, (Frame(seen, action, after.reward, after.terminated, over, final), metrics)

        # All of a rollout's luck at once, leaves [rollout, environments, ...]: many small draws are slow.
        keys = example_keys(rng(state, "act"), state.world.number)
        keys = jax.vmap(lambda key: jax.random.split(key, 2 * config.rollout + 1), out_axes=1)(keys)
        draws = jax.vmap(lambda key: jax.random.uniform(key, (config.rollout,)), out_axes=1)(keys[-1])
        starts = jax.vmap(environment.reset)(keys[: config.rollout])
        luck = keys[config.rollout : -1], draws, starts
        ring = state.world.ring
        world, (frames, metrics) = jax.lax.scan(frame, state.world._replace(ring=()), luck)
        ring = replay.write(ring, jax.tree.map(lambda x: x.swapaxes(0, 1), frames), state.step)
        return world._replace(ring=ring), added(metrics)

    def td_loss(params: Tree, state: State, batch: tuple[Sample, jax.Array], rng: jax.Array) -> tuple[Mean, Aux]:
        sample, next_q = batch  # next_q: Q̂(final, ·)
        if config.double:
            best = jax.lax.stop_gradient(q(params, sample.final)).argmax(-1)
            y = sample.return_ + sample.discount * q_of_action(next_q, best)
        else:
            y = sample.return_ + sample.discount * next_q.max(-1)
        value = q_of_action(q(params, sample.observation), sample.action)
        error = optax.squared_error(value, y) if config.loss == "squared" else optax.huber_loss(value, y)
        return mean(error), Aux({"q": mean(value)})

    def learn(state: State) -> tuple[State, Metrics]:
        """`updates` updates on samples of the ring."""
        keys = example_keys(rng(state, "sample"), state.world.number)
        shape = (config.updates, share)
        samples = replay.sample(state.world.ring, keys, state.step, config.rollout, shape, config.n_step, config.gamma)
        # Q̂ stands still during a step, so it values all batches at once.
        flat = samples.final.reshape(-1, *environment.shape)
        next_q = q(state.collections["target"], flat).reshape(*samples.return_.shape, environment.actions)
        state, aux = scan_updates(update, state, "q", td_loss, (samples, next_q))
        return state, dict(aux.metrics)

    def wait(state: State) -> tuple[State, Metrics]:
        """`learn` where nothing is learnt yet: its metrics count nothing."""
        _, metrics = jax.eval_shape(learn, state)
        return state, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics)

    def step(state: State, _: Batch) -> tuple[State, Metrics]:
        world, played = act(state)
        # The ring is no part of what the branches return: it stays where it is.
        learnt, metrics = jax.lax.cond(
            state.step >= config.waiting,
            lambda state: without_world(learn(state)),
            lambda state: without_world(wait(state)),
            state._replace(world=world),
        )
        state = learnt._replace(world=world)
        # Every C steps reset Q̂ = Q
        target = optax.periodic_update(
            state.params["q"], state.collections["target"], state.step + 1, config.target_every
        )
        return state._replace(collections={"target": target}), {
            **metrics,
            **played,
            "epsilon": mean(epsilon(state.step)),
        }

    def evaluate(state: State, batch: Batch) -> Metrics:
        """One whole greedy episode for each seed of `batch.index`."""
        keys = jax.vmap(jax.random.key)(batch.index)
        start = environment.reset(keys)

        def going(carry: Any) -> jax.Array:
            time, *_, over = carry
            return (time < environment.limit) & ~over.all()

        def frame(carry: Any) -> Any:
            time, states, observation, return_, length, over = carry
            action = q(state.params["q"], observation).argmax(-1)
            luck = jax.vmap(jax.random.fold_in, (0, None))(keys, time)
            states, after = environment.step(luck, states, action, start)
            return_, length = return_ + jnp.where(over, 0, after.reward), length + ~over
            return time + 1, states, after.observation, return_, length, over | after.terminated | after.truncated

        zeros = jnp.zeros(batch.index.shape)
        first = (jnp.int32(0), *start, zeros, zeros, zeros.astype(bool))
        *_, return_, length, _ = jax.lax.while_loop(going, frame, first)
        return {"return": mean(return_, batch.mask), "length": mean(length, batch.mask)}

    return learner(init, step, evaluate)


def without_world(found: tuple[State, Metrics]) -> tuple[State, Metrics]:
    """The State without its `world`, which a branch would copy."""
    return found[0]._replace(world=()), found[1]


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
