"""SimCLR and masked autoencoders: their losses against loops in NumPy, views, and the report on features."""

import colorsys
import dataclasses
import json
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from research.core.devices import AXIS
from research.core.errors import UserError
from research.core.experiment import Split
from research.core.modules import network
from research.core.state import State, fold_name
from research.core.update import UpdateConfig
from research.data import augment as augmentation
from research.data import made_up
from research.data.augment import Augment, augment
from research.data.few_labels import FewLabels, balanced
from research.data.images import Images
from research.data.order import split
from research.evaluation import representations
from research.learners import mae, simclr
from research.learners.classify import Classify
from research.learners.mae import MAE, masked_error
from research.learners.simclr import SimCLR, nt_xent
from research.nets.cnn import CNN
from research.nets.transformer import Stack
from research.nets.vit import ViT

SIMCLR, MASKED = simclr.tiny()["simclr"], mae.tiny()["mae"]


def loop(z, temperature, mask):
    """Chen et al. 2020, equation 1, over the views of unmasked images: (loss, how often the partner is the nearest)."""
    z = np.asarray(z, np.float64)
    real, losses, nearest = np.flatnonzero(mask), [], []
    similarity = lambda i, j: z[i] @ z[j] / np.linalg.norm(z[i]) / np.linalg.norm(z[j]) / temperature
    for i in real:
        partner = i + 1 if i % 2 == 0 else i - 1
        others = {k: similarity(i, k) for k in real if k != i}
        losses.append(np.log(sum(np.exp(list(others.values())))) - others[partner])
        nearest.append(max(others, key=others.get) == partner)
    return np.mean(losses), np.mean(nearest)


def test_nt_xent_is_that_of_a_loop():
    z = jax.random.normal(jax.random.key(0), (16, 5)).at[1::2].add(jax.random.normal(jax.random.key(0), (16, 5))[::2])
    mask = jnp.ones(16).at[12:].set(0)
    losses = jax.jit(nt_xent)
    for weights in (jnp.ones(16), mask):
        loss, accuracy = losses(z, 0.2, weights)
        expected = loop(z, 0.2, weights)
        assert (loss.value, accuracy.value) == pytest.approx(expected, rel=1e-5)
        assert loss.count == weights.sum()
    gradient = np.asarray(jax.jit(jax.grad(lambda z: nt_xent(z, 0.2, mask)[0].value))(z))
    assert np.isfinite(gradient).all() and not gradient[12:].any() and gradient[:12].any(1).all()


def test_negatives_are_those_of_all_devices():
    """Loss and gradient of parts on four devices are those of the whole batch on one."""
    z, mask = jax.random.normal(jax.random.key(0), (16, 5)), jnp.ones(16).at[14:].set(0)
    whole, gradient = jax.jit(jax.value_and_grad(lambda z: nt_xent(z, 0.5, mask)[0].total))(z)
    parts = lambda x: x.reshape(4, 4, *x.shape[1:])
    each = jax.pmap(
        lambda z, mask: jax.value_and_grad(lambda z: nt_xent(z, 0.5, mask)[0].total)(z), AXIS, devices=jax.devices()[:4]
    )
    values, gradients = each(parts(z), parts(mask))
    assert values.sum() == pytest.approx(float(whole), rel=1e-5)
    np.testing.assert_allclose(gradients.reshape(16, 5), gradient, atol=1e-5)


def test_both_views_share_their_batch_statistics():
    """The running averages move by the statistics of all views together; microbatches would be other negatives."""
    learner, batch = SIMCLR.build(), SIMCLR.feeds().train.batch_at(0)
    state = jax.jit(learner.init)(jax.random.key(0))
    after, metrics = jax.jit(learner.step)(state, batch)
    keys = augmentation_keys(state, len(batch.index))
    seen = jax.jit(lambda keys, images: simclr.standardised(SIMCLR.views(keys, images), SIMCLR.data.spec()))
    views = seen(keys, batch.inputs)
    params = {name: x for name, x in state.params["net"].items() if name != "projection"}
    net = network(SIMCLR.net.clone(outputs=0))
    rng = jax.random.split(jax.random.key(0), 64)
    features, moved = jax.jit(net.apply)(params, state.collections["net"], views, rng=rng)
    for x, y in zip(*map(jax.tree.leaves, (after.collections["net"], moved)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
    z, _ = jax.jit(network(SIMCLR.projection).apply)(state.params["net"]["projection"], {}, features)
    assert metrics["loss"].value == pytest.approx(loop(z, SIMCLR.temperature, np.ones(64))[0], rel=1e-3)
    parts = dataclasses.replace(SIMCLR, update=UpdateConfig(grad_accum_steps=2)).build()
    with pytest.raises(UserError, match=r"of the whole batch: update\.grad_accum_steps must be 1, not 2"):
        jax.eval_shape(parts.step, state, batch)


def augmentation_keys(state, count):
    """Those of the first update's views, for each example."""
    root = jax.random.fold_in(fold_name(state.key, "net"), 0)
    return fold_name(jax.vmap(jax.random.fold_in, (None, 0))(root, jnp.arange(count)), "views")


def test_masked_error_is_that_of_the_hidden_patches_alone():
    rng = np.random.default_rng(0)
    predicted, truth = rng.normal(size=(2, 3, 6, 4)).astype(np.float32)
    kept, mask = jnp.array([[0, 5], [2, 1], [3, 4]]), jnp.array([1.0, 1.0, 0.0])
    expected = []
    for image in range(2):
        for patch in set(range(6)) - set(np.asarray(kept[image]).tolist()):
            target = (truth[image, patch] - truth[image, patch].mean()) / np.sqrt(truth[image, patch].var() + 1e-6)
            expected += list((predicted[image, patch] - target) ** 2)
    found = lambda predicted: masked_error(predicted, jnp.asarray(truth), kept, mask).value
    assert found(jnp.asarray(predicted)) == pytest.approx(np.mean(expected), rel=1e-5)
    moved = np.asarray(jax.grad(found)(jnp.asarray(predicted))).any(2)
    assert moved.tolist() == [
        [False, True, True, True, True, False],
        [True, False, False, True, True, True],
        [False] * 6,
    ]


def test_hidden_patches_are_not_read():
    """Four of sixteen patches are kept, others for each image; the prediction depends on no hidden pixel."""
    kept = jax.jit(MASKED.kept)(jax.random.split(jax.random.key(0), 200))
    assert kept.shape == (200, 4) and all(len(set(row)) == 4 for row in kept.tolist())
    assert np.bincount(np.ravel(kept), minlength=16).min() > 25
    state, batch = jax.jit(MASKED.build().init)(jax.random.key(0)), MASKED.feeds().test[0]
    x, kept, predicted = jax.jit(MASKED.predicted)(state, batch)
    row, column = kept // 4, kept % 4
    shown = jnp.zeros((len(x), 4, 4), bool).at[jnp.arange(len(x))[:, None], row, column].set(True)
    noise = jax.random.normal(jax.random.key(1), x.shape)
    other = jnp.where(shown.repeat(2, 1).repeat(2, 2)[..., None], x, noise)
    again, _ = jax.jit(network(MASKED.net).apply)(state.params["net"], {}, (other, kept))
    np.testing.assert_allclose(again, predicted, atol=1e-5)
    with pytest.raises(UserError, match="masked is a fraction between 0 and 1, not 1"):
        dataclasses.replace(MASKED, masked=1.0)
    one = dataclasses.replace(MASKED, net=dataclasses.replace(MASKED.net, patch=8))
    with pytest.raises(UserError, match=r"net\.patch=8 makes one patch of images of 8x8: give a smaller one"):
        one.build()


def test_classifiers_start_from_the_encoders():
    """Parameters of the encoder have the names and shapes that they have in a classifier with the same net."""
    shapes = lambda state: {
        jax.tree_util.keystr(path): x.shape for path, x in jax.tree.leaves_with_path((state.params, state.collections))
    }
    for pretraining, net in ((SIMCLR, SIMCLR.net), (MASKED, ViT(MASKED.net.stack, 2))):
        classifier = Classify(data=pretraining.data, net=net)
        found, wanted = (
            shapes(jax.eval_shape(one.build().init, jax.random.key(0))) for one in (pretraining, classifier)
        )
        assert {name for name in wanted if found.get(name) != wanted[name]} == {
            "[0]['net']['head']['kernel']",
            "[0]['net']['head']['bias']",
        }


augmented = jax.jit(augment, static_argnums=0)


def test_crops_are_resized_bilinearly():
    """Of an image that is linear in its coordinates a crop is linear too, and its slopes are the crop's sides."""
    y, x = np.mgrid[:16, :24] / 24
    image = jnp.asarray(np.stack([y, x, y], -1), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 300)
    crops = np.asarray(augmented(Augment(crop=0.25), keys, jnp.broadcast_to(image, (300, *image.shape))))
    inner = crops[:, 3:-3, 3:-3]
    share = [np.diff(inner[..., axis], axis=1 + axis).mean((1, 2)) * 24 for axis in (0, 1)]
    assert (
        np.abs(np.diff(inner[..., 0], axis=2)).max() < 1e-5 and np.abs(np.diff(inner[..., 0], 2, axis=1)).max() < 1e-5
    )
    top = 24 * crops[:, 8, 8, 0] - 8.5 * share[0] + 0.5  # the row in the image is (row + 0.5) * share - 0.5 + top
    parts = share[0] < 0.9
    place = top[parts] / (16 * (1 - share[0][parts]))
    assert -0.01 < place.min() < 0.05 and 0.95 < place.max() < 1.01 and abs(place.mean() - 0.5) < 0.06
    area, ratio = share[0] * share[1], share[0] / share[1]
    assert 0.24 < area.min() < 0.32 and area.max() < 1.001 and area.std() > 0.15
    assert 0.74 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.35
    assert (crops.min((1, 2)) >= -1e-6).all() and (crops.max((1, 2)) <= image.max((0, 1)) + 1e-5).all()
    whole = augmented(Augment(crop=1.0), keys[:3], jnp.broadcast_to(image, (3, *image.shape)))
    assert whole.shape == (3, 16, 24, 3)


def test_colours():
    image = jax.random.uniform(jax.random.key(1), (8, 8, 3))
    grey = augmentation._grey(image)
    luma = colorsys.rgb_to_yiq(*np.asarray(image[0, 0], np.float64))[0]
    np.testing.assert_allclose(grey[0, 0], luma, atol=2e-3)  # colorsys rounds its coefficients
    rotation = lambda degrees: np.asarray(augmentation._hue_rotation(jnp.deg2rad(degrees)))
    np.testing.assert_allclose(np.eye(3) @ rotation(120), np.roll(np.eye(3), 1, 1), atol=1e-6)
    np.testing.assert_allclose(rotation(50) @ rotation(-50), np.eye(3), atol=1e-6)
    np.testing.assert_allclose(np.ones(3) @ rotation(33), 1, atol=1e-6)

    many, keys = jnp.broadcast_to(image, (400, *image.shape)), jax.random.split(jax.random.key(2), 400)
    same = lambda changed: np.isclose(changed, many, atol=1e-6).all((1, 2, 3)).mean()
    jittered = augmented(Augment(jitter=0.5), keys, many)
    assert abs(same(jittered) - 0.2) < 0.07 and jittered.min() >= 0 and jittered.max() <= 1
    brightness = jittered.mean((1, 2, 3)) / image.mean()
    assert 0.5 < brightness.min() < 0.75 and 1.2 < brightness.max() < 1.5
    assert same(augmented(Augment(jitter=0.0), keys, many)) == 1
    greyed = augmented(Augment(grey=0.2), keys, many)
    is_grey = np.ptp(greyed, axis=3).max((1, 2)) < 1e-6
    assert abs(is_grey.mean() - 0.2) < 0.07 and abs(same(greyed) - 0.8) < 0.07
    one = augmented(Augment(jitter=0.5, grey=1.0), keys, many[..., :1])
    assert one.shape == (400, 8, 8, 1)


def test_neighbours_vote_by_cosine():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 8))
    labels = rng.integers(0, 4, 500)
    bank = (centres[labels] + rng.normal(size=(500, 8))) * rng.uniform(0.1, 10, (500, 1))
    queries = centres[rng.integers(0, 4, 300)] + rng.normal(size=(300, 8))
    weights = lambda distance: np.exp(-distance / representations.TEMPERATURE)
    reference = KNeighborsClassifier(200, metric="cosine", weights=weights).fit(bank, labels).predict(queries)
    found = representations.knn_predictions(bank, labels, queries, 4)
    assert (found == reference).mean() > 0.995 and len(set(found)) == 4
    tracemalloc.start()
    representations.knn_predictions(bank, labels, queries, 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e7  # [queries, classes], not [queries, neighbours, classes], which is 480 MB


def test_report_on_features(tmp_path, monkeypatch):
    """Features that are the pixels: digits are told apart by few labels; validation images are not in the bank."""
    monkeypatch.setattr(representations, "STRENGTHS", (0.01, 0.1))
    monkeypatch.setattr(representations, "DRAWS", 2)
    data = Images(name="digits", evaluation_batch=40)
    report = representations.representation(
        lambda state, images: images.reshape(len(images), -1) / 255.0, data, (50, 150), None
    )
    state = jax.jit(SIMCLR.build().init)(jax.random.key(0))
    values = report.run(state, Split("test", data.feeds().test), tmp_path)
    assert set(values) == set(report.metrics) == {"knn_accuracy", "probe_accuracy_50", "probe_accuracy_150"}
    assert 0.9 < values["knn_accuracy"] < 1 and 0.7 < values["probe_accuracy_50"] < values["probe_accuracy_150"] < 0.99
    draws = json.loads((tmp_path / "probes.json").read_text())["draws"][0]["50"]
    assert len(set(draws)) == 2 and np.mean(draws) == pytest.approx(values["probe_accuracy_50"])


def test_a_seed_that_has_diverged_leaves_the_others_their_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(representations, "DRAWS", 1)
    features = lambda state, images: state.params["net"] * images.reshape(len(images), -1)
    data = Images(name="digits", evaluation_batch=40)
    report = representations.representation(features, data, (50,), None)
    state = State(jnp.int32(0), jax.random.split(jax.random.key(0)), {"net": jnp.array([1, jnp.nan])}, {}, {}, ())
    values = report.run(state, Split("test", data.feeds().test), tmp_path)
    assert set(values) == set(report.metrics)
    for name, (good, lost) in values.items():
        assert 0.5 < good < 1 and np.isnan(lost), name
    assert json.loads((tmp_path / "probes.json").read_text())["knn_accuracy"] == [values["knn_accuracy"][0], None]


@pytest.mark.parametrize(
    "labels, message",
    [
        (505, "505 labelled images can't be shared equally by 10 classes"),
        (10, "10 are fewer than two for each of 10 classes"),
        (1500, "150 labelled images of each class are more than the"),
    ],
)
def test_numbers_of_labels_are_checked_before_training(labels, message):
    experiment = dataclasses.replace(SIMCLR, data=Images(name="digits"), probe_labels=(50, labels))
    with pytest.raises(UserError, match=f"probe_labels: {message}"):
        experiment.reports(None)


def test_one_class_is_refused_before_training():
    """The linear classifier of the report at the end would fail."""
    with pytest.raises(UserError, match=r"probe_labels must be at least 1, not \(0,\)"):
        dataclasses.replace(SIMCLR, probe_labels=(0,))
    experiment = dataclasses.replace(SIMCLR, data=Images(name="digits", classes=(3,)), probe_labels=(20,))
    with pytest.raises(UserError, match=r"data\.classes: all images are of the class 3"):
        experiment.reports(None)


def test_a_probe_of_two_labels_of_each_class(rng):
    x, y = rng.normal(size=(6, 4)), np.array([0, 1, 2, 0, 1, 2])
    x[np.arange(6), y] += 20
    assert representations.probe_accuracy(x, y, x, y) == 1


def test_few_labels_are_balanced_and_not_those_of_validation():
    every, few = Images(name="digits"), FewLabels(name="digits", labels=50, batch=50)
    drawn = [dataclasses.replace(few, draw=draw).feeds().train.batch_at(0) for draw in (0, 0, 1)]
    assert np.bincount(drawn[0].targets).tolist() == [5] * 10
    rows = [{row.tobytes() for row in np.asarray(batch.inputs)} for batch in drawn]
    assert rows[0] == rows[1] and len(rows[0] & rows[2]) < 10
    held_out = few.feeds().validation
    for a, b in zip(held_out, every.feeds().validation, strict=True):
        np.testing.assert_array_equal(a.inputs, b.inputs)
    assert not rows[0] & {row.tobytes() for batch in held_out for row in batch.inputs}
    arrays, (rest, _) = few.load(), split(len(few.load().train_labels), few.validation, few.seed)
    chosen = balanced(arrays.train_labels, rest, 50, 10, 0)
    assert rows[0] == {row.tobytes() for row in arrays.train_images[chosen]}
    of_report = balanced(arrays.train_labels[rest], np.arange(len(rest)), 50, 10, 0)
    np.testing.assert_array_equal(rest[of_report], chosen)
    labels = np.array([0, 0, 1, 1, 1, 0])
    assert balanced(labels, np.array([1, 2, 4, 5]), 4, 2, 0).tolist() == [1, 2, 4, 5]
    with pytest.raises(UserError, match="3 labelled images can't be shared equally by 2"):
        balanced(labels, np.arange(6), 3, 2, 0)
    with pytest.raises(UserError, match="4 labelled images of each class are more than the 3"):
        balanced(labels, np.arange(6), 8, 2, 0)
    with pytest.raises(UserError, match=r"data\.draw must be at least 0, not -1"):
        FewLabels(draw=-1)


def test_few_labels_are_made_up_where_there_is_no_data(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    config, made = made_up.available(Classify(data=FewLabels(name="cifar10", labels=30, batch=30)), tmp_path)
    batch = config.feeds().train.batch_at(0)
    assert made and batch.inputs.shape == (30, 32, 32, 3) and np.bincount(batch.targets).tolist() == [3] * 10


def test_the_stack_of_both_is_that_of_the_classifier():
    assert isinstance(MASKED.net.stack, Stack) and MAE().net.stack == ViT().stack and SimCLR().data == Images()
    assert CNN(widths=(4,)).clone(outputs=0).init_with_output(jax.random.key(0), jnp.zeros((2, 4, 4, 1)))[0].shape == (
        2,
        16,
    )
