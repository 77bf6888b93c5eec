"""Reports on image classification: the least certain predictions, the confusion matrix, the first layer's filters."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from research.core.experiment import Report, Split
from research.core.metrics import Numbers
from research.core.state import State, evaluated
from research.core.transformations import each_seed, first_seed
from research.evaluation import plots as plot
from research.evaluation.sample_metrics import confusion_matrix, ensemble_accuracy

EXAMPLES = 48
"""Images in predictions.png."""


def classification(logits: Callable[[State, jax.Array], jax.Array], names: Sequence[str]) -> Report:
    """predictions.png, the images with the smallest margins (mistakes first), confusion.png and the count of mistakes.

    Of several seeds, these are of the first, and ensemble_accuracy is that of their mean prediction.

    logits  (State, images u8[batch, h, w, c]) -> [batch, classes]
    names   of the classes
    """
    logits = jax.jit(logits)

    def run(state: State, split: Split, directory: Path) -> Numbers:
        valid = np.concatenate([batch.mask for batch in split.batches]) > 0
        collect = lambda values: np.concatenate([np.asarray(x) for x in values])[valid]
        each = np.stack([collect(logits(one, batch.inputs) for batch in split.batches) for one in each_seed(state)])
        outputs = each[0]
        labels = collect(batch.targets for batch in split.batches)
        images = collect(batch.inputs for batch in split.batches)
        predicted, rows = outputs.argmax(1), np.arange(len(labels))

        # The margin is the logit of the true class minus the largest other one; it is negative for a mistake.
        others = outputs.copy()
        others[rows, labels] = -np.inf
        chosen = np.argsort(outputs[rows, labels] - others.max(1))[:EXAMPLES]
        caption = lambda label, guess: (
            names[label] if label == guess else f"predicted {names[guess]},\nis {names[label]}"
        )
        captions = [caption(labels[i], predicted[i]) for i in chosen]
        plot.image_grid(images[chosen], captions, directory / "predictions.png", columns=8)

        matrix = confusion_matrix(labels, predicted, len(names))
        plot.confusion(matrix, names, directory / "confusion.png")
        numbers: Numbers = {"mistakes": int(matrix.sum() - np.trace(matrix))}
        return numbers | ({"ensemble_accuracy": ensemble_accuracy(each, labels)} if len(each) > 1 else {})

    return Report(run, metrics=("mistakes", "ensemble_accuracy"))


def filters() -> Report:
    """filters.png: the kernels of the first convolution of one or three channels, as grey or colour images."""

    def run(state: State, split: Split, directory: Path) -> Numbers:
        params = evaluated(first_seed(state), "net")
        if "stem" in params:
            draw_filters(np.asarray(params["stem"]["kernel"]), directory / "filters.png")
        return {}

    return Report(run)


def draw_filters(kernel: np.ndarray, path: Path) -> bool:
    """Draws the kernel [height, width, channels, filters] of a convolution of one or three channels as images.

    Returns whether it is one.
    """
    drawable = kernel.ndim == 4 and kernel.shape[2] in (1, 3)
    if drawable:
        scaled = 0.5 + kernel / (2 * np.abs(kernel).max())  # a weight of 0 is in the middle of the range
        plot.image_grid(scaled.transpose(3, 0, 1, 2), None, path)
    return drawable
