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
    """1,000 given actions. Acrobot and Pendulum are chaotic: each of their frames starts from Gymnasium's state."""
    ours, theirs = make(Environment(name)), gymnasium.make(name)
    chaotic, random = name in ("Acrobot-v1", "Pendulum-v1"), np.random.default_rng(0)
    start = ours.reset(jax.random.split(jax.random.key(0), 1))
    step = jax.jit(lambda states, action: ours.step(jax.random.split(jax.random.key(0), 1), states, action, start))

    def with_state(numbers):
        values = {field: jnp.array([x], jnp.float32) for field, x in zip(FIELDS[name], numbers, strict=True)}
        return start[0].replace(**values, time=jnp.zeros(1, jnp.int32))

    theirs.reset(seed=0)
    states, ended = with_state(theirs.unwrapped.state), 0
    for _ in range(1000):
        action = theirs.action_space.sample() if name == "Pendulum-v1" else int(random.integers(theirs.action_space.n))
        states = with_state(theirs.unwrapped.state) if chaotic else states
        observation, reward, terminated, truncated, _ = theirs.step(action)
        states, found = step(states, jnp.array([action]))
        np.testing.assert_allclose(found.next_observation[0], observation, rtol=1e-5, atol=2e-5)
        np.testing.assert_allclose(found.reward[0], reward, rtol=1e-5, atol=1e-5)
        assert bool(found.terminated[0]) == terminated
        if terminated or truncated:
            theirs.reset()
            states, ended = with_state(theirs.unwrapped.state), ended + 1
    assert ended > {"CartPole-v1": 30}.get(name, 0)


@pytest.mark.parametrize("name", ["Breakout", "SpaceInvaders"])
def test_deterministic_games_of_minatar_are_its_own(name):
    """Those in which nothing is drawn after the start, for as long as their episodes last."""
    minatar = pytest.importorskip("minatar", reason='MinAtar is not installed: pip install -e ".[bench]"')
    config = Environment(f"{name}-MinAtar", params=(("use_minimal_action_set", False),), max_steps=10_000)
    ours, random = make(config), np.random.default_rng(0)
    step = jax.jit(ours.step)
    frames = 0
    for episode in range(20):
        theirs = minatar.Environment({"SpaceInvaders": "space_invaders"}.get(name, "breakout"), sticky_action_prob=0.0)
        theirs.seed(episode)
        theirs.reset()
        keys = jax.random.split(jax.random.key(episode), 8)
        states, observations = ours.reset(keys)
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
