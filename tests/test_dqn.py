"""DQN: known values, the replay ring, exploration, and what environments must keep to."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core.errors import Failure, Mistake
from research.core.experiment import Run
from research.core.optimizers import Optimizer
from research.core.state import NO_BATCH, State
from research.core.transformations import many, seeds
from research.learners.dqn import DQN
from research.nets.q import MLP
from research.rl import environments as vector
from research.rl import probes, replay
from research.rl.environments import Environment
from research.rl.replay import Frame

G = 0.5


@pytest.fixture(autouse=True, scope="module")
def quick_to_compile():
    """Numbers matter here, speed doesn't."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def probe(name: str, **changes) -> DQN:
    small = DQN(
        environment=Environment(f"probes:{name}"),
        net=MLP(widths=(32,)),
        environments=4,
        rollout=5,
        ring=400,
        batch=32,
        updates=4,
        start=40,
        target_every=2,
        gamma=G,
        epsilon_end=1.0,
        optimizer=Optimizer(learning_rate=1e-2, schedule="linear"),
        run=Run(steps=200, steps_per_dispatch=100, metric="return"),
    )
    return replace(small, **changes)


def trained(config: DQN, seed: int = 0) -> tuple[State, dict]:
    learner = config.build()
    state = jax.jit(learner.init)(jax.random.key(seed))
    return jax.jit(many(learner.step, config.run.steps), donate_argnums=0)(state, NO_BATCH)


def values(config: DQN, state: State, x: float) -> np.ndarray:
    net = config.net.clone(outputs=vector.make(config.environment).actions)
    return np.asarray(net.apply({"params": state.params}, jnp.array([[x]]))[0])


KNOWN = {
    "Constant": {0: [1]},
    "Seen": {-1: [-1], 1: [1]},
    "Delayed": {0: [G], 1: [1]},
    "Chosen": {0: [1, -1], 1: [-1, 1]},
    "Truncating": {0: [G / (1 - G)], 1: [1 / (1 - G)]},
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_values(name):
    known(probe(name), KNOWN[name])


@pytest.mark.parametrize("name", ["Delayed", "Truncating"])
def test_known_values_by_double_n_step_huber(name):
    known(probe(name, n_step=3, double=True, loss="huber"), KNOWN[name])


def known(config: DQN, expected: dict) -> None:
    state, _ = trained(config)
    for x, value in expected.items():
        np.testing.assert_allclose(values(config, state, x), value, atol=0.1)


def simulated(frames: int, environments: int = 3, slots: int = 20, rollout: int = 5):
    """Rings of episodes of 7 frames, and every frame there was, [environment][number] of (identity, reward, over)."""
    history = [[] for _ in range(environments)]
    for number in range(frames):
        for e in range(environments):
            x = (number + e) % 7
            history[e].append((1000 * e + number, x, x == 6))
    shape = jax.ShapeDtypeStruct
    number, flag = shape((), jnp.float32), shape((), bool)
    frame = Frame(shape((1,), jnp.float32), shape((), jnp.int32), number, flag, flag, shape((1,), jnp.float32))
    ring = replay.empty(frame, environments, slots)
    for step in range(frames // rollout):
        part = np.array([h[step * rollout : (step + 1) * rollout] for h in history])
        over = jnp.array(part[..., 2], bool)
        seen = jnp.array(part[..., :1], jnp.float32)
        written = Frame(
            seen,
            jnp.array(part[..., 1], jnp.int32),
            jnp.array(part[..., 1], jnp.float32),
            over & False,
            over,
            seen + 0.5,
        )
        ring = replay.write(ring, written, jnp.int32(step))
    return ring, history, frames // rollout - 1


@pytest.mark.parametrize("n", [1, 3, 10])
@pytest.mark.parametrize("frames", [10, 20, 35, 60])
def test_windows_stay_within_what_is_remembered(frames, n):
    ring, history, step = simulated(frames)
    keys = jax.random.split(jax.random.key(0), 3)
    drawn = jax.tree.map(np.asarray, replay.sample(ring, keys, jnp.int32(step), 5, (2, 400), n, 0.9))
    assert drawn.return_.shape == (2, 1200)
    started = set()
    for batch in range(2):
        for i in range(0, 1200):
            identity = int(drawn.observation[batch, i, 0])
            e, first = divmod(identity, 1000)
            assert e == i // 400  # each environment its own share
            assert max(0, frames - 20) <= first <= frames - n  # remembered, and the whole window is
            rewards, last = 0.0, first
            for k in range(n):
                last = first + k
                rewards += 0.9**k * history[e][last][1]
                if history[e][last][2]:
                    break
            np.testing.assert_allclose(drawn.return_[batch, i], rewards, rtol=1e-5)
            np.testing.assert_allclose(drawn.discount[batch, i], 0.9 ** (last - first + 1), rtol=1e-5)
            assert float(drawn.final[batch, i, 0]) == 1000 * e + last + 0.5
            started.add((e, first))
    assert len(started) == 3 * (min(frames, 20) - n + 1)  # every window there is


def test_termination_ends_the_return():
    ring, _, step = simulated(20)
    ring = ring._replace(terminated=ring.over)
    drawn = replay.sample(ring, jax.random.split(jax.random.key(1), 3), jnp.int32(step), 5, (1, 100), 3, 0.9)
    ended = ((np.asarray(drawn.final[0, :, 0]) - 0.5) % 1000 + np.asarray(drawn.observation[0, :, 0]) // 1000) % 7 == 6
    np.testing.assert_array_equal(np.asarray(drawn.discount[0]) == 0, ended)
    assert 0 < ended.sum() < 300


def test_ring_holds_the_true_next_observation():
    config = probe("Counting", run=Run(steps=10, steps_per_dispatch=10, metric="return"))
    state, metrics = trained(config)
    ring = jax.tree.map(np.asarray, state.world.ring)
    np.testing.assert_array_equal(ring.final[:, :50], ring.observation[:, :50] + 1)  # never 0, the reset's
    np.testing.assert_array_equal(ring.over[:, :50], ring.final[:, :50, 0] == 7)
    assert not ring.terminated.any()
    assert not ring.final[:, 50:].any()  # not yet written
    assert float(metrics["return"].total.sum()) == 4 * 7 * 21  # 50 frames hold 7 whole episodes of 0 + 1 + ... + 6
    assert float(metrics["return"].count.sum()) == 4 * 7


def test_epsilon_falls_linearly():
    config = probe(
        "Chosen", epsilon_end=0.2, epsilon_fraction=0.5, run=Run(steps=100, steps_per_dispatch=10, metric="return")
    )
    _, metrics = trained(config)
    expected = np.maximum(1 - 0.8 * np.arange(100) / 50, 0.2)
    np.testing.assert_allclose(metrics["epsilon"].value, expected, rtol=1e-5)


def test_no_epsilon_is_greedy():
    config = probe("Chosen", epsilon_start=0.0, epsilon_end=0.0, start=1000)
    state, _ = trained(replace(config, run=Run(steps=10, steps_per_dispatch=10, metric="return")))
    ring = jax.tree.map(np.asarray, state.world.ring)
    for x in (0, 1):
        best = values(config, state, x).argmax()
        assert (ring.action[:, :50][ring.observation[:, :50, 0] == x] == best).all()


def test_all_actions_are_tried_alike():
    config = probe("Chosen", run=Run(steps=20, steps_per_dispatch=20, metric="return"))
    state, _ = trained(config)
    assert abs(float(state.world.ring.action.mean()) - 0.5) < 0.1


def test_learning_waits():
    config = probe("Chosen", start=61, run=Run(steps=5, steps_per_dispatch=5, metric="return"))
    _, metrics = trained(config)
    np.testing.assert_array_equal(metrics["loss"].count, [0, 0, 0, 128, 128])  # 20 frames a step


def test_target_is_reset_now_and_then():
    config = probe("Chosen", target_every=3, start=0, run=Run(steps=10, steps_per_dispatch=10, metric="return"))
    learner = config.build()
    state = jax.jit(learner.init)(jax.random.key(0))
    first = jax.tree.map(np.asarray, state.params)
    step = jax.jit(learner.step)
    for expected in ("first", "first", "params"):
        state, _ = step(state, NO_BATCH)
        jax.tree.map(
            np.testing.assert_array_equal, state.collections["target"], first if expected == "first" else state.params
        )


def test_seeds_differ_and_equal_their_single_runs():
    config = probe("Chosen", run=Run(steps=20, steps_per_dispatch=20, metric="return"))
    lifted = seeds(config.build())
    states = jax.jit(lifted.init)(jax.vmap(jax.random.key)(jnp.arange(2)))
    states, _ = jax.jit(many(lifted.step, 20), donate_argnums=0)(states, NO_BATCH)
    alone, _ = trained(config, 1)
    np.testing.assert_array_equal(states.world.ring.action[1], alone.world.ring.action)
    np.testing.assert_allclose(
        values(config, states._replace(params=jax.tree.map(lambda x: x[1], states.params)), 1.0),
        values(config, alone, 1.0),
        atol=1e-4,
    )
    assert (states.world.ring.action[0] != states.world.ring.action[1]).any()


def test_replay_is_not_copied_under_seeds():
    """`step` is shared, so a cond stays a cond; the ring is updated in place, and no select touches it."""
    config = probe("Chosen", ring=40_000)
    lifted = seeds(config.build())
    states = jax.eval_shape(lifted.init, jax.vmap(jax.random.key)(jnp.arange(2)))
    text = str(jax.make_jaxpr(lifted.step)(states, NO_BATCH))
    assert "cond[" in text
    whole = [line for line in text.splitlines() if "select_n" in line and "10000" in line]
    assert not whole, whole


def test_evaluation_plays_whole_greedy_episodes():
    config = probe("Truncating", epsilon_end=1.0)
    learner = config.build()
    state = jax.jit(learner.init)(jax.random.key(0))
    (batch,) = config.feeds().validation
    metrics = jax.jit(learner.evaluate)(state, batch)
    assert float(metrics["length"].value) == 2.0
    assert float(metrics["return"].value) == 1.0
    assert float(metrics["return"].count) == 32
    *_, last = config.feeds().test
    assert last.index.shape == (32,)
    assert float(jax.jit(learner.evaluate)(state, last)["return"].count) == 4


def test_episodes_can_be_cut_shorter():
    config = probe("Counting", environment=Environment("CartPole-v1", max_steps=5))
    learner = config.build()
    metrics = jax.jit(learner.evaluate)(jax.jit(learner.init)(jax.random.key(0)), config.feeds().validation[0])
    assert float(metrics["length"].value) == 5.0


def test_mistakes_name_the_mend():
    with pytest.raises(Mistake, match="the nearest are 120 or 130"):
        DQN(environments=10, batch=128)
    with pytest.raises(Mistake, match="did you mean CartPole-v1"):
        vector.make(Environment("CartPole-v2"))
    with pytest.raises(Mistake, match="did you mean probes:Delayed"):
        vector.make(Environment("probes:Delay"))
    with pytest.raises(Mistake, match="no environment 'os:system'"):
        vector.make(Environment("os:system"))
    with pytest.raises(Mistake, match="continuous"):
        vector.make(Environment("Pendulum-v1"))


def test_numbers_are_seen_one_hot():
    env = vector.make(Environment("FrozenLake-misc"))
    assert env.shape == (16,)
    _, observation = env.reset(jax.random.split(jax.random.key(0), 2))
    np.testing.assert_array_equal(observation, np.eye(16)[[0, 0]])


class FiveValues(probes.Constant):
    def step(self, key, state, action, params=None):
        observation, state, reward, terminated, truncated, info = super().step(key, state, action, params)
        return observation, state, reward, terminated | truncated, info


class NoFinal(probes.Constant):
    def step(self, key, state, action, params=None):
        *rest, _ = super().step(key, state, action, params)
        return *rest, {}


class WrongShape(probes.Constant):
    def observation_space(self, params=None):
        return probes.spaces.Box(0, 1, (3,))


class NotFinite(probes.Constant):
    def next(self, x):
        return x / 0.0

    def is_terminated(self, state, params):
        return jnp.bool_(False)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (FiveValues, "step returns 5 values, not 6"),
        (NoFinal, "final_observation"),
        (WrongShape, r"has shape \(1,\), not \(3,\)"),
        (NotFinite, "isn't finite"),
    ],
)
def test_broken_environments_are_told(kind, message):
    env = kind()
    with pytest.raises(Failure, match=message):
        vector.check("mine", env, env.default_params)
