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
from research.evaluation.predictions import confusion_matrix, ensemble_accuracy
from research.evaluation.seeds import by_seed

EXAMPLES = 48
"""Images in predictions.png."""


def classification(logits: Callable[[State, jax.Array], jax.Array], names: Sequence[str]) -> Report:
    """predictions.png, the images with the smallest margins (mistakes first), confusion.png and the count of mistakes.

    Of several seeds, the pictures are of the first, the mistakes of each, and ensemble_accuracy is that of their mean
    prediction.

    logits  (State, images u8[batch, h, w, c]) -> [batch, classes]
    names   of the classes
    """
    logits = jax.jit(logits)

    def run(state: State, split: Split, directory: Path) -> Numbers:
        states = list(each_seed(state))
        all_outputs, all_labels = [], []
        # The margins, images, labels and predictions of the smallest margins so far.
        chosen: tuple[np.ndarray, ...] = ()
        for batch in split.batches:
            valid = np.asarray(batch.mask) > 0
            labels = np.asarray(batch.targets)[valid]
            outputs = np.stack([np.asarray(logits(one, batch.inputs))[valid] for one in states])
            all_outputs.append(outputs)
            all_labels.append(labels)
            found = margins(outputs[0], labels), np.asarray(batch.inputs)[valid], labels, outputs[0].argmax(1)
            candidates = [np.concatenate(both) for both in zip(chosen, found, strict=True)] if chosen else found
            order = np.argsort(candidates[0], kind="stable")[:EXAMPLES]
            chosen = tuple(x[order] for x in candidates)
        each, labels = np.concatenate(all_outputs, 1), np.concatenate(all_labels)
        caption = lambda label, guess: (
            names[label] if label == guess else f"predicted {names[guess]},\nis {names[label]}"
        )
        _, images, truths, guesses = chosen
        captions = [caption(*both) for both in zip(truths, guesses, strict=True)]
        plot.image_grid(images, captions, directory / "predictions.png", columns=8)

        predicted = each.argmax(-1)
        plot.confusion(confusion_matrix(labels, predicted[0], len(names)), names, directory / "confusion.png")
        numbers = by_seed([{"mistakes": int(wrong.sum())} for wrong in predicted != labels])
        return numbers | ({"ensemble_accuracy": ensemble_accuracy(each, labels)} if len(each) > 1 else {})

    return Report(run)


def margins(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The logit of the true class minus the largest other one, [examples]; it is negative for a mistake."""
    rows, others = np.arange(len(labels)), logits.copy()
    others[rows, labels] = -np.inf
    return logits[rows, labels] - others.max(1)


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
