"""The pieces of the Q-learning family: sum trees, distributions of returns, lambda-returns, noisy and dueling nets; and
every variant on probe environments, whose values are known."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core.experiment import Run
from research.core.modules import FromData, network
from research.core.optimizers import Optimizer
from research.core.state import NO_BATCH, example_keys, rng
from research.core.transformations import scan_steps
from research.learners.dqn import DQN
from research.learners.drqn import DRQN
from research.learners.pqn import PQN
from research.learners.q_learning import q_network
from research.nets.q import MLP, NoisyDense, Table
from research.nets.recurrent_q import RecurrentQ
from research.rl import priorities, replay
from research.rl.advantages import lambda_returns
from research.rl.environments import Environment, make
from research.rl.epochs import minibatches
from research.rl.exploration import probabilities
from research.rl.returns import categorical, quantiles
from research.rl.rollout import Transition, reset, rollout
from research.rl.wrappers import append_memory

G = 0.5

# Of each probe, observations and the values of its actions, see research/rl/probes.py. What follows a truncated episode
# is found by `replay` for all variants with replay, see test_dqn.py, and for PQN by `lambda_returns`.
KNOWN = {
    "ChosenLater": {0: [G, G], 1: [-1, 1]},
    "Truncating": {0: [G / (1 - G)], 1: [1 / (1 - G)]},
}
SMALL = {
    "num_envs": 4,
    "gamma": G,
    "epsilon_end": 1.0,
    "optimizer": Optimizer(learning_rate=1e-2, schedule="linear"),
    "run": Run(steps=200, steps_per_dispatch=100, metric="return"),
}
DEEP = DQN(
    **SMALL, rollout_length=5, buffer_size=400, batch=32, updates=4, learning_starts=40, target_update_interval=2
)
NET = MLP(widths=(32,))
# Returns of several rewards hold of the actions that were taken: these variants act greedily at the end.
GREEDY = {"epsilon_end": 0.05}
VARIANTS = {
    "soft_quantiles": replace(
        DEEP, net=NET, returns="quantiles", atoms=8, target_update_interval=1, tau=0.3, average=0.99
    ),
    "categorical": replace(DEEP, net=NET, returns="categorical", atoms=21, v_min=-2.5, v_max=2.5),
    "prioritised": replace(DEEP, net=NET, priority_exponent=0.6),
    "rainbow": replace(
        DEEP,
        net=MLP(widths=(32,), dueling=True, noisy=True),
        returns="categorical",
        atoms=21,
        v_min=-2.5,
        v_max=2.5,
        priority_exponent=0.5,
        n_step=3,
        double=True,
        buffer_size=100,
        **GREEDY,
    ),
    "pqn": PQN(**SMALL | GREEDY, net=MLP(widths=(32,), layer_norm=True), rollout_length=8, epochs=2, minibatches=2),
}


@pytest.mark.parametrize(
    ("variant", "probe"),
    [*((variant, "ChosenLater") for variant in VARIANTS), ("rainbow", "Truncating"), ("pqn", "Truncating")],
)
def test_known_values(variant, probe):
    config = replace(VARIANTS[variant], environment=Environment(f"probes:{probe}"))
    learner = config.build()
    state = jax.jit(learner.init)(jax.random.key(0))
    state, _ = jax.jit(scan_steps(learner.step, config.run.steps), donate_argnums=0)(state, NO_BATCH)
    for x, expected in KNOWN[probe].items():
        np.testing.assert_allclose(config.q()(state, jnp.array([[float(x)]]))[0], expected, atol=0.12)


def test_a_recurrent_net_recalls_what_it_has_seen():
    """What the first frame showed decides the second's action: without memory both are worth 0."""
    config = DRQN(
        **SMALL,
        environment=Environment("probes:Recalled"),
        net=RecurrentQ(width=16),
        rollout_length=5,
        buffer_size=400,
        learning_starts=40,
        batch=16,
        sequence=4,
        burn_in=0,
        updates=5,
        target_update_interval=2,
    )
    learner = config.build()
    state = jax.jit(learner.init)(jax.random.key(0))
    state, _ = jax.jit(scan_steps(learner.step, config.run.steps), donate_argnums=0)(state, NO_BATCH)
    (batch,) = config.feeds().validation
    assert float(jax.jit(learner.evaluate)(state, batch)["return"].value) == 1
    apply, params = jax.jit(config.net.clone(outputs=2).apply), {"params": state.params["q"]}
    for x, best in ((1.0, [-1, 1]), (-1.0, [1, -1])):
        memory, first = apply(params, jnp.array([[x, *[0.0] * 32]]))
        _, second = apply(params, np.concatenate([np.zeros((1, 1), np.float32), memory], 1))
        np.testing.assert_allclose(first[0], [G, G], atol=0.15)
        np.testing.assert_allclose(second[0], best, atol=0.15)


class Counter(nn.Module):
    """A memory that each frame adds `increment` to, and values that are the memory before the frame."""

    width: int = 1
    outputs: FromData[int] = 0

    @nn.compact
    def __call__(self, x, train=False):
        memory = x[:, -2:]
        return memory + self.param("increment", nn.initializers.ones, ()), jnp.tile(memory[:, :1], self.outputs)


def test_a_burn_in_is_not_learned_from(burn_in=2):
    """The value of the second frame after the burn-in hangs on its first one: it alone gives the increment a gradient.

    The memory at the start of a sequence counts the frames before it, and the reward is as many.
    """
    config = DRQN(
        **SMALL | {"optimizer": Optimizer(name="sgd", learning_rate=0.1, momentum=0.0)},
        environment=Environment("probes:Counting"),
        net=Counter(),
        rollout_length=7,
        buffer_size=4 * 7,
        learning_starts=0,
        batch=4,
        sequence=2,
        burn_in=burn_in,
        updates=1,
    )
    learner = config.build()
    before = jax.jit(learner.init)(jax.random.key(0))
    state, _ = jax.jit(learner.step)(before, NO_BATCH)
    keys = example_keys(rng(before, "sample"), jnp.arange(4))
    first = np.asarray(replay.uniform(keys, before.step, 7, 7, (1, 1), config.length)).reshape(4)
    x = first[:, None] + burn_in + np.arange(2)
    target = x + G * (x + 1)
    gradient = np.mean((2 * (x - target)) * [0, 1])  # of the mean squared error
    np.testing.assert_allclose(state.params["q"]["increment"], 1 - 0.1 * gradient, rtol=1e-5)


def test_sequences_are_those_that_were_stored():
    """The memory that an observation ends in is of the frames before it in the episode: here, how many they are."""
    environment = append_memory(make(Environment("probes:Counting")), lambda x: x[:, -1:] + 1, 1)
    policy = lambda observation, uniform: (uniform * 2).astype(jnp.int32)
    actor, buffer = reset(environment, jax.random.key(0), 2), replay.empty(environment, 2, 20)
    follow = jax.jit(lambda actor, key: rollout(environment, policy, actor, key, 5))
    write = jax.jit(replay.write)
    for step in range(4):
        actor, frames, _ = follow(actor, jax.random.key(step))
        buffer = write(buffer, frames, jnp.int32(step))
    found = jax.jit(replay.sequences, static_argnums=2)(buffer, jnp.array([[[0, 3]], [[10, 12]]]), 8)
    for sequence, first in zip(np.asarray(found.observation[0]), (0, 3, 10, 12), strict=True):
        x = (first + np.arange(8)) % 7
        np.testing.assert_array_equal(sequence, np.stack([x, x], -1))
    # What follows a frame has one more in its memory, also at the end of an episode.
    np.testing.assert_array_equal(found.next_observation, found.observation + 1)


def test_a_table_learns_as_by_hand():
    """With lambda 0 and one minibatch a step is the update of tabular Q-learning, of SARSA, or of expected SARSA."""
    rate, epsilon, gamma, num_envs = 0.3, 0.4, 0.9, 16
    config = PQN(
        environment=Environment("FrozenLake-misc", max_steps=4),
        net=Table(),
        num_envs=num_envs,
        rollout_length=6,
        epochs=1,
        minibatches=1,
        q_lambda=0.0,
        gamma=gamma,
        epsilon_start=epsilon,
        epsilon_end=epsilon,
        optimizer=Optimizer(name="sgd", learning_rate=num_envs * 6 * rate, momentum=0.0, nesterov=False),
        run=Run(steps=10, steps_per_dispatch=10, metric="return"),
    )
    environment = make(config.environment)
    learner, act = config.build(), jax.jit(q_network(config, environment).act)
    state = jax.jit(learner.init)(jax.random.key(0))
    assert not state.params["q"]["table"]["kernel"].any()
    table = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    state = state._replace(params={"q": {"table": {"kernel": jnp.array(table)}}})
    _, frames, _ = jax.tree.map(np.asarray, act(state, state.world))
    updates = {bootstrap: np.zeros_like(table) for bootstrap in ("best", "next", "expected")}
    assert frames.terminated.any() and (frames.done & ~frames.terminated)[:, :5].any()
    keys = example_keys(rng(state, "next action"), jnp.arange(num_envs))
    uniform = np.asarray(jax.jit(jax.vmap(lambda key: jax.random.uniform(key, (6,))))(keys))
    for e, t in np.ndindex(num_envs, 6):
        s, a, following = frames.observation[e, t].argmax(), frames.action[e, t], frames.next_observation[e, t].argmax()
        q = table[following]
        # SARSA's is the action that came next; after the last frame and after an episode it is drawn as actions are.
        drawn = q.argmax() if uniform[e, t] >= epsilon else int(uniform[e, t] / epsilon * 4)
        values = {
            "best": q.max(),
            "next": q[drawn if t == 5 or frames.done[e, t] else frames.action[e, t + 1]],
            "expected": (1 - epsilon) * q.max() + epsilon * q.mean(),
        }
        for bootstrap, value in values.items():
            y = frames.reward[e, t] + gamma * value * (not frames.terminated[e, t])
            updates[bootstrap][s, a] += rate * (y - table[s, a])
    for bootstrap, moved in updates.items():
        after, _ = jax.jit(replace(config, bootstrap=bootstrap).build().step)(state, NO_BATCH)
        found = after.params["q"]["table"]["kernel"]
        np.testing.assert_allclose(found, table + moved, atol=1e-5, err_msg=bootstrap)


def test_a_sum_tree_finds_what_its_masses_lie_in():
    random = np.random.default_rng(0)
    trees, weights = priorities.empty(2, 11), np.zeros((2, 11), np.float32)
    assert trees.shape == (2, 32)
    put = jax.jit(jax.vmap(priorities.put))
    for _ in range(20):
        slots, new = random.integers(0, 11, (2, 4)), random.random((2, 4)).astype(np.float32)
        trees = put(trees, slots, new)
        for e in range(2):
            for slot in set(slots[e]):
                weights[e, slot] = new[e][slots[e] == slot].max()
    np.testing.assert_allclose(trees[:, 16:27], weights)
    np.testing.assert_allclose(trees[:, 1], weights.sum(1), rtol=1e-5)
    mass, find = (np.arange(1000) + 0.5) / 1000, jax.jit(priorities.find)
    for e in range(2):
        found = np.asarray(find(trees[e], jnp.array(mass)))
        np.testing.assert_array_equal(found, np.searchsorted(np.cumsum(weights[e]) / weights[e].sum(), mass))
    # A mass of the whole sum, as rounding may make it, is found in the last slot that has a priority.
    exact = priorities.put(priorities.empty(1, 11)[0], jnp.array([0, 1, 8]), jnp.array([1.0, 2.0, 4.0]))
    assert priorities.find(exact, jnp.array([0.0, 1.0])).tolist() == [0, 8]


@pytest.mark.parametrize("n", [1, 3, 10, 12])
def test_only_whole_windows_have_a_priority(n):
    slots, rollout_length = 12, 4
    trees, write = priorities.empty(1, slots), jax.jit(priorities.write, static_argnums=(2, 3, 4))
    for step in range(8):
        trees = write(trees, jnp.int32(step), rollout_length, slots, n)
        trees = priorities.update(trees, jnp.array([[0]]), jnp.array([[float(step)]]), 1.0) if step == 2 else trees
        written = (step + 1) * rollout_length
        # The number of the transition that each slot holds; -1 where there is none.
        number = np.array([max((k for k in range(written) if k % slots == slot), default=-1) for slot in range(slots)])
        whole = (number >= 0) & (number <= written - n)
        np.testing.assert_array_equal(np.asarray(trees[0, 16:28]) > 0, whole)
        # What is new gets the greatest priority so far: 1, and that of slot 0 from step 2 on.
        np.testing.assert_allclose(trees[0, 0], 1 if step < 2 else 2, atol=1e-5)


def test_samples_come_by_their_priority():
    trees = jax.jit(jax.vmap(priorities.put))(
        priorities.empty(1, 4), jnp.array([[0, 1, 2, 3]]), jnp.array([[1.0, 0.0, 2.0, 5.0]])
    )
    sample = jax.jit(priorities.sample, static_argnums=2)
    slots, probability = sample(trees, jax.random.key(0)[None], (500, 2))
    np.testing.assert_allclose(np.bincount(slots.reshape(-1)) / 1000, [1 / 8, 0, 2 / 8, 5 / 8], atol=0.03)
    np.testing.assert_allclose(probability, np.array([1, 0, 2, 5])[slots] / 8)


@pytest.mark.parametrize("error", [float("inf"), float("nan")])
def test_an_error_that_is_not_finite_is_no_priority(error):
    """It would stay the greatest, which new transitions get."""
    trees, update = priorities.empty(1, 4), jax.jit(priorities.update)
    for errors in ([1.0, error, 3.0, 0.0], [1.0, 1.0, 3.0, 0.0]):
        trees = update(trees, jnp.array([[0, 1, 2, 3]]), jnp.array([errors]), 1.0)
    assert np.isfinite(trees).all() and trees[0, 0] == pytest.approx(3)


def test_a_distribution_is_projected_as_by_hand():
    """Returns -1, 0, 1; a step to 0.5 + 0.5 * them is 0, 0.5, 1; to 3 + 0 is beyond the last one."""
    found = categorical(3, -1.0, 1.0)
    logits, next_ = jnp.log(jnp.array([[0.2, 0.3, 0.5]] * 2)), jnp.log(jnp.array([[0.1, 0.6, 0.3]] * 2))
    np.testing.assert_allclose(found.mean(logits), [0.3, 0.3], rtol=1e-5)
    loss, td_error = found.error(logits, jnp.array([0.5, 3.0]), jnp.array([0.5, 0.0]), next_)
    target = np.array([[0, 0.1 + 0.3, 0.3 + 0.3], [0, 0, 1]])
    np.testing.assert_allclose(loss, -(target * np.log([0.2, 0.3, 0.5])).sum(-1), rtol=1e-5)
    np.testing.assert_array_equal(loss, td_error)
    gradient = jax.grad(lambda x: found.error(logits, jnp.zeros(2), jnp.ones(2), x)[0].sum())(next_)
    assert not gradient.any()


def test_quantiles_as_by_hand():
    """Quantiles at 1/4 and 3/4, of a return of 1 + 0.5 * {0, 4}."""
    found = quantiles(2)
    predicted, next_ = jnp.array([[0.0, 2.5]]), jnp.array([[0.0, 4.0]])
    loss, td_error = found.error(predicted, jnp.array([1.0]), jnp.array([0.5]), next_)
    huber = lambda u: u**2 / 2 if abs(u) <= 1 else abs(u) - 0.5
    expected = sum(
        abs(tau - (y - q < 0)) * huber(y - q) / 2 for q, tau in ((0.0, 0.25), (2.5, 0.75)) for y in (1.0, 3.0)
    )
    np.testing.assert_allclose(loss, [expected], rtol=1e-6)
    np.testing.assert_allclose(td_error, [0.75])
    np.testing.assert_allclose(found.mean(predicted), [1.25])
    gradient = jax.grad(lambda x: found.error(predicted, jnp.ones(1), jnp.ones(1), x)[0].sum())(next_)
    assert not gradient.any()


@pytest.mark.parametrize("decay", [0.0, 0.6, 1.0])
def test_lambda_returns_as_by_their_definition(decay):
    random, gamma, length = np.random.default_rng(1), 0.9, 9
    reward, value = random.normal(size=(2, 3, length)).astype(np.float32)
    terminated = random.random((3, length)) < 0.2
    done = terminated | (random.random((3, length)) < 0.2)
    nothing = jnp.zeros((3, length))
    transitions = Transition(nothing, nothing, jnp.array(reward), jnp.array(terminated), jnp.array(done), nothing)
    found = jax.jit(lambda_returns)(transitions, jnp.array(value), gamma, decay)
    for e, t in np.ndindex(3, length):
        # A mean of the n-step returns, of weight (1 - decay) * decay ** (n - 1); the longest takes the rest.
        expected, rewards, weight = 0.0, 0.0, 1.0
        for n, k in enumerate(range(t, length), 1):
            rewards += gamma ** (n - 1) * reward[e, k]
            n_step = rewards + gamma**n * value[e, k] * (not terminated[e, k])
            last = done[e, k] or k == length - 1
            expected += weight * n_step if last else weight * (1 - decay) * n_step
            weight *= decay
            if last:
                break
        np.testing.assert_allclose(found[e, t], expected, rtol=1e-4, atol=1e-5)


def test_minibatches_hold_every_frame_once_and_alike_of_each_environment():
    frames, keys = jnp.arange(3 * 8).reshape(3, 8), jax.random.split(jax.random.key(0), 3)
    of_four = jax.jit(minibatches, static_argnums=2)
    found = np.asarray(of_four(frames, keys, 4))
    assert found.shape == (4, 6)
    np.testing.assert_array_equal(np.sort(found.reshape(-1)), np.arange(24))
    for batch in found:
        np.testing.assert_array_equal(np.bincount(batch // 8), [2, 2, 2])
    assert (found[:, :2] + 8 != found[:, 2:4]).any()
    # An environment's order does not depend on the others.
    np.testing.assert_array_equal(of_four(frames[1:2], keys[1:2], 4), found[:, 2:4])


def test_probabilities_are_those_of_epsilon_greedy():
    found = probabilities(jnp.array([[0.0, 5.0, 1.0, 2.0]]), jnp.float32(0.2))
    np.testing.assert_allclose(found, [[0.05, 0.85, 0.05, 0.05]], rtol=1e-6)


def test_dueling_streams_as_by_hand():
    net = MLP(widths=(), dueling=True, outputs=3, atoms=2)
    x = jnp.array([[1.0, -2.0]])
    params = net.init(jax.random.key(0), x)["params"]
    dense = lambda name: np.asarray(x @ params[name]["kernel"] + params[name]["bias"])[0]
    advantage = dense("head").reshape(3, 2)
    expected = dense("value") + advantage - advantage.mean(0)
    np.testing.assert_allclose(net.apply({"params": params}, x)[0].reshape(3, 2), expected, rtol=1e-5)


def test_noise_is_each_examples_own_and_of_its_scale():
    module, x = NoisyDense(3), jnp.ones((4000, 2))
    net, params = network(module), module.init(jax.random.key(0), x[:1], False)["params"]
    keys = jax.random.split(jax.random.key(1), len(x))
    quiet = module.apply({"params": params}, x, False)
    noisy, _ = net.apply(params, {}, x, rng=keys)
    np.testing.assert_allclose(quiet[0], x[0] @ params["kernel"] + params["bias"], rtol=1e-5)
    assert (quiet == quiet[0]).all() and len(np.unique(np.asarray(noisy[:, 0]))) > 3990
    # Each weight's noise is f(e) f(e'), of variance E|e| squared = 2 / pi; the two inputs and the bias's E|e'| add up.
    scale, mean_abs = 0.5 / np.sqrt(2), np.sqrt(2 / np.pi)
    np.testing.assert_allclose(np.var(noisy - quiet, 0), scale**2 * (2 * mean_abs**2 + mean_abs), rtol=0.15)
    np.testing.assert_allclose(np.mean(noisy - quiet, 0), np.zeros(3), atol=0.03)
    alone, _ = net.apply(params, {}, x[7:8], rng=keys[7:8])
    np.testing.assert_allclose(alone[0], noisy[7], rtol=1e-5)


def test_importance_weights_and_new_priorities_as_in_numpy():
    """The net stays as it is (a learning rate of 0), so that both minibatches of a step are valued by it."""
    num_envs, rollout_length, slots, updates, alpha, gamma, step = 4, 2, 8, 2, 0.7, 0.9, 9
    config = DQN(
        environment=Environment("probes:ChosenLater"),
        net=MLP(widths=()),
        num_envs=num_envs,
        rollout_length=rollout_length,
        buffer_size=num_envs * slots,
        learning_starts=0,
        batch=num_envs * 2,
        updates=updates,
        gamma=gamma,
        priority_exponent=alpha,
        importance_exponent=0.4,
        optimizer=Optimizer(name="sgd", learning_rate=0.0),
        run=Run(steps=20, steps_per_dispatch=10, metric="return"),
    )
    learner, random = config.build(), np.random.default_rng(0)
    state = jax.jit(learner.init)(jax.random.key(0))
    array = lambda *shape: jnp.array(random.normal(size=shape), jnp.float32)
    net, target = ({"head": {"kernel": array(1, 2), "bias": array(2)}} for _ in range(2))
    ended = jnp.array(random.random((num_envs, slots)) < 0.3)
    action = jnp.array(random.integers(0, 2, (num_envs, slots)), jnp.int32)
    buffer = state.world.buffer._replace(
        observation=array(num_envs, slots, 1),
        action=action,
        reward=array(num_envs, slots),
        terminated=ended,
        done=ended,
    )
    all_slots = jnp.tile(jnp.arange(slots), (num_envs, 1))
    trees = jax.jit(priorities.update)(state.world.priorities, all_slots, jnp.abs(array(num_envs, slots)), alpha)
    world = state.world._replace(buffer=buffer, priorities=trees)
    state = state._replace(step=jnp.int32(step), params={"q": net}, collections={"target": target}, world=world)
    after, metrics = jax.jit(learner.step)(state, NO_BATCH)

    buffer = jax.tree.map(np.asarray, after.world.buffer)
    trees = jax.jit(priorities.write, static_argnums=(2, 3, 4))(trees, jnp.int32(step), rollout_length, slots, 1)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(rng(state, "sample"), jnp.arange(num_envs))
    drawn, probability = map(np.asarray, jax.jit(priorities.sample, static_argnums=2)(trees, keys, (updates, 2)))
    net, target = jax.device_get((net, target))
    q = lambda net, x: x @ net["head"]["kernel"] + net["head"]["bias"]
    losses, weights = [], []
    expected = np.array(trees)[:, slots:]  # the leaves: slots is a power of two
    new: dict[tuple[int, int], float] = {}
    for e, u, k in np.ndindex(num_envs, updates, 2):
        at = drawn[e, u, k]
        newest = at == buffer.newest_slot[e]
        next_x = buffer.newest[e] if newest else buffer.observation[e, (at + 1) % slots]
        y = buffer.reward[e, at] + gamma * (not buffer.terminated[e, at]) * q(target, next_x).max()
        error = y - q(net, buffer.observation[e, at])[buffer.action[e, at]]
        weight = (slots * probability[e, u, k]) ** -(0.4 + 0.6 * step / 20)
        losses.append(weight * error**2)
        weights.append(weight)
        new[e, at] = max(new.get((e, at), 0), (abs(error) + 1e-6) ** alpha)
    for place, value in new.items():
        expected[place] = value
    np.testing.assert_allclose(metrics["loss"].value, sum(losses) / sum(weights), rtol=1e-4)
    np.testing.assert_allclose(after.world.priorities[:, slots:], expected, rtol=1e-4)


@pytest.mark.parametrize("probe", ["Recalled", "Counting"])  # episodes of 2 frames, and of 7, which are truncated
def test_a_recurrent_net_unrolls_from_the_memory_that_was_stored(probe):
    """The loss of a step, by a loop over the frames of each sequence; the net stays as it is."""
    config = DRQN(
        environment=Environment(f"probes:{probe}"),
        net=RecurrentQ(width=4),
        num_envs=4,
        rollout_length=5,
        buffer_size=4 * 20,
        learning_starts=0,
        batch=4,
        sequence=4,
        burn_in=1,
        updates=1,
        gamma=G,
        optimizer=Optimizer(name="sgd", learning_rate=0.0),
        run=Run(steps=20, steps_per_dispatch=10, metric="return"),
    )
    learner = config.build()
    state = jax.jit(learner.init)(jax.random.key(0))
    target = jax.jit(learner.init)(jax.random.key(1)).params["q"]
    step = jax.jit(learner.step)
    for _ in range(4):
        state = state._replace(collections={"target": target})
        before, (state, metrics) = state, step(state, NO_BATCH)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(rng(before, "sample"), jnp.arange(4))
    slots = jax.jit(replay.uniform, static_argnums=(2, 3, 4, 5))(keys, before.step, 5, 20, (1, 1), 5)
    found = jax.device_get(jax.jit(replay.sequences, static_argnums=2)(state.world.buffer, slots, 5))
    (frames,) = zip(*found, strict=True)
    observation, action, reward, terminated, done, following = frames
    assert done[:, :-1].any() and observation[:, 0, 1:].any()  # episodes end within, and some begin before
    net = config.net.clone(outputs=make(config.environment).num_actions)
    apply = jax.jit(lambda params, x: net.apply({"params": params}, x))
    losses = []
    for b in range(4):
        memory = ours = observation[b, :1, 1:]
        for t in range(5):
            with_memory = lambda x, memory: np.concatenate([[[x]], memory], 1, dtype=np.float32)
            ours, values = apply(state.params["q"], with_memory(observation[b, t, 0], ours))
            memory, _ = apply(target, with_memory(observation[b, t, 0], memory))
            _, next_values = apply(target, with_memory(following[b, t, 0], memory))
            y = reward[b, t] + G * (not terminated[b, t]) * float(next_values.max())
            if t >= 1:
                losses.append((y - float(values[0, action[b, t]])) ** 2)
            if done[b, t]:
                memory, ours = np.zeros((1, 8)), np.zeros((1, 8))
    np.testing.assert_allclose(metrics["loss"].value, np.mean(losses), rtol=1e-4)
