"""Evaluation of a State over batches, and the summary of what came out."""

import statistics
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from research.core.metrics import Values, merged
from research.core.placement import Place
from research.core.state import Batch, Learner, State


class Evaluator:
    """Evaluates a State over batches; compiled once."""

    def __init__(self, learner: Learner, where: Place) -> None:
        self._evaluate = where.evaluate(learner.evaluate, 0)
        self._where = where

    def __call__(self, state: State, batches: Iterable[Batch]) -> Values:
        """The metrics of `state` over `batches`, on the host or in their place."""
        found = [self._evaluate(state, self._where.put_data(batch, 0)) for batch in batches]
        return merged(jax.tree.map(lambda *means: np.stack(means), *jax.device_get(found)))


def summary(values: Values) -> dict[str, dict[str, Any]]:
    """{metric: {"mean", "spread", "each"}} over the seeds; the spread is the sample standard deviation."""

    def one(value: Any) -> dict[str, Any]:
        each = value if isinstance(value, list) else [value]
        known = [x for x in each if x is not None]
        return {
            "mean": statistics.fmean(known) if known else None,
            "spread": statistics.stdev(known) if len(known) > 1 else None,
            "each": each,
        }

    return {name: one(value) for name, value in values.items()}
