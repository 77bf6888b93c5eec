"""Shared by the scripts about image classifiers: the run that a script is given, and its first test images."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

import research
from research.core.errors import UserError
from research.core.state import Batch, State
from research.core.transformations import first_seed
from research.learners.classify import Classify


def image_classifier(directory: Path) -> tuple[Classify, State]:
    """The config of a run, and the State that it evaluates, of its first seed.

    Raises UserError where there is no run, or it is not that of an image classifier.
    """
    experiment, _, state = research.load(directory)
    if not isinstance(experiment, Classify):
        raise UserError(f"{directory} is not the run of an image classifier: give one, for example of mnist_cnn")
    return experiment, first_seed(state)


def first_images(test: Sequence[Batch], limit: int | None) -> Iterator[tuple[Batch, np.ndarray]]:
    """The batches of the first `limit` test images (None: all), and which rows of a batch are among them, bool[batch].

    Each batch is read once, and none is kept.
    """
    left = math.inf if limit is None else limit
    for batch in test:
        valid = np.asarray(batch.mask) > 0
        yield batch, valid & (np.cumsum(valid) <= left)
        left -= valid.sum()
        if left <= 0:
            return
