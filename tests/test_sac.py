"""Soft actor-critic: its distribution, one step against NumPy, and a probe with a known answer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learners import EXPERIMENTS
from scipy import stats

from research.core.errors import UserError
from research.core.optimizers import Optimizer
from research.core.state import NO_BATCH
from research.core.transformations import scan_steps
from research.learners import sac
from research.learners.sac import SAC
from research.nets.q import MLP
from research.rl.distributions import Gaussian, TanhGaussian
from research.rl.environments import Box, Environment, make


def test_the_density_of_tanh_of_a_gaussian():
    """Of actions at a grid of quantiles, the density is how fast the quantiles pass."""
    uniform = np.linspace(0.001, 0.999, 9_999, dtype=np.float64)
    mean, std = 0.3, 0.6
    each = lambda x: jnp.full((len(uniform), 1), x)
    action, log_prob = TanhGaussian(Gaussian(each(mean), each(np.log(std)))).sample_and_log_prob(uniform[:, None])
    expected = np.tanh(stats.norm(mean, std).ppf(uniform))
    np.testing.assert_allclose(action[:, 0], expected, atol=1e-5)
    density = np.gradient(uniform, expected)
    np.testing.assert_allclose(np.exp(log_prob[5:-5]), density[5:-5], rtol=2e-3)
    far = TanhGaussian(Gaussian(jnp.full((1, 1), 50.0), jnp.zeros(1))).sample_and_log_prob(jnp.full((1, 1), 0.5))[1]
    assert np.isfinite(far), "where tanh is 1 to rounding"


RATE, TAU, GAMMA, QUANTILE = 0.1, 0.25, 0.9, 0.7


@pytest.fixture(scope="module")
def linear():
    """(first state, step) of linear nets, whose actions are all at one quantile."""
    config = SAC(
        environment=Environment("Pendulum-v1"),
        actor=MLP(widths=()),
        critic=MLP(widths=()),
        num_envs=2,
        buffer_size=2_000,
        learning_starts=1_000,
        batch=4,
        updates=1,
        gamma=GAMMA,
        tau=TAU,
        optimizer=Optimizer(name="sgd", learning_rate=RATE, momentum=0.0, nesterov=False),
    )
    learner, sample = config.build(), TanhGaussian.sample_and_log_prob
    state = jax.jit(learner.init)(jax.random.key(0))
    at_quantile = lambda self, uniform: sample(self, jnp.full_like(uniform, QUANTILE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TanhGaussian, "sample_and_log_prob", at_quantile)
        return state, jax.jit(learner.step).lower(state, NO_BATCH).compile()


@pytest.mark.parametrize("terminated", [False, True])
def test_a_step_equals_one_in_numpy(terminated, linear):
    """From a replay buffer that holds one transition many times."""
    (state, step), rate, tau, gamma, z = linear, RATE, TAU, GAMMA, stats.norm.ppf(QUANTILE)
    observation, a, r = np.array([0.5, -0.8, 0.6]), 0.25, -1.5
    weights = np.random.default_rng(0).normal(size=(4, 5)) / 2  # of the critics, then of their targets
    weights[1:3, 4] += 3  # so that the first of the two is the lesser one, and of the targets the second
    theta, log_alpha = np.array([[0.3, -0.2, 0.4, 0.1], [-0.4, 0.1, 0.2, -0.3]]), -0.7  # means, logs of deviations
    head = lambda w: {"head": {"kernel": jnp.float32(w[:, :-1].T), "bias": jnp.float32(w[:, -1])}}
    pair = lambda w: {"first": head(w[:1]), "second": head(w[1:])}
    params = {"critic": pair(weights[:2]), "actor": head(theta), "temperature": {"log_alpha": jnp.float32(log_alpha)}}
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, state.params)
    every = lambda x, like: jnp.broadcast_to(jnp.asarray(x, like.dtype), like.shape)
    held = {"observation": observation, "action": a, "reward": r, "terminated": terminated, "done": terminated}
    buffer = state.world.buffer
    buffer = buffer._replace(**{name: every(x, getattr(buffer, name)) for name, x in held.items()})
    state = state._replace(
        step=jnp.int32(5_000),
        params=params,
        collections={"target": pair(weights[2:])},
        world=state.world._replace(buffer=buffer),
    )
    after, metrics = step(state, NO_BATCH)

    def sampled(theta):
        mean, log_std = theta[:, :3] @ observation + theta[:, 3]
        u = mean + np.exp(log_std) * z
        return np.tanh(u), stats.norm(mean, np.exp(log_std)).logpdf(u) - np.log(1 - np.tanh(u) ** 2)

    q = lambda w, action: w[:, :3] @ observation + w[:, 3] * action + w[:, 4]
    alpha, (action, log_prob) = np.exp(log_alpha), sampled(theta)
    assert q(weights[2:], action).argmin() == 1
    y = r + gamma * (0 if terminated else q(weights[2:], action).min() - alpha * log_prob)
    error = q(weights[:2], a) - y
    critics = weights[:2] - rate * error[:, None] * np.array([*observation, a, 1])

    def actor_loss(theta):
        action, log_prob = sampled(theta)
        return alpha * log_prob - q(critics, action).min()

    assert q(critics, action).argmin() == 0
    gradient, h = np.zeros_like(theta), 1e-6
    for at in np.ndindex(theta.shape):
        step = np.zeros_like(theta)
        step[at] = h
        gradient[at] = (actor_loss(theta + step) - actor_loss(theta - step)) / (2 * h)

    equal = lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5)
    close = lambda found, expected: jax.tree.map(equal, found, expected)
    close(after.params["critic"], pair(critics))
    close(after.params["actor"], head(theta - rate * gradient))
    # The target entropy is -1: alpha falls where the entropy, -log_prob, is above it.
    close(after.params["temperature"], {"log_alpha": log_alpha + rate * (log_prob - 1)})
    close(after.collections["target"], pair(weights[2:] + tau * (critics - weights[2:])))
    losses = {"critic_loss": 0.5 * (error**2).sum(), "actor_loss": actor_loss(theta), "entropy": -log_prob}
    for name, expected in losses.items():
        assert float(metrics[name].value) == pytest.approx(expected, rel=1e-4), name


def test_actions_near_the_target_are_found(optimised):
    """The reward is -(a - x)^2: without noise, the return is nearly 0; that of random actions is -0.58."""
    config = SAC(
        environment=Environment("probes:Near"),
        actor=MLP(widths=(32,)),
        critic=MLP(widths=(32,)),
        learning_starts=64,
        buffer_size=4_096,
        batch=64,
        optimizer=Optimizer(learning_rate=3e-3),
    )
    learner = config.build()
    train = jax.jit(scan_steps(learner.step, 300))
    state, _ = train(jax.jit(learner.init)(jax.random.key(0)), NO_BATCH)
    metrics = jax.jit(learner.evaluate)(state, config.feeds().validation[0])
    assert -0.01 < float(metrics["return"].value) <= 0


def test_discrete_actions_are_refused():
    with pytest.raises(UserError, match="CartPole-v1: SAC takes continuous actions of shape"):
        SAC(environment=Environment("CartPole-v1")).build()


def test_actions_without_bounds_are_refused(monkeypatch):
    """The policy would not leave [-1, 1]."""
    endless = make(EXPERIMENTS["sac"].environment)._replace(actions=Box(np.array([-1.0]), np.array([np.inf])))
    monkeypatch.setattr(sac, "make", lambda environment: endless)
    with pytest.raises(UserError, match="SAC's actions are within bounds, and these have none"):
        EXPERIMENTS["sac"].build()


@pytest.mark.parametrize("net", ["actor", "critic"])
@pytest.mark.parametrize("option", ["noisy", "dueling"])
def test_what_is_for_values_of_discrete_actions_is_refused(net, option):
    with pytest.raises(UserError, match=rf"{net}\.{option} is for the values of discrete actions"):
        dataclasses.replace(EXPERIMENTS["sac"], **{net: MLP(**{option: True})})
