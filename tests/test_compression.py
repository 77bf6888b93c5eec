"""Pruning by magnitude, and products of int8."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from digits import tiny

import research
from experiments.train import main
from research.core.errors import UserError
from research.core.metrics import mean
from research.core.optimizers import Optimizer
from research.core.pruning import Pruning, largest, pruning
from research.core.state import Batch
from research.core.update import Aux, UpdateConfig, updater
from research.training import run
from research.training.run import validate

PRUNED = "--update.pruning.sparsity 0.75 --update.pruning.every 3 --update.pruning.end 0.7".split()


def test_the_schedule_by_hand():
    """From update 20 of 100 to update 60: 0.8 - (0.8 - 0.2) (1 - t)**3, with t in quarters; then it stays."""
    config = Pruning(sparsity=0.8, initial=0.2, begin=0.2, end=0.6, every=10)
    found = [float(config.sparsity_at(count, 100)) for count in (1, 20, 30, 40, 50, 60, 100)]
    np.testing.assert_allclose(found, [0.2, 0.2, 0.8 - 0.6 * 27 / 64, 0.8 - 0.6 / 8, 0.8 - 0.6 / 64, 0.8, 0.8], 1e-6)
    assert [n for n in range(1, 101) if config.chooses_at(n, 100)] == [20, 30, 40, 50, 60]
    odd = Pruning(sparsity=0.8, begin=0.2, end=0.25, every=4)  # the last choice is at the end
    assert [n for n in range(1, 101) if odd.chooses_at(n, 100)] == [20, 24, 25]
    once = Pruning(sparsity=0.8, begin=0.0, end=0.0)
    assert [n for n in range(1, 101) if once.chooses_at(n, 100)] == [1] and once.sparsity_at(1, 100) == np.float32(0.8)


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9, 0.999])
def test_what_is_kept_against_a_sort(sparsity, rng):
    tree = {"a": np.abs(rng.normal(size=(5, 8))).astype(np.float32), "b": rng.uniform(size=60).astype(np.float32)}

    def kept(x, bound):
        return x >= np.sort(bound, axis=None)[min(round(sparsity * bound.size), bound.size - 1)]

    layer, whole = (jax.jit(lambda x, by=by: largest(x, sparsity, by))(tree) for by in ("layer", "global"))
    together = np.concatenate([x.ravel() for x in tree.values()])
    for name, x in tree.items():
        np.testing.assert_array_equal(layer[name], kept(x, x))
        np.testing.assert_array_equal(whole[name], kept(x, together))
        assert (~np.asarray(layer[name])).sum() == min(round(sparsity * x.size), x.size - 1)
    assert np.asarray(largest({"zeros": jnp.zeros(7)}, 0.5, "layer")["zeros"]).all()  # equal numbers stay together


@pytest.mark.parametrize("regrow", [False, True])
def test_pruned_weights_stay_0_unless_they_may_come_back(regrow):
    """Half of the weights, chosen after every second update; the gradient of the smallest one then grows."""
    config = Pruning(sparsity=0.5, initial=0.5, begin=0.0, end=1.0, every=2, regrow=regrow)
    tx = optax.chain(optax.sgd(1.0), pruning(config, 10))
    params = {"kernel": jnp.array([0.1, -0.2, 3.0, -4.0]), "bias": jnp.array([0.01, 0.0])}
    state, seen = tx.init(params), []
    for gradient in ([0, 0, 0, 0], [5, 0, 0, 0], [5, 0, 0, 0], [0, 0, 0, 0]):
        gradients = {"kernel": jnp.array(gradient, jnp.float32), "bias": jnp.ones(2)}
        steps, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, steps)
        seen.append(params["kernel"].tolist())
    assert seen[:2] == [[0, 0, 3, -4], [0, 0, 3, -4]]
    assert seen[2:] == ([[-5, 0, 0, -4]] * 2 if regrow else [[0, 0, 3, -4]] * 2)
    np.testing.assert_allclose(params["bias"], [-3.99, -4.0], rtol=1e-6)  # no kernel, and so not pruned


def quadratic(params, state, batch, rng):
    """The mean over the batch of half the squared distance of every parameter from a number of its example."""
    distance = lambda x: 0.5 * ((x - batch.inputs[:, 0].mean()) ** 2).sum()
    return mean(sum(distance(x) for x in jax.tree.leaves(params))), Aux()


@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor", "lion", "muon"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_exactly_0_with_every_optimizer_and_in_averages(name, dtype, rng):
    """Frozen parameters and those of no pattern are left alone; the sparsity is logged."""
    params = {key: {"kernel": jnp.asarray(rng.normal(size=(6, 10)), jnp.float32)} for key in ("a", "b", "frozen")}
    params["a"]["bias"] = jnp.zeros(4)
    how = UpdateConfig(
        dtype=dtype, freeze=("frozen/*",), pruning=Pruning(sparsity=0.8, end=0.5, every=2, scope="global")
    )
    optimizer = Optimizer(name=name, learning_rate=0.01, weight_decay=0.1)
    init, update = updater(how, {"net": (optimizer, 12)}, {"net": 0.9})
    state = init(jax.random.key(0), {"net": (params, {})})
    if dtype == "float16":  # of which nothing overflows
        scale = state.opt_state["net"].scale._replace(factor=jnp.float32(4))
        state = state._replace(opt_state={"net": state.opt_state["net"]._replace(scale=scale)})
    batch = Batch(jnp.arange(2), jnp.ones(2), jnp.array([[1.0], [2.0]]), ())
    step = jax.jit(lambda state: update(state, "net", quadratic, batch))
    sparsities, moved = [], []
    for _ in range(12):
        before, (state, aux) = state, step(state)
        sparsities.append(float(aux.metrics["sparsity"].value))
        moved.append(jax.tree.map(lambda x, y: x != y, before.params["net"], state.params["net"]))
    expected = [0.8 - 0.8 * (1 - t) ** 3 for t in (0, 0, 0.4, 0.4, 0.8, 1)]  # updates 1, 3, 5 and 6 choose
    np.testing.assert_allclose(sparsities, [round(120 * x) / 120 for x in expected] + [0.8] * 6, atol=1e-6)
    net, average = state.params["net"], state.collections["average"]["net"]
    zeros = {key: np.asarray(net[key]["kernel"]) == 0 for key in ("a", "b")}
    assert sum(x.sum() for x in zeros.values()) == 96 and zeros["a"].sum() != 48
    for key, zero in zeros.items():
        np.testing.assert_array_equal(np.asarray(average[key]["kernel"]) == 0, zero)
        np.testing.assert_array_equal(np.asarray(moved[-1][key]["kernel"]), ~zero)
    np.testing.assert_array_equal(net["frozen"]["kernel"], params["frozen"]["kernel"])
    assert np.asarray(net["a"]["bias"]).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sparsity": 1.0}, "sparsity < 1"),
        ({"sparsity": 0.5, "initial": 0.6}, "initial is 0.6"),
        ({"begin": 0.6}, "begin is 0.6, end 0.5"),
        ({"every": 0}, "update.pruning.every must be at least 1"),
    ],
)
def test_what_is_refused(options, said):
    with pytest.raises(UserError, match=said):
        Pruning(**options)
    with pytest.raises(UserError, match=r"update.pruning.paths: no parameter matches 'kernels'"):
        config = UpdateConfig(pruning=Pruning(sparsity=0.5, paths=("kernels",)))
        updater(config, {"net": (Optimizer(), 2)}).init(jax.random.key(0), {"net": ({"kernel": jnp.ones(2)}, {})})


@pytest.fixture(scope="module")
def pruned(tmp_path_factory, without_pictures):
    """A tiny pruned run of digits_cnn, with averaged weights, of 12 steps."""
    directory = tmp_path_factory.mktemp("pruned") / "run"
    assert main(["digits_cnn", "--workdir", str(directory), *tiny(12), *PRUNED, "--average", "0.9"]) == 0
    return directory


def leaves(directory):
    state = research.load(directory)[2]
    return [np.asarray(x) for x in jax.tree.leaves(state._replace(key=jax.random.key_data(state.key)))]


def test_a_run_is_pruned_resumed_and_gone_on_with(pruned, tmp_path):
    """Stopped between two choices and resumed, to the same bit; then pruned further from its weights."""
    logged = [json.loads(line) for line in (pruned / "metrics.jsonl").read_text().splitlines()]
    net = research.load(pruned)[2].params["net"]
    kernels = [net[name]["kernel"] for name in ("stem", "head")]
    assert [(np.asarray(x) == 0).sum() for x in kernels] == [round(0.75 * x.size) for x in kernels]
    assert [x["sparsity"] for x in logged if x["split"] == "train"][-1] == pytest.approx(
        sum((x == 0).sum() for x in kernels) / sum(x.size for x in kernels)
    )
    stopped = tmp_path / "stopped"
    options = [*tiny(12), *PRUNED, "--average", "0.9", "--workdir", str(stopped)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "validate", lambda job, step, state: 1 / 0 if step == 8 else validate(job, step, state))
        with pytest.raises(ZeroDivisionError):
            main(["digits_cnn", *options])
    assert not (stopped / "summary.json").exists()
    assert main(["digits_cnn", *options]) == 0
    for a, b in zip(leaves(pruned), leaves(stopped), strict=True):
        np.testing.assert_array_equal(a, b)
    further = tmp_path / "further"
    more = ["--update.pruning.sparsity", "0.9", "--update.pruning.initial", "0.75", "--update.pruning.end", "0"]
    assert main(["digits_cnn", "--workdir", str(further), *tiny(2), *more, "--init-from", str(pruned)]) == 0
    before, after = (research.load(x)[2].params["net"]["head"]["kernel"] for x in (pruned, further))
    assert np.asarray(after == 0).mean() == pytest.approx(0.9, abs=0.01)
    assert not np.asarray(after)[np.asarray(before) == 0].any()
