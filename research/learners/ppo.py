"""Proximal policy optimisation (Schulman, Wolski, Dhariwal, Radford & Klimov 2017, arXiv:1707.06347).

`ppo` follows their Algorithm 1: act, estimate the advantages, and optimise the clipped surrogate for K epochs of
minibatches; all of it is one step. Its details are those of Andrychowicz et al. 2021 (arXiv:2006.05990) and Huang et
al. 2022 ("The 37 implementation details of proximal policy optimization"), except that

- advantages are normalised over the whole rollout, not over each minibatch, and values clipped if `value_clip` is set;
- an episode that is truncated is bootstrapped from its last observation;
- the moments of observations stay during a step, and those of rewards hold the step's own rewards;
- a minibatch has as many frames of each environment, and the learning rate falls from update to update;
- MinAtar's convolution starts He-normal, not orthogonal;
- continuous actions are from -1 to 1, scaled to the environment's bounds where these are finite.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from research.core.errors import UserError, between, positive
from research.core.experiment import Experiment, Inference, Load, Report, Run, microbatch
from research.core.metrics import Mean, Metrics, mean
from research.core.modules import Network, bind, network
from research.core.optimizers import Optimizer
from research.core.state import Batch, Learner, State, evaluated, learner, rng
from research.core.types import Tree
from research.core.update import Aux, UpdateConfig, updater
from research.learners.reinforcement import (
    Reinforcement,
    episode_reports,
    evaluation_environment,
    multiple,
    observation_inference,
)
from research.nets.actor_critic import ActorCritic
from research.rl import normalisation
from research.rl.advantages import explained_variance, gae, normalised
from research.rl.distributions import Categorical, Distribution, Gaussian
from research.rl.environments import Environment, make
from research.rl.epochs import scan_epochs
from research.rl.evaluation import play
from research.rl.normalisation import Moments, discounted_rewards, no_moments
from research.rl.rollout import ActorState, Transition, reset, rollout
from research.rl.vector import Box
from research.rl.wrappers import rescaled_actions, unscaled_actions


class World(NamedTuple):
    """What devices split by environments.

    Attributes:
        actor: the environments, leaves [num_envs, ...]
        discounted: f32[num_envs], the discounted rewards of the episode so far, see `normalisation.discounted_rewards`
    """

    actor: ActorState
    discounted: jax.Array


class Rows(NamedTuple):
    """What the loss reads of each frame. Leaves [num_envs, length, ...] of a rollout, [batch, ...] of a minibatch.

    Attributes:
        observation: normalised
        action: i32, or f32 [..., size]
        log_prob: f32, of the action by the policy that chose it
        value: f32, as estimated before the update
        advantage: f32, normalised
        return_: f32, what the value should be
    """

    observation: jax.Array
    action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    advantage: jax.Array
    return_: jax.Array


@dataclass(frozen=True, kw_only=True)
class PPO(Reinforcement):
    """An experiment in proximal policy optimisation, of discrete or continuous actions.

    Attributes:
        net: a net from observations to the parameters of the policy and the value, with fields `outputs` and
            `continuous` for the actions
        epochs: number of passes over the frames of a step
        minibatches: number of updates per pass, each of the same number of frames of every environment
        gae_lambda: lambda of the generalised advantage estimates
        clip_epsilon: how far the ratio of the new probability of an action to the old one may be from 1
        value_clip: how far an update may move a value, before its error counts as if it had not; None for no limit
        value_coef: weight of half the value's squared error in the loss
        entropy_coef: weight of the policy's entropy in the loss
        normalise_observations: whether observations are normalised by their running mean and standard deviation
        normalise_rewards: whether rewards are scaled by the running standard deviation of the discounted rewards
    """

    net: nn.Module = field(default_factory=ActorCritic)
    rollout_length: int = 128
    epochs: int = 4
    minibatches: int = 4
    gae_lambda: float = 0.95
    clip_epsilon: float = 0.2
    value_clip: float | None = None
    value_coef: float = 0.5
    entropy_coef: float = 0.0
    normalise_observations: bool = False
    normalise_rewards: bool = False
    update: UpdateConfig = field(default_factory=lambda: UpdateConfig(clip=0.5))

    def __post_init__(self) -> None:
        positive(self, "", "epochs", "minibatches")
        between(self, "", 0, 1, "gae_lambda")
        between(self, "", 0, math.inf, "clip_epsilon", "value_clip")
        super().__post_init__()
        multiple(self, "rollout_length", self.minibatches, "minibatches")

    @property
    def batch(self) -> int:
        """Number of frames in a minibatch."""
        return self.frames // self.minibatches

    def build(self) -> Learner:
        """See `Experiment`."""
        return ppo(self)

    def divisible(self) -> dict[str, int]:
        """See `Experiment`."""
        return {**super().divisible(), "the minibatches": microbatch(self.batch, self.update)}

    def reports(self, load: Load) -> Iterable[Report]:
        """See `Experiment`."""
        environment, act = evaluation_environment(self), actor(self)
        return episode_reports(self.environment, environment, lambda state, x: act(state, x).mode())

    def inference(self, state: State) -> dict[str, Inference]:
        """See `Experiment`."""
        act, box = actor(self), make(self.environment).actions
        if isinstance(box, Box):
            function = lambda observation: unscaled_actions(box, act(state, observation).mode())
            output, about = "action", "The action is the most likely one."
        else:
            function = lambda observation: cast(Categorical, act(state, observation)).logits
            output, about = "logits", "The action with the largest logit is the most likely one."
        return observation_inference(self, function, output, about)


def actor_critic(config: PPO) -> tuple[Network, Callable[[Tree, jax.Array], tuple[Distribution, jax.Array]]]:
    """The net, and (params, normalised observations [batch, ...]) -> (distribution of the action, values [batch]).

    Raises UserError where the net is not for the environment's actions.
    """
    actions = make(config.environment).actions
    continuous = isinstance(actions, Box)
    if isinstance(actions, Box):
        if len(actions.shape) != 1:
            raise UserError(f"environment.name: PPO takes actions of shape (size,), not {actions.shape}")
        if not hasattr(config.net, "continuous"):
            raise UserError(f"net: {type(config.net).__name__} is for discrete actions: choose ActorCritic")
    outputs = actions.shape[0] if isinstance(actions, Box) else actions
    net = network(bind(config.net, outputs=outputs, continuous=continuous), config.update.dtype)

    def apply(params: Tree, observation: jax.Array) -> tuple[Distribution, jax.Array]:
        policy, value = net.apply(params, {}, observation)[0]
        return Gaussian(*policy) if continuous else Categorical(policy), value

    return net, apply


def statistics(state: State) -> dict[str, Moments]:
    """The moments of "observation" and "return" that are kept, see `PPO`."""
    return state.collections.get("normalisation", {})


def seen(state: State, observation: jax.Array) -> jax.Array:
    """Observations as the net sees them."""
    moments = statistics(state)
    return normalisation.normalised(moments["observation"], observation) if "observation" in moments else observation


def actor(config: PPO) -> Callable[[State, jax.Array], Distribution]:
    """What is evaluated: (state, observations [batch, ...]) -> the distribution of the action."""
    _, apply = actor_critic(config)
    return lambda state, observation: apply(evaluated(state, "policy"), seen(state, observation))[0]


def ppo(config: PPO) -> Learner:
    """The learner: Algorithm 1 of Schulman et al. 2017.

    The policy and the value are `state.params["policy"]`; the statistics that observations and rewards are normalised
    by are `state.collections["normalisation"]`. Evaluation leaves them as they are.
    """
    environment = rescaled_actions(make(config.environment))
    net, apply = actor_critic(config)
    updates = config.run.steps * config.epochs * config.minibatches
    init_state, update = updater(config.update, {"policy": (config.optimizer, updates)}, {"policy": config.average})
    act = actor(config)

    def init(key: jax.Array) -> State:
        moments = {"observation": environment.observation_shape} if config.normalise_observations else {}
        moments |= {"return": ()} if config.normalise_rewards else {}
        kept = {"normalisation": {name: no_moments(shape) for name, shape in moments.items()}} if moments else {}
        state = init_state(key, {"policy": net.init(key, jnp.zeros((1, *environment.observation_shape)))}, kept)
        actors = reset(environment, rng(state, "first"), config.num_envs)
        return state._replace(world=World(actors, jnp.zeros(config.num_envs)))

    def play_on(state: State) -> tuple[State, Transition, Metrics]:
        """Run the policy for `rollout_length` frames."""
        params = state.params["policy"]
        policy = lambda observation, uniform: apply(params, seen(state, observation))[0].sample(uniform)
        actors, transitions, metrics = rollout(
            environment, policy, state.world.actor, rng(state, "act"), config.rollout_length
        )
        return state._replace(world=state.world._replace(actor=actors)), transitions, metrics

    def scale_rewards(state: State, transitions: Transition) -> tuple[State, Transition]:
        """Rewards over the standard deviation of the discounted rewards so far, where they are to be normalised."""
        if not config.normalise_rewards:
            return state, transitions
        after, discounted = discounted_rewards(
            state.world.discounted, transitions.reward, transitions.done, config.gamma
        )
        moments = normalisation.merged(statistics(state)["return"], discounted)
        state = with_statistics(state, "return", moments)._replace(world=state.world._replace(discounted=after))
        return state, transitions._replace(reward=normalisation.scaled(moments, transitions.reward))

    def estimate(state: State, transitions: Transition) -> tuple[Rows, Metrics]:
        """The advantages, and what else the loss reads."""
        params, shape = state.params["policy"], transitions.reward.shape
        flat = lambda x: x.reshape(-1, *x.shape[2:])  # [num_envs, rollout_length, ...] -> a row for each frame
        observation = seen(state, transitions.observation)
        distribution, value = apply(params, flat(observation))
        log_prob = distribution.log_prob(flat(transitions.action)).reshape(shape)
        _, next_value = apply(params, flat(seen(state, transitions.next_observation)))
        value, next_value = value.reshape(shape), next_value.reshape(shape)
        advantage = gae(transitions, value, next_value, config.gamma, config.gae_lambda)
        rows = Rows(observation, transitions.action, log_prob, value, normalised(advantage), advantage + value)
        return rows, {"explained_variance": explained_variance(rows.return_, value)}

    def loss(params: Tree, state: State, batch: Rows, rng: jax.Array) -> tuple[Mean, Aux]:
        """The clipped surrogate (their equation 7), the value's error and the entropy (their equation 9)."""
        distribution, value = apply(params, batch.observation)
        log_ratio = distribution.log_prob(batch.action) - batch.log_prob
        ratio, epsilon = jnp.exp(log_ratio), config.clip_epsilon
        surrogate = jnp.minimum(ratio * batch.advantage, jnp.clip(ratio, 1 - epsilon, 1 + epsilon) * batch.advantage)
        error = optax.l2_loss(value, batch.return_)
        if config.value_clip is not None:
            near = batch.value + jnp.clip(value - batch.value, -config.value_clip, config.value_clip)
            error = jnp.maximum(error, optax.l2_loss(near, batch.return_))
        entropy = distribution.entropy()
        metrics: Metrics = {
            "policy_loss": mean(-surrogate),
            "value_loss": mean(error),
            "entropy": mean(entropy),
            # It is never negative, unlike the mean of -log_ratio (Schulman 2020, "Approximating KL divergence").
            "approx_kl": mean(ratio - 1 - log_ratio),
            "clip_fraction": mean(jnp.abs(ratio - 1) > epsilon),
        }
        return mean(-surrogate + config.value_coef * error - config.entropy_coef * entropy), Aux(metrics)

    def step(state: State, _: Batch) -> tuple[State, Metrics]:
        state, transitions, acted = play_on(state)
        state, transitions = scale_rewards(state, transitions)
        rows, estimated = estimate(state, transitions)
        state, learned = scan_epochs(
            update, state, "policy", loss, rows, state.world.actor.env_id, config.epochs, config.minibatches
        )
        if config.normalise_observations:  # last: the rollout and its updates see observations alike
            moments = normalisation.merged(statistics(state)["observation"], transitions.observation)
            state = with_statistics(state, "observation", moments)
        return state, {**acted, **estimated, **learned}

    def evaluate(state: State, batch: Batch) -> Metrics:
        """One whole episode of the most likely actions for each seed of `batch.index`."""
        return play(evaluation_environment(config), lambda observation: act(state, observation).mode(), batch)

    return learner(init, step, evaluate)


def with_statistics(state: State, name: str, moments: Moments) -> State:
    """The State with other moments of this name."""
    return state._replace(collections=state.collections | {"normalisation": statistics(state) | {name: moments}})


def tiny() -> dict[str, Experiment]:
    """Tiny settings, for the tests of what holds for every learner: SGD, for discrete and for continuous actions."""
    discrete = PPO(
        net=ActorCritic(widths=(16,)),
        num_envs=8,
        rollout_length=8,
        epochs=2,
        minibatches=2,
        value_clip=0.2,
        entropy_coef=0.01,
        normalise_observations=True,
        normalise_rewards=True,
        average=0.9,
        episodes=16,
        optimizer=Optimizer(name="sgd", learning_rate=0.05),
        run=Run(steps=12, steps_per_dispatch=3, evaluate_every=6, save_every=6, metric="return"),
    )
    return {"ppo": discrete, "ppo_continuous": replace(discrete, environment=Environment("probes:Near"))}
