"""What Q-learners have in common: a net that values actions, epsilon-greedy acting, and greedy evaluation."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core.errors import between
from research.core.experiment import Inference, Load, Report
from research.core.metrics import Metrics, mean
from research.core.modules import bind, network
from research.core.state import Batch, State, evaluated, example_keys, rng
from research.core.types import Tree
from research.core.update import Dtype
from research.evaluation.values import value_map
from research.learners.reinforcement import Reinforcement, episode_reports, observation_inference
from research.nets.q import MLP
from research.rl.environments import VectorEnv, make
from research.rl.evaluation import Prediction, play
from research.rl.exploration import epsilon_greedy, linear_epsilon
from research.rl.returns import ReturnDistribution, expectation
from research.rl.rollout import ActorState, Transition, rollout


@dataclass(frozen=True, kw_only=True)
class QLearning(Reinforcement):
    """An experiment in Q-learning.

    Attributes:
        net: a net from observations to the values of the actions, with a field `outputs` for the number of actions
        epsilon_start: initial epsilon, the probability of a random action
        epsilon_end: final epsilon
        epsilon_fraction: fraction of the run over which epsilon decays linearly
    """

    net: nn.Module = field(default_factory=MLP)
    epsilon_start: float = 1.0
    epsilon_end: float = 0.05
    epsilon_fraction: float = 0.5

    dtypes: ClassVar[tuple[Dtype, ...]] = ("float32", "bfloat16", "float16")

    def __post_init__(self) -> None:
        between(self, "", 0, 1, "epsilon_start", "epsilon_end", "epsilon_fraction")
        super().__post_init__()

    def epsilon(self, step: jax.Array) -> jax.Array:
        """The probability f32[] of a random action at a step i32[]."""
        return linear_epsilon(step, self.epsilon_start, self.epsilon_end, self.epsilon_fraction * self.run.steps)

    def distribution(self) -> ReturnDistribution:
        """How the net's outputs are read."""
        return expectation(huber=False)

    def q(self) -> Callable[[State, jax.Array], jax.Array]:
        """(state, observations [batch, ...]) -> the actions' values [batch, actions], by the evaluated weights."""
        q = q_network(self, make(self.environment)).q
        return lambda state, observation: q(evaluated(state, "q"), observation)

    def reports(self, load: Load) -> Iterable[Report]:
        """See `Experiment`."""
        q, environment = self.q(), make(self.environment.unscaled)
        yield from episode_reports(self.environment, environment, lambda state, x: q(state, x).argmax(-1))
        yield from value_map(self.environment, q)

    def inference(self, state: State) -> dict[str, Inference]:
        """See `Experiment`."""
        q, about = self.q(), "Each action has a value q; the largest is that of the greedy action."
        return observation_inference(self, lambda observation: q(state, observation), "q", about)


class Outputs(Protocol):
    """(params, observation f32[batch, ...], keys [batch] for what is random in training, or None) -> an array."""

    def __call__(self, params: Tree, observation: jax.Array, keys: jax.Array | None = None) -> jax.Array: ...


class QNetwork(NamedTuple):
    """The net of a Q-learner, as pure functions made by `q_network`.

    init      key -> params
    outputs   f32[batch, actions, atoms], what the net says of each action's return
    q         f32[batch, actions], the expected returns
    act       (state, actor) -> what `rollout` returns: act epsilon-greedily for a rollout
    evaluate  (state, batch) -> Metrics: one whole greedy episode for each seed of `batch.index`
    """

    init: Callable[[jax.Array], Tree]
    outputs: Outputs
    q: Outputs
    act: Callable[[State, ActorState], tuple[ActorState, Transition, Metrics]]
    evaluate: Callable[[State, Batch], Metrics]


def q_network(config: QLearning, environment: VectorEnv) -> QNetwork:
    """The net of `config` for the actions of `environment`; its parameters are `state.params["q"]`."""
    distribution = config.distribution()
    module = bind(config.net, outputs=environment.num_actions, atoms=distribution.atoms)
    net = network(module, config.update.dtype)
    unscaled = make(config.environment.unscaled)

    def init(key: jax.Array) -> Tree:
        params, _ = net.init(key, jnp.zeros((1, *environment.observation_shape)))
        return params

    def outputs(params: Tree, observation: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        found, _ = net.apply(params, {}, observation.astype(jnp.float32), rng=keys)
        return found.reshape(-1, environment.num_actions, distribution.atoms)

    def q(params: Tree, observation: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        return distribution.mean(outputs(params, observation, keys))

    def act(state: State, actor: ActorState) -> tuple[ActorState, Transition, Metrics]:
        # A noisy net keeps its noise for a rollout, each environment its own.
        keys = example_keys(rng(state, "noise"), actor.env_id) if getattr(module, "noisy", False) else None
        params, epsilon = state.params["q"], config.epsilon(state.step)
        policy = lambda observation, uniform: epsilon_greedy(q(params, observation, keys), uniform, epsilon)
        actor, transitions, metrics = rollout(environment, policy, actor, rng(state, "act"), config.rollout_length)
        return actor, transitions, {**metrics, "epsilon": mean(epsilon)}

    def evaluate(state: State, batch: Batch) -> Metrics:
        return greedy_episodes(config, unscaled, lambda observation: q(evaluated(state, "q"), observation), batch)

    return QNetwork(init, outputs, q, act, evaluate)


def greedy_episodes(
    config: QLearning, environment: VectorEnv, q: Callable[[jax.Array], jax.Array], batch: Batch
) -> Metrics:
    """One whole greedy episode for each seed of `batch.index`, and how far `q` overestimates them; see `play`.

    q  observations f32[batch, ...] -> the actions' values f32[batch, actions]
    """
    reward = config.environment.training_reward
    prediction = Prediction(lambda observation: q(observation).max(-1), config.gamma, reward)
    return play(environment, lambda observation: q(observation).argmax(-1), batch, prediction)


def of_action(outputs: jax.Array, action: jax.Array) -> jax.Array:
    """What is said of the actions i32[batch]: f32[batch, atoms], of f32[batch, actions, atoms]."""
    # A product, not an index: the gradient of an index is a scatter, which took a fifth of an update on a CPU.
    return (outputs * jax.nn.one_hot(action, outputs.shape[1])[..., None]).sum(1)
