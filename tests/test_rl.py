"""The pieces that reinforcement learners share: sampled actions, rollouts by a stochastic policy, advantages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from research.core.devices import AXIS
from research.core.state import Batch
from research.rl.advantages import gae, normalised
from research.rl.environments import Environment, Timestep, VectorEnv, make
from research.rl.evaluation import Prediction, episode_keys, play
from research.rl.exploration import categorical, epsilon_greedy
from research.rl.rollout import Transition, reset, rollout


def test_actions_are_drawn_by_their_probability():
    probability = np.array([0.1, 0.0, 0.6, 0.3])
    uniform = (jnp.arange(1000) + 0.5) / 1000
    logits = jnp.broadcast_to(jnp.log(probability) + 3.0, (1000, 4))
    counts = np.bincount(np.asarray(categorical(logits, uniform)), minlength=4)
    np.testing.assert_allclose(counts / 1000, probability, atol=2e-3)
    # The greatest draw there is finds an action, also where the probabilities sum to less than 1 by rounding.
    many = jax.random.normal(jax.random.key(0), (100, 50))
    assert int(categorical(many, jnp.full(100, np.nextafter(np.float32(1), np.float32(0)))).max()) <= 49


def test_epsilon_greedy_is_random_with_probability_epsilon():
    uniform = (jnp.arange(1000) + 0.5) / 1000
    q = jnp.broadcast_to(jnp.array([0.0, 5.0, 1.0, 2.0]), (1000, 4))
    counts = np.bincount(np.asarray(epsilon_greedy(q, uniform, jnp.float32(0.2))), minlength=4)
    np.testing.assert_array_equal(counts, [50, 850, 50, 50])


def test_a_random_action_is_one_of_those_there_are(optimised):
    """Also where the largest draw below epsilon, by epsilon, is rounded to 1."""
    act, q = jax.jit(epsilon_greedy), jnp.array([[0.0, 5.0, 1.0]] * 2)
    for epsilon in np.linspace(0.05, 1, 500, dtype=np.float32):
        below = np.ceil(epsilon * 2.0**23) * 2.0**-23 - 2.0**-23
        assert np.asarray(act(q, jnp.full(2, below, jnp.float32), epsilon)).tolist() == [2, 2], epsilon


def test_a_rollout_follows_its_policy_and_goes_on_where_it_stopped():
    """Counting's x counts the frames of an episode, which is cut short after 7; the reward is x."""
    environment = make(Environment("probes:Counting"))
    policy = lambda observation, uniform: (uniform * 1000).astype(jnp.int32)
    actor = jax.jit(lambda key: reset(environment, key, 3))(jax.random.key(0))
    acted = jax.jit(lambda actor, key, length: rollout(environment, policy, actor, key, length), static_argnums=2)
    _, whole, metrics = acted(actor, jax.random.key(1), 10)
    x = np.arange(10) % 7
    np.testing.assert_array_equal(whole.observation[..., 0], np.tile(x, (3, 1)))
    np.testing.assert_array_equal(whole.next_observation[..., 0], np.tile(x + 1, (3, 1)))
    np.testing.assert_array_equal(whole.reward, np.tile(x, (3, 1)))
    np.testing.assert_array_equal(whole.done, np.tile(x == 6, (3, 1)))
    assert not whole.terminated.any()
    assert len(np.unique(whole.action)) > 20  # each environment and frame has its own draw
    assert (float(metrics["return"].value), float(metrics["length"].value)) == (21.0, 7.0)
    assert float(metrics["return"].count) == 3
    half, _, metrics = acted(actor, jax.random.key(1), 5)
    _, rest, later = acted(half, jax.random.key(2), 5)
    np.testing.assert_array_equal(rest.observation, whole.observation[:, 5:])
    assert float(metrics["return"].count) == 0 and float(later["return"].value) == 21


def test_returns_are_of_the_environments_own_rewards():
    environment = make(Environment("probes:Counting", reward_scale=10.0, reward_clip=25.0, frame_stack=2))
    policy, key = lambda observation, uniform: (uniform * 2).astype(jnp.int32), jax.random.key(0)
    acted = jax.jit(lambda key: rollout(environment, policy, reset(environment, key, 2), key, 7))
    _, transitions, metrics = acted(key)
    np.testing.assert_array_equal(transitions.reward, [[0, 10, 20, 25, 25, 25, 25]] * 2)
    assert float(metrics["return"].value) == 21


def test_an_environment_draws_the_same_beside_any_others():
    environment = make(Environment("CartPole-v1"))
    policy = lambda observation, uniform: (uniform < 0.5).astype(jnp.int32)
    actor = jax.device_get(jax.jit(lambda key: reset(environment, key, 4))(jax.random.key(0)))
    acted = jax.jit(lambda actor: rollout(environment, policy, actor, jax.random.key(1), 5))
    _, all_four, _ = acted(actor)
    _, last_two, _ = acted(jax.tree.map(lambda x: x[2:], actor))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[2:], b), all_four, last_two)
    assert len(np.unique(all_four.observation[:, 0], axis=0)) == 4


def test_a_rollout_uses_no_key_twice():
    """Neither to reset nor for frames: an environment shows the keys that it was given."""
    shown = lambda keys: jax.random.key_data(keys).astype(jnp.float32)
    reset_by = lambda keys: ((), shown(keys))

    def step(keys, env_state, action, starts):
        over = jnp.ones(len(keys), bool)
        return (), Timestep(starts[1], shown(keys), jnp.zeros(len(keys)), over, over)

    environment = VectorEnv(reset_by, step, observation_shape=(2,), actions=1, max_steps=5)
    policy = lambda observation, uniform: jnp.zeros(len(observation), jnp.int32)
    acted = jax.jit(lambda first, then: rollout(environment, policy, reset(environment, first, 3), then, 4))
    _, transitions, _ = acted(jax.random.key(0), jax.random.key(1))
    of_frames, of_resets = transitions.next_observation, transitions.observation
    used = np.concatenate([np.asarray(x).reshape(-1, 2) for x in (of_frames, of_resets)])
    assert used.shape == (2 * 3 * 4, 2) and len(np.unique(used, axis=0)) == len(used)


def test_episodes_end_for_themselves():
    environment = make(Environment("CartPole-v1"))
    batch = lambda seeds, mask: Batch(jnp.array(seeds), jnp.array(mask, jnp.float32), (), ())
    right = lambda observation: jnp.ones(len(observation), jnp.int32)
    played = jax.jit(lambda batch: play(environment, right, batch))
    alone = [float(played(batch([seed], [1]))["return"].value) for seed in range(4)]
    assert len(set(alone)) > 1  # they fall after different times
    together, masked = (played(batch(range(4), [1, 1, 1, last])) for last in (1, 0))
    for name in ("return", "length"):  # a frame's reward is 1
        assert float(together[name].total) == sum(alone)
        assert float(masked[name].value) == sum(alone[:3]) / 3


def test_overestimation_is_what_is_predicted_less_what_is_realised():
    environment, seeds = make(Environment("CartPole-v1")), jnp.arange(4)
    learned = Environment("CartPole-v1", reward_scale=3.0, reward_clip=2.0).training_reward  # 2 for each frame
    right = lambda observation: jnp.ones(len(observation), jnp.int32)
    predicted = Prediction(lambda observation: 20 + observation[:, 0], 0.9, learned)
    played = jax.jit(lambda batch: play(environment, right, batch))
    alone = [played(Batch(np.arange(i, i + 1), jnp.ones(1), (), ())) for i in range(4)]
    lengths = np.array([float(metrics["length"].value) for metrics in alone])
    starts = jax.jit(lambda seeds: environment.reset(jax.vmap(lambda seed: episode_keys(seed)[0])(seeds)))
    first = starts(seeds)[1][:, 0]
    expected = 20 + np.asarray(first) - 2 * (1 - 0.9**lengths) / (1 - 0.9)
    predicting = jax.jit(lambda batch: play(environment, right, batch, predicted))
    found = predicting(Batch(seeds, jnp.array([1.0, 1, 1, 0]), (), ()))
    assert float(found["overestimation"].value) == pytest.approx(expected[:3].mean(), rel=1e-5)


@pytest.mark.parametrize("gae_lambda", [0.0, 0.7, 1.0])
def test_advantages_are_discounted_sums_of_temporal_differences(gae_lambda):
    random, gamma, length = np.random.default_rng(0), 0.9, 12
    reward, value, next_value = random.normal(size=(3, 4, length)).astype(np.float32)
    terminated = random.random((4, length)) < 0.15
    done = terminated | (random.random((4, length)) < 0.2)
    assert terminated.any() and (done & ~terminated).any()
    # A rollout values an observation once, as what an action led to and as what the next one is chosen by.
    next_value[:, :-1] = np.where(done[:, :-1], next_value[:, :-1], value[:, 1:])
    nothing = np.zeros((4, length, 1), np.float32)
    transitions = Transition(nothing, nothing[..., 0], reward, terminated, done, nothing)
    found = np.asarray(jax.jit(gae)(transitions, value, next_value, gamma, gae_lambda))
    for e, t in np.ndindex(4, length):
        expected, weight = 0.0, 1.0
        for k in range(t, length):
            expected += weight * (reward[e, k] + gamma * next_value[e, k] * (not terminated[e, k]) - value[e, k])
            weight *= gamma * gae_lambda
            if done[e, k]:
                break
        np.testing.assert_allclose(found[e, t], expected, rtol=1e-4, atol=1e-5)


def test_advantages_are_normalised_over_all_devices():
    advantages = jax.random.normal(jax.random.key(0), (8, 5)) * 3 + jnp.arange(8)[:, None]
    expected = (advantages - advantages.mean()) / advantages.std()
    np.testing.assert_allclose(normalised(advantages), expected, atol=1e-5)
    mesh = Mesh(np.array(jax.devices()[:4]), (AXIS,))
    split = jax.shard_map(
        normalised,
        mesh=mesh,
        in_specs=PartitionSpec(AXIS),
        out_specs=PartitionSpec(AXIS),
        check_vma=False,
    )
    np.testing.assert_allclose(jax.jit(split)(advantages), expected, atol=1e-5)
