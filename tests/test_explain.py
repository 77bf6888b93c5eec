"""Explanations of classifiers, and their metrics by group."""

import json
import tracemalloc
from functools import partial
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learners import EXPERIMENTS
from printed import said

import research
from experiments import explain as explain_script
from experiments import groups as groups_script
from research.core.errors import UserError
from research.core.modules import network
from research.core.state import example_keys
from research.data import columns
from research.data.images import Images
from research.data.sentences import Sentences
from research.evaluation import explanations as explain
from research.evaluation import groups as of_groups
from research.learners.classify import Classify
from research.nets.cnn import ResNet
from research.nets.conv import Conv
from research.nets.transformer import Stack
from research.nets.vit import ViT, grid_sinusoids, patches

CLASSES = np.array([2, 0, 1])
KEYS = example_keys(jax.random.key(1), jnp.arange(3))


@pytest.fixture
def images(rng):
    return rng.uniform(size=(3, 4, 6, 2)).astype(np.float32)


def applied(module, images):
    """The module as a function from images to logits, and its parameters, none of them 0."""
    net = network(module)

    @jax.jit
    def init(key):
        params, collections = net.init(key, images)
        return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(key, x.shape), params), collections

    params, collections = init(jax.random.key(0))
    return lambda x: net.apply(params, collections, x)[0], params


def jitted(method, logits, *arrays):
    return jax.jit(lambda *arrays: method(logits, *arrays))(*arrays)


def test_the_saliency_of_a_linear_net_is_its_weights(rng, images):
    weights = rng.normal(size=(4, 6, 2, 3)).astype(np.float32)
    logits = lambda x: jnp.einsum("bhwc,hwck->bk", x, weights)
    expected = np.abs(weights).max(2).transpose(2, 0, 1)[CLASSES]
    np.testing.assert_allclose(jitted(explain.saliency, logits, images, CLASSES), expected, rtol=1e-6)
    # Noise changes no derivative of a linear net.
    smooth = jitted(partial(explain.smoothed_saliency, samples=3), logits, images, CLASSES, KEYS)
    np.testing.assert_allclose(smooth, expected, rtol=1e-5)


def test_smoothgrad_is_the_mean_of_a_loop(rng, images):
    """The score is sum(w x**3) / 3, with the derivative w x**2."""
    weights = rng.normal(size=(4, 6, 2, 3)).astype(np.float32)
    logits = lambda x: jnp.einsum("bhwc,hwck->bk", x**3 / 3, weights)
    found = jitted(partial(explain.smoothed_saliency, samples=2, noise=0.2), logits, images, CLASSES, KEYS)
    draw = lambda key, k: jax.random.normal(jax.random.fold_in(key, k), images.shape[1:])
    draws = jax.jit(jax.vmap(jax.vmap(draw, (None, 0)), (0, None)))(KEYS, jnp.arange(2))
    for n, (image, noise) in enumerate(zip(images, np.asarray(draws), strict=True)):
        noisy = [image + 0.2 * (image.max() - image.min()) * noise[k] for k in range(2)]
        slope = np.mean([weights[..., CLASSES[n]] * x**2 for x in noisy], 0)
        np.testing.assert_allclose(found[n], np.abs(slope).max(-1), rtol=1e-4)


def test_integrated_gradients_by_hand(images):
    """Of a product of two numbers on the way from 0, each has half; from b on, x's share is (x - b) (y + c) / 2."""
    logits = lambda x: x[:, 0, 0, :1] * x[:, 1, 2, 1:] * jnp.array([1.0, 2.0, 3.0])
    baseline = np.full((4, 6, 2), 0.25, np.float32)
    for start in (0 * baseline, baseline):
        found = np.asarray(jitted(partial(explain.integrated_gradients, steps=2), logits, images, CLASSES, start))
        x, y, b = images[:, 0, 0, 0], images[:, 1, 2, 1], start[0, 0, 0]
        expected = np.zeros_like(images)
        expected[:, 0, 0, 0] = (CLASSES + 1) * (x - b) * (y + b) / 2
        expected[:, 1, 2, 1] = (CLASSES + 1) * (y - b) * (x + b) / 2
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_integrated_gradients_are_complete(rng, images):
    first, second = rng.normal(size=(48, 8)).astype(np.float32), rng.normal(size=(8, 3)).astype(np.float32)
    logits = lambda x: jnp.tanh(x.reshape(len(x), -1) @ first) @ second
    baseline = jnp.full((4, 6, 2), 0.5)
    difference = explain.score_difference(logits, images, CLASSES, baseline)
    expected = [logits(images)[n, k] - logits(baseline[None])[0, k] for n, k in enumerate(CLASSES)]
    np.testing.assert_allclose(difference, expected, atol=1e-6)
    errors = []
    for steps in (4, 64):
        found = jitted(partial(explain.integrated_gradients, steps=steps), logits, images, CLASSES, baseline)
        errors.append(np.abs(found.sum((1, 2, 3)) - difference).max())
    assert errors[1] < 2e-3 < errors[0]


class OneConvolution(nn.Module):
    """A convolution, in either layout, and a linear layer on its maps."""

    flax: bool

    @nn.compact
    def __call__(self, x, train=False):
        if self.flax:
            x = nn.Conv(5, (3, 3), name="conv")(x)
        else:
            x = Conv(5, name="conv")(x.transpose(3, 1, 2, 0)).transpose(3, 1, 2, 0)
        return nn.Dense(3, name="head")(x.reshape(len(x), -1))


@pytest.mark.parametrize("flax", [True, False])
def test_grad_cam_of_one_convolution_in_numpy(flax, images):
    logits, params = applied(OneConvolution(flax), images)
    kernel, bias = np.asarray(params["conv"]["kernel"]), np.asarray(params["conv"]["bias"])
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    maps = np.zeros((3, 4, 6, 5))
    for row in range(4):
        for column in range(6):
            patch = padded[:, row : row + 3, column : column + 3]
            maps[:, row, column] = np.einsum("bijc,ijck->bk", patch, kernel) + bias
    head = np.asarray(params["head"]["kernel"]).reshape(4, 6, 5, 3)
    alpha = head.mean((0, 1))[:, CLASSES].T  # the score's mean derivative by each map
    expected = np.maximum((maps * alpha[:, None, None]).sum(-1), 0)
    assert (expected > 0).any()
    np.testing.assert_allclose(jitted(explain.grad_cam, logits, images, CLASSES), expected, atol=1e-5)
    np.testing.assert_allclose(jax.jit(lambda x: explain.seen(logits, x).kernel)(images), kernel)
    # Of two views, the first counts; it has half of the score.
    views = lambda x: (logits(x) + logits(x[:, :, ::-1])) / 2
    np.testing.assert_allclose(jitted(explain.grad_cam, views, images, CLASSES), expected / 2, atol=1e-5)


def test_grad_cam_of_a_resnet_weighs_its_last_block(images):
    """The head reads the mean of each map, so alpha is its weight over the number of pixels."""
    module = ResNet(widths=(4, 8), blocks=(1, 2), shortcut="project", outputs=3)
    logits, params = applied(module, images)
    variables = jax.jit(module.init)(jax.random.key(0), images) | {"params": params}
    kept = jax.jit(
        lambda x: module.apply(
            variables,
            x,
            capture_intermediates=lambda module, _: module.name == "BasicBlock_2",
            mutable=["intermediates"],
        )[1]
    )(images)
    maps = kept["intermediates"]["BasicBlock_2"]["__call__"][0].transpose(3, 1, 2, 0)
    alpha = np.asarray(params["head"]["kernel"])[:, CLASSES].T / 6
    expected = np.maximum((maps * alpha[:, None, None]).sum(-1), 0)
    expected = jax.image.resize(expected, (3, 4, 6), "bilinear")
    np.testing.assert_allclose(jitted(explain.grad_cam, logits, images, CLASSES), expected, atol=1e-5)
    kernel = jax.jit(lambda x: explain.seen(logits, x).kernel)(images)
    np.testing.assert_array_equal(kernel, params["stem"]["kernel"])


def test_rollout_of_two_layers_by_hand(rng):
    weights = np.asarray(jax.nn.softmax(rng.normal(size=(2, 3, 2, 4, 4)), -1))
    expected = np.zeros((3, 4, 4))
    for n in range(3):
        first, second = ((w[n, 0] + w[n, 1]) / 4 + np.eye(4) / 2 for w in weights)
        expected[n] = second @ first
    np.testing.assert_allclose(explain.rollout(jnp.asarray(weights, jnp.float32)), expected, atol=1e-6)
    np.testing.assert_allclose(expected.sum(-1), 1)


VIT = ViT(Stack(layers=2, width=8, heads=4, num_kv_heads=2, positions="sinusoidal"), patch=2, outputs=3)


def test_captured_attention_is_the_softmax_in_numpy(images):
    """Of the first layer, from the parameters alone; the net's logits stay as they are."""
    logits, params = applied(VIT, images)
    found, weights = jitted(explain.attending, logits, images)
    np.testing.assert_array_equal(found, jax.jit(logits)(images))
    assert weights.shape == (2, 3, 4, 6, 6)
    encoder = params["encoder"]
    layer = jax.tree.map(lambda x: np.asarray(x[0]), encoder["blocks"]["layers"])
    x = np.asarray(patches(images, 2)) @ encoder["stem"]["kernel"] + encoder["stem"]["bias"] + grid_sinusoids((2, 3), 8)
    norm = layer["LayerNorm_0"]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * norm["scale"] + norm["bias"]
    # [kv_heads, group + 2, head_dim]: the queries of a group, its keys and its values.
    qkv = np.einsum("btw,wgnd->btgnd", x, layer["attention"]["qkv"]["kernel"]) + layer["attention"]["qkv"]["bias"]
    for head in range(4):
        q, k = qkv[:, :, head // 2, head % 2], qkv[:, :, head // 2, 2]
        scores = np.einsum("btd,bsd->bts", q, k) / np.sqrt(2)
        expected = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        np.testing.assert_allclose(weights[0][:, head], expected, atol=1e-5)
    views = lambda x: (logits(x) + logits(x[:, :, ::-1])) / 2
    np.testing.assert_allclose(jitted(explain.attention_maps, views, images), weights, atol=1e-6)
    # A patch's share is drawn on its pixels.
    shares = explain.rollout(weights).mean(1).reshape(3, 2, 3)
    found = jitted(explain.attention_rollout, logits, images)
    np.testing.assert_allclose(found, np.kron(shares, np.ones((1, 2, 2))), rtol=1e-6)


def test_what_a_net_lacks_is_said(images):
    logits = lambda x: nn.Dense(3).apply(
        {"params": {"kernel": jnp.ones((48, 3)), "bias": jnp.ones(3)}}, x.reshape(3, -1)
    )
    with pytest.raises(UserError, match="no convolution"):
        explain.grad_cam(logits, images, CLASSES)
    with pytest.raises(UserError, match="no attention"):
        explain.attention_rollout(logits, images)


def test_deletion_finds_a_planted_pixel(rng):
    """The class is 1 where the pixel (1, 2) is bright: without it, and only without it, every image is of class 0."""
    images = rng.uniform(size=(40, 4, 5, 1)).astype(np.float32)
    images[:, 1, 2] = 0.9
    logits = lambda x: jnp.stack([jnp.full(len(x), 0.5), x[:, 1, 2, 0]], 1)
    classes, shares = np.ones(40, int), (0, 0.05, 0.5, 1)
    planted = np.asarray(explain.saliency(logits, images, classes))
    after = lambda importance: explain.deletion(logits, images, classes, importance, jnp.zeros((4, 5, 1)), shares)
    found = after(planted)
    assert np.asarray(found.right).mean(1).tolist() == [1, 0, 0, 0]
    np.testing.assert_allclose(found.probability[0], 1 / (1 + np.exp(0.5 - 0.9)), rtol=1e-5)
    np.testing.assert_allclose(found.probability[1], 1 / (1 + np.exp(0.5)), rtol=1e-5)
    random = rng.uniform(size=(40, 4, 5)).astype(np.float32)
    order = np.argsort(-random.reshape(40, -1), 1)
    expected = [[7 not in order[n, :count] for n in range(40)] for count in (0, 1, 10, 20)]
    np.testing.assert_array_equal(after(random).right, expected)
    assert 0 < np.mean(expected[2]) < 1


def example_groups(rng, examples=400, classes=3):
    """Groups 0, 1 and 3 of four; the last predicts worse."""
    groups = rng.choice([0, 1, 3], examples)
    labels = rng.integers(0, classes, examples)
    logits = rng.normal(size=(examples, classes)) + 2 * np.eye(classes)[labels] * (groups < 3)[:, None]
    return groups, labels, np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def test_rates_by_group_in_loops(rng):
    groups, labels, probabilities = example_groups(rng)
    counts = of_groups.count(groups, 4, labels, probabilities)
    found, predicted, confidence = of_groups.rates(counts), probabilities.argmax(1), probabilities.max(1)
    table = {name: np.full((4, 3), np.nan) for name in ("selection", "true_positive", "false_positive")}
    for group in (0, 1, 3):
        there = groups == group
        assert found.accuracy[group] == pytest.approx(np.mean(labels[there] == predicted[there]))
        error = 0.0
        for low in range(15):
            inside = there & (confidence > low / 15) & (confidence <= (low + 1) / 15)
            if inside.any():
                apart = np.mean(labels[inside] == predicted[inside]) - confidence[inside].mean()
                error += inside.sum() / there.sum() * abs(apart)
        assert found.calibration_error[group] == pytest.approx(error)
        for c in range(3):
            table["selection"][group, c] = np.mean(predicted[there] == c)
            table["true_positive"][group, c] = np.mean(predicted[there & (labels == c)] == c)
            table["false_positive"][group, c] = np.mean(predicted[there & (labels != c)] == c)
    for name, expected in table.items():
        np.testing.assert_allclose(getattr(found, name), expected)
    # The empty group has no rates, and the differences are those of the others.
    assert np.isnan(found.accuracy[2]) and np.isnan(found.calibration_error[2])
    gap = {name: np.nanmax(x, 0) - np.nanmin(x, 0) for name, x in table.items()}
    differences = of_groups.differences(found)
    np.testing.assert_allclose(differences.demographic_parity, gap["selection"])
    np.testing.assert_allclose(differences.true_positive, gap["true_positive"])
    odds = np.maximum(gap["true_positive"], gap["false_positive"])
    np.testing.assert_allclose(differences.equalised_odds, odds)
    assert counts.compute("test")["test_equalised_odds"] == pytest.approx(odds.mean())
    assert differences.accuracy == pytest.approx(np.nanmax(found.accuracy) - np.nanmin(found.accuracy))
    # Counts add up over parts of the data.
    parts = [of_groups.count(*(x[at] if np.ndim(x) else x for x in (groups, 4, labels, probabilities)))
             for at in (slice(0, 150), slice(150, None))]  # fmt: skip
    for whole, a, b in zip(counts, *parts, strict=True):
        np.testing.assert_allclose(a + b, whole)


def test_of_two_classes_the_last_is_the_positive_one(rng):
    groups, labels, probabilities = example_groups(rng, classes=2)
    predicted, gaps = probabilities.argmax(1), []
    for which in (labels == 1, labels == 0, labels >= 0):
        shares = [predicted[which & (groups == group)].mean() for group in (0, 1, 3)]
        gaps.append(max(shares) - min(shares))
    found = of_groups.count(groups, 4, labels, probabilities).compute("x")
    assert found["x_true_positive"] == pytest.approx(gaps[0]) and gaps[0] != pytest.approx(gaps[1], abs=0.02)
    assert found["x_equalised_odds"] == pytest.approx(max(gaps[:2]))
    assert found["x_demographic_parity"] == pytest.approx(gaps[2])
    # The groups differ in their false positives alone.
    labels, predicted = np.array([1, 0, 1, 0]), np.eye(2)[[1, 0, 1, 1]]
    found = of_groups.differences(of_groups.rates(of_groups.count(np.array([0, 0, 1, 1]), 2, labels, predicted)))
    assert found.true_positive[1] == 0 and found.equalised_odds.tolist() == [1, 1]


def test_one_group_has_no_difference():
    counts = of_groups.count(np.zeros(4, int), 2, np.array([0, 1, 0, 1]), np.eye(2)[[0, 1, 1, 1]])
    assert np.isnan(of_groups.differences(of_groups.rates(counts)).accuracy)
    assert np.isnan(counts.compute("x")["x_demographic_parity"])


def test_bootstrap_and_chance(rng):
    """The spread of the bootstrap is the binomial one; in shuffled groups the planted difference is gone."""
    groups, labels, probabilities = example_groups(rng)
    whole = of_groups.rates(of_groups.count(groups, 4, labels, probabilities)).accuracy
    drawn = of_groups.bootstrapped(groups, 4, labels, probabilities, 400).accuracy
    for group in (0, 1, 3):
        p, size = whole[group], np.sum(groups == group)
        assert drawn[:, group].mean() == pytest.approx(p, abs=0.01)
        assert drawn[:, group].std() == pytest.approx(np.sqrt(p * (1 - p) / size), rel=0.15)
    chance = of_groups.shuffled(groups, 4, labels, probabilities, 50)
    # The groups have their sizes: of all examples as many are right, or predicted to be of a class.
    sizes, predicted = np.bincount(groups, minlength=4), probabilities.argmax(1)
    of_all = lambda rates: np.tensordot(np.nan_to_num(rates), sizes, (1, 0))
    np.testing.assert_allclose(of_all(chance.accuracy), np.full(50, np.sum(predicted == labels)))
    np.testing.assert_allclose(of_all(chance.selection.swapaxes(1, 2).reshape(150, 4)), [*np.bincount(predicted)] * 50)
    gap = of_groups.differences(of_groups.rates(of_groups.count(groups, 4, labels, probabilities))).accuracy
    assert of_groups.differences(chance).accuracy.mean() < gap / 2


@pytest.mark.parametrize("samples", [of_groups.bootstrapped, of_groups.shuffled])
def test_samples_of_many_classes_keep_rates_alone(samples, rng):
    """The confusions of 40 samples, of 4 groups and 200 classes each, would have 51 MB."""
    groups, labels, probabilities = example_groups(rng, classes=200)
    tracemalloc.start()
    found = samples(groups, 4, labels, probabilities, 40)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.selection.shape == (40, 4, 200) and peak < 20e6


def test_what_the_groups_are():
    numbers = np.arange(12) / 10
    groups = of_groups.grouped(numbers, quantiles=3)
    assert groups.of.tolist() == [0] * 4 + [1] * 4 + [2] * 4 and groups.names[0] == "0 to 0.3"
    near = of_groups.grouped([1.0001, 1.0002, 1.0003], quantiles=2)
    assert len(set(near.names)) == 2 and of_groups.grouped([1, 1, 1, 1, 2, 3], quantiles=2).names == (
        "1 to 1",
        "2 to 3",
    )
    speakers = ["3_theo_1.wav", "0_jackson_4.wav", "7_theo_2.wav", "other"]
    groups = of_groups.grouped(speakers, r"_([a-z]+)_")
    assert [groups.names[n] for n in groups.of] == ["theo", "jackson", "theo", "no match"]
    assert of_groups.grouped([2, 1, 2]).names == ("1", "2")
    # What is not known is a group of its own, and in no other.
    for quantiles, names in ((2, ("0 to 1", "2 to 3", "nan")), (9, ("0.0", "1.0", "2.0", "3.0", "nan"))):
        groups = of_groups.grouped([3.0, np.nan, 0.0, 1.0, np.nan, 2.0], quantiles=quantiles)
        assert groups.names == names and [n for n, of in enumerate(groups.of) if names[of] == "nan"] == [1, 4]
    for values, pattern, message in (
        (["a", "a"], None, "all examples are in one group, a"),
        (list(map(str, range(60))), None, "60 different values"),
        (["a", "b"], "z", "matches no value"),
        (["a", "b"], "(", "no regular expression"),
    ):
        with pytest.raises(UserError, match=message):
            of_groups.grouped(values, pattern)


def test_columns_of_a_table(tmp_path):
    rows = [f"text {n},{'no' if n % 3 else 'yes'},{'east' if n % 2 else 'west'}" for n in range(20)]
    (tmp_path / "train.csv").write_text("\n".join(["text,label,region", *rows]))
    data = Sentences(name=f"{tmp_path}/")
    assert columns.column_names(data) == ("text", "label", "region")
    found, (texts, labels) = columns.test_column(data, "region"), data.load().test
    # A fifth of the training texts is for testing.
    assert len(found.values) == len(texts) == 4
    for text, label, region, stored in zip(texts, labels, found.values, found.labels, strict=True):
        number = int(text.split()[1])
        assert region == ("east" if number % 2 else "west") and stored == data.load().names[label]
    (tmp_path / "test.csv").write_text("text,label,region\nsome,yes,north\n")
    assert columns.test_column(data, "region").values == ["north"]
    with pytest.raises(UserError, match="no column nation"):
        columns.test_column(data, "nation")


def test_numbers_of_a_table_are_grouped_by_quantiles(tmp_path):
    """A column with one text that is no number is of texts; so is that of the labels, whose values are names."""
    rows = [f"text {n}\t{n % 2}\t{n}\t{n / 8}\t{n or 'none'}" for n in range(100)]
    (tmp_path / "train.tsv").write_text("text\tlabel\tage\tshare\tchildren\ntext\t1\t7\t0.5\t2\n")
    (tmp_path / "test.tsv").write_text("\n".join(["text\tlabel\tage\tshare\tchildren", *rows]))
    values = {name: columns.test_column(Sentences(name=f"{tmp_path}/"), name).values for name in ("age", "share")}
    assert values == {"age": list(range(100)), "share": [n / 8 for n in range(100)]}
    assert of_groups.grouped(values["age"]).names == ("0 to 24", "25 to 49", "50 to 74", "75 to 99")
    texts = {name: columns.test_column(Sentences(name=f"{tmp_path}/"), name).values for name in ("children", "label")}
    assert texts == {"children": ["none", *map(str, range(1, 100))], "label": ["0", "1"] * 50}


def test_a_stored_column_goes_before_one_that_is_made(tmp_path):
    (tmp_path / "test.tsv").write_text("text\tlabel\tlength\na\tno\t30\nb\tyes\t10\nc\tno\t20\n")
    (tmp_path / "train.tsv").write_text("text\tlabel\tlength\na\tno\t1\n")
    derived = {"length": np.full(2, 1), "label": np.array(["no", "yes"]), "predicted": np.array(["no", "no"])}
    made = groups_script.Predictions(np.array([2, 1]), np.array([0, 1]), np.eye(2), derived)
    data = Sentences(name=f"{tmp_path}/")
    assert groups_script.column("length", data, made) == [20, 10]
    assert groups_script.column("label", data, made) is derived["label"]
    assert groups_script.column("predicted", data, made) is derived["predicted"]


def stored(monkeypatch, splits):
    """A data set of TensorFlow Datasets with these splits, {split: [(label, id, speaker)]}."""
    scalar, labelled = SimpleNamespace(shape=()), SimpleNamespace(shape=(), names=("anna", "bert"))
    features = {"image": SimpleNamespace(shape=(8, 8, 1)), "label": scalar, "id": scalar, "speaker": labelled}
    builder = SimpleNamespace(info=SimpleNamespace(features=features, splits=dict.fromkeys(splits)))
    places = {"label": 0, "id": 1, "speaker": 2}
    read = lambda _, name, split, wanted, limit: [[row[places[x]] for row in splits[split][:limit]] for x in wanted]
    monkeypatch.setattr(columns.tfds, "builder", lambda *_: builder)
    monkeypatch.setattr(columns.tfds, "columns", read)


def test_columns_of_a_data_set(monkeypatch):
    rows = [(n % 10, f"train_{n}".encode(), n % 2) for n in range(10)]
    data = Images(name="stored")
    stored(monkeypatch, {"train": rows, "test": rows[3:6]})
    assert columns.column_names(data) == ("id", "label", "speaker")
    assert columns.test_column(data, "speaker") == columns.Column([3, 4, 5], ["bert", "anna", "bert"])
    assert columns.test_column(data, "id").values == ["train_3", "train_4", "train_5"]
    # Some classes, renumbered, of which as many as the limit.
    some = Images(name="stored", classes=(5, 3), limit=2)
    assert columns.test_column(some, "id") == columns.Column([1, 0], ["train_3", "train_5"])
    assert columns.test_column(Images(name="stored", classes=(5, 3), limit=1), "id").values == ["train_3"]
    # GLUE's test labels are secret: the examples are those of validation.
    stored(monkeypatch, {"train": rows, "test": [(-1, b"x", 0)], "validation": rows[:2]})
    assert columns.test_column(data, "id").values == ["train_0", "train_1"]
    stored(monkeypatch, {"train": rows})
    assert len(columns.test_column(data, "id").values) == 2
    assert columns.column_names(Images(name="digits")) == columns.column_names(EXPERIMENTS["sentences"].data) == ()


@pytest.fixture
def loaded(monkeypatch):
    """`research.load` gives an experiment with its first weights."""

    def load(experiment):
        learner = experiment.build()
        state = jax.jit(learner.init)(jax.random.key(0))
        monkeypatch.setattr(research, "load", lambda _: (experiment, learner, state))

    return load


@pytest.mark.parametrize("net", ["cnn", "vit"])
def test_a_run_is_explained(net, loaded, tmp_path, capsys):
    tiny = EXPERIMENTS["cnn"]
    vit = ViT(Stack(layers=2, width=8, heads=2, positions="sinusoidal"), patch=2)
    data = Images(name="digits", evaluation_batch=40)
    experiment = tiny if net == "cnn" else Classify(data=data, net=vit, optimizer=tiny.optimizer)
    loaded(experiment)
    options = ["--images", "2", "--limit", "50", "--steps", "4", "--samples", "2", "--output", str(tmp_path / "out")]
    assert explain_script.main([str(tmp_path), *options]) == 0
    found = json.loads((tmp_path / "out" / "explain.json").read_text())
    names = ["saliency", "SmoothGrad", "integrated gradients"]
    names += ["Grad-CAM"] if net == "cnn" else ["attention roll-out"]
    assert list(found["deletion"]) == ["shares", *names, "random"]
    assert all(one["accuracy"][0] == found["accuracy"] for one in list(found["deletion"].values())[1:])
    assert found["about"]["images"] == 50
    files = {path.name for path in (tmp_path / "out").iterdir()}
    filters = {"explain_filters.png"} if net == "cnn" else set()
    assert files == {"explain.json", "explain.png", "explain_deletion.png"} | filters
    lacking = "no attention roll-out: the net has no attention" if net == "cnn" else "no Grad-CAM: the net has no conv"
    assert lacking in said(capsys)


def test_groups_of_a_run(loaded, tmp_path, capsys, monkeypatch):
    loaded(EXPERIMENTS["cnn"])
    options = ["--samples", "20", "--least", "88"]
    assert groups_script.main([str(tmp_path), "--by", "brightness", *options]) == 0
    assert "equalised odds" in said(capsys)
    found = json.loads((tmp_path / "groups.json").read_text())
    data = EXPERIMENTS["cnn"].data.load()
    brightness = data.test_images.mean((1, 2, 3)) / 255
    low, high = brightness.min(), np.quantile(brightness, 0.25)
    assert next(iter(found["groups"])).startswith(f"{low:.3g} to ") and len(found["groups"]) == 4
    assert found["groups"][next(iter(found["groups"]))]["examples"] == np.sum(brightness < high)
    about = {"by": "brightness", "pattern": None, "quantiles": 4, "least": 88, "samples": 20}
    assert found["about"] == about
    assert (tmp_path / "groups.png").exists() and (tmp_path / "groups_reliability.png").exists()

    # By label, a class has true positives in one group alone; small groups are marked.
    small = ["--by", "label", "--samples", "0", "--least", "36"]
    assert groups_script.main([str(tmp_path / "[red]"), *small]) == 0
    assert "[red]bylabel" in "".join(said(capsys).split())  # the title is wrapped
    found = json.loads((tmp_path / "[red]" / "groups.json").read_text())
    sizes = np.bincount(data.test_labels)
    assert [row["too_few"] for row in found["groups"].values()] == (sizes < 36).tolist() and (sizes < 36).any()
    assert found["differences"]["true_positive"]["value"] is found["differences"]["equalised_odds"]["value"] is None
    assert found["differences"]["demographic_parity"]["value"] is not None

    for by, options, error in (
        ("speaker", [], "the data has no column speaker; it has brightness, contrast, label, predicted"),
        ("label", ["--least", "1000"], "fewer than two groups have 1000 test examples"),
    ):
        assert groups_script.main([str(tmp_path), "--by", by, *options]) == 2
        assert error in said(capsys)

    # A stored column: its rows must be the test examples.
    rows = [(int(label), b"id", n % 2) for n, label in enumerate(data.test_labels)]
    monkeypatch.setattr(columns, "_stored", lambda _: True)
    stored(monkeypatch, {"test": rows})
    assert groups_script.main([str(tmp_path), "--by", "speaker", "--samples", "0"]) == 0
    found = json.loads((tmp_path / "groups.json").read_text())["groups"]
    assert {name: row["examples"] for name, row in found.items()} == {"anna": 180, "bert": 179}
    stored(monkeypatch, {"test": rows[::-1]})
    assert groups_script.main([str(tmp_path), "--by", "speaker"]) == 1
    assert "not those of the test examples" in said(capsys)


def test_groups_of_texts(loaded, tmp_path):
    """Texts come in buckets: the lengths are those of the texts, whatever the bucket."""
    loaded(EXPERIMENTS["sentences"])
    assert groups_script.main([str(tmp_path), "--by", "length", "--least", "1", "--quantiles", "2"]) == 0
    found = json.loads((tmp_path / "groups.json").read_text())
    data = EXPERIMENTS["sentences"].data
    tokens = data.spec().tokenizer.encode_batch(list(data.load().test[0]))
    lengths = np.minimum([len(x) for x in tokens], 8)
    assert sum(row["examples"] for row in found["groups"].values()) == len(lengths)
    first, *_, last = found["groups"]
    assert first.split()[0] == str(lengths.min()) and last.split()[-1] == str(lengths.max())
    assert found["classes"] == ["no", "yes"]


def test_noise_is_a_number(capsys):
    for noise in ("nan", "inf", "-1"):
        with pytest.raises(SystemExit, match="2"):
            explain_script.main(["runs/x", f"--noise={noise}"])
        assert f"--noise must be a number of at least 0, not {float(noise)}" in said(capsys)


def test_there_are_not_more_quantiles_than_groups(capsys):
    with pytest.raises(SystemExit, match="2"):
        groups_script.main(["runs/x", "--by", "brightness", "--quantiles", "50"])
    assert "quantiles must be between 2 and 49, not 50" in said(capsys)


@pytest.mark.parametrize(("script", "more"), [(explain_script, []), (groups_script, ["--by", "label"])])
@pytest.mark.parametrize("name", ["segment", "lstm"])
def test_another_run_is_refused(script, more, name, loaded, tmp_path, capsys):
    loaded(EXPERIMENTS[name])
    assert script.main([str(tmp_path), *more]) == 2
    assert "is not the run of a" in said(capsys)


@pytest.mark.parametrize("module", [VIT, ResNet(widths=(4,), blocks=(1,), outputs=3)], ids=["vit", "resnet"])
def test_bfloat16(module, images):
    """The maps of a net that computes in bfloat16 are float32, and near those of float32."""
    params, collections = jax.jit(network(module).init)(jax.random.key(0), images)
    each = []
    for dtype in ("float32", "bfloat16"):
        logits = lambda x, net=network(module, dtype): net.apply(params, collections, x)[0]
        with_classes = lambda logits, x: explain.grad_cam(logits, x, CLASSES)
        each.append(jitted(explain.attention_rollout if module is VIT else with_classes, logits, images))
    assert each[1].dtype == jnp.float32
    np.testing.assert_allclose(*each, atol=0.05 * np.abs(each[0]).max())
