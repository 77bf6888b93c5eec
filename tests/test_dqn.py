"""DQN: known values, a step in NumPy, the replay buffer, exploration, and the interface of environments."""

import functools
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from research.core.errors import RunError, UserError
from research.core.experiment import Run
from research.core.optimizers import Optimizer
from research.core.state import NO_BATCH, Batch, State, rng
from research.core.transformations import per_seed, scan_steps
from research.learners.dqn import DQN
from research.learners.replay_learning import OffPolicy
from research.nets.q import MLP
from research.rl import environments as vector
from research.rl import probes, replay
from research.rl.environments import Environment, Timestep, VectorEnv
from research.rl.evaluation import play
from research.rl.rollout import Transition, reset, rollout

G = 0.5


def probe(name: str, **changes) -> DQN:
    small = DQN(
        environment=Environment(f"probes:{name}"),
        net=MLP(widths=(32,)),
        num_envs=4,
        rollout_length=5,
        buffer_size=400,
        batch=32,
        updates=4,
        learning_starts=40,
        target_update_interval=2,
        gamma=G,
        epsilon_end=1.0,
        optimizer=Optimizer(learning_rate=1e-2, schedule="linear"),
        run=Run(steps=200, steps_per_dispatch=100, metric="return"),
    )
    return replace(small, **changes)


@functools.cache
def compiled(config: DQN) -> tuple:
    """The first state, and the step."""
    learner = config.build()
    return jax.jit(learner.init)(jax.random.key(0)), jax.jit(learner.step)


@functools.cache
def trained(config: DQN, seed: int = 0) -> tuple[State, dict]:
    learner = config.build()
    state = jax.jit(learner.init)(jax.random.key(seed))
    return jax.jit(scan_steps(learner.step, config.run.steps), donate_argnums=0)(state, NO_BATCH)


def values(config: DQN, state: State, x: float) -> np.ndarray:
    net = config.net.clone(outputs=vector.make(config.environment).num_actions)
    return np.asarray(net.apply({"params": state.params["q"]}, jnp.array([[x]]))[0])


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("Observed", {}, {-1: [-1], 1: [1]}),
        ("ChosenLater", {}, {0: [G, G], 1: [-1, 1]}),
        ("Truncating", {"n_step": 3, "double": True, "loss": "huber"}, {0: [G / (1 - G)], 1: [1 / (1 - G)]}),
    ],
)
def test_known_values(name, changes, expected):
    config = probe(name, **changes)
    state, _ = trained(config)
    for x, value in expected.items():
        np.testing.assert_allclose(values(config, state, x), value, atol=0.1)


@pytest.mark.parametrize("step", [5, 6])  # after step 5 the target net becomes the net, after step 6 it stays
@pytest.mark.parametrize(("double", "loss"), [(True, "huber"), (False, "squared")])
def test_a_step_equals_one_in_numpy(double, loss, step):
    num_envs, rollout_length, slots, updates, share, n, gamma = 16, 3, 9, 2, 1, 2, 0.9
    config = DQN(
        environment=Environment("probes:ChosenLater"),
        net=MLP(widths=()),
        num_envs=num_envs,
        rollout_length=rollout_length,
        buffer_size=num_envs * slots,
        learning_starts=0,
        batch=num_envs * share,
        updates=updates,
        target_update_interval=3,
        gamma=gamma,
        n_step=n,
        double=double,
        loss=loss,
        epsilon_end=0.2,
        epsilon_fraction=0.5,
        optimizer=Optimizer(name="sgd", learning_rate=0.1, momentum=0.0, nesterov=False),
        run=Run(steps=20, steps_per_dispatch=10, metric="return"),
    )
    state, stepped = compiled(config)
    random = np.random.default_rng(step)
    array = lambda *shape: random.normal(size=shape).astype(np.float32)
    net, target = ({"head": {"kernel": array(1, 2), "bias": array(2)}} for _ in range(2))
    ended, done = random.random((2, num_envs, slots)) < [[[0.2]], [[0.3]]]
    buffer = jax.tree.map(np.array, state.world.buffer)._replace(
        observation=array(num_envs, slots, 1),
        action=random.integers(0, 2, (num_envs, slots)).astype(np.int32),
        reward=array(num_envs, slots),
        terminated=ended,
        done=ended | done,
        final=array(num_envs, 1, 1),
    )
    world = state.world._replace(buffer=jax.tree.map(jnp.array, buffer))
    state = state._replace(step=jnp.int32(step), params={"q": net}, collections={"target": target}, world=world)
    after, metrics = stepped(state, NO_BATCH)

    # The step in NumPy. Only the draws are JAX's.
    q = lambda net, x: x @ net["head"]["kernel"] + net["head"]["bias"]
    epsilon = 1 - 0.8 * step / 10
    expected: dict[str, list] = {"loss": [], "q": [], "gradient_norm": [], "return": [], "length": []}
    keys_of = lambda name: jax.vmap(jax.random.fold_in, (None, 0))(rng(state, name), jnp.arange(num_envs))
    last = lambda key: jax.random.split(key, 2 * rollout_length + 1)[-1]
    draws = jax.jit(jax.vmap(lambda key: jax.random.uniform(last(key), (rollout_length,))))(keys_of("act"))
    for e, uniform in enumerate(np.asarray(draws)):
        for k, x in enumerate([0, 1, 0]):  # one episode of two frames, and the first frame of another
            greedy = q(net, np.array([x])).argmax()
            action = int(uniform[k] / epsilon * 2) if uniform[k] < epsilon else greedy
            reward = x * (1 if action == 1 else -1)
            slot = step % 3 * rollout_length + k
            for field, value in zip(buffer[:5], ([x], action, reward, x == 1, x == 1), strict=True):
                field[e, slot] = value
            buffer.newest[e], buffer.newest_slot[e], buffer.final_place[e, slot] = [1], slot, 0
            if x == 1:
                expected["return"].append(reward)
                expected["length"].append(2)
    oldest = (step + 1) % 3 * rollout_length
    batches: list[list] = [[] for _ in range(updates)]
    draws = jax.jit(jax.vmap(lambda key: jax.random.uniform(key, (updates, share))))(keys_of("sample"))
    for e, uniform in enumerate(np.asarray(draws)):
        ages = (uniform * (slots - n + 1)).astype(int)
        for u, age in np.ndindex(updates, share):
            first = last = (oldest + ages[u, age]) % slots
            return_, discount = buffer.reward[e, first], gamma
            if not buffer.done[e, first]:
                last = (first + 1) % slots
                return_, discount = return_ + gamma * buffer.reward[e, last], gamma**2
            discount *= not buffer.terminated[e, last]
            x, action = buffer.observation[e, first], buffer.action[e, first]
            if buffer.done[e, last]:  # where it is terminated, what follows is worth nothing
                next_x = buffer.final[e, 0]
            else:
                next_x = [1] if last == buffer.newest_slot[e] else buffer.observation[e, (last + 1) % slots]
            batches[u].append((x, action, return_, discount, np.asarray(next_x)))
    for batch in batches:
        gradient = {"kernel": np.zeros((1, 2)), "bias": np.zeros(2)}
        for x, action, return_, discount, next_x in batch:
            best = q(net if double else target, next_x).argmax()
            error = q(net, x)[action] - (return_ + discount * q(target, next_x)[best])
            quadratic = loss == "squared" or abs(error) <= 1
            expected["loss"].append(
                (error**2 if loss == "squared" else error**2 / 2) if quadratic else abs(error) - 0.5
            )
            expected["q"].append(q(net, x)[action])
            slope = (2 * error if loss == "squared" else np.clip(error, -1, 1)) / len(batch)
            gradient["kernel"][:, action] += slope * x
            gradient["bias"][action] += slope
        expected["gradient_norm"].append(np.sqrt(sum((g**2).sum() for g in gradient.values())))
        net = {"head": {name: net["head"][name] - 0.1 * g for name, g in gradient.items()}}
    target = net if step == 5 else target

    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, after.world.buffer, buffer)
    jax.tree.map(close, after.params["q"], net)
    jax.tree.map(close, after.collections["target"], target)
    for name, values_ in expected.items():
        close(metrics[name].value, np.mean(values_))
        assert metrics[name].count == len(values_)
    close(metrics["epsilon"].value, epsilon)
    close(metrics["learning_rate"].value, 0.1)


def shaped(shape, least_truncated=7):
    """What the buffer asks of an environment."""
    return VectorEnv(None, None, shape, 2, 1000, least_truncated=least_truncated)


def simulated(frames: int, num_envs: int = 3, slots: int = 20, rollout_length: int = 5):
    """Buffers of episodes of 7 frames, and all frames, [environment][number] of (identity, reward, done).

    A frame leads to the next one; the last of an episode, which is truncated, to its identity and a half.
    """
    history = [[] for _ in range(num_envs)]
    for number in range(frames):
        for e in range(num_envs):
            x = (number + e) % 7
            history[e].append((1000 * e + number, x, x == 6))
    buffer = replay.empty(shaped((1,)), num_envs, slots)
    assert buffer.final.shape == (3, 3, 1)  # 20 frames have the ends of 3 episodes of 7 at most
    for step in range(frames // rollout_length):
        part = np.array([h[step * rollout_length : (step + 1) * rollout_length] for h in history])
        done = jnp.array(part[..., 2], bool)
        observation = jnp.array(part[..., :1], jnp.float32)
        written = Transition(
            observation,
            jnp.array(part[..., 1], jnp.int32),
            jnp.array(part[..., 1], jnp.float32),
            done & False,
            done,
            observation + jnp.where(done[..., None], 0.5, 1.0),
        )
        buffer = write(buffer, written, jnp.int32(step))
    return buffer, history, frames // rollout_length - 1


write = jax.jit(replay.write)


@functools.partial(jax.jit, static_argnums=2)
def windows_of(buffer, step, n, key):
    slots = replay.uniform(jax.random.split(key, 3), step, 5, 20, (2, 400), n)
    return replay.windows(buffer, slots, n, 0.9)


@pytest.mark.parametrize("n", [1, 3, 10])
@pytest.mark.parametrize("frames", [10, 20, 35, 60])
def test_windows_stay_within_what_is_remembered(frames, n):
    buffer, history, step = simulated(frames)
    samples = jax.device_get(windows_of(buffer, jnp.int32(step), n, jax.random.key(0)))
    assert samples.return_.shape == (2, 1200)
    e, first = np.divmod(samples.observation[..., 0].astype(int), 1000)
    np.testing.assert_array_equal(e, np.tile(np.arange(1200) // 400, (2, 1)))  # each environment its own share
    assert max(0, frames - 20) <= first.min() and first.max() <= frames - n  # remembered, and the whole window is
    started = set(zip(e.flat, first.flat, strict=True))
    assert len(started) == 3 * (min(frames, 20) - n + 1)  # every window there is
    for environment, start in started:
        rewards, last = 0.0, start
        for k in range(n):
            last = start + k
            rewards += 0.9**k * history[environment][last][1]
            if history[environment][last][2]:
                break
        led_to = 1000 * environment + last + (0.5 if history[environment][last][2] else 1)
        there = (e == environment) & (first == start)
        np.testing.assert_allclose(samples.return_[there], rewards, rtol=1e-5)
        np.testing.assert_allclose(samples.discount[there], 0.9 ** (last - start + 1), rtol=1e-5)
        np.testing.assert_array_equal(samples.next_observation[there], led_to)


def test_each_device_samples_from_its_own_environments():
    """On a mesh with the buffer split by environments, a step gathers nothing: it sums gradients and metrics."""
    mesh = jax.make_mesh((4,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    split, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    learner = probe("Chosen", n_step=3, learning_starts=0).build()
    state = jax.jit(learner.init)(jax.random.key(0))
    sharded = jax.device_put(state._replace(world=()), everywhere)
    sharded = sharded._replace(world=jax.device_put(state.world, split))
    shardings = jax.tree.map(lambda x: x.sharding, sharded)
    step = jax.jit(lambda state: learner.step(state, NO_BATCH), out_shardings=(shardings, None))
    compiled = step.lower(sharded).compile()
    collectives = re.findall(r" (all-\w+|collective-\w+|reduce-scatter)(?:-start)?\(", compiled.as_text())
    assert set(collectives) == {"all-reduce"}
    assert len(collectives) <= 4
    alone, metrics = jax.jit(learner.step)(state, NO_BATCH)
    sharded, sharded_metrics = compiled(sharded)
    np.testing.assert_array_equal(sharded.world.buffer.action, alone.world.buffer.action)
    np.testing.assert_allclose(sharded_metrics["loss"].value, metrics["loss"].value, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), sharded.params, alone.params)


def test_termination_ends_the_return():
    buffer, _, step = simulated(20)
    buffer = buffer._replace(terminated=buffer.done)
    samples = jax.device_get(windows_of(buffer, jnp.int32(step), 3, jax.random.key(1)))
    environment, first = np.divmod(samples.observation[..., 0], 1000)
    ended = (first + environment) % 7 >= 4  # one of the frames first, first + 1 and first + 2 is the last one
    np.testing.assert_array_equal(samples.discount == 0, ended)
    assert 0 < ended.sum() < ended.size


def test_a_buffer_holds_most_observations_once():
    """Of environments that are truncated at their limit alone, as gymnax's are, it has room for those ends."""
    bytes_of = lambda buffer: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(buffer))

    def empty(name, **how):
        environment = vector.make(Environment(name, **how))
        return jax.eval_shape(lambda: replay.empty(environment, 4, 4000, jnp.uint8))

    buffer = empty("Breakout-MinAtar")
    assert buffer.observation.shape == (4, 4000, 10, 10, 4) and buffer.final.shape == (4, 4, 10, 10, 4)
    assert bytes_of(buffer) < 1.05 * bytes_of(buffer.observation)
    assert empty("Breakout-MinAtar", time_limit=50).final.shape[1] == 80
    # Whose episodes may be truncated at any time, may be at every frame.
    assert empty("probes:Counting").final.shape[1] == 4000


following = jax.jit(jax.vmap(replay.following, (0, None)))


def test_ends_that_are_remembered_are_those_of_truncated_episodes():
    """Three environments, whose episodes of 2 frames are all terminated, all truncated, and each in turn."""
    buffer = replay.empty(shaped((1,), 2), 3, 8)
    assert buffer.final.shape == (3, 4, 1)
    frames = np.arange(24)
    for step in range(6):
        now = frames[4 * step : 4 * step + 4]
        done = np.tile(now % 2 == 1, (3, 1))
        terminated = done & np.stack([now >= 0, now < 0, now % 4 == 1])
        x = jnp.array(np.tile(now, (3, 1))[..., None], jnp.float32)
        zeros = jnp.zeros((3, 4))
        transitions = Transition(x, zeros, zeros, jnp.array(terminated), jnp.array(done), x + 100)
        buffer = write(buffer, transitions, jnp.int32(step))
    np.testing.assert_array_equal(buffer.cuts, [0, 12, 6])
    last = 16 + np.array([0, 1, 2, 3, 4, 5, 6, 7])  # slot 0 holds frame 16
    led_to = np.asarray(following(buffer, jnp.arange(8)))[..., 0]
    np.testing.assert_array_equal(led_to[:, ::2], np.tile(last[::2] + 1, (3, 1)))  # the next frame's
    np.testing.assert_array_equal(led_to[1, 1::2], last[1::2] + 100)
    np.testing.assert_array_equal(led_to[2, 3::4], last[3::4] + 100)


def test_buffer_holds_the_true_next_observation():
    config = probe("Counting", run=Run(steps=10, steps_per_dispatch=10, metric="return"))
    state, metrics = trained(config)
    buffer = jax.tree.map(np.asarray, state.world.buffer)
    led_to = np.asarray(following(state.world.buffer, jnp.arange(50)))
    # The next observation is never 0, that of the reset.
    np.testing.assert_array_equal(led_to, buffer.observation[:, :50] + 1)
    np.testing.assert_array_equal(buffer.done[:, :50], led_to[..., 0] == 7)
    assert not buffer.terminated.any()
    assert not buffer.observation[:, 50:].any()  # not yet written
    assert float(metrics["return"].total.sum()) == 4 * 7 * 21  # 50 frames hold 7 whole episodes of 0 + 1 + ... + 6
    assert float(metrics["return"].count.sum()) == 4 * 7


def test_epsilon_falls_linearly():
    """What a step says of it is its own: see `test_a_step_equals_one_in_numpy`."""
    steps, of = jnp.arange(100), lambda fraction: probe("Chosen", epsilon_end=0.2, epsilon_fraction=fraction).epsilon
    np.testing.assert_allclose(of(0.25)(steps), np.maximum(1 - 0.8 * np.arange(100) / 50, 0.2), rtol=1e-5)
    np.testing.assert_allclose(of(0.0)(steps), np.full(100, 0.2), rtol=1e-6)


def test_no_epsilon_is_greedy():
    config = probe("Chosen", epsilon_start=0.0, epsilon_end=0.0, learning_starts=1000)
    state, step = compiled(config)
    for _ in range(10):
        state, _ = step(state, NO_BATCH)
    buffer = jax.tree.map(np.asarray, state.world.buffer)
    for x in (0, 1):
        best = values(config, state, x).argmax()
        assert (buffer.action[:, :50][buffer.observation[:, :50, 0] == x] == best).all()


BRIEF = probe("Chosen", learning_starts=61, run=Run(steps=20, steps_per_dispatch=20, metric="return"))


def test_all_actions_are_tried_alike():
    state, _ = trained(BRIEF, 1)
    assert abs(float(state.world.buffer.action.mean()) - 0.5) < 0.1


def test_learning_starts_late():
    _, metrics = trained(BRIEF, 1)
    np.testing.assert_array_equal(metrics["loss"].count, [0, 0, 0, *[128] * 17])  # 20 frames a step


def test_target_is_reset_every_so_many_steps():
    config = probe(
        "Chosen", target_update_interval=3, learning_starts=0, run=Run(steps=10, steps_per_dispatch=10, metric="return")
    )
    state, step = compiled(config)
    first = jax.tree.map(np.asarray, state.params["q"])
    for expected in ("first", "first", "params"):
        state, _ = step(state, NO_BATCH)
        jax.tree.map(
            np.testing.assert_array_equal,
            state.collections["target"],
            first if expected == "first" else state.params["q"],
        )


def test_seeds_differ_and_equal_their_single_runs():
    config = BRIEF
    lifted = per_seed(config.build())
    states = jax.jit(lifted.init)(jax.vmap(jax.random.key)(jnp.arange(2)))
    states, _ = jax.jit(scan_steps(lifted.step, 20), donate_argnums=0)(states, NO_BATCH)
    alone, _ = trained(config, 1)
    np.testing.assert_array_equal(states.world.buffer.action[1], alone.world.buffer.action)
    np.testing.assert_allclose(
        values(config, states._replace(params=jax.tree.map(lambda x: x[1], states.params)), 1.0),
        values(config, alone, 1.0),
        atol=1e-4,
    )
    assert (states.world.buffer.action[0] != states.world.buffer.action[1]).any()


def test_replay_is_not_copied_under_seeds():
    """`step` is shared, so a cond stays a cond; the buffer is updated in place, and no select copies it."""
    config = probe("Chosen", buffer_size=40_000)
    lifted = per_seed(config.build())
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
    evaluate = jax.jit(learner.evaluate)
    metrics = evaluate(state, batch)
    assert float(metrics["length"].value) == 2.0
    assert float(metrics["return"].value) == 1.0
    assert float(metrics["return"].count) == 32
    *_, last = config.feeds().test
    assert last.index.shape == (32,)
    assert float(evaluate(state, last)["return"].count) == 4


def test_evaluation_plays_the_best_action():
    """Q(x, a) is a half where a = x, else minus a half, or the other way round; the reward for a = x is 1, else -1."""
    config = probe("Chosen", net=MLP(widths=()))
    learner = config.build()
    state = jax.jit(learner.init)(jax.random.key(0))
    evaluate = jax.jit(learner.evaluate)
    for sign in (1, -1):
        net = {"head": {"kernel": sign * jnp.array([[-1.0, 1.0]]), "bias": sign * jnp.array([0.5, -0.5])}}
        metrics = evaluate(state._replace(params={"q": net}), config.feeds().validation[0])
        assert float(metrics["return"].value) == sign


def test_evaluation_uses_no_key_twice():
    """An environment rewards a frame whose key was used before: to reset, as a part of that, or for another frame."""
    limit, parts = 5, 4

    def reset(keys):
        used = jax.vmap(lambda key: jnp.concatenate([key[None], jax.random.split(key, parts)]))(keys)
        used = jnp.concatenate([jax.random.key_data(used), jnp.zeros((len(keys), limit, 2), jnp.uint32)], 1)
        return (jnp.zeros(len(keys), jnp.int32), used), jnp.zeros((len(keys), 1))

    def step(keys, states, actions, starts):
        time, used = states
        data = jax.random.key_data(keys)
        again = (used == data[:, None]).all(-1).any(1)
        used = jax.vmap(lambda used, data, time: used.at[1 + parts + time].set(data))(used, data, time)
        observation, done = jnp.zeros((len(keys), 1)), time + 1 == limit
        return (time + 1, used), Timestep(observation, observation, again.astype(jnp.float32), done, done)

    environment = VectorEnv(reset, step, observation_shape=(1,), actions=1, max_steps=limit)
    batch = Batch(jnp.arange(3), jnp.ones(3), (), ())
    metrics = play(environment, lambda observation: jnp.zeros(len(observation), jnp.int32), batch)
    assert float(metrics["length"].value) == limit
    assert float(metrics["return"].total) == 0


def test_episodes_can_be_cut_shorter():
    config = probe("Counting", environment=Environment("CartPole-v1", max_steps=5))
    learner = config.build()
    metrics = jax.jit(learner.evaluate)(jax.jit(learner.init)(jax.random.key(0)), config.feeds().validation[0])
    assert float(metrics["length"].value) == 5.0


def test_mistakes_name_the_mend():
    with pytest.raises(UserError, match="the nearest are 120 or 130"):
        DQN(num_envs=10, batch=128)
    with pytest.raises(UserError, match="batch=256 is more than the buffer_size=128 of the replay"):
        DQN(num_envs=8, buffer_size=128, batch=256)
    with pytest.raises(UserError, match="did you mean CartPole-v1"):
        vector.make(Environment("CartPole-v2"))
    with pytest.raises(UserError, match="did you mean probes:Delayed"):
        vector.make(Environment("probes:Delay"))
    with pytest.raises(UserError, match="no environment 'os:system'"):
        vector.make(Environment("os:system"))
    with pytest.raises(UserError, match="continuous"):
        DQN(environment=Environment("Pendulum-v1")).build()


def test_numbers_are_encoded_one_hot():
    env = vector.make(Environment("FrozenLake-misc"))
    assert env.observation_shape == (16,)
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
def test_broken_environments_are_reported(kind, message):
    env = kind()
    with pytest.raises(RunError, match=message):
        vector.check("mine", env, env.default_params)


def test_a_constant_probe_rewards_with_one():
    assert probes.Constant().reward(jnp.zeros(()), jnp.zeros((), jnp.int32)) == 1


def test_continuous_actions_are_replayed_as_they_were():
    environment = vector.make(Environment("probes:Near"))
    actor, policy = reset(environment, jax.random.key(0), 3), lambda observation, uniform: 2 * uniform - 1
    _, transitions, _ = jax.jit(lambda actor: rollout(environment, policy, actor, jax.random.key(1), 8))(actor)
    buffer = write(replay.empty(environment, 3, 8), transitions, jnp.int32(0))
    np.testing.assert_array_equal(buffer.action, transitions.action)
    samples = replay.windows(buffer, jnp.full((3, 1, 2), 5), 1, 0.9)
    assert samples.action.shape == (1, 6, 1) and samples.action.dtype == jnp.float32
    np.testing.assert_array_equal(samples.action[0, ::2], transitions.action[:, 5])


def test_a_sample_is_one_transition_unless_a_learner_says_otherwise():
    class Plain(OffPolicy):
        def build(self):
            raise NotImplementedError

    assert Plain(learning_starts=0, rollout_length=1).warmup_steps == 0
    assert not hasattr(Plain(), "epsilon_start")  # what an off-policy learner of continuous actions has no use for
    assert DQN(learning_starts=0, rollout_length=1, n_step=3).warmup_steps == 2
