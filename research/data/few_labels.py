"""Few labelled images of a data set: the same number of each class, in several draws.

Pre-trained encoders are evaluated with them, and nets are trained from scratch or fine-tuned on the same ones.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from research.core.errors import UserError, between, positive
from research.core.experiment import Feeds
from research.data.images import Images
from research.data.order import split


@dataclass(frozen=True)
class FewLabels(Images):
    """Images of which few are trained on; for the other fields see `Images`.

    The validation images are those that `Images` with the same `validation` and `seed` holds out, none of them is
    trained on.

    Attributes:
        labels: number of training images, the same number of each class
        draw: number of the draw: others are other images
    """

    labels: int = 500
    draw: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "data", "labels")
        between(self, "data", 0, math.inf, "draw")

    def feeds(self) -> Feeds:
        """The feeds of a run. Raises as `spec` does, and UserError where a class has too few images."""
        found: Any = super().feeds()
        data = self.load()
        rest, _ = split(len(data.train_labels), self.validation, self.seed)
        chosen = balanced(data.train_labels, rest, self.labels, len(data.names), self.draw)
        return found._replace(train=found.train.replace(places=chosen.astype(np.int32)))


def balanced(labels: np.ndarray, places: np.ndarray, count: int, classes: int, draw: int) -> np.ndarray:
    """`count` of `places`, i[count], at which each class has as many of `labels` i[examples], drawn at random.

    Raises UserError where the classes do not divide `count`, or one has too few images.
    """
    each, rest = divmod(count, classes)
    if rest:
        raise UserError(f"{count} labelled images can't be shared equally by {classes} classes")
    places = np.random.default_rng((draw, 0xFE)).permutation(places)
    found = [places[labels[places] == label][:each] for label in range(classes)]
    least = min(map(len, found))
    if least < each:
        raise UserError(f"{each} labelled images of each class are more than the {least} that one of them has")
    return np.sort(np.concatenate(found))
