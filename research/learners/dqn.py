"""Deep Q-learning with experience replay (Mnih et al. 2015, doi:10.1038/nature14236; 2013, arXiv:1312.5602).

`dqn` follows their Algorithm 1: act epsilon-greedily, store, sample, update, and every C steps reset Q̂ to Q.
Its options are those that Rainbow joins (Hessel et al. 2018, arXiv:1710.02298): double Q-learning (van Hasselt, Guez &
Silver 2016, arXiv:1509.06461), n-step returns (Sutton 1988), distributions of returns (`rl.returns`), prioritised
replay (`rl.priorities`), and by the net dueling streams and noise (`nets.q`). Others are a target net that follows
softly (Lillicrap et al. 2016, arXiv:1509.02971) and averaged weights for evaluation (Polyak & Juditsky 1992).
"""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from research.core.errors import UserError, positive
from research.core.experiment import Experiment, Run, microbatch
from research.core.metrics import Mean, Metrics, mean
from research.core.optimizers import Optimizer
from research.core.state import Batch, Learner, State, example_keys, learner, rng
from research.core.types import Tree
from research.core.update import Aux, scan_updates, updater
from research.learners.q_learning import QLearning, of_action, q_network
from research.learners.reinforcement import multiple
from research.nets.q import MLP
from research.rl import priorities, replay
from research.rl.environments import VectorEnv, make
from research.rl.replay import Sample
from research.rl.returns import Distribution, categorical, expectation, quantiles
from research.rl.rollout import ActorState, Transition, reset


class World(NamedTuple):
    """What devices split by environments.

    Attributes:
        actor: the environments, leaves [num_envs, ...]
        buffer: the replay buffer, leaves [num_envs, slots, ...]
        priorities: sum trees of the transitions' priorities, f32[num_envs, 2 * leaves]; () for uniform replay
    """

    actor: ActorState
    buffer: Transition
    priorities: jax.Array | tuple[()] = ()


class Minibatch(NamedTuple):
    """What an update learns from. Leaves [batch, ...]; of the minibatches of a step [updates, batch, ...].

    Attributes:
        sample: the windows of the replay buffer
        next: what Q̂ says of the next observation, f32[batch, actions, atoms]
        weight: importance weight of each window, f32[batch]
    """

    sample: Sample
    next: jax.Array
    weight: jax.Array


@dataclass(frozen=True, kw_only=True)
class DQN(QLearning):
    """An experiment in deep Q-learning. A step acts `rollout_length` frames in every environment, then learns.

    Attributes:
        buffer_size: number of transitions in the replay buffer, of all environments together
        buffer_dtype: dtype of the observations in the replay buffer; uint8 is for whole numbers from 0 to 255
        learning_starts: number of frames before learning starts, of all environments together
        batch: number of samples per update, the same number from each environment
        updates: number of updates per step
        target_update_interval: number of steps between updates of the target net
        tau: how far an update moves the target net towards the net; 1 resets it to the net
        n_step: number of rewards in a return before it bootstraps
        double: whether the net chooses the action that the target net values (double Q-learning)
        returns: what the net says of returns: their expectation, their distribution by categories (C51), or by
            quantiles (QR-DQN)
        loss: loss of the temporal difference of expectations; huber is quadratic up to 1 and linear beyond
        atoms: number of categories or quantiles
        v_min: the least return of the categories
        v_max: the greatest return of the categories
        priority_exponent: exponent of priorities in prioritised replay; 0 is uniform replay
        importance_exponent: exponent of importance weights at the start; it rises to 1 by the end of the run
    """

    buffer_size: int = 10_240
    buffer_dtype: Literal["float32", "uint8"] = "float32"
    learning_starts: int = 10_240
    batch: int = 128
    updates: int = 10
    target_update_interval: int = 5
    tau: float = 1.0
    n_step: int = 1
    double: bool = False
    returns: Literal["expectation", "categorical", "quantiles"] = "expectation"
    loss: Literal["squared", "huber"] = "squared"
    atoms: int = 51
    v_min: float = -10.0
    v_max: float = 10.0
    priority_exponent: float = 0.0
    importance_exponent: float = 0.4

    def __post_init__(self) -> None:
        positive(self, "", "buffer_size", "batch", "updates", "target_update_interval", "n_step", "atoms")
        super().__post_init__()
        multiple(self, "batch", self.num_envs, "num_envs")
        multiple(self, "buffer_size", self.num_envs * self.rollout_length, "num_envs * rollout_length")
        if self.n_step > self.slots:
            raise UserError(
                f"n_step={self.n_step} is more than the {self.slots} transitions of an environment's buffer"
            )
        if self.returns == "categorical" and (self.atoms < 2 or self.v_min >= self.v_max):
            raise UserError("returns=categorical needs at least 2 atoms, and a v_min below v_max")
        if self.priority_exponent < 0:
            raise UserError(f"priority_exponent must be at least 0, not {self.priority_exponent}")

    @property
    def slots(self) -> int:
        """Number of transitions in the replay buffer of each environment."""
        return self.buffer_size // self.num_envs

    @property
    def warmup_steps(self) -> int:
        """Number of steps that act without learning."""
        return max(-(-self.learning_starts // self.frames), -(-self.n_step // self.rollout_length)) - 1

    def build(self) -> Learner:
        """See `Experiment`."""
        return dqn(self, make(self.environment))

    def distribution(self) -> Distribution:
        """See `QLearning`."""
        match self.returns:
            case "expectation":
                return expectation(self.loss == "huber")
            case "categorical":
                return categorical(self.atoms, self.v_min, self.v_max)
            case "quantiles":
                return quantiles(self.atoms)

    def divisible(self) -> dict[str, int]:
        """See `Experiment`."""
        return {**super().divisible(), "batch": microbatch(self.batch, self.update)}


def dqn(config: DQN, environment: VectorEnv) -> Learner:
    """The learner: Algorithm 1 of Mnih et al. 2015.

    Q is `state.params["q"]`, Q̂ is `state.collections["target"]`, D is `state.world.buffer`.
    """
    net, distribution = q_network(config, environment), config.distribution()
    updates = max((config.run.steps - config.warmup_steps) * config.updates, 1)
    init_state, update = updater(config.update, {"q": (config.optimizer, updates)}, {"q": config.average})
    prioritised, share = config.priority_exponent > 0, config.batch // config.num_envs

    def init(key: jax.Array) -> State:
        params = net.init(key)
        state = init_state(key, {"q": (params, {})}, {"target": jax.tree.map(jnp.copy, params)})
        actor = reset(environment, rng(state, "first"), config.num_envs)
        buffer = replay.empty(config.num_envs, config.slots, environment.observation_shape, config.buffer_dtype)
        trees = priorities.empty(config.num_envs, config.slots) if prioritised else ()
        return state._replace(world=World(actor, buffer, trees))

    def act(state: State) -> tuple[State, Metrics]:
        """Act epsilon-greedily, and store the transitions in D."""
        _, buffer, trees = state.world
        actor, transitions, metrics = net.act(state, state.world.actor)
        buffer = replay.write(buffer, transitions, state.step)
        if prioritised:
            trees = priorities.write(trees, state.step, config.rollout_length, config.slots, config.n_step)
        return state._replace(world=World(actor, buffer, trees)), metrics

    def sample(state: State) -> tuple[jax.Array, Minibatch]:
        """The minibatches of a step, leaves [updates, batch, ...], and their slots [num_envs, updates, share]."""
        actor, buffer, trees = state.world
        keys, shape = example_keys(rng(state, "sample"), actor.env_id), (config.updates, share)
        if prioritised:
            slots, probability = priorities.sample(trees, keys, shape)
            valid = replay.filled(state.step + 1, config.rollout_length, config.slots) - config.n_step + 1
            start = config.importance_exponent
            exponent = start + (1 - start) * jnp.minimum(state.step / config.run.steps, 1)
            weight = (valid * probability) ** -exponent
            weight = weight.swapaxes(0, 1).reshape(config.updates, -1)
        else:
            slots = replay.uniform(keys, state.step, config.rollout_length, config.slots, shape, config.n_step)
            weight = jnp.ones((config.updates, shape[1] * len(keys)))
        samples = replay.windows(buffer, slots, config.n_step, config.gamma)
        # Q̂ does not change during a step, so it values all minibatches at once.
        target = jax.vmap(net.outputs, (None, 0))(state.collections["target"], samples.next_observation)
        return slots, Minibatch(samples, target, weight)

    def td_loss(params: Tree, state: State, batch: Minibatch, rng: jax.Array) -> tuple[Mean, Aux]:
        """The loss of the temporal difference y - Q(observation, action)."""
        sample, next_, weight = batch
        if config.double:
            best = jax.lax.stop_gradient(net.q(params, sample.next_observation)).argmax(-1)
        else:
            best = distribution.mean(next_).argmax(-1)
        predicted = of_action(net.outputs(params, sample.observation, rng), sample.action)
        loss, surprise = distribution.error(predicted, sample.return_, sample.discount, of_action(next_, best))
        # A mean by weight: its gradient needs no greatest weight to divide by.
        return mean(loss, weight), Aux({"q": mean(distribution.mean(predicted))}, rows=surprise)

    def learn(state: State) -> tuple[State, Metrics]:
        """A gradient descent step on each minibatch; of the world, its priorities are returned."""
        slots, batches = sample(state)
        after, aux = scan_updates(update, state, "q", td_loss, batches)
        trees = state.world.priorities
        if prioritised:
            surprise = aux.rows.reshape(config.updates, -1, share).swapaxes(0, 1)
            flat = lambda x: x.reshape(len(x), -1)
            trees = priorities.update(trees, flat(slots), flat(surprise), config.priority_exponent)
        return after._replace(world=trees), dict(aux.metrics)

    def wait(state: State) -> tuple[State, Metrics]:
        """In place of `learn` before learning starts: nothing changes, and the metrics have a count of 0."""
        _, metrics = jax.eval_shape(learn, state)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics)
        return state._replace(world=state.world.priorities), zeros

    def step(state: State, _: Batch) -> tuple[State, Metrics]:
        state, acted = act(state)
        # The branches leave the buffer out of what they return, or they would copy it.
        learned, metrics = jax.lax.cond(state.step >= config.warmup_steps, learn, wait, state)
        state = learned._replace(world=state.world._replace(priorities=learned.world))
        # Every C steps reset Q̂ = Q, or move it there by a part tau
        target = state.collections["target"]
        moved = optax.incremental_update(state.params["q"], target, config.tau)
        target = optax.periodic_update(moved, target, state.step + 1, config.target_update_interval)
        state = state._replace(collections=state.collections | {"target": target})
        return state, {**acted, **metrics, "epsilon": mean(net.epsilon(state.step))}

    return learner(init, step, net.evaluate)


def tiny() -> dict[str, Experiment]:
    """Tiny settings, for the tests of what holds for every learner: SGD; they learn from their second step on."""
    plain = DQN(
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
    rainbow = replace(
        plain,
        net=MLP(widths=(16,), dueling=True, noisy=True),
        returns="categorical",
        atoms=11,
        v_min=0.0,
        v_max=10.0,
        priority_exponent=0.5,
    )
    return {"dqn": plain, "rainbow": rainbow}
