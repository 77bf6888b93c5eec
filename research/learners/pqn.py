"""Parallelised Q-network (Gallici et al. 2025, arXiv:2407.04811): Q-learning without replay and without a target net.

`pqn` follows their Algorithm 1: act epsilon-greedily in many environments, make Q(lambda) targets with the same net,
and take gradient steps on the minibatches of a few epochs. Layer normalisation keeps the net stable. With a table for a
net, one epoch, one minibatch and lambda 0 it is tabular Q-learning (Watkins & Dayan 1992), SARSA (Rummery & Niranjan
1994) or expected SARSA (van Seijen, van Hasselt, Whiteson & Wiering 2009).
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core.errors import between, positive
from research.core.experiment import Experiment, Run, microbatch
from research.core.metrics import Mean, Metrics, mean
from research.core.optimizers import Optimizer
from research.core.state import Batch, Learner, State, example_keys, learner, rng
from research.core.types import Tree
from research.core.update import Aux, updater
from research.learners.q_learning import QLearning, of_action, q_network
from research.learners.reinforcement import multiple
from research.nets.q import MLP
from research.rl.advantages import lambda_returns
from research.rl.environments import make
from research.rl.epochs import scan_epochs
from research.rl.exploration import epsilon_greedy, probabilities
from research.rl.rollout import Transition, reset


class Minibatch(NamedTuple):
    """What an update learns from. Leaves [batch, ...].

    Attributes:
        observation: where an action was chosen
        action: i32, the action
        target: f32, what its value should be
    """

    observation: jax.Array
    action: jax.Array
    target: jax.Array


@dataclass(frozen=True, kw_only=True)
class PQN(QLearning):
    """An experiment in Q-learning with parallel environments. A step acts, then learns from what it has seen, once.

    Attributes:
        epochs: number of times that a step learns from each of its frames
        minibatches: number of updates per epoch; it divides rollout_length, and each takes as much of each environment
        q_lambda: weight of longer returns in Q(lambda); 0 is the one-step return
        bootstrap: what follows a return: the best action's value (Q-learning), that of the next action (SARSA), or the
            mean value of the actions as they are chosen, by epsilon (expected SARSA)
    """

    net: nn.Module = field(default_factory=lambda: MLP(layer_norm=True))
    num_envs: int = 32
    rollout_length: int = 64
    epochs: int = 4
    minibatches: int = 16
    q_lambda: float = 0.95
    bootstrap: Literal["best", "next", "expected"] = "best"

    def __post_init__(self) -> None:
        positive(self, "", "epochs", "minibatches")
        between(self, "", 0, 1, "q_lambda")
        super().__post_init__()
        multiple(self, "rollout_length", self.minibatches, "minibatches")

    @property
    def batch(self) -> int:
        """Number of frames of an update."""
        return self.frames // self.minibatches

    def build(self) -> Learner:
        """See `Experiment`."""
        return pqn(self)

    def divisible(self) -> dict[str, int]:
        """See `Experiment`."""
        return {**super().divisible(), "the minibatches": microbatch(self.batch, self.update)}


def pqn(config: PQN) -> Learner:
    """The learner: Algorithm 1 of Gallici et al. 2025. Q is `state.params["q"]`; the world is an `ActorState`."""
    environment = make(config.environment)
    net = q_network(config, environment)
    updates = config.run.steps * config.epochs * config.minibatches
    init_state, update = updater(config.update, {"q": (config.optimizer, updates)}, {"q": config.average})

    def init(key: jax.Array) -> State:
        state = init_state(key, {"q": (net.init(key), {})})
        return state._replace(world=reset(environment, rng(state, "first"), config.num_envs))

    def targets(state: State, transitions: Transition) -> jax.Array:
        """The Q(lambda) targets of a rollout, f32[num_envs, length]."""
        q = jax.vmap(net.q, (None, 0))(state.params["q"], transitions.next_observation)
        match config.bootstrap:
            case "best":
                value = q.max(-1)
            case "next":
                value = jnp.take_along_axis(q, next_action(state, transitions, q)[..., None], -1)[..., 0]
            case "expected":
                value = (probabilities(q, config.epsilon(state.step)) * q).sum(-1)
        return lambda_returns(transitions, value, config.gamma, config.q_lambda)

    def next_action(state: State, transitions: Transition, q: jax.Array) -> jax.Array:
        """The action after each frame, i32[num_envs, length]; where none followed in its episode yet, one is drawn."""
        keys = example_keys(rng(state, "next action"), state.world.env_id)
        uniform = jax.vmap(lambda key: jax.random.uniform(key, q.shape[1:2]))(keys)
        drawn = jax.vmap(epsilon_greedy, (0, 0, None))(q, uniform, config.epsilon(state.step))
        follows = ~transitions.done & (jnp.arange(q.shape[1]) < q.shape[1] - 1)
        return jnp.where(follows, jnp.roll(transitions.action, -1, 1), drawn)

    def loss(params: Tree, state: State, batch: Minibatch, rng: jax.Array) -> tuple[Mean, Aux]:
        """Half the squared difference between the target and Q(observation, action)."""
        q = of_action(net.outputs(params, batch.observation, rng), batch.action)[:, 0]
        return mean(0.5 * (batch.target - q) ** 2), Aux({"q": mean(q)})

    def step(state: State, _: Batch) -> tuple[State, Metrics]:
        actor, transitions, acted = net.act(state, state.world)
        rows = Minibatch(transitions.observation, transitions.action, targets(state, transitions))
        state, learned = scan_epochs(
            update, state._replace(world=actor), "q", loss, rows, actor.env_id, config.epochs, config.minibatches
        )
        return state, {**acted, **learned}

    return learner(init, step, net.evaluate)


def tiny() -> dict[str, Experiment]:
    """Tiny settings, for the tests of what holds for every learner: SGD."""
    return {
        "pqn": PQN(
            net=MLP(widths=(16,), layer_norm=True),
            num_envs=8,
            rollout_length=4,
            epochs=2,
            minibatches=2,
            episodes=16,
            optimizer=Optimizer(name="sgd", learning_rate=0.01),
            run=Run(steps=12, steps_per_dispatch=3, evaluate_every=6, save_every=6, metric="return"),
        )
    }
