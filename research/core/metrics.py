"""Numbers that are computed from merged metrics, on the host."""

import math
from collections.abc import Sequence

import numpy as np


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts i[true class, predicted class] of labels and predictions, i[examples]. Matrices of parts add up."""
    matrix = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(matrix, (labels, predictions), 1)
    return matrix


def class_scores(matrix: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Precision, recall and F1 of each class, from counts [true class, predicted class]; 0 / 0 counts as 0."""
    correct, predicted, actual = np.diag(matrix), matrix.sum(0), matrix.sum(1)
    ratio = lambda a, b: (a / np.maximum(b, 1)).tolist()
    scores = {
        "precision": ratio(correct, predicted),
        "recall": ratio(correct, actual),
        "f1": ratio(2 * correct, predicted + actual),
    }
    return {f"{score}_{name}": x for score, each in scores.items() for name, x in zip(names, each, strict=True)}


def perplexity(loss: float | None) -> float | None:
    """exp(loss) of a mean loss in nats per token; None of None, and where it overflows."""
    try:
        return None if loss is None else math.exp(loss)
    except OverflowError:
        return None
