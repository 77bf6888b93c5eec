"""Reports on generated images: pictures, sample metrics, translations; what is refused before training."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learners import EXPERIMENTS
from PIL import Image

import research
from research.core.errors import UserError
from research.core.experiment import Split
from research.core.modules import network
from research.core.state import State
from research.data.images import Arrays, Images
from research.data.unpaired import Unpaired
from research.evaluation import samples
from research.evaluation.classifier import digest, load_classifier
from research.evaluation.samples import classifier_metrics
from research.learners.gan import GAN
from research.training import config, run

STATE = State(jnp.int32(0), jax.random.key(0), {}, {}, {}, ())
"""Of nets without parameters."""


@dataclasses.dataclass(frozen=True)
class Plain(Images):
    """Black images."""

    def arrays(self):
        images, labels = np.zeros((50, 4, 4, 1), np.uint8), np.zeros(50, np.int32)
        return Arrays(images, labels, images, labels, ("black",))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished runs: of a classifier of digits, and of a GAN whose samples it evaluates."""
    base = tmp_path_factory.mktemp("runs")
    short = ["--steps", "20", "--run.steps-per-dispatch", "10", "--run.evaluate-every", "10", "--run.save-every", "20"]
    train = lambda name, *more: run.train(name, config.parse(name, [*short, *more, "--workdir", str(base / name)]))
    train("digits_cnn", "--net.widths", "4", "8", "--net.depth", "1")
    classifier = str(base / "digits_cnn")
    expected = digest_of(classifier)
    small = ["--generator.widths", "8", "4", "--discriminator.widths", "4", "8", "--num-samples", "300"]
    best = [
        "--sample-metrics-every",
        "10",
        "--run.metric",
        "fid",
        "--run.mode",
        "min",
        "--run.checkpoint-for-test",
        "best",
    ]
    result = train("digits_gan", *small, *best, "--classifier-dir", classifier, "--classifier-hash", expected[:12])
    return base, classifier, expected, result


def digest_of(directory):
    _, _, state = research.load(directory)
    return digest((state.params, state.collections))


def test_a_run_leaves_pictures_and_sample_metrics(runs):
    base, classifier, expected, result = runs
    directory = base / "digits_gan"
    assert {"samples.png", "interpolations.png", "curves.png"} <= {path.name for path in directory.glob("*.png")}
    written = json.loads((directory / "sample_metrics.json").read_text())
    assert (written["classifier_dir"], written["classifier_hash"]) == (classifier, expected)
    assert (written["features"], written["num_samples"]) == ("the input of head", 300)
    history = sorted(path.parent.name for path in directory.glob("history/*/samples.png"))
    with Image.open(directory / "samples.gif") as film, Image.open(directory / "samples.png") as last:
        assert film.n_frames == len(history) > 1  # one for each evaluation
        assert abs(film.width - last.width / 2) <= 1
    values = result["reports"]
    assert values["fid"] > values["fid_of_test_images"] > 0  # after 20 steps it has not learned much
    assert 0 <= values["min_class_share"] <= 0.1 <= values["max_class_share"] <= 1
    assert 0.1 <= values["confidence"] <= 1 and 0 <= values["precision"] <= 1


def test_the_best_checkpoint_can_go_by_fid(runs):
    """FID is on the lines of the validation metrics, and that of the best of them is computed again at the end."""
    directory, result = runs[0] / "digits_gan", runs[3]
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    found = {line["step"]: line["fid"] for line in lines if line["split"] == "validation"}
    assert list(found) == [10, 20] and found[10] != found[20]
    best = min(found, key=found.get)
    assert (result["step"], result["state"]) == (best, "best")
    assert result["reports"]["fid"] == pytest.approx(found[best], rel=1e-4)
    assert all("fid_of_test_images" not in line for line in lines)


def test_label_accuracy_is_the_share_of_samples_with_the_requested_label(runs, tmp_path):
    data = Images(name="digits")
    arrays = data.load()
    classifier = load_classifier(research.load, runs[1], None, (8, 8, 1))
    of_each = arrays.test_images[[int(np.flatnonzero(arrays.test_labels == label)[0]) for label in range(10)]]
    predicted = classifier.predict(of_each)[1].argmax(1)
    generate = lambda state, noise, labels: jnp.asarray(of_each)[labels] / 127.5 - 1
    state, split = STATE, Split("validation", ())
    report = lambda conditional: classifier_metrics(generate, 4, data, classifier, 300, conditional, None)
    values = report(True).run(state, split, tmp_path)
    assert values["label_accuracy"] == np.mean(predicted == np.arange(10)) > 0
    shares = np.bincount(predicted, minlength=10) / 10
    assert (values["min_class_share"], values["max_class_share"]) == (shares.min(), shares.max())
    assert set(report(True).metrics) == set(values)
    assert "label_accuracy" not in report(False).run(state, split, tmp_path)
    # Data of two classes, of which the classifier knows ten and sees no other.
    features = lambda images: classifier.predict(images)[0]
    of_two = classifier._replace(predict=lambda images: (features(images), np.eye(10)[np.arange(len(images)) % 2]))
    data = dataclasses.replace(data, classes=(0, 1))
    values = classifier_metrics(generate, 4, data, of_two, 300, False, None).run(state, split, tmp_path)
    assert (values["min_class_share"], values["max_class_share"]) == (0.0, 0.5)


def test_sample_metrics_are_of_every_seed(runs, tmp_path):
    """Of two seeds that have images of one class each."""
    data = Images(name="digits")
    arrays = data.load()
    classifier = load_classifier(research.load, runs[1], None, (8, 8, 1))
    generate = lambda state, noise, labels: jnp.repeat(state.params["generator"][None], len(noise), 0) / 127.5 - 1
    images = jnp.stack([arrays.test_images[arrays.test_labels == label][0] for label in (3, 8)])
    state = STATE._replace(key=jax.random.split(jax.random.key(0)), params={"generator": images})
    report = classifier_metrics(generate, 4, data, classifier, 300, True, None)
    values = report.run(state, Split("test", ()), tmp_path)
    sure = classifier.predict(np.asarray(images))[1].max(1)
    assert values["confidence"] == pytest.approx(sure.tolist(), rel=1e-4)
    assert values["max_class_share"] == [1.0, 1.0] and values["label_accuracy"] in ([0.1, 0.1], [0.1, 0.0])
    assert isinstance(values["fid_of_test_images"], float)


@pytest.mark.parametrize("labels, columns, rows", [(None, 10, 8), (3, 3, 3), (30, 20, 20)])
def test_pictures_have_a_column_or_row_for_each_label(monkeypatch, tmp_path, labels, columns, rows):
    drawn = {}
    grid = lambda images, captions, path, columns: drawn.update({path.name: (np.asarray(images), columns)})
    monkeypatch.setattr(samples.plot, "image_grid", grid)
    # The brightness of an image is its label.
    generate = lambda state, noise, labels: jnp.zeros((len(noise), 2, 2, 1)) + labels[:, None, None, None] / 127.5 - 1
    state = STATE
    for report in (samples.sample_grid(generate, 4, labels, 5), samples.interpolation_grid(generate, 4, labels)):
        report.run(state, Split("test", ()), tmp_path)
    images, found = drawn["samples.png"]
    assert (found, images.shape) == (columns, (8 * columns, 2, 2, 1))
    np.testing.assert_array_equal(images[:, 0, 0, 0].reshape(8, columns), np.tile(np.arange(columns), (8, 1)))
    images, found = drawn["interpolations.png"]
    assert (found, images.shape) == (10, (10 * rows, 2, 2, 1))
    np.testing.assert_array_equal(images[:, 0, 0, 0].reshape(rows, 10), np.arange(rows)[:, None].repeat(10, 1))


def test_features_are_what_the_last_layer_reads(runs):
    experiment, _, state = research.load(runs[1])
    found = load_classifier(research.load, runs[1], None, (8, 8, 1))
    images = Images(name="digits").load().test_images[:300]  # more than are computed at a time
    features, probabilities = found.predict(images)
    last = state.params["net"]["head"]
    logits = features @ last["kernel"] + last["bias"]
    np.testing.assert_allclose(logits, experiment.logits(state, images), atol=1e-3)
    np.testing.assert_allclose(probabilities, jax.nn.softmax(logits), atol=1e-4)
    assert found.names == tuple("0123456789")


def test_a_classifier_that_does_not_fit_is_refused_before_training(runs):
    base, classifier, expected, _ = runs
    fit = GAN(classifier_dir=classifier, classifier_hash=expected)
    fit.reports(research.load)
    for wrong, message in (
        ({"classifier_hash": "beef"}, f"have the hash {expected[:16]}, and classifier_hash is beef"),
        (
            {"classifier_dir": str(base / "digits_gan"), "classifier_hash": None},
            "is not the run of an image classifier",
        ),
        ({"classifier_dir": str(base)}, "holds no run"),
        ({"data": Plain()}, "8x8x1, and these are 4x4x1"),
        ({"num_samples": 32}, "num_samples=32 are too few for FID on 32 features: give 33 or more"),
    ):
        experiment = dataclasses.replace(fit, **wrong)
        experiment.feeds()  # loads no run
        with pytest.raises(UserError, match=message):
            experiment.reports(research.load)
    cycle = dataclasses.replace(EXPERIMENTS["cyclegan"], classifier_dir=classifier)
    cycle.reports(research.load)
    other = load_classifier(research.load, classifier, None, (8, 8, 1))._replace(names=("3", "eight"))
    with pytest.raises(UserError, match="has no class 8"):
        samples.translation_metrics(cycle.translate, cycle.data, other, None)


def test_features_are_those_of_the_image_as_it_is(rng):
    """Also where the predictions are of several views."""
    experiment, images = EXPERIMENTS["cnn"], rng.integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
    state = jax.jit(experiment.build().init)(jax.random.key(0))
    load = lambda views: lambda _: (dataclasses.replace(experiment, views=views), None, state)
    (plain, one), (features, several) = (
        load_classifier(load(views), "there", None, (8, 8, 1)).predict(images) for views in ("one", "mirror_shift")
    )
    np.testing.assert_allclose(features, plain, rtol=1e-5)
    assert np.abs(one - several).max() > 1e-4


def test_a_classifier_without_a_dense_layer_is_refused():
    class Convolutions(nn.Module):
        outputs: int = 0

        @nn.compact
        def __call__(self, x, train=False):
            return nn.Conv(self.outputs, (3, 3))(x).mean((1, 2))

    experiment = dataclasses.replace(EXPERIMENTS["cnn"], net=Convolutions())
    load = lambda _: (experiment, None, jax.jit(experiment.build().init)(jax.random.key(0)))
    with pytest.raises(UserError, match=r"the net in there has no nn\.Dense, whose input would be an image's features"):
        load_classifier(load, "there", None, (8, 8, 1))


def test_a_classifier_of_segmented_images_is_refused():
    load = lambda _: (EXPERIMENTS["segment"], None, None)
    with pytest.raises(UserError, match="classifier_dir: there is not the run of an image classifier"):
        load_classifier(load, "there", None, (8, 8, 1))


def test_a_classifier_with_classes_in_another_order_is_refused_where_labels_matter(runs):
    classifier = load_classifier(research.load, runs[1], None, (8, 8, 1))._replace(names=tuple("9876543210"))
    data, generate = Images(name="digits"), lambda state, noise, labels: noise
    report = lambda conditional: classifier_metrics(generate, 4, data, classifier, 300, conditional, None)
    with pytest.raises(UserError, match="are 9 8 7 6 5 4 3 2 1 0, and the labels of the samples are 0 1 2 3 4 5"):
        report(True)
    assert "label_accuracy" not in report(False).metrics


def test_sample_metrics_need_something_that_evaluates_the_samples():
    with pytest.raises(UserError, match="sample_metrics_every needs classifier_dir or inception"):
        dataclasses.replace(EXPERIMENTS["gan"], sample_metrics_every=6)
    with pytest.raises(UserError, match="sample_metrics_every needs classifier_dir"):
        dataclasses.replace(EXPERIMENTS["cyclegan"], sample_metrics_every=6)
    for name in ("gan", "cyclegan", "diffusion"):
        with pytest.raises(UserError, match="classifier_hash is of the weights of a classifier: give classifier_dir"):
            dataclasses.replace(EXPERIMENTS[name], classifier_hash="beef")
    with pytest.raises(
        UserError, match=r"sample_metrics_every=7 is not a multiple of run.steps_per_dispatch=3: the nearest are 6 or 9"
    ):
        dataclasses.replace(EXPERIMENTS["gan"], sample_metrics_every=7, inception="inception.npz")


@pytest.mark.parametrize("name", ["validation", "test"])
def test_translations_are_drawn_and_classified(runs, tmp_path, name):
    """G makes every image of X one image of Y's class; F leaves an image as it is."""
    classifier = load_classifier(research.load, runs[1], None, (8, 8, 1))
    predict = lambda images: classifier.predict(images)[1].argmax(1)
    arrays = Images(name="digits").load()
    images, labels = arrays.test_images, arrays.test_labels
    label = int(np.bincount(labels[predict(images) == labels]).argmax())
    data = Unpaired(name="digits", classes=("3" if label != 3 else "8", str(label)), batch=8, evaluation_batch=16)
    target = jnp.asarray(images[predict(images) == label][0]) / 127.5 - 1
    translate = lambda state, images, to_y: jnp.where(to_y, target, images / 127.5 - 1)
    state, split = STATE, Split(name, getattr(data.feeds(), name))
    samples.translation_grid(translate, 5).run(state, split, tmp_path)
    assert (tmp_path / "translations.png").stat().st_size > 1000
    report = samples.translation_metrics(translate, data, classifier, None)
    values = report.run(state, split, tmp_path)
    x, y = (np.concatenate([b.inputs[at][b.targets[at] > 0] for b in split.batches]) for at in (0, 1))
    if name == "test":
        np.testing.assert_array_equal(y, data.load().test_y)
    x_class, y_class = (int(digit) for digit in data.classes)
    assert values == {
        "x_to_y_accuracy": 1,
        "y_to_x_accuracy": pytest.approx((predict(y) == x_class).mean()),
        "x_accuracy": pytest.approx((predict(x) == x_class).mean()),
        "y_accuracy": pytest.approx((predict(y) == y_class).mean()),
    }
    assert values["y_accuracy"] > 0 and set(report.metrics) == set(values)
    written = json.loads((tmp_path / "sample_metrics.json").read_text())
    assert written["x_to_y_accuracy"] == 1 and written["classifier_hash"] == runs[2]


def test_cyclegans_reports_translate_by_its_generators(runs, tmp_path):
    experiment = dataclasses.replace(EXPERIMENTS["cyclegan"], classifier_dir=runs[1], sample_metrics_every=6)
    state = jax.jit(experiment.build().init)(jax.random.key(0))
    x = experiment.feeds().test[0].inputs[0]
    for name, to_y in (("G", True), ("F", False)):
        params = state.params["generators"][name]
        expected = network(experiment.generator).apply(params, {}, x / np.float32(127.5) - 1)[0]
        np.testing.assert_allclose(experiment.translate(state, x, to_y), expected, atol=1e-6)
    grid, metrics = experiment.reports(research.load)
    assert (grid.every, metrics.every) == (experiment.run.evaluate_every, 6)
    assert 0 <= metrics.run(state, Split("test", experiment.feeds().test), tmp_path)["x_to_y_accuracy"] <= 1
