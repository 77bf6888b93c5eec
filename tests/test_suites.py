"""Environments of other suites: what `Adapter` adds, with made-up packages, and those that are installed."""

import dataclasses
import sys
from types import ModuleType, SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from gymnax.environments import spaces
from learners import EXPERIMENTS

from experiments.train import main
from research.core.errors import NotInstalled, UserError
from research.learners.dqn import DQN
from research.rl import environments, suites
from research.rl.environments import Environment, make
from research.rl.rollout import reset, rollout
from research.rl.suites import SUITES, Adapter, Step, Task
from research.training import config

PACKAGES = {"playground": "mujoco_playground"}


def acted(environment, length, num_envs=2, key=0):
    """The transitions of a rollout of random actions from the first frame on, leaves [num_envs, length, ...]."""

    def policy(_, uniform):
        return 2 * uniform - 1 if environment.action_shape else (uniform * environment.actions).astype(jnp.int32)

    def transitions(key):
        first, then = jax.random.split(key)
        return rollout(environment, policy, reset(environment, first, num_envs), then, length)[1]

    return jax.tree.map(np.asarray, jax.jit(transitions)(jax.random.key(key)))


# Made-up packages.


@struct.dataclass
class BraxState:
    pipeline_state: jax.Array
    obs: dict
    reward: jax.Array
    done: jax.Array
    metrics: dict


class Walker:
    """Its observation is its place: within 0.5 of 0 at first, 1 further after each frame, until it is at `length`."""

    action_size = 2

    def __init__(self, length=5.0, wide=False, **kwargs):
        self.length, self.zero = length, jnp.arange(2.0)[0]

    def reset(self, key):
        return self.state(self.zero + jax.random.uniform(key) * 0.5, {"pace": jnp.zeros(())})

    def step(self, state, action):
        state.metrics.update(pace=self.one)  # Brax's own write into what they are given
        return self.state(state.pipeline_state + self.one, state.metrics)

    def state(self, x, metrics):
        observation = {"state": x[None], "privileged_state": jnp.full(3, 9.0)}
        return BraxState(x, observation, x, (x >= self.length).astype(jnp.float32), metrics)


@pytest.fixture
def walker(monkeypatch):
    """`brax:walker` is a `Walker`, made anew."""

    def imported(_):
        Walker.one = jnp.arange(2.0)[1]  # packages make arrays when they are imported
        return SimpleNamespace(_envs={"walker": Walker}, get_environment=lambda name, **given: Walker(**given))

    package = ModuleType("brax")
    package.__getattr__ = imported
    monkeypatch.setitem(sys.modules, "brax", package)
    anew()
    yield Environment("brax:walker")
    anew()


def anew():
    """Environments are made once for each config."""
    make.cache_clear()
    environments._vector.cache_clear()


def test_an_episode_that_terminates_is_followed_by_a_new_one(walker):
    found = acted(make(walker), 12)
    start = found.observation[:, :1]
    steps = np.arange(12) % 5
    np.testing.assert_allclose(found.observation[..., 0] // 1, np.tile(steps, (2, 1)))
    np.testing.assert_allclose(found.next_observation[..., 0] // 1, np.tile(steps + 1, (2, 1)))
    np.testing.assert_array_equal(found.terminated, np.tile(steps == 4, (2, 1)))
    np.testing.assert_array_equal(found.done, found.terminated)
    np.testing.assert_allclose(found.reward, found.next_observation[..., 0])
    np.testing.assert_allclose(found.observation[:, :5], start + np.arange(5)[None, :, None], rtol=1e-6)


def test_max_steps_truncates(walker):
    environment = make(dataclasses.replace(walker, max_steps=3))
    found = acted(environment, 7)
    assert environment.max_steps == 3 and not found.terminated.any()
    np.testing.assert_array_equal(found.done, np.tile(np.arange(7) % 3 == 2, (2, 1)))
    np.testing.assert_allclose(found.next_observation[..., 0] // 1, np.tile(np.arange(7) % 3 + 1, (2, 1)))
    assert make(walker).max_steps == 1000, "Brax's own limit"


def test_the_interface_is_gymnaxs(walker):
    env, params = environments.unwrapped(dataclasses.replace(walker, max_steps=1))
    observation, state = env.reset(jax.random.key(0), params)
    after, state, reward, terminated, truncated, info = env.step(jax.random.key(1), state, jnp.zeros(2), params)
    np.testing.assert_allclose(info["final_observation"], observation + 1)
    assert truncated and not terminated and state.time == 0 and after[0] < 0.5
    assert reward == observation + 1


def test_where_resets_are_costly_a_rollout_draws_one_start_for_each_environment(walker):
    firsts = lambda found: found.observation[:, 5::5, 0]
    one, other = firsts(acted(make(walker), 16)), firsts(acted(make(walker), 16, key=1))
    np.testing.assert_array_equal(one, np.tile(one[:, :1], (1, 3)))
    assert len({*one[:, 0], *other[:, 0]}) == 4
    each = firsts(acted(make(walker)._replace(costly_reset=False), 16))
    assert len(np.unique(each)) == 6


def test_arguments_of_a_suites_constructor(walker):
    changed = dataclasses.replace(walker, params=(("length", 2), ("wide", True)))
    np.testing.assert_array_equal(acted(make(changed), 4).done, np.tile([False, True], (2, 2)))
    with pytest.raises(UserError, match="brax:walker has no parameter 'lenght': did you mean length"):
        make(dataclasses.replace(walker, params=(("lenght", 2.0),)))
    with pytest.raises(UserError, match=r"length is a number .by default 5.0., not 'far'"):
        make(dataclasses.replace(walker, params=(("length", "far"),)))


def test_an_environment_that_is_first_made_within_a_trace_keeps_no_tracer(walker):
    experiment = dataclasses.replace(EXPERIMENTS["ppo_continuous"], environment=walker)
    build = lambda gamma: config.with_values(experiment, {"gamma": gamma}).build()
    jax.eval_shape(lambda gamma: build(gamma).init(jax.random.key(0)), 0.9)
    assert acted(make(walker), 5).terminated[:, -1].all()


def test_continuous_actions_are_refused_by_q_learning(walker):
    with pytest.raises(UserError, match=r"the actions of brax:walker are continuous.*PPO"):
        DQN(environment=walker).build()


def test_names_that_no_suite_has(walker):
    with pytest.raises(UserError, match="there is no environment 'brax:wlaker': did you mean brax:walker"):
        make(Environment("brax:wlaker"))
    with pytest.raises(UserError, match="there is no environment 'braxx:walker': did you mean brax:…"):
        make(Environment("braxx:walker"))
    with pytest.raises(UserError, match="there is no environment 'os:system'"):
        make(Environment("os:system"))


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_that_is_not_installed_names_its_extra(name, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, PACKAGES.get(name, name), None)
    with pytest.raises(NotInstalled, match=rf"environment.name: {name}:x needs .*'samestep\[(rl|navix)\]'"):
        make(Environment(f"{name}:x"))
    if name == "brax":
        assert main(["cartpole_ppo", "--environment.name", "brax:ant", "--workdir", str(tmp_path / "run")]) == 2
        said = capsys.readouterr().err
        assert said.count("pip install 'samestep[rl]'") == 1 and "Traceback" not in said


def test_only_the_suite_of_a_name_is_imported(monkeypatch):
    for name in SUITES:
        monkeypatch.setitem(sys.modules, PACKAGES.get(name, name), None)
    anew()
    assert make(Environment("probes:Chosen")).actions == 2
    assert make(Environment("CartPole-v1")).actions == 2


def test_players_and_actions_that_no_learner_here_is_for(monkeypatch):
    pgx = ModuleType("pgx")
    pgx.available_envs, pgx.make = lambda: ("go", "minatar-breakout"), lambda _: SimpleNamespace(num_players=2)
    jumanji = ModuleType("jumanji")
    jumanji.specs = SimpleNamespace(DiscreteArray=int)
    jumanji.registered_environments = lambda: {"Tetris-v0"}
    jumanji.make = lambda _: SimpleNamespace(action_spec=np.zeros(2))
    monkeypatch.setitem(sys.modules, "pgx", pgx)
    monkeypatch.setitem(sys.modules, "jumanji", jumanji)
    with pytest.raises(UserError, match="pgx:go is for 2 players, and learners here are for one"):
        make(Environment("pgx:go"))
    with pytest.raises(UserError, match=r"an action of jumanji:Tetris-v0 is \(2,\) numbers.*one discrete action"):
        make(Environment("jumanji:Tetris-v0"))
    with pytest.raises(UserError, match="there is no environment 'pgx:minatar-breakout'"):
        make(Environment("pgx:minatar-breakout"))


def test_a_suite_may_truncate_by_itself():
    def step(key, state, action):
        return Step(state + 1, state + 1, 1, False, state + 1 >= 4)

    env = Adapter(Task(lambda key: (jnp.int32(0), jnp.int32(0)), step, spaces.Discrete(1), 100))
    params = env.default_params
    environments.check("mine", env, params)
    _, state = env.reset(jax.random.key(0), params)
    for frame in range(1, 5):
        observation, state, _, terminated, truncated, info = env.step(jax.random.key(0), state, 0, params)
        assert not terminated and truncated == (frame == 4) and info["final_observation"] == frame
    assert observation.shape == (1,) and observation == 0


def test_observations_become_one_array():
    picture = jnp.ones((2, 3), bool)
    assert suites.flat({"grid": picture}).shape == (2, 3) and suites.flat(jnp.int32(3)).shape == (1,)
    both = suites.flat((picture, {"b": jnp.int32(5), "a": jnp.uint8(4)}))
    assert both.tolist() == [1] * 6 + [4, 5] and both.dtype == jnp.float32


# Those that are installed.

INSTALLED = {
    "brax:inverted_pendulum": ((4,), (1,), 1000),
    "craftax:Craftax-Classic-Symbolic-v1": ((1345,), 17, 10_000),
    "jumanji:Snake-v1": ((725,), 4, 4000),
    "navix:Navix-DoorKey-5x5-v0": ((5, 5, 3), 7, 100),
    "pgx:2048": ((4, 4, 31), 4, 10_000),
    "playground:CartpoleBalance": ((5,), (1,), 1000),
}


def installed(name):
    suite = name.partition(":")[0]
    pytest.importorskip(PACKAGES.get(suite, suite))
    return Environment(name)


@pytest.mark.parametrize("name", INSTALLED)
def test_shapes(name):
    """Traced, not run: physics compiles for a minute."""
    config = installed(name)
    environment = make(config)
    actions = environment.action_shape or environment.actions
    assert (environment.observation_shape, actions, environment.max_steps) == INSTALLED[name]
    policy = lambda observation, _: jnp.zeros((len(observation), *environment.action_shape), jnp.int32)

    def two(key):
        actor = reset(environment, key, 2)
        return actor, *rollout(environment, policy, actor, key, 2)[:2]

    before, after, transitions = jax.eval_shape(two, jax.random.key(0))
    facts = lambda tree: [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(tree)]
    assert facts(before) == facts(after) and transitions.observation.shape == (2, 2, *environment.observation_shape)


def own(name):
    """(reset, step) of a suite, by its own functions: key -> (state, observation), (state, action, key) -> the same,
    with the reward."""
    suite, _, kind = name.partition(":")
    match suite:
        case "brax":
            env = pytest.importorskip("brax.envs").get_environment(kind)
            both = lambda state: (state, state.obs, state.reward)
            return lambda key: both(env.reset(key)), lambda state, action, key: both(env.step(state, action))
        case "jumanji":
            env = pytest.importorskip("jumanji").make(kind)
            both = lambda found: (found[0], found[1].observation, found[1].reward)
            return lambda key: both(env.reset(key)), lambda state, action, key: both(env.step(state, action))
        case "pgx":
            env = pytest.importorskip("pgx").make(kind)
            both = lambda state: (state, state.observation, state.rewards[0])
            return lambda key: both(env.init(key)), lambda state, action, key: both(env.step(state, action, key))
        case "navix":
            env = pytest.importorskip("navix").make(kind)
            both = lambda timestep: (timestep, timestep.observation, timestep.reward)
            return lambda key: both(env.reset(key)), lambda state, action, key: both(env.step(state, action))


@pytest.mark.parametrize("name", ["brax:fast", "jumanji:Snake-v1", "navix:Navix-Empty-5x5-v0", "pgx:2048"])
def test_an_episode_is_the_suites_own(name):
    """Until one is done: the same observations and rewards by the suite's own functions."""
    environment = make(installed(name))
    first, step = own(name)
    found = acted(environment, 6, num_envs=1)
    ours = environment.reset(jax.random.key(7)[None])
    theirs = jax.jit(first)(jax.random.key(7))
    (states, observation), (state, expected, _) = ours, theirs
    np.testing.assert_allclose(observation[0], suites.flat(expected))
    ours_step, their_step = jax.jit(environment.step), jax.jit(step)
    for frame in range(6):
        action, key = found.action[0, frame], jax.random.key(frame)
        states, timestep = ours_step(key[None], states, action[None], ours)
        state, expected, reward = their_step(state, action, key)
        np.testing.assert_allclose(timestep.next_observation[0], suites.flat(expected), rtol=1e-6)
        np.testing.assert_allclose(timestep.reward[0], reward, rtol=1e-6)
        if timestep.terminated[0] or timestep.truncated[0]:
            np.testing.assert_array_equal(timestep.observation[0], observation[0])
            break
    assert np.isfinite(found.next_observation).all()


def test_a_limit_of_frames_may_be_above_the_suites_own():
    """NAVIX's is 100."""
    environment = make(dataclasses.replace(installed("navix:Navix-Empty-5x5-v0"), max_steps=120))
    turn = lambda observation, _: jnp.zeros(len(observation), jnp.int32)
    frames = jax.jit(lambda key: rollout(environment, turn, reset(environment, key, 1), key, 130)[1])
    found = frames(jax.random.key(0))
    assert np.flatnonzero(found.done[0]).tolist() == [119] and not found.terminated.any()


def test_a_learner_learns_in_one():
    config = installed("jumanji:Snake-v1")
    learner = dataclasses.replace(EXPERIMENTS["ppo"], environment=config).build()
    state = jax.jit(learner.init)(jax.random.key(0))
    state, metrics = jax.jit(lambda state: learner.step(state, None))(state)
    assert state.step == 1 and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(metrics))
