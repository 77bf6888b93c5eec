"""Wrappers, by numbers worked out by hand. Counting's x counts the frames, truncated after 7; the reward is x."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core.errors import UserError
from research.rl import environments, probes, wrappers
from research.rl.environments import Box, Environment, Timestep, VectorEnv, make
from research.rl.rollout import reset, rollout

COUNTING = "probes:Counting"


def acted(environment, length, policy=lambda observation, uniform: jnp.zeros(len(observation), jnp.int32), num_envs=2):
    """The transitions of a rollout from the first frame on, leaves [num_envs, length, ...]."""

    @jax.jit
    def transitions(first, then):
        return rollout(environment, policy, reset(environment, first, num_envs), then, length)[1]

    return jax.device_get(transitions(jax.random.key(0), jax.random.key(1)))


def test_rewards_are_scaled_then_clipped():
    found = acted(make(Environment(COUNTING, reward_scale=0.5, reward_clip=2.0)), 8)
    np.testing.assert_array_equal(found.reward, np.tile([0, 0.5, 1, 1.5, 2, 2, 2, 0], (2, 1)))
    down = acted(make(Environment(COUNTING, reward_scale=-1.0, reward_clip=4.0)), 7)
    np.testing.assert_array_equal(down.reward, np.tile([0, -1, -2, -3, -4, -4, -4], (2, 1)))
    whole = Environment(COUNTING, frame_stack=2, reward_scale=0.5, reward_clip=2.0).unscaled
    assert whole == Environment(COUNTING, frame_stack=2)


def test_an_observation_is_the_last_frames_of_its_own_episode():
    found = acted(make(Environment(COUNTING, frame_stack=3)), 10)
    expected = [[max(t - k, 0) for k in (2, 1, 0)] for t in [*range(7), 0, 1, 2]]
    np.testing.assert_array_equal(found.observation, np.tile(expected, (2, 1, 1)))
    following = [[max(t - k, 0) for k in (1, 0, -1)] for t in [*range(7), 0, 1, 2]]
    np.testing.assert_array_equal(found.next_observation, np.tile(following, (2, 1, 1)))  # 5, 6, 7 where it is cut
    with pytest.raises(UserError, match="observations of echo have no axis to be joined along"):
        wrappers.frame_stack(echo(5)._replace(observation_shape=(), name="echo"), 2)
    images = wrappers.frame_stack(echo(5)._replace(observation_shape=(10, 10, 4)), 4)
    assert images.observation_shape == (10, 10, 16)


class ResettingItself(probes.Observed):
    """Its own step begins an episode of its own, as gymnax's does."""

    length = 2

    def step(self, key, state, action, params):
        observation, state, reward, terminated, _ = self.step_env(key, state, action, params)
        start = self.reset_env(jax.random.fold_in(key, 1), params)
        shown, state = jax.tree.map(lambda a, b: jnp.where(terminated, a, b), start, (observation, state))
        return shown, state, reward, terminated, jnp.bool_(False), {"final_observation": observation}


def test_an_environment_with_a_step_of_its_own_starts_where_wrappers_take_it_to_start(monkeypatch):
    """The reward is x, so it says which state an observation belongs to."""
    monkeypatch.setattr(environments, "_find", lambda kind: ResettingItself)
    for frames in (1, 2):
        found = acted(make(Environment("probes:ResettingItself", frame_stack=frames)), 40, num_envs=4)
        np.testing.assert_array_equal(found.observation[..., -1], found.reward)
    assert len(np.unique(found.reward)) == 2
    recalled = wrappers.append_memory(make(Environment("probes:ResettingItself")), lambda seen: seen[:, :1], 1)
    found = acted(recalled, 40, num_envs=4)
    np.testing.assert_array_equal(found.observation[..., 0], found.reward)


def test_a_time_limit_truncates_and_starts_anew():
    environment = make(Environment(COUNTING, time_limit=3))
    found = acted(environment, 8)
    x = np.arange(8) % 3
    np.testing.assert_array_equal(found.observation[..., 0], np.tile(x, (2, 1)))
    np.testing.assert_array_equal(found.next_observation[..., 0], np.tile(x + 1, (2, 1)))
    np.testing.assert_array_equal(found.done, np.tile(x == 2, (2, 1)))
    assert not found.terminated.any() and environment.max_steps == 3
    later = make(Environment(COUNTING, time_limit=9))
    np.testing.assert_array_equal(acted(later, 8).done, np.tile(np.arange(8) == 6, (2, 1)))
    assert make(Environment("probes:Constant", time_limit=1)).max_steps == 1


def test_a_limit_may_terminate():
    found = acted(make(Environment(COUNTING, time_limit=3, limit_terminates=True)), 8)
    np.testing.assert_array_equal(found.terminated, np.tile(np.arange(8) % 3 == 2, (2, 1)))
    np.testing.assert_array_equal(found.done, found.terminated)


def echo(done_every: int) -> VectorEnv:
    """Its reward is the action that it was given; an episode has `done_every` frames."""

    def reset(keys):
        return jnp.zeros(len(keys), jnp.int32), jnp.zeros((len(keys), 1))

    def step(keys, time, actions, starts):
        done = time + 1 == done_every
        observation = jnp.zeros((len(keys), 1))
        timestep = Timestep(observation, observation, actions.astype(jnp.float32), done, jnp.zeros_like(done))
        return jnp.where(done, starts[0], time + 1), timestep

    return VectorEnv(reset, step, (1,), 1000, done_every)


def test_sticky_actions_repeat_what_was_executed():
    policy = lambda observation, uniform: (1 + uniform * 998).astype(jnp.int32)  # never 0
    environment = wrappers.sticky_actions(echo(5), 0.25)
    found = acted(environment, 500, policy, num_envs=40)
    executed, chosen = found.reward, found.action
    before = np.concatenate([np.zeros((40, 1)), executed[:, :-1]], 1)
    before[:, ::5] = 0  # at the start of an episode
    repeated = executed == before
    np.testing.assert_array_equal(executed[~repeated], chosen[~repeated])
    share = repeated.mean()
    assert abs(share - 0.25) < 4 * np.sqrt(0.25 * 0.75 / repeated.size) + 0.001  # 1 of 998 choices is the same anyhow
    assert abs(repeated[:, ::5].mean() - 0.25) < 0.03
    # Each environment and frame has its own draw.
    assert abs(np.corrcoef(repeated[0], repeated[1])[0, 1]) < 0.2


def test_sticky_actions_give_no_key_twice():
    """The environment's own key is not the one that was drawn by."""

    def step(keys, time, actions, starts):
        shown = jax.random.key_data(keys).astype(jnp.float32)
        no = jnp.zeros(len(keys), bool)
        return time, Timestep(shown, shown, jnp.zeros(len(keys)), no, no)

    environment = wrappers.sticky_actions(echo(5)._replace(step=step, observation_shape=(2,)), 0.5)
    keys = jax.random.split(jax.random.key(0), 3)
    starts = environment.reset(keys)
    _, timestep = environment.step(keys, starts[0], jnp.ones(3, jnp.int32), starts)
    used = jax.vmap(jax.random.split)(keys)
    np.testing.assert_array_equal(timestep.observation, jax.random.key_data(used[:, 0]).astype(jnp.float32))


def test_actions_are_rescaled_to_their_bounds():
    low, high = np.float32([-2, 0, -np.inf]), np.float32([2, 10, 5])
    environment = wrappers.rescaled_actions(echo(5)._replace(actions=Box(low, high)))
    np.testing.assert_array_equal(environment.actions, ([-1, -1, -np.inf], [1, 1, 5]))
    keys = jax.random.split(jax.random.key(0), 1)
    starts = environment.reset(keys)
    _, timestep = environment.step(keys, starts[0], jnp.array([[0.5, -1.0, 7.0]]), starts)
    np.testing.assert_allclose(timestep.reward, [[1, 0, 5]], atol=1e-6)
    assert wrappers.rescaled_actions(echo(5)).actions == 1000


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("frame_stack", 0, "environment.frame_stack must be at least 1, not 0"),
        ("time_limit", 0, "environment.time_limit must be at least 1, not 0"),
        ("sticky_actions", 1.0, "environment.sticky_actions is a probability below 1, not 1.0"),
        ("reward_clip", -1.0, "environment.reward_clip must be above 0, not -1.0"),
    ],
)
def test_wrong_settings_are_refused(field, value, says):
    with pytest.raises(UserError, match=says):
        Environment(**{field: value})


def test_wrappers_are_put_together():
    """Sticky or not, Counting counts; two frames are one observation, and the reward is 2 at most."""
    both = Environment(COUNTING, sticky_actions=0.1, frame_stack=2, time_limit=4, reward_clip=2.0)
    found = acted(make(both), 5)
    np.testing.assert_array_equal(found.observation[0], [[0, 0], [0, 1], [1, 2], [2, 3], [0, 0]])
    np.testing.assert_array_equal(found.reward[0], [0, 1, 2, 2, 0])
