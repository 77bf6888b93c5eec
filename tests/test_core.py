"""State, metrics, update, network, the optimizers: against values worked out by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.core.errors import RunError, UserError
from research.core.experiment import Experiment, Report, Run
from research.core.layout import Layout, make_mesh
from research.core.metrics import Mean, confusion, mean, merged
from research.core.modules import network
from research.core.optimizers import Optimizer, decayed, optimizer, schedule
from research.core.placement import place
from research.core.state import Batch, State, evaluated, example_keys, fold_name, learner, rng
from research.core.transformations import each_seed
from research.core.update import Aux, UpdateConfig, scan_updates, updater
from research.training.checks import check_contract, check_moving
from research.training.evaluate import best, exhausted, summary


def state(step=0, key=0, params=(), collections=None):
    return State(jnp.int32(step), jax.random.key(key), params, {}, collections or {}, ())


def test_mean_is_weighted_and_merges():
    values = np.array([[1.0, 2.0], [3.0, 4.0], [np.nan, 9.0]])
    found = mean(values, jnp.array([1.0, 0.5, 0.0]))
    assert (float(found.total), float(found.count)) == (1 + 2 + 1.5 + 2, 3.0)
    assert float(mean(values[:2]).value) == 2.5
    assert float(Mean(jnp.float32(0), jnp.float32(0)).value) == 0


def test_a_confusion_matrix_merges_and_computes():
    """Two batches, one of them with padding: precision, recall and F1 of classes counted by hand."""
    parts = [
        confusion(jnp.array([0, 1, 1, 2]), jnp.array([0, 0, 1, 2]), jnp.ones(4), ("a", "b", "c")),
        confusion(jnp.array([1, 2, 0, 0]), jnp.array([1, 0, 2, 2]), jnp.array([1.0, 1, 0, 0]), ("a", "b", "c")),
    ]
    # True a: one as a, one as b, one as c. True b: two as b. True c: one as c.
    values = merged({"confusion": jax.tree.map(lambda *x: jnp.stack(x), *parts)})
    assert [values[f"precision_{c}"] for c in "abc"] == pytest.approx([1, 2 / 3, 1 / 2])
    assert [values[f"recall_{c}"] for c in "abc"] == pytest.approx([1 / 3, 1, 1])
    assert [values[f"f1_{c}"] for c in "abc"] == pytest.approx([1 / 2, 4 / 5, 2 / 3])
    assert values["macro_f1"] == pytest.approx((1 / 2 + 4 / 5 + 2 / 3) / 3)
    kinds = ("precision", "recall", "f1")
    assert set(values) == {"macro_f1", *(f"{kind}_{name}" for kind in kinds for name in "abc")}
    # Of two seeds, each by itself.
    seeds = merged({"confusion": jax.tree.map(lambda x: jnp.stack([x, x.T])[None], parts[0])})
    assert seeds["recall_a"] == pytest.approx([1 / 2, 1]) and seeds["precision_a"] == pytest.approx([1, 1 / 2])


def test_streams_differ_by_name_step_key_and_example():
    keys = [rng(state(), "a"), rng(state(), "b"), rng(state(step=1), "a"), rng(state(key=1), "a")]
    keys += list(example_keys(rng(state(), "a"), jnp.arange(3)))
    keys += list(fold_name(example_keys(rng(state(), "a"), jnp.arange(3)), "noise"))
    data = {tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in keys}
    assert len(data) == len(keys)
    same = example_keys(rng(state(), "a"), jnp.array([2]))[0]
    assert (jax.random.key_data(same) == jax.random.key_data(keys[6])).all()


def squared(params, state, batch, rng):
    """(w x - y)^2 over the examples that count; each example's own value comes back as a row."""
    error = (params["kernel"] * batch.inputs - batch.targets) ** 2
    return mean(error, batch.mask), Aux({"seen": mean(batch.mask)}, rows=error)


X = Batch(jnp.arange(4), jnp.array([1.0, 1, 1, 0]), jnp.array([1.0, 2, 3, 100]), jnp.array([1.0, 1, 1, 1]))
GRADIENT = 2 * ((2 * 1 - 1) * 1 + (2 * 2 - 1) * 2 + (2 * 3 - 1) * 3) / 3  # at w = 2
SGD = Optimizer(name="sgd", learning_rate=0.1, momentum=0.0, nesterov=False)


def updating(config=UpdateConfig(), optimizer=SGD, average=None, names=("net",)):
    """(a State with w = 2 for each name, update)"""
    made = updater(config, {name: (optimizer, 10) for name in names}, {"net": average})
    return made.init(jax.random.key(0), {name: ({"kernel": jnp.float32(2)}, {}) for name in names}), made.update


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("clip", [None, 1.0, 100.0])
def test_update_by_hand(parts, clip):
    before, update = updating(UpdateConfig(parts, clip))
    after, aux = update(before, "net", squared, X)
    assert aux.metrics["gradient_norm"].value == pytest.approx(GRADIENT, rel=1e-6)
    assert aux.metrics["loss"].value == pytest.approx((1 + 9 + 25) / 3)
    assert aux.metrics["learning_rate"].value == pytest.approx(0.1)
    assert (aux.metrics["seen"].total, aux.metrics["seen"].count) == (3, 4)
    assert aux.rows.tolist() == [1, 9, 25, 199**2]  # in the batch's order, whatever part an example was in
    step = GRADIENT if clip is None else min(GRADIENT, clip)
    assert after.params["net"]["kernel"] == pytest.approx(2 - 0.1 * step, rel=1e-6)
    assert after.opt_state["net"].count == 1 and after.step == before.step


def test_nothing_counted_moves_nothing():
    before, update = updating()
    after, aux = update(before, "net", squared, X._replace(mask=jnp.zeros(4)))
    assert after.params["net"]["kernel"] == 2 and aux.metrics["gradient_norm"].value == 0


def test_a_loss_of_the_whole_batch_refuses_microbatches():
    before, update = updating(UpdateConfig(2))
    with pytest.raises(UserError, match=r"of the whole batch: .* must be 1, not 2"):
        update(before, "net", squared, X, whole_batch=True)


@pytest.mark.parametrize(
    "loss, kind",
    [
        (lambda *given: squared(*given)[0], "Mean"),
        (lambda *given: (squared(*given)[0].value, Aux()), r"\(\w*Tracer, Aux\)"),
        (lambda *given: (squared(*given)[0], {}), r"\(Mean, dict\)"),
    ],
)
def test_what_a_loss_is_to_return(loss, kind):
    before, update = updating()
    with pytest.raises(RunError, match=rf"the loss of 'net' is to return \(Mean, Aux\), not {kind}"):
        update(before, "net", loss, X)


def test_names_that_are_not_there():
    before, update = updating(names=("net", "head"))
    with pytest.raises(RunError, match="there is no optimizer of 'nets': the updater has 'net', 'head'"):
        update(before, "nets", squared, X)
    init = updater(UpdateConfig(), {"net": (SGD, 10)}, {}).init
    with pytest.raises(RunError, match="the updater has an optimizer of 'net', and init was given 'online'"):
        init(jax.random.key(0), {"online": ({"kernel": jnp.float32(2)}, {})})
    with pytest.raises(RunError, match=r"init takes \(params, collections\) of 'net'"):
        init(jax.random.key(0), {"net": {"kernel": jnp.float32(2)}})


def test_a_step_returns_metrics_too():
    made = learner(lambda key: state(), lambda state, batch: state, lambda state, batch: {})
    with pytest.raises(RunError, match=r"a learner's step is to return \(State, metrics\), not State"):
        made.step(state(), X)


class Nothing(Experiment):
    def build(self):
        """It is not called: only `run` is read."""


def test_metrics_add_up_and_run_metric_names_one():
    init, _ = updating()
    evaluate = lambda state, batch: {"loss": mean(jnp.ones(2))}

    def check(metrics, *reports):
        made = learner(lambda key: init, lambda state, batch: (state, metrics), evaluate)
        return check_contract(made, jax.random.key(0), X, X, Nothing(run=Run(metric="bleu", mode="max")), reports)

    with pytest.raises(RunError, match="the metric 'tau' of step is an array: make it one that adds up"):
        check({"tau": jnp.ones(3)})
    with pytest.raises(UserError, match=r"there is no metric 'bleu': set --run\.metric to one of loss"):
        check({})
    report = Report(lambda *_: {}, metrics=("bleu",))
    with pytest.raises(UserError, match=r"--run\.metric bleu is computed once, at the end: give the interval of its"):
        check({}, report)
    assert check({}, report._replace(every=10)).step.shape == ()


def test_keys_are_by_example_and_by_count_not_by_part():
    """An example gets the same key however the batch is cut, another one at the next update and for another name."""

    def keys(parts, updates=1, name="one"):
        drawn = lambda params, state, batch, rng: (mean(params["kernel"] * batch), Aux(rows=jax.random.key_data(rng)))
        state, update = updating(UpdateConfig(parts), names=("one", "other"))
        for _ in range(updates):
            state, aux = update(state, name, drawn, jnp.arange(4.0))
        return np.asarray(aux.rows)

    assert (keys(1) == keys(2)).all() and (keys(1) == keys(4)).all()
    assert len(np.unique(np.concatenate([keys(1), keys(1, 2), keys(1, 1, "other")]), axis=0)) == 12


def test_updates_of_a_scan_are_updates_one_after_another():
    batches = jax.tree.map(lambda x: jnp.stack([x, x[::-1]]), X)
    one, update = updating(average=0.5)
    scanned, aux = scan_updates(update, one._replace(world=jnp.ones(3)), "net", squared, batches)
    for n in range(2):
        one, last = update(one, "net", squared, jax.tree.map(lambda x, n=n: x[n], batches))
    jax.tree.map(np.testing.assert_allclose, (scanned.params, scanned.collections), (one.params, one.collections))
    assert scanned.opt_state["net"].count == 2 and (scanned.world == 1).all()
    assert aux.metrics["loss"].count == 6 and aux.rows.shape == (2, 4)
    np.testing.assert_allclose(aux.rows[1], last.rows)


def test_several_names_are_told_apart():
    before, update = updating(names=("one", "other"))
    after, aux = update(before, "other", squared, X)
    assert {"other_loss", "other_gradient_norm", "other_learning_rate"} <= set(aux.metrics)
    assert (
        after.params["one"]["kernel"] == 2 and after.opt_state["one"].count == 0 and after.opt_state["other"].count == 1
    )


def test_average_follows_the_weights():
    run, update = updating(average=0.5)
    average = 2.0
    for t in range(1, 6):
        run, _ = update(run, "net", squared, X)
        keep = min(0.5, (1 + t) / (10 + t))
        average = keep * average + (1 - keep) * float(run.params["net"]["kernel"])
    assert evaluated(run, "net")["kernel"] == pytest.approx(average, rel=1e-6)
    assert run.params["net"]["kernel"] != pytest.approx(average, rel=1e-3)


class Table(nn.Module):
    """The sum of rows of a table, times a kernel; it counts its calls in training, and draws a stream of its own."""

    @nn.compact
    def __call__(self, x, train=False):
        calls = self.variable("calls", "count", lambda: jnp.float32(0))
        if train and not self.is_initializing():
            calls.value += 1
        rows = nn.Embed(1, 1, embedding_init=nn.initializers.ones, name="rows")(x).sum((1, 2))
        kernel = self.param("kernel", nn.initializers.ones, ())
        self.sow("intermediates", "dtype", rows)
        drawn = jax.random.normal(self.make_rng("noise"), ()) if train else 0.0
        return (rows * kernel, kernel, jnp.float32(drawn) + 0 * kernel)


@pytest.mark.parametrize("seeds", [None, 2])
def test_each_seed_of_a_state_on_eight_devices_is_on_one(seeds):
    keys = jax.random.key(3) if seeds is None else jax.vmap(jax.random.key)(jnp.arange(seeds))
    params = {"net": jnp.arange(6.0).reshape(seeds or 1, -1)[0 if seeds is None else slice(None)]}
    whole = State(jnp.int32(7), keys, params, {"net": params}, params, ())
    found = list(each_seed(place("jit", Layout(make_mesh(jax.devices()), seeds=seeds is not None)).put(whole)))
    assert len(found) == (seeds or 1)
    for n, one in enumerate(found):
        assert all(x.sharding.num_devices == 1 for x in jax.tree.leaves(one))
        assert int(one.step) == 7 and one.opt_state == {}
        assert one.key == (keys if seeds is None else keys[n])
        np.testing.assert_array_equal(one.params["net"], params["net"] if seeds is None else params["net"][n])
        np.testing.assert_array_equal(one.collections["net"], one.params["net"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_network_computes_in_its_dtype_and_sums_gradients_in_float32(dtype):
    net = network(Table(), dtype)
    tokens = jnp.zeros((1, 8192), jnp.int32)
    params, own = net.init(jax.random.key(0), tokens)
    keys = example_keys(jax.random.key(0), jnp.arange(1))

    def loss(params):
        (total, kernel, drawn), moved = net.apply(params, own, tokens, rng=keys)
        return kernel * jnp.float32(0) + total[0], (total, moved, drawn)

    gradient, (total, moved, drawn) = jax.grad(loss, has_aux=True)(params)
    assert total.dtype == gradient["kernel"].dtype == jnp.float32
    # 8,192 ones: their sum in bfloat16 stops at 256.
    assert gradient["rows"]["embedding"].item() == 8192
    assert moved["calls"]["count"] == 1 and drawn != 0
    inside = jax.make_jaxpr(lambda params: net.apply(params, own, tokens)[0])(params)
    assert ("bf16" in str(inside)) == (dtype == "bfloat16")


PARAMS = {
    "Conv_0": {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4)},
    "BatchNorm_0": {"scale": jnp.ones(4), "bias": jnp.ones(4)},
    "Embed_0": {"embedding": jnp.ones((5, 4))},
}


@pytest.mark.parametrize("name", ["adamw", "sgd", "rmsprop", "adafactor", "lion", "muon"])
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


@pytest.mark.parametrize("name", ["adamw", "sgd", "rmsprop", "adafactor", "lion", "muon"])
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
        (Optimizer(learning_rate=2.0, schedule="cosine", final_ratio=0.1), 100, 0.2),
        (Optimizer(learning_rate=2.0, schedule="linear", final_ratio=0.5), 50, 1.5),
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


def test_a_schedule_of_few_updates():
    """A linear one ends after the last update; fractions that fall on one update halve the rate once each."""
    rates = lambda **how: [float(schedule(Optimizer(learning_rate=1.0, **how), 4)(at)) for at in range(5)]
    assert rates(schedule="linear") == [1, 0.75, 0.5, 0.25, 0]
    assert rates(schedule="halving") == [1, 1, 0.5, 0.125, 0.125]
    with pytest.raises(UserError, match=r"optimizer\.warmup must be at least 0"):
        Optimizer(warmup=-1)


def test_host_metrics():
    metrics = {"a": Mean(np.array([[1.0, 2.0], [3.0, np.nan]]), np.array([[1.0, 1.0], [1.0, 1.0]]))}
    metrics["none"] = Mean(np.zeros(2), np.zeros(2))
    assert merged(metrics) == {"a": [2.0, None], "none": None}
    assert summary({"a": [1.0, None, 3.0]})["a"] == {
        "mean": 2.0,
        "spread": pytest.approx(2**0.5),
        "each": [1.0, None, 3.0],
    }


def test_adversaries_that_stand_still_are_a_failure():
    steps = np.arange(10.0)

    def told(first, second, gradients=(1, 1), counts=1.0):
        metrics = {}
        for name, loss, gradient in zip(("one", "other"), (first, second), gradients, strict=True):
            loss = np.asarray(loss, np.float32)
            metrics[f"{name}_loss"] = Mean(loss * counts, np.full(loss.shape, counts))
            metrics[f"{name}_gradient_norm"] = Mean(np.full(loss.shape, gradient), np.ones(loss.shape))
        try:
            check_moving(metrics, ("one", "other"), 30, lambda: "Kept: nothing")
        except RunError as failure:
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
    # Learners opt in by name: the losses of another, as PPO's of policy and value, may stand still.
    check_moving({"policy_loss": Mean(still, np.ones(10)), "value_loss": Mean(still, np.ones(10))}, (), 0, str)


def test_best_and_patience():
    run = Run(patience=2)
    assert best([None, 0.5, 0.7, 0.7], run) == 2 and best([None], run) is None
    assert best([3.0, 1.0, 2.0], Run(mode="min")) == 1
    assert [exhausted([0.5, 0.7, 0.6, 0.7][:n], run) for n in range(5)] == [False, False, False, False, True]
    assert not exhausted([0.5, 0.4, 0.3, 0.2], Run())
