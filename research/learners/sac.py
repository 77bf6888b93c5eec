"""Soft actor-critic (Haarnoja et al. 2018, "Soft actor-critic algorithms and applications", arXiv:1812.05905).

`sac` follows their Algorithm 1: act, store, and for each minibatch move the critics, the actor, the temperature and the
target critics. Before learning starts the policy acts as it is initialised; in the authors' code actions are uniform
then.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from research.core.errors import UserError, between
from research.core.experiment import Experiment, Inference, Load, Report, Run
from research.core.metrics import Mean, Metrics, added, mean
from research.core.modules import Network, bind, network
from research.core.optimizers import Optimizer
from research.core.state import Batch, Learner, State, evaluated, learner, rng
from research.core.types import Tree
from research.core.update import Aux, updater
from research.learners.reinforcement import episode_reports, evaluation_environment, observation_inference
from research.learners.replay_learning import OffPolicy, act_and_learn, uniform_slots, with_world
from research.nets.q import MLP
from research.rl import replay
from research.rl.distributions import Gaussian, TanhGaussian
from research.rl.environments import Environment, make
from research.rl.evaluation import play
from research.rl.replay import Sample
from research.rl.rollout import ActorState, Transition, rollout
from research.rl.vector import Box
from research.rl.wrappers import rescaled_actions, unscaled_actions

LOG_STD = (-20.0, 2.0)
"""Bounds of the logarithm of the standard deviations, as in the authors' code."""


@dataclass(frozen=True, kw_only=True)
class SAC(OffPolicy):
    """An experiment in soft actor-critic, of continuous actions.

    Attributes:
        actor: a net from observations to the means, and the logarithms of the standard deviations, of the actions
            before tanh, with a field `outputs` for how many numbers these are
        critic: a net from an observation and an action, joined, to their value, with a field `outputs`; there are two
        tau: how far an update moves the target critics towards the critics
    """

    actor: nn.Module = field(default_factory=lambda: MLP(widths=(256, 256)))
    critic: nn.Module = field(default_factory=lambda: MLP(widths=(256, 256)))
    rollout_length: int = 1
    buffer_size: int = 102_400
    learning_starts: int = 1_000
    batch: int = 256
    updates: int = 8
    tau: float = 0.005

    def __post_init__(self) -> None:
        between(self, "", 0, 1, "tau")
        for name in ("actor", "critic"):
            for option in ("noisy", "dueling"):
                if getattr(getattr(self, name), option, False):
                    raise UserError(f"{name}.{option} is for the values of discrete actions, not for SAC")
        super().__post_init__()

    def build(self) -> Learner:
        """See `Experiment`."""
        return sac(self)

    def box(self) -> Box:
        """The bounds of the environment's actions. Raises UserError where these are not of shape (size,) and finite."""
        box = make(self.environment).actions
        if not isinstance(box, Box) or len(box.shape) != 1:
            raise UserError(f"environment.name {self.environment.name}: SAC takes continuous actions of shape (size,)")
        if not (np.isfinite(box.low).all() and np.isfinite(box.high).all()):
            raise UserError(
                f"environment.name {self.environment.name}: SAC's actions are within bounds, and these have none: "
                "bound them in the environment's action_space"
            )
        return box

    def policy(self) -> tuple[Network, Callable[[Tree, jax.Array], TanhGaussian]]:
        """The actor, and (params, observations [batch, ...]) -> the distribution of the action.

        Raises as `box` does.
        """
        (size,) = self.box().shape
        net = network(bind(self.actor, outputs=2 * size), self.update.dtype)

        def apply(params: Tree, observation: jax.Array) -> TanhGaussian:
            mu, log_std = jnp.split(net.apply(params, {}, observation)[0], 2, -1)
            return TanhGaussian(Gaussian(mu, jnp.clip(log_std, *LOG_STD)))

        return net, apply

    def mode(self) -> Callable[[State, jax.Array], jax.Array]:
        """What is evaluated: (state, observations [batch, ...]) -> actions without noise, f32[batch, size]."""
        _, policy = self.policy()
        return lambda state, observation: policy(evaluated(state, "actor"), observation).mode()

    def reports(self, load: Load) -> Iterable[Report]:
        """See `Experiment`."""
        return episode_reports(self.environment, evaluation_environment(self), self.mode())

    def inference(self, state: State) -> dict[str, Inference]:
        """See `Experiment`."""
        mode, box = self.mode(), self.box()
        function = lambda observation: unscaled_actions(box, mode(state, observation))
        return observation_inference(self, function, "action", "The action is that without noise.")


def sac(config: SAC) -> Learner:
    """The learner: Algorithm 1 of Haarnoja et al. 2018.

    The policy pi is `state.params["actor"]`, the two Q are `state.params["critic"]`, the temperature alpha is the
    exponential of `state.params["temperature"]`, the target Q are `state.collections["target"]`, and D is
    `state.world.buffer`.
    """
    environment = rescaled_actions(make(config.environment))
    (actor, policy), (size,) = config.policy(), environment.action_shape
    critic = network(bind(config.critic, outputs=1), config.update.dtype)
    names = ("critic", "actor", "temperature")
    optimizers = {name: (config.optimizer, config.total_updates) for name in names}
    init_state, update = updater(config.update, optimizers, {"actor": config.average})

    def joined(observation: jax.Array, action: jax.Array) -> jax.Array:
        return jnp.concatenate([observation.reshape(len(observation), -1), action], -1)

    def q(params: Tree, observation: jax.Array, action: jax.Array) -> jax.Array:
        """What both critics say, f32[2, batch]."""
        value = lambda name: critic.apply(params[name], {}, joined(observation, action))[0][:, 0]
        return jnp.stack([value("first"), value("second")])

    def sampled(params: Tree, observation: jax.Array, rng: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Actions f32[batch, size] by the policy, and their log-probabilities f32[batch]."""
        return policy(params, observation).sample_and_log_prob(jax.vmap(lambda k: jax.random.uniform(k, (size,)))(rng))

    def alpha(state: State) -> jax.Array:
        return jnp.exp(state.params["temperature"]["log_alpha"])

    def init(key: jax.Array) -> State:
        first, second, of_actor = jax.random.split(key, 3)
        observation = jnp.zeros((1, *environment.observation_shape))
        both = joined(observation, jnp.zeros((1, size)))
        critics = {"first": critic.init(first, both)[0], "second": critic.init(second, both)[0]}
        parts: dict[str, tuple[Tree, Tree]] = {
            "critic": (critics, {}),
            "actor": actor.init(of_actor, observation),
            "temperature": ({"log_alpha": jnp.zeros(())}, {}),
        }
        state = init_state(key, parts, {"target": jax.tree.map(jnp.copy, critics)})
        return with_world(config, environment, state)

    def act(state: State) -> tuple[ActorState, Transition, Metrics]:
        """Act by the policy."""
        choose = lambda observation, uniform: policy(state.params["actor"], observation).sample(uniform)
        return rollout(environment, choose, state.world.actor, rng(state, "act"), config.rollout_length)

    def critic_loss(params: Tree, state: State, batch: Sample, rng: jax.Array) -> tuple[Mean, Aux]:
        """Their equation 5: the squared soft temporal difference of both critics."""
        action, log_prob = sampled(state.params["actor"], batch.next_observation, rng)
        value = q(state.collections["target"], batch.next_observation, action).min(0) - alpha(state) * log_prob
        y = batch.return_ + batch.discount * value
        values = q(params, batch.observation, batch.action)
        return mean(optax.l2_loss(values - y).sum(0)), Aux({"q": mean(values.mean(0))})

    def actor_loss(params: Tree, state: State, batch: Sample, rng: jax.Array) -> tuple[Mean, Aux]:
        """Their equation 9, with the lesser of the two critics."""
        action, log_prob = sampled(params, batch.observation, rng)
        loss = alpha(state) * log_prob - q(state.params["critic"], batch.observation, action).min(0)
        return mean(loss), Aux({"entropy": mean(-log_prob)}, rows=log_prob)

    def temperature_loss(params: Tree, state: State, log_prob: jax.Array, rng: jax.Array) -> tuple[Mean, Aux]:
        """Their equation 18, of the logarithm of alpha; the target entropy is minus the size of an action."""
        return mean(-params["log_alpha"] * (log_prob - size)), Aux()

    def gradient_step(state: State, batch: Sample) -> tuple[State, Metrics]:
        """The inner loop of Algorithm 1."""
        state, of_critic = update(state, "critic", critic_loss, batch)
        state, of_actor = update(state, "actor", actor_loss, batch)
        state, of_temperature = update(state, "temperature", temperature_loss, of_actor.rows)
        target = optax.incremental_update(state.params["critic"], state.collections["target"], config.tau)
        state = state._replace(collections=state.collections | {"target": target})
        return state, {**of_critic.metrics, **of_actor.metrics, **of_temperature.metrics, "alpha": mean(alpha(state))}

    def learn(state: State) -> tuple[State, Metrics]:
        """A gradient step on each minibatch of the step."""
        samples = replay.windows(state.world.buffer, uniform_slots(config, state), 1, config.gamma)
        after, metrics = jax.lax.scan(gradient_step, state._replace(world=()), samples)
        return after._replace(world=state.world), added(metrics)

    def evaluate(state: State, batch: Batch) -> Metrics:
        """One whole episode without noise for each seed of `batch.index`."""
        return play(evaluation_environment(config), lambda observation: config.mode()(state, observation), batch)

    return learner(init, act_and_learn(config, act, learn), evaluate)


def tiny() -> dict[str, Experiment]:
    """A tiny setting, for the tests of what holds for every learner: SGD; it learns from its second step on."""
    return {
        "sac": SAC(
            environment=Environment("probes:Near"),
            actor=MLP(widths=(16,)),
            critic=MLP(widths=(16,)),
            num_envs=8,
            rollout_length=2,
            buffer_size=8 * 16,
            learning_starts=32,
            batch=32,
            updates=2,
            average=0.9,
            episodes=16,
            optimizer=Optimizer(name="sgd", learning_rate=0.05),
            run=Run(steps=12, steps_per_dispatch=3, evaluate_every=6, save_every=6, metric="return"),
        )
    }
