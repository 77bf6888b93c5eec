"""Evaluation of a State over batches, the summary of what came out, which evaluation is the best, and when to stop."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.core.experiment import Run
from research.core.metrics import Metrics, Numbers, mean, merged
from research.core.placement import Place
from research.core.state import Batch, Learner, State


class Evaluator:
    """Evaluates a State over batches; compiled once."""

    def __init__(self, learner: Learner, where: Place) -> None:
        def evaluate(state: State, batch: Batch) -> Metrics:
            found = learner.evaluate(state, batch)
            return found | {_DIVERGED: jax.vmap(mean)(diverged(state))} if state.key.ndim else found

        self._evaluate = where.evaluate(evaluate, 0)
        self._where = where

    def __call__(self, state: State, batches: Iterable[Batch]) -> Numbers:
        """The metrics of `state` over `batches`, on the host or in their place.

        Of a seed that has diverged they are None, also those that would be finite, such as its accuracy.
        """
        found = [self._evaluate(state, self._where.put_data(batch, 0)) for batch in batches]
        numbers = merged(jax.tree.map(lambda *means: np.stack(means), *jax.device_get(found)))
        lost = numbers.pop(_DIVERGED, None)
        return numbers if lost is None else known(numbers, lost)


_DIVERGED = "parameters are not finite"


@jax.jit
def diverged(state: State) -> jax.Array:
    """Whether parameters of each seed are NaN or infinite, bool[seeds]."""
    of_one = lambda params: ~jnp.array([jnp.isfinite(x).all() for x in jax.tree.leaves(params)]).all()
    return jax.vmap(of_one)(state.params)


def known(numbers: Numbers, lost: Sequence[Any]) -> Numbers:
    """`numbers`, None for the seeds that are `lost`. Numbers that are not of each seed stay as they are."""
    each = lambda of: [None if gone else x for x, gone in zip(of, lost, strict=True)] if isinstance(of, list) else of
    return {name: each(of) for name, of in numbers.items()}


def over_seeds(value: Any) -> dict[str, Any]:
    """{"mean", "spread", "each"} of a number, or of a list of one for each seed, None for those that have diverged.

    The spread is the sample standard deviation; it and the mean are None where there are too few numbers.
    """
    each = value if isinstance(value, list) else [value]
    known = [x for x in each if x is not None]
    return {
        "mean": statistics.fmean(known) if known else None,
        "spread": statistics.stdev(known) if len(known) > 1 else None,
        "each": each,
    }


def summary(values: Numbers) -> dict[str, dict[str, Any]]:
    """`over_seeds` of each metric, by name."""
    return {name: over_seeds(value) for name, value in values.items()}


def score(values: Numbers, run: Run) -> float | None:
    """The metric that "best" goes by: its mean over the seeds that have not diverged; None where there is none."""
    return over_seeds(values[run.metric])["mean"]


def scores(lines: Iterable[dict[str, Any]], run: Run) -> list[float | None]:
    """The `score` of each evaluation, from the lines of metrics.jsonl."""
    return [score(line, run) for line in lines if line["split"] == "validation" and run.metric in line]


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
