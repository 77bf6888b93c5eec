"""A report on features learned without labels: nearest neighbours, and a linear classifier on few labels."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from research.core.errors import UserError
from research.core.experiment import Report, Split
from research.core.files import write_json
from research.core.metrics import Numbers, plain
from research.core.state import State
from research.core.transformations import each_seed
from research.data.few_labels import balanced
from research.data.images import Images
from research.data.order import split as split_training
from research.evaluation.samples import show
from research.evaluation.seeds import by_seed

Features = Callable[[State, jax.Array], jax.Array]
"""(State, images u8[batch, h, w, c]) -> features [batch, n]."""

NEIGHBOURS, TEMPERATURE = 200, 0.07
"""Of the classification by nearest neighbours; those of Wu, Xiong, Yu & Lin 2018 (arXiv:1805.01978)."""

STRENGTHS = tuple(10.0**n for n in range(-4, 2))
"""The inverse strengths of the linear classifier's L2 regularisation that are tried, scikit-learn's C."""

DRAWS = 3
"""Draws of labelled images."""

BATCH = 500
"""Images whose features are computed at once."""


def representation(features: Features, data: Images, labels: Sequence[int], every: int | None) -> Report:
    """knn_accuracy, and probe_accuracy_N for each number N of `labels`; probes.json has the accuracy of each draw.

    knn_accuracy      by all training images but those held out for validation, see `knn_predictions`
    probe_accuracy_N  by logistic regression on the standardised features of N of these images, the mean over `DRAWS`
                      draws, which are those of `FewLabels`; the regularisation is chosen by cross-validation on them

    every: steps between evaluations on the validation split, or None

    The numbers of a seed whose features are not finite are NaN. Raises UserError where there is one class alone, the
    classes do not divide a number of labels, or one has too few images.
    """
    arrays = data.load()
    rest, _ = split_training(len(arrays.train_labels), data.validation, data.seed)
    bank_labels, classes = arrays.train_labels[rest], len(arrays.names)
    if classes < 2:
        raise UserError(f"data.classes: all images are of the class {arrays.names[0]}, and features tell classes apart")
    if labels and min(labels) < 2 * classes:
        raise UserError(f"probe_labels: {min(labels)} are fewer than two for each of {classes} classes")
    try:
        chosen = {
            count: [balanced(bank_labels, np.arange(len(rest)), count, classes, draw) for draw in range(DRAWS)]
            for count in labels
        }
    except UserError as error:
        raise UserError(f"probe_labels: {error}") from error
    features, names = jax.jit(features), ("knn_accuracy", *(f"probe_accuracy_{count}" for count in labels))

    def run(state: State, split: Split, directory: Path) -> Numbers:
        valid = np.concatenate([batch.mask for batch in split.batches]) > 0
        queries, truth = (
            np.concatenate([getattr(batch, name) for batch in split.batches])[valid] for name in ("inputs", "targets")
        )
        each_draw: list[dict[int, list[float]]] = []

        def evaluate(state: State) -> dict[str, float]:
            bank = computed(features, state, arrays.train_images[rest])
            found = computed(features, state, queries)
            if not (np.isfinite(bank).all() and np.isfinite(found).all()):
                each_draw.append({})
                return dict.fromkeys(names, math.nan)
            neighbours = knn_predictions(bank, bank_labels, found, classes)
            values = {"knn_accuracy": float((neighbours == truth).mean())}
            draws = {}
            for count, places in chosen.items():
                draws[count] = [probe_accuracy(bank[at], bank_labels[at], found, truth) for at in places]
                values[f"probe_accuracy_{count}"] = float(np.mean(draws[count]))
            each_draw.append(draws)
            return values

        values = by_seed([evaluate(one) for one in each_seed(state)])
        write_json(directory / "probes.json", plain({"draws": each_draw, **values}))
        if split.name == "test":
            show("nearest neighbours, and linear classifiers on so many labels", values)
        return values

    return Report(run, every, names)


def computed(features: Features, state: State, images: np.ndarray) -> np.ndarray:
    """The features f32[images, n] of u8[images, h, w, c], `BATCH` images at a time."""
    last = -len(images) % BATCH
    padded = np.concatenate([images, np.repeat(images[-1:], last, 0)])
    parts = [np.asarray(features(state, jnp.asarray(padded[at : at + BATCH]))) for at in range(0, len(padded), BATCH)]
    return np.concatenate(parts)[: len(images)]


def knn_predictions(bank: np.ndarray, labels: np.ndarray, queries: np.ndarray, classes: int) -> np.ndarray:
    """The classes i[queries] that the nearest of `bank` [examples, n] vote for, by the cosine of features.

    Each of the `NEIGHBOURS` nearest ones (all where there are fewer) votes for its label with the weight
    exp(cosine / TEMPERATURE).
    """
    unit = lambda x: x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    bank, count = unit(bank), min(NEIGHBOURS, len(bank))
    found = []
    for part in np.array_split(unit(queries), -(-len(queries) // BATCH)):
        cosine = part @ bank.T
        nearest = np.argpartition(-cosine, count - 1, 1)[:, :count]
        weights = np.exp((np.take_along_axis(cosine, nearest, 1) - 1) / TEMPERATURE)
        votes = np.zeros((len(part), classes))
        np.add.at(votes, (np.arange(len(part))[:, None], labels[nearest]), weights)
        found.append(votes.argmax(1))
    return np.concatenate(found)


def probe_accuracy(x: np.ndarray, y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray) -> float:
    """The accuracy on the test features of a linear classifier of features x [examples, n] and labels y i[examples].

    Each class has as many examples, two or more.
    """
    from sklearn.linear_model import LogisticRegression  # imported here: it takes seconds
    from sklearn.model_selection import GridSearchCV

    mean, std = x.mean(0), x.std(0)
    scaled = lambda x: (x - mean) / np.where(std == 0, 1, std)
    folds = min(5, len(y) // len(np.unique(y)))
    probe = GridSearchCV(LogisticRegression(max_iter=300), {"C": STRENGTHS}, cv=folds).fit(scaled(x), y)
    return float(probe.score(scaled(test_x), test_y))
