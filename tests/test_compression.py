"""Pruning by magnitude, and products of int8."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learners import EXPERIMENTS

import research
from experiments import compress as script
from experiments.train import main
from research.core.errors import UserError
from research.core.experiment import Split
from research.core.int8 import int8_product, linear
from research.core.metrics import mean
from research.core.modules import input_ranges, network
from research.core.muon import OUTPUTS
from research.core.optimizers import Optimizer
from research.core.pruning import Pruning, largest, pruning
from research.core.state import Batch, evaluated, weights
from research.core.update import Aux, UpdateConfig, updater
from research.evaluation.decoding import Sampling, sample
from research.nets.conv import Conv
from research.training import run
from research.training.run import validate

PRUNED = ["--update.pruning.sparsity", "0.75", "--update.pruning.every", "10", "--update.pruning.end", "0.6"]
NET = ["--net.widths", "16", "32", "--net.depth", "1", "--average", "0.9"]
TRAINING = ["--data.batch", "32", "--optimizer.schedule", "constant"]


def length(steps: int, dispatch: int, every: int) -> list[str]:
    """The options of a run's length and intervals."""
    names = ("steps", "run.steps-per-dispatch", "run.evaluate-every", "run.save-every")
    return [x for name, n in zip(names, (steps, dispatch, every, every), strict=True) for x in (f"--{name}", str(n))]


SMALL, TUNED = [*NET, *TRAINING, *length(200, 25, 100)], [*NET, *TRAINING, *length(2, 2, 2)]


def test_the_schedule_by_hand():
    """From update 20 of 100 to update 60: 0.8 - (0.8 - 0.2) (1 - t)**3, with t in quarters; then it stays."""
    config = Pruning(sparsity=0.8, initial=0.2, begin=0.2, end=0.6, every=10)
    found = [float(config.sparsity_at(count, 100)) for count in (1, 20, 30, 40, 50, 60, 100)]
    np.testing.assert_allclose(found, [0.2, 0.2, 0.8 - 0.6 * 27 / 64, 0.8 - 0.6 / 8, 0.8 - 0.6 / 64, 0.8, 0.8], 1e-6)
    assert [n for n in range(1, 101) if config.chooses_at(n, 100)] == [20, 30, 40, 50, 60]
    odd = Pruning(sparsity=0.8, begin=0.21, end=0.3, every=4)  # counted from the begin; the last choice is at the end
    assert [n for n in range(1, 101) if odd.chooses_at(n, 100)] == [21, 25, 29, 30]
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


@pytest.mark.parametrize("name", ["adamw", "sgd", "rmsprop", "adafactor", "lion", "muon"])
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
    """A short pruned run of digits_cnn, with averaged weights."""
    directory = tmp_path_factory.mktemp("pruned") / "run"
    assert main(["digits_cnn", "--workdir", str(directory), *SMALL, *PRUNED]) == 0
    return directory


def leaves(directory):
    state = research.load(directory)[2]
    return [np.asarray(x) for x in jax.tree.leaves(state._replace(key=jax.random.key_data(state.key)))]


def test_a_pruned_run_is_resumed_to_the_same_bit(pruned, tmp_path, without_pictures):
    """It was stopped while pruning went on."""
    logged = [json.loads(line) for line in (pruned / "metrics.jsonl").read_text().splitlines()]
    kernels = [research.load(pruned)[2].params["net"][name]["kernel"] for name in ("stem", "Conv_0", "head")]
    assert [(np.asarray(x) == 0).sum() for x in kernels] == [round(0.75 * x.size) for x in kernels]
    found = [x["sparsity"] for x in logged if x["split"] == "train"]
    assert 0 < found[0] < found[1] < found[-1] == pytest.approx(0.75, abs=0.01)
    options = ["digits_cnn", *SMALL, *PRUNED, "--workdir", str(tmp_path / "stopped")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "validate", lambda job, step, state: 1 / 0 if step == 200 else validate(job, step, state))
        with pytest.raises(ZeroDivisionError):
            main(options)
    assert not (tmp_path / "stopped" / "summary.json").exists()
    assert main(options) == 0
    for a, b in zip(leaves(pruned), leaves(tmp_path / "stopped"), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_trained_net_is_pruned_and_quantised_in_fine_tuning(pruned, tmp_path, without_pictures):
    """From its weights and batch statistics: pruned at once after the first update, and trained with int8."""
    more = ["--update.pruning.sparsity", "0.9", "--update.pruning.initial", "0.9", "--update.pruning.end", "0"]
    options = [*TUNED, *more, "--quantization", "int8", "--init-from", str(pruned), "--optimizer.learning-rate", "1e-6"]
    assert main(["digits_cnn", "--workdir", str(tmp_path / "run"), *options]) == 0
    before, after = (research.load(x)[2] for x in (pruned, tmp_path / "run"))
    old, new = (np.asarray(evaluated(x, "net")["head"]["kernel"]) for x in (before, after))
    assert (new == 0).sum() == round(0.9 * new.size) and not new[old == 0].any()
    own = after.collections["net"]
    assert set(own) == {"batch_stats", "ranges"} and all(x > 0 for x in jax.tree.leaves(own["ranges"]))
    kept, new = (jax.tree.leaves(x.collections["net"]["batch_stats"]) for x in (before, after))
    assert all(np.abs(a - b).max() < 0.25 * np.abs(a).max() for a, b in zip(kept, new, strict=True))


def test_what_compression_costs_is_measured(pruned, tmp_path, capsys):
    """A pruned net in int8: within a point, which is 3 of the 359 images, at the size that its arrays have."""
    assert script.main([str(pruned), "--rounds", "2", "--curves", "400", "--output", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    rows, state = found["compressed"], research.load(pruned)[2]
    test = json.loads((pruned / "summary.json").read_text())["test"]["accuracy"]["mean"]
    assert rows["float32"]["accuracy"] == pytest.approx(test, abs=1e-6) and test > 0.9
    assert abs(rows["int8"]["accuracy"] - test) <= 0.01 and abs(rows["bfloat16"]["accuracy"] - test) <= 0.01
    weights, own = evaluated(state, "net"), state.collections["net"]
    size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    kernels = [weights[name]["kernel"] for name in ("stem", "Conv_0", "head")]
    every, integer, scales = size((weights, own)), size(kernels), sum(x.shape[-1] for x in kernels)
    assert rows["float32"]["bytes"] == 4 * every and rows["bfloat16"]["bytes"] == 2 * every
    assert rows["int8"]["bytes"] == integer + 4 * (every - integer + scales + len(kernels))
    bits = sum(-(-x.size // 8) for x in kernels)
    kept = sum(int((x != 0).sum()) for x in kernels)
    assert rows["float32, sparse"]["bytes"] == 4 * (every - integer) + bits + 4 * kept
    assert rows["int8, sparse"]["bytes"] < rows["int8"]["bytes"] and rows["float32"]["zlib_bytes"] < 4 * every
    assert found["sparsity"] == pytest.approx(0.75, abs=0.01) and found["images_of_the_curves"] == 359
    by_layer = found["accuracy_by_sparsity"]["by layer"]
    assert by_layer["0.0"] == by_layer["0.7"] > by_layer["0.95"]  # three quarters of the weights are 0 already
    said = " ".join(capsys.readouterr().out.split())
    assert (pruned / "compress_sparsity.png").exists() and "75.0% of the weights are 0" in said
    assert script.main([str(tmp_path / "nothing")]) == 2


FORMS = {
    "dense": (nn.Dense(5), (7, 6)),
    "heads": (nn.DenseGeneral((2, 3)), (2, 7, 6)),
    "conv": (Conv(5), (6, 7, 8, 3)),
    "stride": (Conv(5, kernel_size=5, stride=2, padding="VALID", use_bias=False), (6, 9, 8, 3)),
}


@pytest.mark.parametrize("kind", FORMS)
def test_int8_layers_against_a_loop(kind, rng):
    """Sums of integers over NumPy's windows; the input's range is half of its largest magnitude, so that it is clipped.
    In training the range is the batch's, and a running mean is kept."""
    layer, shape = FORMS[kind]
    x = rng.normal(size=shape).astype(np.float32)
    net = network(Net(layer), "float32", "int8")
    apply = jax.jit(net.apply)
    params, own = jax.jit(net.init)(jax.random.key(0), x)
    params = jax.tree.map(lambda p: p + np.float32(0.1), params)
    inner = params["layer"]
    assert jax.tree.leaves(own) == [0]
    bound = np.abs(x).max() / 2
    outputs, _ = apply(params, jax.tree.map(lambda _: bound, own), x)
    kernel = np.asarray(inner["kernel"])
    dense = kind in ("dense", "heads")
    by_output = np.abs(kernel).max(0 if dense else (0, 1, 2)) / 127
    whole = np.clip(np.round(x / (bound / 127)), -127, 127).astype(int), np.round(kernel / by_output).astype(int)
    assert whole[0].max() == 127 and np.abs(whole[1]).max() == 127
    if dense:
        expected = np.tensordot(*whole, 1) * (bound / 127 * by_output) + np.asarray(inner["bias"])
    else:
        size, stride = layer.kernel_size, layer.stride
        padded = np.pad(whole[0], [(0, 0), (1, 1), (1, 1), (0, 0)]) if layer.padding == "SAME" else whole[0]
        windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), (1, 2))[:, ::stride, ::stride]
        expected = np.einsum("chwbij,ijcf->fhwb", windows, whole[1]) * (bound / 127 * by_output)[:, None, None, None]
        expected = expected + (np.asarray(inner["bias"])[:, None, None, None] if layer.use_bias else 0)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)
    assert "preferred_element_type=int32" in str(jax.make_jaxpr(lambda x: net.apply(params, own, x)[0])(x))
    keys = jax.random.split(jax.random.key(0), 3)
    trained, moved = apply(params, own, x, rng=keys)
    assert float(jax.tree.leaves(moved)[0]) == np.abs(x).max()
    np.testing.assert_array_equal(trained, apply(params, moved, x)[0])
    _, later = apply(params, moved, 3 * x, rng=keys)
    assert float(jax.tree.leaves(later)[0]) == pytest.approx(np.abs(x).max() * (0.99 + 0.03))
    seen = input_ranges(Net(layer), "float32", params, {}, x)
    np.testing.assert_array_equal(jax.tree.leaves(seen), jax.tree.leaves(moved))


def test_stored_kernels_have_a_scale_for_each_output_of_each_layer(rng):
    """Of stacked layers and of heads too; the integers times their scales are the kernels to half a step."""
    qkv, conv = rng.normal(size=(2, 8, 3, 4)), rng.normal(size=(3, 3, 5, 7))
    weights = {"layers": {"qkv": {"kernel": qkv * 9.0 ** np.arange(3)[:, None]}}, "conv": {"kernel": conv}}
    ranges = {"layers": {"qkv": {"inputs": np.ones(2)}}, "conv": {"inputs": np.ones(())}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(OUTPUTS, "qkv", 2)
        whole, scales = script.in_int8(weights, ranges)
    for path, axes in ((("layers", "qkv", "kernel"), 1), (("conv", "kernel"), (0, 1, 2))):
        kernel = weights[path[0]]["qkv"]["kernel"] if len(path) == 3 else conv
        np.testing.assert_allclose(scales[path], np.abs(kernel).max(axes, keepdims=True) / 127, rtol=1e-5)
        assert np.abs(whole[path] * scales[path] - kernel).max() <= 0.501 * scales[path].max()


class Net(nn.Module):
    """A layer as a net, which may be told that it trains."""

    layer: nn.Module

    @nn.compact
    def __call__(self, x, train=False):
        return self.layer(x)


def test_rounding_has_the_gradient_of_the_identity(rng):
    """That of the product of the rounded numbers; beyond the range it is 0. The same in jit, in bfloat16 roughly."""
    x, kernel, weight = (rng.normal(size=shape).astype(np.float32) for shape in ((4, 6), (6, 5), (4, 5)))
    bound, form = np.float32(1.0), linear(nn.Dense(5))
    total = lambda x, kernel: (int8_product(form, x, kernel, bound) * weight).sum()
    dx, dkernel = jax.jit(jax.grad(total, (0, 1)))(x, kernel)
    scales = np.abs(kernel).max(0) / 127
    rounded, rounded_kernel = np.clip(np.round(x * 127), -127, 127) / 127, np.round(kernel / scales) * scales
    np.testing.assert_allclose(dx, np.where(np.abs(x) <= 1, weight @ rounded_kernel.T, 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dkernel, rounded.T @ weight, rtol=1e-5, atol=1e-6)
    half = jax.grad(total, (0, 1))(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
    assert {g.dtype.name for g in half} == {"bfloat16"}
    assert np.abs(np.asarray(half[1], np.float32) - dkernel).mean() < 0.05


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
@pytest.mark.parametrize("name", ("cnn", "transformer", "sentences", "translator", "segment"))
def test_supervised_learners_take_int8(name, dtype):
    """Its step keeps the State's structure, and each of its ranges moves."""
    update = dataclasses.replace(EXPERIMENTS[name].update, dtype=dtype)
    config = dataclasses.replace(EXPERIMENTS[name], quantization="int8", update=update)
    learner, feeds = config.build(), config.feeds()
    state = jax.eval_shape(learner.init, jax.random.key(0))
    after, _ = jax.eval_shape(learner.step, state, feeds.train.batch_at(0))
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert shapes(state) == shapes(after) and jax.tree.leaves(state.collections["net"]["ranges"])
    jax.eval_shape(learner.evaluate, state, feeds.validation[0])


@pytest.mark.parametrize("name", ("transformer", "translator", "sentences"))
def test_reports_on_text_read_the_ranges(name, tmp_path):
    """And a language model's last layer learns on chunks too, since it stays as it is."""
    config = dataclasses.replace(EXPERIMENTS[name], quantization="int8")
    if name == "transformer":
        config = dataclasses.replace(config, net=config.net.clone(tied=False), loss_chunk=3)
    learner, feeds = config.build(), config.feeds()
    state = jax.jit(learner.init)(jax.random.key(0))
    for n in range(2):
        before, (state, _) = state, jax.jit(learner.step)(state, feeds.train.batch_at(n))
    if name == "transformer":
        head = [s.params["net"]["head"]["kernel"] for s in (before, state)]
        assert "head" not in state.collections["net"]["ranges"] and not np.array_equal(*head)
    [report] = config.reports(research.load)
    report.run(state, Split("test", feeds.test), tmp_path)
    assert list(tmp_path.glob("*.txt"))
    if name == "transformer":
        apply, prompt = config.network(config.module()).apply, jnp.asarray(feeds.test[0].inputs)[:2, :4]
        tokens = sample(apply, weights(state, "net"), prompt, jax.random.key(0), 3, Sampling(temperature=0))
        text = prompt
        for k in range(3):
            logits, _ = apply(*weights(state, "net"), text)
            np.testing.assert_array_equal(tokens[:, k], logits[:, -1].argmax(-1))
            text = jnp.concatenate([text, tokens[:, k : k + 1]], 1)


def test_what_is_not_quantised():
    config = dataclasses.replace(EXPERIMENTS["lstm"], quantization="int8")
    with pytest.raises(UserError, match="quantization: LanguageModel has no layer whose products could be of int8"):
        jax.eval_shape(config.build().init, jax.random.key(0))
    with pytest.raises(UserError, match="quantization is for nets that learn from labels"):
        dataclasses.replace(EXPERIMENTS["simclr"], quantization="int8")
