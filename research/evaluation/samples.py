"""Reports on generated images: grids, interpolations, translations, and sample metrics.

Pictures show the first seed's samples; numbers are of every seed.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from research.core.console import console
from research.core.errors import UserError
from research.core.experiment import Inference, Load, Report, Split
from research.core.files import write_json
from research.core.metrics import Numbers
from research.core.state import Batch, State
from research.core.transformations import each_seed, first_seed
from research.data.images import Images, ImageSpec
from research.data.unpaired import Unpaired
from research.evaluation import inception
from research.evaluation import plots as plot
from research.evaluation.classifier import Classifier, batches, load_classifier
from research.evaluation.sample_metrics import fid, kid, precision_recall
from research.evaluation.seeds import by_seed

Generate = Callable[[State, jax.Array, jax.Array], jax.Array]
"""(State, noise f32[batch, *latent], labels i32[batch]) -> images [batch, h, w, c] in [-1, 1]."""

Latent = int | tuple[int, ...]
"""The length of a noise vector, or the shape of noise of another rank."""

Translate = Callable[[State, jax.Array, bool], jax.Array]
"""(State, images u8[batch, h, w, c], whether from X to Y) -> images [batch, h, w, c] in [-1, 1]."""

PIXELS = "Images are in [-1, 1], [batch, height, width, channels]: a pixel from 0 to 255 is (x + 1) * 127.5, rounded."
"""About images that are generated, for `Inference.about`."""

ROWS = 8
"""Rows of samples.png and translations.png, and of interpolations.png without labels."""

COLUMNS = 10
"""Columns of interpolations.png, and of samples.png without labels."""

MAX_LABELS = 20
"""Labels that a grid shows at most."""


def to_uint8(images: jax.Array) -> np.ndarray:
    """Images in [-1, 1] as u8."""
    return np.asarray(jnp.round((images + 1) * 127.5).clip(0, 255).astype(jnp.uint8))


def latent_inputs(seed: int, count: int, latent: Latent, num_labels: int) -> tuple[jax.Array, jax.Array]:
    """Normal noise f32[count, *latent] and labels i32[count]: 0, 1, ... `num_labels` - 1, 0, 1, ..."""
    shape = (latent,) if isinstance(latent, int) else latent
    return jax.random.normal(jax.random.key(seed), (count, *shape)), jnp.arange(count) % num_labels


def inference(
    generate: Callable[[jax.Array, jax.Array], jax.Array], latent: Latent, spec: ImageSpec, conditional: bool
) -> dict[str, Inference]:
    """What a trained generator computes, for `Experiment.inference`.

    generate     (noise f32[batch, *latent], labels i32[batch]) -> images [batch, h, w, c] in [-1, 1]
    conditional  whether it reads the labels
    """

    def images(noise: jax.Array, labels: jax.Array | None = None) -> jax.Array:
        return generate(noise, jnp.zeros(noise.shape[:1], jnp.int32) if labels is None else labels)

    def inputs(batch: Batch) -> dict[str, jax.Array]:
        noise, labels = latent_inputs(0, len(batch.index), latent, spec.classes)
        return {"noise": noise, "labels": labels} if conditional else {"noise": noise}

    labels = f" Labels are classes: {', '.join(spec.names)}." if conditional else ""
    about = f"The noise is drawn from the standard normal distribution.{labels} {PIXELS}"
    return {"inference": Inference(images, inputs, "images", about)}


def reports(config: Any, generate: Generate, latent: Latent, load: Load) -> list[Report]:
    """The reports on what `generate` makes, of an experiment in generating images.

    config  the experiment: its fields data, conditional, classifier_dir, classifier_hash, inception, num_samples and
            sample_metrics_every are read
    load    see `Experiment.reports`
    """
    data, num_samples, every = config.data, config.num_samples, config.sample_metrics_every
    images = data.spec()
    num_labels = images.classes if config.conditional else None
    found = [
        sample_grid(generate, latent, num_labels, config.run.evaluate_every),
        animation(),
        interpolation_grid(generate, latent, num_labels),
    ]
    if config.classifier_dir is not None:
        classifier = load_classifier(load, config.classifier_dir, config.classifier_hash, images.shape)
        found.append(classifier_metrics(generate, latent, data, classifier, num_samples, config.conditional, every))
    if config.inception is not None:
        found.append(inception_metrics(generate, latent, data, config.inception, num_samples, every))
    return found


def sample_grid(generate: Generate, latent: Latent, num_labels: int | None, every: int) -> Report:
    """samples.png: always of the same noise, with a column for each label (the first `MAX_LABELS`).

    num_labels  labels that the generator reads; None: it reads none, and there are `COLUMNS` columns
    every       steps between pictures
    """
    generate = jax.jit(generate)
    columns = min(num_labels or COLUMNS, MAX_LABELS)

    def run(state: State, split: Split, directory: Path) -> Numbers:
        images = generate(first_seed(state), *latent_inputs(0, ROWS * columns, latent, columns))
        plot.image_grid(to_uint8(images), None, directory / "samples.png", columns=columns)
        return {}

    return Report(run, every)


def animation() -> Report:
    """samples.gif: the samples.png of each evaluation, one after another, at half the size."""

    def run(state: State, split: Split, directory: Path) -> Numbers:
        frames = []
        for path in sorted((directory / "history").glob("*/samples.png")):
            with Image.open(path) as image:
                frames.append(image.convert("RGB").reduce(2))
        if frames:
            plot.film(frames, 400, directory / "samples.gif")
        return {}

    return Report(run)


def interpolation_grid(generate: Generate, latent: Latent, num_labels: int | None) -> Report:
    """interpolations.png: along each row, the noise moves on a circle from one sample of the normal to another.

    num_labels  labels that the generator reads: each row has one of them (the first `MAX_LABELS`); None: it reads
                none, and there are `ROWS` rows
    """
    generate = jax.jit(generate)
    rows = min(num_labels or ROWS, MAX_LABELS)

    def run(state: State, split: Split, directory: Path) -> Numbers:
        start, labels = latent_inputs(1, rows, latent, rows)
        end, _ = latent_inputs(2, rows, latent, rows)
        angle = jnp.linspace(0, jnp.pi / 2, COLUMNS).reshape(-1, *(1,) * (start.ndim - 1))
        # cos² + sin² = 1, so the noise has the normal's variance everywhere on the way.
        noise = jnp.cos(angle) * start[:, None] + jnp.sin(angle) * end[:, None]
        noise = noise.reshape(-1, *start.shape[1:])
        images = generate(first_seed(state), noise, jnp.repeat(labels, COLUMNS))
        plot.image_grid(to_uint8(images), None, directory / "interpolations.png", columns=COLUMNS)
        return {}

    return Report(run)


def generate_samples(generate: Generate, state: State, latent: Latent, num_labels: int, count: int) -> np.ndarray:
    """`count` samples u8[count, h, w, c], always of the same noise; see `latent_inputs`."""
    parts = zip(*(batches(x) for x in latent_inputs(3, count, latent, num_labels)), strict=True)
    return np.concatenate([to_uint8(generate(state, *part)) for part in parts])


def classifier_metrics(
    generate: Generate,
    latent: Latent,
    data: Images,
    classifier: Classifier,
    num_samples: int,
    conditional: bool,
    every: int | None,
) -> Report:
    """Sample metrics on the features and predictions of a classifier; sample_metrics.json says which classifier.

    fid, kid                          distances from the samples to the training images
    precision, recall                 against as many training images as there are samples
    confidence                        mean probability of the predicted class
    min_class_share, max_class_share  smallest and largest share of a predicted class among the samples
    label_accuracy                    share of samples that are classified as the label that the generator was given,
                                      where it reads labels (`conditional`). The labels take turns: class balance is
                                      guaranteed, matching the requested label is not

    At the end, fid, kid and confidence of the test images stand beside them (`fid_of_test_images`), as the values to
    expect of samples that are as good as data. FID falls with the number of images, so the two are comparable where
    there are as many samples as test images.

    every: steps between evaluations during training, or None.

    Raises UserError where there are too few samples or images for FID, and where the generator reads labels that are
    not the classifier's classes.
    """
    if conditional and classifier.names != data.spec().names:
        given, expected = (" ".join(names) for names in (classifier.names, data.spec().names))
        raise UserError(
            f"classifier_dir: the classes of the classifier in {classifier.directory} are {given}, and the labels of "
            f"the samples are {expected}: give a classifier of the same classes in this order, or leave it out"
        )
    check_counts(
        data, num_samples, classifier.num_features, "give a classifier_dir with fewer features, or leave it out"
    )
    generate = jax.jit(generate)
    train_features = functools.cache(lambda: classifier.predict(data.load().train_images)[0])

    def run(state: State, split: Split, directory: Path) -> Numbers:
        train, arrays = train_features(), data.load()
        num_labels = len(arrays.names)
        subset = train[np.linspace(0, len(train) - 1, min(num_samples, len(train))).round().astype(int)]

        def evaluate(state: State) -> dict[str, float]:
            samples = generate_samples(generate, state, latent, num_labels, num_samples)
            features, probabilities = classifier.predict(samples)
            manifold, predicted = precision_recall(subset, features[: len(subset)]), probabilities.argmax(1)
            shares = np.bincount(predicted, minlength=len(classifier.names)) / num_samples
            values = {
                "fid": fid(features, train),
                "kid": kid(features, train),
                "precision": manifold.precision,
                "recall": manifold.recall,
                "confidence": float(probabilities.max(1).mean()),
                "min_class_share": float(np.min(shares)),
                "max_class_share": float(np.max(shares)),
            }
            if conditional:
                values["label_accuracy"] = float((predicted == np.arange(num_samples) % num_labels).mean())
            return values

        values = by_seed([evaluate(one) for one in each_seed(state)])
        if split.name == "test":
            test, probabilities = classifier.predict(arrays.test_images)
            values["fid_of_test_images"] = fid(test, train)
            values["kid_of_test_images"] = kid(test, train)
            values["confidence_of_test_images"] = float(probabilities.max(1).mean())
        about = {
            "classifier_dir": classifier.directory,
            "classifier_hash": classifier.sha256,
            "features": f"the input of {classifier.feature_layer}",
            "num_samples": num_samples,
        }
        write_json(directory / "sample_metrics.json", {**about, **values})
        if split.name == "test":
            show(f"sample metrics by the classifier in {classifier.directory}", values)
        return values

    metrics = ("fid", "kid", "precision", "recall", "confidence", "min_class_share", "max_class_share")
    return Report(run, every, (*metrics, "label_accuracy") if conditional else metrics)


def inception_metrics(
    generate: Generate, latent: Latent, data: Images, path: str, num_samples: int, every: int | None
) -> Report:
    """inception_fid: FID to the training images on Inception's features, see `evaluation/inception.py`.

    At the end, inception_fid_of_test_images stands beside it. inception.json has the hash of the weights' file.

    path: of the weights.
    every: steps between evaluations during training, or None.

    Raises UserError where `path` holds no such weights, or there are too few samples or images for FID.
    """
    channels = data.spec().shape[-1]
    if channels not in (1, 3):
        raise UserError(f"inception: images of 1 or 3 channels expected, not {channels}: leave it out")
    check_counts(data, num_samples, inception.FEATURES, "leave inception out")
    extractor = inception.load_extractor(path)
    generate = jax.jit(generate)
    train_features = functools.cache(lambda: extractor.features(data.load().train_images))

    def run(state: State, split: Split, directory: Path) -> Numbers:
        train, arrays = train_features(), data.load()

        def evaluate(state: State) -> dict[str, float]:
            samples = generate_samples(generate, state, latent, len(arrays.names), num_samples)
            return {"inception_fid": fid(extractor.features(samples), train)}

        values = by_seed([evaluate(one) for one in each_seed(state)])
        if split.name == "test":
            values["inception_fid_of_test_images"] = fid(extractor.features(arrays.test_images), train)
        about = {"inception": path, "sha256": extractor.sha256, "num_samples": num_samples}
        write_json(directory / "inception.json", {**about, **values})
        if split.name == "test":
            show(f"sample metrics by Inception with the weights in {path}", values)
        return values

    return Report(run, every, ("inception_fid",))


def check_counts(data: Images, num_samples: int, num_features: int, advice: str) -> None:
    """Raises UserError unless there are more samples, training images and test images than features, as FID needs."""
    arrays, least = data.load(), num_features + 1
    if num_samples < least:
        raise UserError(
            f"num_samples={num_samples} are too few for FID on {num_features} features: give {least} or more"
        )
    for split, images in (("training", arrays.train_images), ("test", arrays.test_images)):
        if len(images) < least:
            raise UserError(
                f"{len(images)} {split} images are too few for FID on {num_features} features, which needs {least}: "
                f"{advice}"
            )


def show(title: str, values: Numbers) -> None:
    """Prints numbers in one line; of several seeds, their mean."""
    shown = ", ".join(f"{name} {np.mean(value):.4g}" for name, value in values.items())
    console.print(f"{title}: {shown}", markup=False)


def translation_grid(translate: Translate, every: int) -> Report:
    """translations.png: images of X, translated to Y, and back; beside them images of Y, translated to X, and back.

    every: steps between pictures.
    """
    translate = jax.jit(translate, static_argnums=2)

    def run(state: State, split: Split, directory: Path) -> Numbers:
        one, batch = first_seed(state), split.batches[0]
        columns = []
        for images, to_y in zip(batch.inputs, (True, False), strict=True):
            translated = translate(one, images[:ROWS], to_y)
            back = translate(one, to_uint8(translated), not to_y)
            columns += [images[:ROWS], to_uint8(translated), to_uint8(back)]
        grid = np.stack(columns, 1).reshape(-1, *columns[0].shape[1:])
        plot.image_grid(grid, None, directory / "translations.png", columns=6)
        return {}

    return Report(run, every)


def translation_metrics(translate: Translate, data: Unpaired, classifier: Classifier, every: int | None) -> Report:
    """The shares of translated images that a classifier assigns to the target class; sample_metrics.json says which.

    x_to_y_accuracy, y_to_x_accuracy  of translated images
    x_accuracy, y_accuracy            for comparison, the shares of real images that it classifies correctly

    every: steps between evaluations on the validation split, or None.

    Raises UserError where the classifier does not know the two classes.
    """
    x_class, y_class = class_indices(classifier, data)
    translate = jax.jit(translate, static_argnums=2)

    def accuracy(images: np.ndarray, label: int) -> float:
        return float((classifier.predict(images)[1].argmax(1) == label).mean())

    def run(state: State, split: Split, directory: Path) -> Numbers:
        x, y = (np.concatenate([batch.inputs[at][batch.targets[at] > 0] for batch in split.batches]) for at in (0, 1))

        def evaluate(state: State) -> dict[str, float]:
            translated = lambda images, to_y: np.concatenate(
                [to_uint8(translate(state, part, to_y)) for part in batches(images)]
            )
            return {
                "x_to_y_accuracy": accuracy(translated(x, True), y_class),
                "y_to_x_accuracy": accuracy(translated(y, False), x_class),
            }

        values = by_seed([evaluate(one) for one in each_seed(state)])
        values |= {"x_accuracy": accuracy(x, x_class), "y_accuracy": accuracy(y, y_class)}
        about = {"classifier_dir": classifier.directory, "classifier_hash": classifier.sha256}
        write_json(directory / "sample_metrics.json", {**about, **values})
        if split.name == "test":
            show(f"sample metrics by the classifier in {classifier.directory}", values)
        return values

    return Report(run, every, ("x_to_y_accuracy", "y_to_x_accuracy", "x_accuracy", "y_accuracy"))


def class_indices(classifier: Classifier, data: Unpaired) -> tuple[int, int]:
    """The indices of the classes X and Y in the classifier's. Raises UserError where it does not know them."""
    missing = set(data.classes) - set(classifier.names)
    if missing:
        raise UserError(
            f"classifier_dir: the classifier in {classifier.directory} has no class {min(missing)}: give another one, "
            "or leave it out"
        )
    x, y = (classifier.names.index(name) for name in data.classes)
    return x, y
