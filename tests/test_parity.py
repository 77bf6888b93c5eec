"""gymnax's games against those they were made from: Gymnasium's classic control and MinAtar's own package."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.rl.environments import Environment, make

FIELDS = {
    "CartPole-v1": ("x", "x_dot", "theta", "theta_dot"),
    "MountainCar-v0": ("position", "velocity"),
    "Acrobot-v1": ("joint_angle1", "joint_angle2", "velocity_1", "velocity_2"),
    "Pendulum-v1": ("theta", "theta_dot"),
}


@pytest.mark.parametrize("name", FIELDS)
def test_classic_control_is_gymnasiums(name):
    """1,000 given actions; each frame starts from Gymnasium's state, and leads to its next one."""
    ours, theirs, random = make(Environment(name)), gymnasium.make(name), np.random.default_rng(0)
    theirs.reset(seed=0)
    befores, actions, afters, frames = [], [], [], []
    for _ in range(1000):
        action = theirs.action_space.sample() if name == "Pendulum-v1" else int(random.integers(theirs.action_space.n))
        befores.append(np.array(theirs.unwrapped.state))
        actions.append(action)
        frames.append(theirs.step(action)[:4])
        afters.append(np.array(theirs.unwrapped.state))
        if frames[-1][2] or frames[-1][3]:
            theirs.reset()
    observation, reward, terminated, truncated = map(np.array, zip(*frames, strict=True))

    @jax.jit
    def stepped(keys, numbers, actions):
        start = ours.reset(keys)
        fields = dict(zip(FIELDS[name], numbers.T, strict=True))
        return ours.step(keys, start[0].replace(**fields, time=jnp.zeros(1000, jnp.int32)), actions, start)

    given = np.array(befores, np.float32), np.array(actions)
    states, found = jax.device_get(stepped(jax.random.split(jax.random.key(0), 1000), *given))
    np.testing.assert_allclose(found.next_observation, observation, rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(found.reward, reward, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.terminated, terminated)
    for field, after in zip(FIELDS[name], np.array(afters).T, strict=True):
        state = getattr(states, field)[~terminated]
        np.testing.assert_allclose(state, after[~terminated], rtol=1e-5, atol=2e-5, err_msg=field)
    assert (terminated | truncated).sum() > {"CartPole-v1": 30}.get(name, 0)


@pytest.mark.parametrize("name", ["Breakout", "SpaceInvaders"])
def test_deterministic_games_of_minatar_are_its_own(name):
    """Those in which nothing is drawn after the start, for as long as their episodes last."""
    minatar = pytest.importorskip("minatar", reason='MinAtar is not installed: pip install -e ".[bench]"')
    config = Environment(f"{name}-MinAtar", params=(("use_minimal_action_set", False),), max_steps=10_000)
    ours, random = make(config), np.random.default_rng(0)
    reset, step = jax.jit(ours.reset), jax.jit(ours.step)
    frames = 0
    for episode in range(20):
        theirs = minatar.Environment({"SpaceInvaders": "space_invaders"}.get(name, "breakout"), sticky_action_prob=0.0)
        theirs.seed(episode)
        theirs.reset()
        keys = jax.random.split(jax.random.key(episode), 8)
        states, observations = jax.device_get(reset(keys))
        alike = [k for k, x in enumerate(observations) if np.array_equal(x, theirs.state())]
        states, observation = jax.tree.map(lambda x, k=alike[0]: x[k : k + 1], (states, observations))
        ended = False
        while not ended:
            action = int(random.integers(6))
            reward, ended = theirs.act(action)
            states, found = step(keys[:1], states, jnp.array([action]), (states, observation))
            np.testing.assert_array_equal(found.next_observation[0], theirs.state())
            assert (float(found.reward[0]), bool(found.terminated[0])) == (reward, ended)
            frames += 1
    assert frames > 100
