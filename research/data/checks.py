"""Checks of a data config and of the examples that a source returns; each failure is one message."""

from pathlib import Path
from typing import Any

import numpy as np

from research.core.errors import UserError, positive


def check_fields(data: Any, *sizes: str) -> None:
    """Raises UserError unless the batch sizes, the limit and the fields `sizes` of a data config are at least 1 (or
    None), and `validation` is between 0 and 1."""
    positive(data, "data", *sizes, "batch", "evaluation_batch", "limit")
    if not 0 < data.validation < 1:
        raise UserError(f"data.validation is a fraction between 0 and 1, not {data.validation}")


def expanded(name: str) -> Path:
    """The path of that name, with the home directory of a user in place of ~. Raises UserError where there is none."""
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        home = Path(name).parts[0]
        raise UserError(f"data: there is no home directory {home} for the path {name}: give it in full") from error


def check_images(what: str, images: np.ndarray) -> None:
    """Raises UserError unless `images` are u8[examples, height, width, channels] and at least one; `what` they are."""
    expected = "expected images uint8 [examples, height, width, channels]"
    if not isinstance(images, np.ndarray):
        raise UserError(f"{what}: {expected}, an array of NumPy, not a {type(images).__name__}")
    if images.dtype != np.uint8 or images.ndim != 4 or not images.size:
        raise UserError(f"{what}: {expected}, not {images.dtype} {list(images.shape)}")


def check_labels(what: str, labels: np.ndarray, examples: int, classes: int) -> None:
    """Raises UserError unless `labels` are i[examples], each in 0 ... classes-1; `what` they are."""
    if not isinstance(labels, np.ndarray):
        raise UserError(f"{what}: expected labels in an array of NumPy, not a {type(labels).__name__}")
    if labels.shape != (examples,) or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"{what}: expected {examples} whole numbers as labels, not {labels.dtype} {labels.shape}")
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        example = f"example {wrong[0]} has {labels[wrong[0]]}"
        raise UserError(f"{what}: expected labels 0 ... {classes - 1}; {wrong.size} are out of range, {example}")
