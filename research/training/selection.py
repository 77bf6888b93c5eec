"""Which evaluation is the best one, and when to stop early."""

import statistics
from collections.abc import Sequence

from research.core.experiment import Run
from research.core.metrics import Values


def score(values: Values, run: Run) -> float | None:
    """The metric that "best" goes by: its mean over the seeds that have not diverged; None where there is none."""
    value = values[run.metric]
    each = [x for x in (value if isinstance(value, list) else [value]) if x is not None]
    return statistics.fmean(each) if each else None


def best(scores: Sequence[float | None], run: Run) -> int | None:
    """The position of the best score, the first of equals; None where there is none."""
    sign = 1 if run.mode == "max" else -1
    known = [(sign * score, -at) for at, score in enumerate(scores) if score is not None]
    return -max(known)[1] if known else None


def exhausted(scores: Sequence[float | None], run: Run) -> bool:
    """Whether `run.patience` evaluations have passed without a new best."""
    if run.patience is None or not scores:
        return False
    at = best(scores, run)
    return len(scores) - 1 - (-1 if at is None else at) >= run.patience
