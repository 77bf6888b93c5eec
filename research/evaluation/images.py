"""Reports on images: those that a net classifies wrongly, and what its first layer looks for."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from research.core.experiment import Feeds, Report
from research.core.state import State, Tree
from research.core.transformations import first, members
from research.evaluation import plots as plot
from research.evaluation.sample_metrics import ensemble_accuracy

EXAMPLES = 48
"""Images in predictions.png."""


def classification(logits: Callable[[Tree, dict[str, Tree], jax.Array], jax.Array], names: Sequence[str]) -> Report:
    """Test images, those classified wrongly first, in predictions.png; all of them counted in confusion.png.

    Of several seeds they are the first's; ensemble_accuracy is that of their mean prediction.

    logits  (params, collections, images u8[batch, h, w, c]) -> [batch, classes], as they are evaluated
    names   of the classes
    """
    logits = jax.jit(logits)

    def report(state: State, feeds: Feeds, directory: Path) -> dict[str, float]:
        there = np.concatenate([batch.mask for batch in feeds.test]) > 0
        gathered = lambda values: np.concatenate([np.asarray(x) for x in values])[there]
        judged = lambda weights: gathered(logits(*weights, batch.inputs) for batch in feeds.test)
        each = np.stack([judged(weights) for weights in members(state, (state.params, state.collections))])
        outputs = each[0]
        truth = gathered(batch.targets for batch in feeds.test)
        images = gathered(batch.inputs for batch in feeds.test)

        predicted, rows = outputs.argmax(1), np.arange(len(truth))
        wrong = predicted != truth
        # By how much the right answer leads the best other one: below 0 where it is wrong.
        others = outputs.copy()
        others[rows, truth] = -np.inf
        shown = np.argsort(outputs[rows, truth] - others.max(1))[:EXAMPLES]
        captions = [
            f"says {names[predicted[i]]},\nis {names[truth[i]]}" if wrong[i] else names[truth[i]] for i in shown
        ]
        plot.image_grid(images[shown], captions, directory / "predictions.png", columns=8)

        matrix = np.zeros((len(names), len(names)), int)
        np.add.at(matrix, (truth, predicted), 1)
        plot.confusion(matrix, names, directory / "confusion.png")
        together = {"ensemble_accuracy": ensemble_accuracy(each, truth)} if len(each) > 1 else {}
        return {"mistakes": int(wrong.sum()), **together}

    return report


def filters(state: State, feeds: Feeds, directory: Path) -> dict[str, float]:
    """The kernels of the first convolution as images in filters.png; of several channels, red, green and blue."""
    params: Tree = state.collections.get("average", state.params)
    if "stem" not in params:
        return {}
    kernel = np.asarray(first(state, params["stem"]["kernel"]))  # [height, width, channels, filters]
    if kernel.ndim == 4 and kernel.shape[2] in (1, 3):
        scaled = 0.5 + kernel / (2 * np.abs(kernel).max())  # 0 is in the middle
        plot.image_grid(scaled.transpose(3, 0, 1, 2), None, directory / "filters.png")
    return {}
