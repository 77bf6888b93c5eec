"""Shared by the scripts about image classifiers: the run that a script is given."""

from pathlib import Path

import research
from research.core.errors import UserError
from research.core.state import State
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
