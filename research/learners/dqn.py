"""Deep Q-learning with experience replay (Mnih et al. 2015, doi:10.1038/nature14236; 2013, arXiv:1312.5602).

`dqn` follows their Algorithm 1: act epsilon-greedily, store, sample, update, and every C steps reset Q̂ to Q.
Its options are those that Rainbow joins (Hessel et al. 2018, arXiv:1710.02298): double Q-learning (van Hasselt, Guez &
Silver 2016, arXiv:1509.06461), n-step returns (Sutton 1988), distributions of returns (`rl.returns`), prioritised
replay (`rl.priorities`), and by the net dueling streams and noise (`nets.q`). Others are a target net that follows
softly (Lillicrap et al. 2016, arXiv:1509.02971) and averaged weights for evaluation (Polyak & Juditsky 1992).
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from research.core.errors import UserError, between, positive
from research.core.experiment import Experiment, Run
from research.core.metrics import Mean, Metrics, mean
from research.core.optimizers import Optimizer
from research.core.state import Learner, State, example_keys, learner, rng
from research.core.types import Tree
from research.core.update import Aux, scan_updates
from research.learners.q_learning import of_action, q_network
from research.learners.replay_learning import ReplayLearning, act_and_learn, uniform_slots, with_target, with_world
from research.nets.q import MLP
from research.rl import priorities, replay
from research.rl.environments import make
from research.rl.replay import Sample
from research.rl.returns import ReturnDistribution, categorical, expectation, quantiles
from research.rl.rollout import ActorState, Transition


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
class DQN(ReplayLearning):
    """An experiment in deep Q-learning.

    Attributes:
        buffer_dtype: dtype of the observations in the replay buffer; uint8 is for whole numbers from 0 to 255
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

    buffer_dtype: Literal["float32", "uint8"] = "float32"
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
        positive(self, "", "n_step", "atoms")
        between(self, "", 0, math.inf, "priority_exponent")
        between(self, "", 0, 1, "importance_exponent")
        super().__post_init__()
        if self.returns == "categorical" and (self.atoms < 2 or self.v_min >= self.v_max):
            raise UserError("returns=categorical needs at least 2 atoms, and a v_min below v_max")

    @property
    def window(self) -> tuple[str, int]:
        """See `OffPolicy`."""
        return "n_step", self.n_step

    def build(self) -> Learner:
        """See `Experiment`."""
        return dqn(self)

    def distribution(self) -> ReturnDistribution:
        """See `QLearning`."""
        match self.returns:
            case "expectation":
                return expectation(self.loss == "huber")
            case "categorical":
                return categorical(self.atoms, self.v_min, self.v_max)
            case "quantiles":
                return quantiles(self.atoms)


def dqn(config: DQN) -> Learner:
    """The learner: Algorithm 1 of Mnih et al. 2015.

    Q is `state.params["q"]`, Q̂ is `state.collections["target"]`, D is `state.world.buffer`. Raises UserError where D
    can't hold observations in their dtype.
    """
    environment, distribution = make(config.environment), config.distribution()
    if config.buffer_dtype == "uint8":
        replay.check_whole_numbers(environment)
    net = q_network(config, environment)
    (init_state, update), prioritised = config.updater(), config.priority_exponent > 0

    def init(key: jax.Array) -> State:
        params = net.init(key)
        state = init_state(key, {"q": (params, {})}, {"target": jax.tree.map(jnp.copy, params)})
        return with_world(config, environment, state, config.buffer_dtype, prioritised)

    def act(state: State) -> tuple[ActorState, Transition, Metrics]:
        """Act epsilon-greedily."""
        return net.act(state, state.world.actor)

    def sample(state: State) -> tuple[jax.Array, Minibatch]:
        """The minibatches of a step, leaves [updates, batch, ...], and their slots [num_envs, updates, share]."""
        actor, buffer, trees = state.world
        if prioritised:
            keys = example_keys(rng(state, "sample"), actor.env_id)
            slots, probability = priorities.sample(trees, keys, (config.updates, config.share))
            valid = replay.filled(state.step + 1, config.rollout_length, config.slots) - config.n_step + 1
            start = config.importance_exponent
            exponent = start + (1 - start) * jnp.minimum(state.step / config.run.steps, 1)
            weight = (valid * probability) ** -exponent
            weight = weight.swapaxes(0, 1).reshape(config.updates, -1)
        else:
            slots = uniform_slots(config, state)
            weight = jnp.ones((config.updates, config.share * len(slots)))
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
        loss, td_error = distribution.error(predicted, sample.return_, sample.discount, of_action(next_, best))
        # A mean by weight: its gradient needs no greatest weight to divide by.
        return mean(loss, weight), Aux({"q": mean(distribution.mean(predicted))}, rows=td_error)

    def learn(state: State) -> tuple[State, Metrics]:
        """A gradient descent step on each minibatch, and the new priorities of what was sampled."""
        slots, batches = sample(state)
        state, aux = scan_updates(update, state, "q", td_loss, batches)
        if prioritised:
            td_error = aux.rows.reshape(config.updates, -1, config.share).swapaxes(0, 1)
            flat = lambda x: x.reshape(len(x), -1)
            trees = priorities.update(state.world.priorities, flat(slots), flat(td_error), config.priority_exponent)
            state = state._replace(world=state.world._replace(priorities=trees))
        return state, dict(aux.metrics)

    return learner(init, with_target(config, act_and_learn(config, act, learn)), net.evaluate)


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
