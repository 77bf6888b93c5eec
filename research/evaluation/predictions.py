"""Numbers of a classifier's predictions, on the host."""

import numpy as np


def ensemble_accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """The accuracy of the mean prediction of several nets, a deep ensemble; nets that have diverged are left out.

    Lakshminarayanan, Pritzel & Blundell 2017 (arXiv:1612.01474).

    logits  [nets, examples, classes]
    labels  i[examples]
    """
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    each = exponentials / exponentials.sum(-1, keepdims=True)
    probabilities = each[np.isfinite(each).all((1, 2))].mean(0)
    return float((probabilities.argmax(-1) == labels).mean())


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts i[true class, predicted class] of labels and predictions, i[examples]. Matrices of parts add up."""
    matrix = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(matrix, (labels, predictions), 1)
    return matrix
