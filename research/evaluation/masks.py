"""Reports on segmentation: images with their true and their predicted classes, and the confusion matrix."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from research.core.experiment import Report, Split
from research.core.metrics import Numbers
from research.core.state import State
from research.core.transformations import first_seed
from research.data.masks import VOID
from research.evaluation import plots as plot
from research.evaluation.predictions import confusion_matrix

EXAMPLES = 5
"""Images in predictions.png, spread evenly over the split."""


def segmentation(logits: Callable[[State, jax.Array], jax.Array], names: Sequence[str], every: int) -> Report:
    """predictions.png, images beside their true and predicted classes, and confusion.png, of all pixels with a class.

    Of several seeds, these are of the first.

    logits  (State, images u8[batch, h, w, c]) -> [batch, h, w, classes]
    names   of the classes
    every   steps between pictures
    """
    predict = jax.jit(lambda state, images: logits(state, images).argmax(-1).astype(np.uint8))

    def run(state: State, split: Split, directory: Path) -> Numbers:
        state, count = first_seed(state), int(sum(batch.mask.sum() for batch in split.batches))
        chosen = np.linspace(0, count - 1, min(EXAMPLES, count)).round().astype(int)
        matrix, shown, start = np.zeros((len(names), len(names)), np.int64), [], 0
        for batch in split.batches:
            real = int(batch.mask.sum())  # what is masked is at the end
            images, truths = batch.inputs[:real], batch.targets[:real]
            predicted = np.asarray(predict(state, batch.inputs))[:real]
            valid = truths != VOID
            matrix += confusion_matrix(truths[valid], predicted[valid], len(names))
            at = chosen[(chosen >= start) & (chosen < start + real)] - start
            shown += list(zip(images[at], truths[at], predicted[at], strict=True))
            start += real
        some = [np.stack(x) for x in zip(*shown, strict=True)]
        plot.masks(some[0], some[1], some[2], names, directory / "predictions.png")
        plot.confusion(matrix, names, directory / "confusion.png")
        return {}

    return Report(run, every)
