"""What a config of data and a source of examples must satisfy; what doesn't is one message."""

from typing import Any

import numpy as np

from research.core.errors import Mistake
from research.core.experiment import positive


def check_fields(data: Any, *sizes: str) -> None:
    """Raises Mistake unless the batches of a data config, its limit and its fields `sizes` are at least 1 (or None),
    and its `validation` is a fraction."""
    positive(data, "data", *sizes, "batch", "evaluation_batch", "limit")
    if not 0 < data.validation < 1:
        raise Mistake(f"data.validation is a fraction between 0 and 1, not {data.validation}")


def check_images(what: str, images: np.ndarray) -> None:
    """Raises Mistake unless `images` are u8[examples, height, width, channels], at least one."""
    if images.dtype != np.uint8 or images.ndim != 4 or not images.size:
        expected = "expected images uint8 [examples, height, width, channels]"
        raise Mistake(f"{what}: {expected}, not {images.dtype} {list(images.shape)}")


def check_labels(what: str, labels: np.ndarray, examples: int, classes: int) -> None:
    """Raises Mistake unless `labels` are i[examples], each in 0 ... classes-1."""
    if labels.shape != (examples,) or not np.issubdtype(labels.dtype, np.integer):
        raise Mistake(f"{what}: expected {examples} whole numbers as labels, not {labels.dtype} {labels.shape}")
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        example = f"example {wrong[0]} has {labels[wrong[0]]}"
        raise Mistake(f"{what}: expected labels 0 ... {classes - 1}; {wrong.size} are out of range, {example}")
