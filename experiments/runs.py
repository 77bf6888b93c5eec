"""Shared by the scripts about a run: the run that a script is given, and its first test images."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import research
from research.core.console import say
from research.core.errors import UserError
from research.core.state import Batch, State
from research.core.transformations import first_seed
from research.learners.classify import Classify


def one_seed(directory: Path) -> tuple[Any, State]:
    """The config of a run, and the State that it evaluates, of its first seed: said where there are more.

    Raises UserError where there is no run.
    """
    experiment, _, state = research.load(directory)
    if state.key.ndim:
        say(f"{directory} has several seeds, of which this is seed {experiment.run.seed}")
    return experiment, first_seed(state)


def image_classifier(directory: Path) -> tuple[Classify, State]:
    """`one_seed` of an image classifier. Raises UserError as it does, and where the run is of something else."""
    experiment, state = one_seed(directory)
    if not isinstance(experiment, Classify):
        raise UserError(f"{directory} is not the run of an image classifier: give one, for example of mnist_cnn")
    return experiment, state


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
