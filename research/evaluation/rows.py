"""A picture of what a model makes of test images: rows of them below each other."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from research.core.experiment import Report, Split
from research.core.metrics import Numbers
from research.core.state import Batch, State
from research.core.transformations import first_seed
from research.evaluation import plots as plot

COLUMNS = 10
"""Images in a row."""


def image_rows(name: str, make: Callable[[State, Batch], Sequence[jax.Array]], every: int | None) -> Report:
    """NAME.png: the first images of a split in two blocks, with a row for each array that `make` returns.

    make   (State, batch) -> arrays of images [batch, h, w, c]; what is outside of [0, 1] is cut off
    every  steps between pictures, or None
    """
    make = jax.jit(make)

    def run(state: State, split: Split, directory: Path) -> Numbers:
        batch = split.batches[0]
        arrays = [np.asarray(images).clip(0, 1)[batch.mask > 0] for images in make(first_seed(state), batch)]
        columns = min(COLUMNS, len(arrays[0]))
        blocks = [images[start : start + columns] for start in (0, columns) for images in arrays]
        full = np.concatenate([block for block in blocks if len(block) == columns])
        plot.image_grid(full, None, directory / f"{name}.png", columns=columns)
        return {}

    return Report(run, every)
