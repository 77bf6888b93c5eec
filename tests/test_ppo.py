"""PPO: known values and policies, a step in NumPy, distributions, running statistics, and what is refused."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from scipy import stats

from research.core.devices import AXIS
from research.core.errors import UserError
from research.core.experiment import Run
from research.core.optimizers import Optimizer
from research.core.state import NO_BATCH, rng
from research.core.transformations import scan_steps
from research.core.update import UpdateConfig
from research.learners import ppo as learners
from research.learners.ppo import PPO
from research.nets.actor_critic import ActorCritic, MinAtarActorCritic, orthogonal
from research.rl.advantages import explained_variance
from research.rl.distributions import Categorical, Gaussian
from research.rl.environments import Environment
from research.rl.normalisation import discounted_rewards, merged, no_moments, normalised, scaled

G = 0.5


def probe(name: str, **changes) -> PPO:
    small = PPO(
        environment=Environment(f"probes:{name}"),
        net=ActorCritic(widths=(16,)),
        num_envs=8,
        rollout_length=16,
        epochs=4,
        minibatches=2,
        gamma=G,
        optimizer=Optimizer(learning_rate=1e-2, schedule="linear"),
        run=Run(steps=150, steps_per_dispatch=50, metric="return"),
    )
    return replace(small, **changes)


def trained(config: PPO, seed: int = 0):
    learner = config.build()
    state = jax.jit(learner.init)(jax.random.key(seed))
    state, metrics = jax.jit(scan_steps(learner.step, config.run.steps), donate_argnums=0)(state, NO_BATCH)
    return learner, state, metrics


def outputs(config: PPO, state, x: float):
    """(the most likely action, the value) at x"""
    _, apply = learners.actor_critic(config)
    distribution, value = apply(state.params["policy"], learners.seen(state, jnp.array([[x]])))
    return np.asarray(distribution.mode())[0], float(value[0])


KNOWN = {
    "Chosen": {0: (0, 1), 1: (1, 1)},
    "ChosenLater": {1: (1, 1)},  # at x = 0 each action is as good
    "Truncating": {0: (0, G / (1 - G)), 1: (0, 1 / (1 - G))},
    "Near": {-0.5: (-0.5, 0), 0.5: (0.5, 0)},
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_values_and_policies(name):
    config = probe(name, normalise_observations=name in ("Chosen", "Near"))
    learner, state, metrics = trained(config)
    for x, (action, value) in KNOWN[name].items():
        found = outputs(config, state, x)
        np.testing.assert_allclose(found[0], [action] if name == "Near" else action, atol=0.05)
        np.testing.assert_allclose(found[1], value, atol=0.1)
    if name == "ChosenLater":
        np.testing.assert_allclose(outputs(config, state, 0)[1], G, atol=0.1)
    if name == "Near":  # what is evaluated is the most likely action: its return is better than that of samples
        best = float(jax.jit(learner.evaluate)(state, config.feeds().validation[0])["return"].value)
        assert best > max(-0.003, float(metrics["return"].value[-1]))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("value_clip", [None, 0.1])
def test_a_step_equals_one_in_numpy(value_clip):
    """Linear nets, on an environment whose x is 0, then 1; from statistics that are not those of a start."""
    num_envs, length, epochs, minibatches, gamma, lam, rate, epsilon = 4, 6, 2, 3, 0.9, 0.8, 0.5, 0.05
    config = PPO(
        environment=Environment("probes:ChosenLater"),
        net=ActorCritic(widths=()),
        num_envs=num_envs,
        rollout_length=length,
        epochs=epochs,
        minibatches=minibatches,
        gamma=gamma,
        gae_lambda=lam,
        clip_epsilon=epsilon,
        value_clip=value_clip,
        value_coef=0.7,
        entropy_coef=0.3,
        normalise_observations=True,
        normalise_rewards=True,
        optimizer=Optimizer(name="sgd", learning_rate=rate, momentum=0.0, nesterov=False),
        update=UpdateConfig(),
        run=Run(steps=20, steps_per_dispatch=10, metric="return"),
    )
    learner = config.build()
    state = jax.jit(learner.init)(jax.random.key(0))
    start = {  # logits, then value
        "policy": {"head": {"kernel": np.array([[0.3, -0.4]]), "bias": np.array([0.1, 0.2])}},
        "value": {"head": {"kernel": np.array([[0.5]]), "bias": np.array([-0.3])}},
    }
    before = {"observation": (10.0, np.array([0.4]), np.array([2.0])), "return": (10.0, 0.2, 5.0)}
    moments = {
        name: no_moments(())._replace(
            **{k: jnp.float32(x) for k, x in zip(("count", "mean", "deviations"), m, strict=True)}
        )
        for name, m in before.items()
    }
    state = state._replace(params={"policy": jax.tree.map(jnp.float32, start)}, collections={"normalisation": moments})
    after, metrics = jax.jit(learner.step)(state, NO_BATCH)

    # The step in NumPy, of a vector of parameters: the logits' kernel and bias, the value's. Only the draws are JAX's.
    theta = np.array([0.3, -0.4, 0.1, 0.2, 0.5, -0.3])
    std = lambda m: np.sqrt(m[2] / m[0] + 1e-8)
    see = lambda x: (x - 0.4) / np.sqrt(2.0 / 10 + 1e-8)
    log_p = lambda theta, x: np.log(softmax(see(x)[..., None] * theta[:2] + theta[2:4]))
    value = lambda theta, x: see(x) * theta[4] + theta[5]

    x = np.tile(np.arange(length) % 2, (num_envs, 1)).astype(float)
    action = np.zeros((num_envs, length), int)
    for e in range(num_envs):
        key = jax.random.fold_in(rng(state, "act"), e)
        uniform = np.asarray(jax.random.uniform(jax.random.split(key, 2 * length + 1)[-1], (length,)))
        action[e] = uniform >= np.exp(log_p(theta, x[e]))[:, 0]
    reward, done = x * np.where(action == 1, 1.0, -1.0), x == 1

    def merge(m, new):
        count, mean, deviations = m
        total = count + new.size
        both = (count * mean + new.sum()) / total
        squares = deviations + count * mean**2 + (new**2).sum()
        return total, both, squares - total * both**2

    # An episode's discounted rewards are 0 at x = 0, and the reward at x = 1.
    of_returns = merge(before["return"], reward)
    of_observations = merge((10.0, 0.4, 2.0), x)
    reward = np.clip(reward / std(of_returns), -10, 10)
    v, next_v = value(theta, x), value(theta, np.ones_like(x))
    advantage = reward + gamma * np.where(done, 0, next_v) - v
    advantage[:, ::2] += gamma * lam * advantage[:, 1::2]
    return_, old = advantage + v, np.take_along_axis(log_p(theta, x), action[..., None], -1)[..., 0]
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    explained = 1 - (return_ - v).var() / return_.var()

    found: dict[str, list] = {k: [] for k in ("loss", "approx_kl", "clip_fraction", "entropy", "value_loss")}

    def losses(theta, rows):
        logs = log_p(theta, x[rows])
        ratio = np.exp(np.take_along_axis(logs, action[rows][..., None], -1)[..., 0] - old[rows])
        surrogate = np.minimum(ratio * advantage[rows], np.clip(ratio, 1 - epsilon, 1 + epsilon) * advantage[rows])
        error = (value(theta, x[rows]) - return_[rows]) ** 2
        if value_clip is not None:
            near = v[rows] + np.clip(value(theta, x[rows]) - v[rows], -value_clip, value_clip)
            error = np.maximum(error, (near - return_[rows]) ** 2)
        entropy = -(np.exp(logs) * logs).sum(-1)
        loss = (-surrogate + 0.7 * error / 2 - 0.3 * entropy).mean()
        kl, outside = (ratio - 1 - np.log(ratio)).mean(), (abs(ratio - 1) > epsilon).mean()
        return loss, kl, outside, entropy.mean(), error.mean() / 2

    for epoch in range(epochs):
        order = []
        for e in range(num_envs):
            key = jax.random.split(jax.random.fold_in(rng(state, "shuffle"), e), epochs)[epoch]
            order.append(np.asarray(jax.random.permutation(key, length)).reshape(minibatches, -1))
        for k in range(minibatches):
            rows = np.repeat(np.arange(num_envs), length // minibatches), np.concatenate([o[k] for o in order])
            for name, number in zip(found, losses(theta, rows), strict=True):
                found[name].append(number)
            step = 1e-6 * np.eye(6)
            slope = [(losses(theta + d, rows)[0] - losses(theta - d, rows)[0]) / 2e-6 for d in step]
            theta = theta - rate * np.array(slope)

    net = after.params["policy"]
    moved = [*net["policy"]["head"]["kernel"][0], *net["policy"]["head"]["bias"]]
    moved += [*net["value"]["head"]["kernel"][0], *net["value"]["head"]["bias"]]
    np.testing.assert_allclose(moved, theta, atol=2e-4)
    for name, numbers in found.items():
        np.testing.assert_allclose(metrics[name].value, np.mean(numbers), rtol=2e-3, atol=1e-5, err_msg=name)
    assert np.mean(found["clip_fraction"]) > 0.1  # it did clip
    np.testing.assert_allclose(metrics["explained_variance"].compute("x")["x"], explained, rtol=1e-3)
    for name, expected in (("return", of_returns), ("observation", of_observations)):
        for leaf, number in zip(after.collections["normalisation"][name], expected, strict=True):
            np.testing.assert_allclose(np.squeeze(leaf), number, rtol=1e-4, err_msg=name)


def test_evaluation_leaves_the_statistics_alone_and_goes_by_the_averaged_weights():
    """Evaluation is a function of the State; its actions are those of the average, seen by the statistics kept."""
    config = probe("Near", net=ActorCritic(widths=()), average=0.9, normalise_observations=True)
    learner = config.build()
    state = jax.jit(learner.init)(jax.random.key(0))
    moments = no_moments((1,))._replace(count=jnp.float32(4), mean=jnp.ones(1), deviations=jnp.full(1, 16.0))
    kernel = lambda k: (
        jax.tree.map(jnp.zeros_like, state.params["policy"])
        | {"policy": {"head": {"kernel": jnp.full((1, 1), k), "bias": jnp.full(1, 0.5)}}}
    )
    state = state._replace(
        params={"policy": kernel(9.0)},
        collections={"normalisation": {"observation": moments}, "average": {"policy": kernel(1.0)}},
    )
    metrics = jax.jit(learner.evaluate)(state, config.feeds().validation[0])
    # The standard deviation is 2: the action (x - 1) / 2 + 0.5 = x / 2 misses x by 0.25.
    np.testing.assert_allclose(metrics["return"].value, -(0.25**2), atol=1e-5)


def test_log_probabilities_and_entropies():
    random = np.random.default_rng(0)
    logits, action = random.normal(size=(50, 4)).astype(np.float32), random.integers(0, 4, 50)
    p = softmax(logits)
    categorical = Categorical(jnp.asarray(logits))
    np.testing.assert_allclose(categorical.log_prob(jnp.asarray(action)), np.log(p[np.arange(50), action]), atol=1e-5)
    np.testing.assert_allclose(categorical.entropy(), stats.entropy(p, axis=-1), atol=1e-5)
    np.testing.assert_array_equal(categorical.mode(), logits.argmax(-1))
    mean, log_std, x = random.normal(size=(50, 3)), random.normal(size=3), random.normal(size=(50, 3))
    gaussian = Gaussian(jnp.asarray(mean, jnp.float32), jnp.asarray(log_std, jnp.float32))
    normal = stats.norm(mean, np.exp(log_std))
    np.testing.assert_allclose(gaussian.log_prob(jnp.float32(x)), normal.logpdf(x).sum(-1), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(gaussian.entropy(), normal.entropy().sum(-1), rtol=1e-5)
    own = random.normal(size=(50, 3))  # a deviation for each observation, as in soft actor-critic
    found = Gaussian(jnp.asarray(mean, jnp.float32), jnp.asarray(own, jnp.float32)).entropy()
    np.testing.assert_allclose(found, stats.norm(mean, np.exp(own)).entropy().sum(-1), rtol=1e-5, atol=1e-5)
    uniform = random.random((50, 3)).astype(np.float32)
    np.testing.assert_allclose(gaussian.sample(uniform), normal.ppf(uniform), rtol=1e-3, atol=1e-4)
    ends = np.float32([[0, 0, 0], [1 - 2**-23] * 3])
    assert np.isfinite(Gaussian(jnp.zeros((2, 3)), jnp.zeros(3)).sample(jnp.asarray(ends))).all()


def test_running_statistics_are_those_of_all_that_was_seen():
    random = np.random.default_rng(0)
    parts = [random.normal(size=(4, n, 3)).astype(np.float32) * 3 + n for n in (1, 5, 2)]
    moments = no_moments((3,))
    np.testing.assert_array_equal(normalised(moments, jnp.full((2, 3), 4.0)), np.full((2, 3), 4.0))  # as it is
    for part in parts:
        moments = merged(moments, jnp.asarray(part))
    whole = np.concatenate([part.reshape(-1, 3) for part in parts]).astype(np.float64)
    assert moments.count == len(whole)
    np.testing.assert_allclose(moments.mean, whole.mean(0), rtol=1e-5)
    np.testing.assert_allclose(moments.std, whole.std(0), rtol=1e-5)
    expected = np.clip((whole - whole.mean(0)) / whole.std(0), -10, 10)
    np.testing.assert_allclose(normalised(moments, jnp.float32(whole)), expected, atol=1e-4)
    np.testing.assert_allclose(scaled(moments, jnp.float32(whole)), whole / whole.std(0), rtol=1e-4)
    assert (
        float(normalised(moments, jnp.full((1, 3), 1e6)).max()) == 10 == -float(scaled(moments, -1e6 * jnp.ones(3))[0])
    )


def test_running_statistics_are_merged_over_devices():
    x = jax.random.normal(jax.random.key(0), (8, 5, 3)) + jnp.arange(8.0)[:, None, None]
    mesh = Mesh(np.array(jax.devices()[:4]), (AXIS,))
    first = merged(no_moments((3,)), jnp.ones((2, 3)))
    specs = {"in_specs": (PartitionSpec(), PartitionSpec(AXIS)), "out_specs": PartitionSpec()}
    split = jax.jit(jax.shard_map(merged, mesh=mesh, check_vma=False, **specs))(first, x)
    for a, b in zip(split, merged(first, x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_discounted_rewards_by_hand():
    reward = jnp.array([[1.0, 2, 3, 4], [1, 1, 1, 1]])
    done = jnp.array([[False, True, False, False], [False] * 3 + [True]])
    after, found = discounted_rewards(jnp.array([8.0, 0]), reward, done, 0.5)
    np.testing.assert_array_equal(found, [[5, 4.5, 3, 5.5], [1, 1.5, 1.75, 1.875]])
    np.testing.assert_array_equal(after, [5.5, 0])


@pytest.mark.parametrize("level", [2.0, 30_000.0])
def test_explained_variance_merges(level):
    """Over rollouts, each about a mean of its own; large returns leave it as it is."""
    random = np.random.default_rng(0)
    returns, value = np.float32(random.normal(size=(2, 3, 40)) + level)
    parts = [explained_variance(jnp.float32(r), jnp.float32(v)) for r, v in zip(returns, value, strict=True)]
    merged_parts = jax.tree.map(lambda *x: sum(np.asarray(y, np.float64) for y in x), *parts)
    within = lambda x: np.float64(x).var(1).sum()
    expected = 1 - within(returns - value) / within(returns)
    np.testing.assert_allclose(merged_parts.compute("x")["x"], expected, rtol=1e-4)


@pytest.mark.parametrize("shape", [(5, 12), (12, 5), (16, 16)])
def test_initial_kernels_are_orthogonal(shape):
    keys = jax.vmap(jax.random.key)(jnp.arange(3))
    for kernel in jax.vmap(lambda key: orthogonal(2.0)(key, shape))(keys):
        small = kernel if shape[0] <= shape[1] else kernel.T
        np.testing.assert_allclose(small @ small.T, 4 * np.eye(len(small)), atol=1e-4)
    assert abs(float(kernel.mean())) < 0.3 and (kernel < 0).any() and (kernel > 0).any()


def test_mistakes_name_the_mend():
    with pytest.raises(
        UserError, match="rollout_length=10 is not a multiple of minibatches=4: the nearest are 8 or 12"
    ):
        PPO(rollout_length=10, minibatches=4)
    with pytest.raises(UserError, match="MinAtarActorCritic is for discrete actions: choose ActorCritic"):
        PPO(environment=Environment("Pendulum-v1"), net=MinAtarActorCritic()).build()
    with pytest.raises(UserError, match="epochs must be at least 1"):
        PPO(epochs=0)
