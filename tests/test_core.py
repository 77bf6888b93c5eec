"""State, Mean, descend, averaged, the optimizers: against values worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.core.errors import Failure
from research.core.experiment import Run
from research.core.optimizers import Optimizer, decayed, optimizer, schedule
from research.core.state import NO_BATCH, Batch, Learner, Mean, State, each, mean, stream
from research.core.transformations import averaged
from research.core.update import Descent, descend
from research.training.judge import best, check_moving, exhausted, merged, summary


def state(step=0, key=0, params=(), collections=None):
    return State(jnp.int32(step), jax.random.key(key), params, (), collections or {}, ())


def test_mean_is_weighted_and_merges():
    values = np.array([[1.0, 2.0], [3.0, 4.0], [np.nan, 9.0]])
    found = mean(values, jnp.array([1.0, 0.5, 0.0]))
    assert (float(found.total), float(found.count)) == (1 + 2 + 1.5 + 2, 3.0)
    assert float(mean(values[:2]).value) == 2.5
    assert float(Mean(jnp.float32(0), jnp.float32(0)).value) == 0


def test_streams_differ_by_name_step_key_and_example():
    keys = [stream(state(), "a"), stream(state(), "b"), stream(state(step=1), "a"), stream(state(key=1), "a")]
    keys += list(each(stream(state(), "a"), jnp.arange(3)))
    data = {tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in keys}
    assert len(data) == len(keys)
    same = each(stream(state(), "a"), jnp.array([2]))[0]
    assert (jax.random.key_data(same) == jax.random.key_data(keys[-1])).all()


def squared(params, collections, batch, key):
    """(w x - y)^2 over the examples that count."""
    error = (params["kernel"] * batch.inputs - batch.targets) ** 2
    return mean(error, batch.mask), (collections, {})


X = Batch(jnp.arange(4), jnp.array([1.0, 1, 1, 0]), jnp.array([1.0, 2, 3, 100]), jnp.array([1.0, 1, 1, 1]))
GRADIENT = 2 * ((2 * 1 - 1) * 1 + (2 * 2 - 1) * 2 + (2 * 3 - 1) * 3) / 3  # at w = 2


@pytest.mark.parametrize("micro", [1, 2, 4])
@pytest.mark.parametrize("clip", [None, 1.0, 100.0])
def test_descend_by_hand(micro, clip):
    params, tx = {"kernel": jnp.float32(2)}, optax.sgd(0.1)
    new, *_, metrics = descend(squared, tx, params, tx.init(params), {}, X, jax.random.key(0), Descent(micro, clip))
    assert metrics["gradient_norm"].value == pytest.approx(GRADIENT, rel=1e-6)
    assert metrics["loss"].value == pytest.approx((1 + 9 + 25) / 3)
    step = GRADIENT if clip is None else min(GRADIENT, clip)
    assert new["kernel"] == pytest.approx(2 - 0.1 * step, rel=1e-6)


def test_nothing_counted_moves_nothing():
    params, tx = {"kernel": jnp.float32(2)}, optax.sgd(0.1)
    batch = X._replace(mask=jnp.zeros(4))
    new, *_, metrics = descend(squared, tx, params, tx.init(params), {}, batch, jax.random.key(0))
    assert new["kernel"] == 2 and metrics["gradient_norm"].value == 0


def test_bfloat16_computes_in_bfloat16_and_keeps_float32():
    seen = []

    def loss(params, collections, batch, key):
        seen.append(params["kernel"].dtype)
        return squared(params, collections, batch, key)

    params, tx = {"kernel": jnp.float32(2)}, optax.adam(0.1)
    new, opt_state, _, metrics = descend(
        loss, tx, params, tx.init(params), {}, X, jax.random.key(0), Descent(dtype="bfloat16")
    )
    assert seen == [jnp.bfloat16] and new["kernel"].dtype == jnp.float32
    assert all(x.dtype != jnp.bfloat16 for x in jax.tree.leaves((opt_state, metrics)))
    assert metrics["gradient_norm"].value == pytest.approx(GRADIENT, rel=1e-2)


def test_average_follows_the_weights():
    def step(state, batch):
        return state._replace(step=state.step + 1, params=state.params + 1.0), {}

    learner = averaged(Learner(lambda key: state(params=jnp.float32(0)), step, lambda s, b: {"w": mean(s.params)}), 0.5)
    run, average = learner.init(None), 0.0
    for t in range(1, 6):
        run, _ = learner.step(run, NO_BATCH)
        keep = min(0.5, (1 + t) / (10 + t))
        average = keep * average + (1 - keep) * t
    assert learner.evaluate(run, NO_BATCH)["w"].value == pytest.approx(average, rel=1e-6)
    assert run.params == 5


PARAMS = {
    "Conv_0": {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4)},
    "BatchNorm_0": {"scale": jnp.ones(4), "bias": jnp.ones(4)},
    "Embed_0": {"embedding": jnp.ones((5, 4))},
}


@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor", "lion", "muon"])
def test_decay_spares_biases_and_norms(name):
    """With gradients of 0, what is decayed shrinks and all else stays."""
    tx = optimizer(Optimizer(name=name, learning_rate=0.1, weight_decay=0.1), 10)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = tx.update(zeros, tx.init(PARAMS), PARAMS)
    moved = jax.tree.map(lambda u: bool((u != 0).any()), updates)
    expected = decayed(PARAMS)
    assert expected["Conv_0"] == {"kernel": True, "bias": False} and not any(expected["BatchNorm_0"].values())
    expected["Embed_0"]["embedding"] = name != "muon"
    assert moved == expected


@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor", "lion", "muon"])
def test_every_optimizer_descends(name):
    target = jax.random.normal(jax.random.key(0), (8, 4))
    tx = optimizer(Optimizer(name=name, learning_rate=0.1 if name != "lion" else 0.03, schedule="linear"), 300)
    params = {"kernel": jnp.zeros((8, 4)), "bias": jnp.zeros(4)}
    loss = lambda p: ((p["kernel"] + p["bias"] - target) ** 2).mean()

    def step(carry, _):
        params, opt_state = carry
        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss(params)

    (params, _), losses = jax.jit(lambda c: jax.lax.scan(step, c, None, length=300))((params, tx.init(params)))
    assert loss(params) < 1e-2 * losses[0]


def test_sgd_by_hand():
    tx = optimizer(Optimizer(name="sgd", learning_rate=0.1, momentum=0.9, nesterov=False, weight_decay=0.5), 10)
    w, m = 1.0, 0.0
    params, opt_state = {"kernel": jnp.float32(w)}, tx.init({"kernel": jnp.float32(w)})
    for gradient in (1.0, -2.0):
        updates, opt_state = tx.update({"kernel": jnp.float32(gradient)}, opt_state, params)
        params = optax.apply_updates(params, updates)
        m = 0.9 * m + gradient + 0.5 * w
        w -= 0.1 * m
    assert params["kernel"] == pytest.approx(w, rel=1e-6)


@pytest.mark.parametrize(
    ("how", "at", "value"),
    [
        (Optimizer(learning_rate=2.0), 50, 2.0),
        (Optimizer(learning_rate=2.0, schedule="linear"), 50, 1.0),
        (Optimizer(learning_rate=2.0, schedule="cosine"), 50, 1.0),
        (Optimizer(learning_rate=2.0, schedule="cosine"), 100, 0.0),
        (Optimizer(learning_rate=2.0, schedule="cosine", warmup=20), 10, 1.0),
        (Optimizer(learning_rate=2.0, schedule="cosine", warmup=20), 20, 2.0),
        (Optimizer(learning_rate=2.0, schedule="cosine", warmup=20), 60, 1.0),
        (Optimizer(learning_rate=2.0, schedule="halving"), 49, 2.0),
        (Optimizer(learning_rate=2.0, schedule="halving"), 51, 1.0),
        (Optimizer(learning_rate=2.0, schedule="halving"), 99, 0.25),
        (Optimizer(learning_rate=2.0, schedule="halving", warmup=10), 51, 1.0),
        (Optimizer(learning_rate=2.5, schedule="one_cycle"), 0, 0.1),
        (Optimizer(learning_rate=2.5, schedule="one_cycle"), 30, 2.5),
        (Optimizer(learning_rate=2.5, schedule="one_cycle"), 100, 1e-5),
    ],
)
def test_schedules(how, at, value):
    assert float(schedule(how, 100)(at)) == pytest.approx(value, abs=2e-4)


def test_host_metrics():
    metrics = {"a": Mean(np.array([[1.0, 2.0], [3.0, np.nan]]), np.array([[1.0, 1.0], [1.0, 1.0]]))}
    metrics["none"] = Mean(np.zeros(2), np.zeros(2))
    assert merged(metrics) == {"a": [2.0, None], "none": None}
    assert summary({"a": [1.0, None, 3.0]})["a"] == {
        "mean": 2.0,
        "spread": pytest.approx(2**0.5),
        "each": [1.0, None, 3.0],
    }


def test_players_that_stand_still_are_a_failure(tmp_path):
    steps = np.arange(10.0)

    def told(first, second, gradients=(1, 1), counts=1.0):
        metrics = {}
        for name, loss, gradient in zip(("one", "other"), (first, second), gradients, strict=True):
            loss = np.asarray(loss, np.float32)
            metrics[f"{name}_loss"] = Mean(loss * counts, np.full(loss.shape, counts))
            metrics[f"{name}_gradient_norm"] = Mean(np.full(loss.shape, gradient), np.ones(loss.shape))
        try:
            check_moving(metrics, 30, tmp_path)
        except Failure as failure:
            return str(failure)

    still, moving = np.full(10, 0.3), steps + 1
    message = told(still, 0 * steps)
    assert "one and other have stopped" in message and "from step 31 to 40" in message
    assert told(still, still * (1 + 1e-7 * steps)) and told(moving, moving, (0, 0)) and told(still, moving, (1, 0))
    assert told(still, still, counts=7.0)
    # One that moves keeps the game going; a few steps can't tell, and what was not counted neither.
    assert not told(still, moving) and not told(moving, still) and not told(moving, moving, (0, 1))
    assert not told(still, still * (1 + 1e-5 * steps))
    assert not told(still[:4], still[:4]) and not told(still, still, counts=0.0)
    # Of seeds, all have to stop, or to have diverged.
    both = lambda a, b: np.stack([a, b], 1)
    assert told(both(still, still), both(still, still)) and told(both(still, still * np.nan), both(still, still))
    assert not told(both(still, moving), both(still, moving))
    assert not told(both(still, moving), both(moving, still))
    # A loss alone is nobody's game.
    check_moving({"loss": Mean(still, np.ones(10)), "one_loss": Mean(still, np.ones(10))}, 0, tmp_path)


def test_best_and_patience():
    run = Run(patience=2)
    assert best([None, 0.5, 0.7, 0.7], run) == 2 and best([None], run) is None
    assert best([3.0, 1.0, 2.0], Run(goal="min")) == 1
    assert [exhausted([0.5, 0.7, 0.6, 0.7][:n], run) for n in range(5)] == [False, False, False, False, True]
    assert not exhausted([0.5, 0.4, 0.3, 0.2], Run())
