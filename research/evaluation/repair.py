"""A report on image repair: restored images beside the damaged ones and the originals."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from research.core.experiment import Report, Split
from research.core.metrics import Numbers
from research.core.state import Batch, State
from research.core.transformations import first_seed
from research.evaluation import plots as plot

EXAMPLES = 12
"""Columns of repaired.png."""


def repaired(compare: Callable[[State, Batch], tuple[jax.Array, ...]], every: int) -> Report:
    """repaired.png: rows of damaged images, of what others make of them, of the net's, and of the originals.

    compare  (State, batch) -> rows of images f32[batch, height, width, channels]
    every    steps between pictures
    """
    compare = jax.jit(compare)

    def run(state: State, split: Split, directory: Path) -> Numbers:
        batch = split.batches[0]
        count = min(EXAMPLES, int(batch.mask.sum()))
        rows = compare(first_seed(state), jax.tree.map(lambda x: x[:count], batch))
        images = np.concatenate([np.asarray(row).clip(0, 1) for row in rows])
        plot.image_grid(images, None, directory / "repaired.png", columns=count)
        return {}

    return Report(run, every)
