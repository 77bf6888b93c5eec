"""Environments by name: all that gymnax registers, their parameters, continuous actions."""

import urllib.error

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces

from research.core.errors import RunError, UserError
from research.learners.dqn import DQN
from research.rl import environments, probes
from research.rl.environments import Box, Environment, make
from research.rl.rollout import reset, rollout
from research.training import config


@pytest.mark.parametrize("name", sorted({*gymnax.registered_envs} - {"MNISTBandit-bsuite"}))
def test_every_environment_of_gymnax_has_the_shapes_that_it_states(name, monkeypatch):
    """Traced, not run: to compile the games of MinAtar takes half a minute."""
    monkeypatch.setattr(environments, "_first_frame", lambda *_: (np.zeros(1), np.zeros(())))
    environment = make.__wrapped__(Environment(name))
    actions = jnp.zeros((2, *environment.action_shape), jnp.float32 if environment.action_shape else jnp.int32)

    step = jax.jit(environment.step)  # traced once, unless a step changes what it is traced for

    def three(key):
        keys = jax.random.split(key, 2)
        starts = states, first = environment.reset(keys)
        timesteps = []
        for _ in range(3):
            states, timestep = step(keys, states, actions, starts)
            timesteps.append(timestep)
        return starts[0], states, first, timesteps

    start, end, first, timesteps = jax.eval_shape(three, jax.random.key(0))
    facts = lambda tree: [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(tree)]
    assert jax.tree.structure(start) == jax.tree.structure(end) and facts(start) == facts(end)
    observation = ((2, *environment.observation_shape), jnp.float32, False)
    assert facts(first) == [observation]
    for timestep in timesteps:
        assert facts(timestep)[:3] == [observation, observation, ((2,), jnp.float32, False)]
        assert [x[:2] for x in facts(timestep)[3:]] == [((2,), bool)] * 2


def test_an_environment_that_can_not_download_its_data_says_so(monkeypatch):
    def offline(*_):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("gymnax.environments.bsuite.mnist.load_mnist.load_mnist", offline)
    with pytest.raises(UserError, match=r"MNISTBandit-bsuite downloads its data when it is made: .*no network"):
        make.__wrapped__(Environment("MNISTBandit-bsuite"))


def acted(environment, policy, num_envs, length):
    """The transitions of a rollout from the first frame on, leaves [num_envs, length, ...]."""

    @jax.jit
    def transitions(first, then):
        return rollout(environment, policy, reset(environment, first, num_envs), then, length)[1]

    return jax.device_get(transitions(jax.random.key(0), jax.random.key(1)))


def test_actions_outside_their_bounds_are_clipped():
    """Reacher adds 0.05 of the action to the velocities; its own step takes any action."""
    environment = make(Environment("Reacher-misc"))
    assert isinstance(environment.actions, Box) and environment.action_shape == (2,)
    np.testing.assert_array_equal((environment.actions.low, environment.actions.high), [[-1, -1], [1, 1]])
    keys = jax.random.split(jax.random.key(0), 3)
    starts = states, observation = jax.jit(environment.reset)(keys)
    _, timestep = jax.jit(environment.step)(keys, states, np.tile(np.float32([5, -0.5]), (3, 1)), starts)
    moved = np.asarray(timestep.next_observation - observation)[:, 4:6]
    np.testing.assert_allclose(moved, np.tile([0.05, -0.025], (3, 1)), atol=1e-6)


def test_a_rollout_keeps_the_actions_of_its_policy():
    environment = make(Environment("Pendulum-v1"))
    transitions = acted(environment, lambda observation, uniform: 10 * uniform - 5, 3, 6)
    assert transitions.action.shape == (3, 6, 1)
    assert len(np.unique(transitions.action)) == 18 and np.abs(transitions.action).max() > 2


def test_parameters_and_arguments_of_the_constructor_are_set():
    sea = Environment("DeepSea-bsuite", params=(("size", 20), ("unscaled_move_cost", 1)))
    assert make(sea).observation_shape == (20, 20) and make(sea).max_steps == 20
    assert make(Environment("DeepSea-bsuite")).observation_shape == (8, 8)
    # A move to the right costs unscaled_move_cost / size, and a move to the left nothing.
    keys = jax.random.split(jax.random.key(0), 2)
    starts = jax.jit(make(sea).reset)(keys)
    _, timestep = jax.jit(make(sea).step)(keys, starts[0], jnp.arange(2), starts)
    np.testing.assert_allclose(np.sort(timestep.reward), [-1 / 20, 0], atol=1e-6)
    # An episode of MemoryChain has one frame more than its memory is long.
    policy = lambda observation, uniform: jnp.zeros(len(observation), jnp.int32)
    for length in (5, 100):
        chain = make(Environment("MemoryChain-bsuite", params=(("memory_length", length),)))
        transitions = acted(chain, policy, 1, length + 2)
        assert np.flatnonzero(transitions.done[0])[0] == length


def test_parameters_come_from_the_command_line_and_back_from_json():
    arguments = ["--environment.name", "FrozenLake-misc", "--environment.params"]
    values = ["is_slippery", "False", "map_name", "8x8", "success_rate", "1"]
    parsed = config.parse("cartpole_dqn", [*arguments, *values]).config
    assert parsed.environment.params == (("is_slippery", False), ("map_name", "8x8"), ("success_rate", 1))
    assert config.from_json("cartpole_dqn", config.to_json(parsed)) == parsed
    assert make(parsed.environment).observation_shape == (64,)


@pytest.mark.parametrize(
    ("name", "params", "says"),
    [
        ("DeepSea-bsuite", ("sise", 20), "DeepSea-bsuite has no parameter 'sise': did you mean size"),
        ("DeepSea-bsuite", ("unscaled_mov_cost", 1.0), "did you mean unscaled_move_cost"),
        ("DeepSea-bsuite", ("size", 2.5), "size is a whole number .by default 8., not 2.5"),
        ("DeepSea-bsuite", ("size", True), "size is a whole number .by default 8., not True"),
        ("DeepSea-bsuite", ("deterministic", 1), "deterministic is True or False .by default True., not 1"),
        ("CartPole-v1", ("gravity", "low"), "gravity is a number .by default 9.8., not 'low'"),
        ("CartPole-v1", ("max_steps_in_episode", 9), "is the option environment.max_steps"),
        ("FrozenLake-misc", ("map_name", "9x9"), "FrozenLake-misc: map_name must be"),
        ("DeepSea-bsuite", ("size", -1), "environment.params: DeepSea-bsuite: "),
        ("highway:Highway", ("slowest", -20.0), "slowest and fastest are speeds above 0 m/s"),
        ("highway:Highway", ("slowest", 30.0), "slowest and fastest are speeds above 0 m/s"),
        ("highway:Highway", ("crash_cost", float("nan")), "crash_cost is a number, not 18.0, 24.0 and nan"),
    ],
)
def test_wrong_parameters_are_refused(name, params, says):
    with pytest.raises(UserError, match=says):
        make(Environment(name, params=(params,)))


def test_a_parameter_has_one_value():
    with pytest.raises(UserError, match=r"environment\.params names gravity twice"):
        Environment("CartPole-v1", params=(("gravity", 9.0), ("length", 0.5), ("gravity", 10.0)))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("vector:Box", "highway:…, probes:…"),
        ("environments:Environment", "highway:…, probes:…"),
        ("suites:Adapter", "highway:…, probes:…"),
        ("probes:ProbeState", "did you mean probes:Constant"),
    ],
)
def test_a_class_that_is_no_environment_is_refused(name, says):
    with pytest.raises(UserError, match=f"there is no environment '{name}'.*{says}"):
        make(Environment(name))


def test_uint8_holds_whole_numbers_alone():
    minatar = Environment("Breakout-MinAtar")
    DQN(environment=minatar, buffer_dtype="uint8").build()
    with pytest.raises(UserError, match=r"those of CartPole-v1 have -?0\.0\d+: choose --buffer-dtype float32"):
        DQN(buffer_dtype="uint8").build()


def test_q_learning_refuses_continuous_actions():
    with pytest.raises(UserError, match=r"the actions of Pendulum-v1 are continuous.*PPO"):
        DQN(environment=Environment("Pendulum-v1")).build()


@pytest.mark.parametrize("name", ["FrozenLake-misc", "DeepSea-bsuite", "Reacher-misc"])
def test_an_environment_may_be_made_first_while_a_learner_is_traced(name, monkeypatch):
    """As for a sweep of several settings. What is kept of it for later has no part of that trace."""
    monkeypatch.setattr(environments, "_first_frame", lambda *_: (np.zeros(1), np.zeros(())))
    vector = environments._vector.__wrapped__
    made = []

    def traced(x):
        made.append(vector(name, None, ()))
        return x + sum(leaf.sum() for leaf in jax.tree.leaves(made[0].reset(jax.random.split(jax.random.key(0), 2))[1]))

    jax.make_jaxpr(traced)(1.0)
    jax.block_until_ready(made[0].reset(jax.random.split(jax.random.key(0), 2)))
    assert isinstance(made[0].actions, int) or isinstance(made[0].actions.low, np.ndarray)


def test_few_long_decisions_still_make_an_episode():
    assert make(Environment("highway:Highway", params=(("substeps", 500),))).max_steps == 1


class Infinite(probes.Constant):
    def reward(self, x, action):
        return jnp.inf


class Several(probes.Constant):
    def observation_space(self, params=None):
        return spaces.Dict({"x": super().observation_space(params)})


class Unfinished(probes.Constant):
    def action_space(self, params=None):
        raise NotImplementedError("which actions?")


class Short(probes.Constant):
    def step_env(self, *arguments):
        return super().step_env(*arguments)[:4]


class Drifting(probes.Constant):
    def step_env(self, *arguments):
        observation, state, *rest = super().step_env(*arguments)
        return observation, state.replace(time=state.time * 1.0), *rest


class Rewards(probes.Constant):
    def reward(self, x, action):
        return jnp.ones(1)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Several, "the observation space is a Dict, not one array: flatten what is observed"),
        (Unfinished, r"action_space raises NotImplementedError: which actions\?"),
        (Short, r"step_env returns 4 values, not 5: let it return \(observation, state, reward, terminated, info\)"),
        (Drifting, r"state.time is \(\(\), .*int32.* after reset and .*float32.* after step_env: make them the same"),
        (Rewards, r"the reward has shape \(1,\), not \(\): change it$"),
    ],
)
def test_what_breaks_the_interface_is_named(kind, says):
    with pytest.raises(RunError, match=f"environment mine: {says}"):
        environments.check("mine", kind(), kind().default_params)


def test_arguments_without_defaults_are_refused(monkeypatch):
    class Needy(probes.Constant):
        def __init__(self, size):
            self.size = size

    monkeypatch.setattr(environments, "_find", lambda name: Needy)
    with pytest.raises(UserError, match=r"mine: .*'size': give each argument of its constructor a default"):
        environments._made("mine", None, {})


def test_rewards_that_are_not_finite_are_reported():
    with pytest.raises(RunError, match="a reward isn't finite"):
        environments.check("mine", Infinite(), Infinite().default_params)
