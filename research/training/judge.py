"""Metrics on the host: merged over steps and batches, checked, compared."""

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from research.core.errors import Failure, Mistake
from research.core.experiment import Run
from research.core.placement import Place
from research.core.state import Batch, Learner, Metrics, State

STILL = 5
"""So many steps, or more, tell whether anything moves."""

Values = dict[str, Any]
"""Values by metric: a float, or a list of one for each seed; None where nothing was counted, or it is not finite."""


def merged(metrics: Metrics) -> Values:
    """The values of Means with a leading axis, of steps or of batches: merged over it, in float64."""
    sums = {name: [np.asarray(x, np.float64).sum(0) for x in mean] for name, mean in metrics.items()}
    return {name: _value(total, count) for name, (total, count) in sums.items()}


def _value(total: Any, count: Any) -> Any:
    if np.ndim(total):
        return [_value(t, c) for t, c in zip(total, count, strict=True)]
    value = float(total) / float(count) if count else math.nan
    return value if math.isfinite(value) else None


class Evaluator:
    """Evaluates a State over batches; compiled once."""

    def __init__(self, learner: Learner, where: Place) -> None:
        self._evaluate = where.evaluate(learner.evaluate, 0)
        self._where = where

    def __call__(self, state: State, batches: Iterable[Batch]) -> Values:
        """The metrics of `state` over `batches`, on the host or in their place."""
        found = [self._evaluate(state, self._where.put_data(batch, 0)) for batch in batches]
        return merged(jax.tree.map(lambda *means: np.stack(means), *jax.device_get(found)))


def check_finite(metrics: Metrics, before: int, directory: Path) -> None:
    """Raises Failure if a metric of some step, [steps] or [steps, seeds], is not finite; with seeds, if of all.

    before: the steps done before these. A seed that diverges is null in the logs, and the others go on.
    """
    finite = {name: np.isfinite(value.total) for name, value in metrics.items()}
    fine = np.all(list(finite.values()), axis=0)
    if fine.ndim == 2:
        fine = np.any(fine, axis=1)
    if fine.all():
        return
    step = int(np.argmin(fine))
    names = [name for name, good in finite.items() if not np.all(good[step])]
    raise Failure(
        f"{' and '.join(names)} became NaN or infinite at step {before + step + 1}. The last good checkpoint "
        f"is kept in {directory / 'checkpoints'}. Try a lower learning rate or --descent.clip 1; --debug, in another "
        "--workdir, shows where it comes from"
    )


def check_moving(metrics: Metrics, before: int, directory: Path) -> None:
    """Raises Failure if nets that play against each other have all stopped: saturated, or dead.

    NAME has if its NAME_loss, [steps] or [steps, seeds], is the same at all steps, although each has other data, or if
    its NAME_gradient_norm is 0 at all of them; with seeds, at all seeds. Fewer than `STILL` steps can't tell.

    before: the steps done before these
    """
    players = [name.removesuffix("_loss") for name in metrics if name.endswith("_loss")]
    steps = min((len(metrics[f"{name}_loss"].total) for name in players), default=0)
    if len(players) < 2 or steps < STILL:
        return
    if np.all([_stopped(name, metrics) for name in players]):
        raise Failure(
            f"{' and '.join(players)} have stopped: from step {before + 1} to {before + steps} their losses stood "
            f"still, or had no gradient. The checkpoints up to step {before} are kept in {directory / 'checkpoints'}. "
            "Try lower learning rates or, where the config has them, another --loss, --r1 or --gradient-penalty, or "
            "--discriminator.spectral"
        )


def _stopped(name: str, metrics: Metrics) -> Any:
    """Whether a net has, [] or [seeds]; where nothing was counted, it has not, and where it diverged, it has."""
    total, count = (np.asarray(x, np.float64) for x in metrics[f"{name}_loss"])
    with np.errstate(invalid="ignore", divide="ignore"):
        loss = total / count
        moved = np.ptp(loss, 0) > 1e-6 * np.abs(loss).max(0)
    stopped = ~moved
    if (gradient := metrics.get(f"{name}_gradient_norm")) is not None:
        stopped |= (np.asarray(gradient.total) == 0).all(0)
    return stopped & (count > 0).all(0)


def check_metric(names: Iterable[str], run: Run) -> None:
    """Raises Mistake unless `run.metric`, which "best" goes by, is one of the validation metrics `names`."""
    if run.metric not in names:
        raise Mistake(f"there is no metric {run.metric!r}: set --run.metric to one of {', '.join(sorted(names))}")


def score(values: Values, run: Run) -> float | None:
    """The metric that "best" goes by: its mean over the seeds that have not diverged; None where there is none."""
    value = values[run.metric]
    each = [x for x in (value if isinstance(value, list) else [value]) if x is not None]
    return statistics.fmean(each) if each else None


def best(scores: Sequence[float | None], run: Run) -> int | None:
    """The position of the best score, the first of equals; None where there is none."""
    sign = 1 if run.goal == "max" else -1
    known = [(sign * score, -at) for at, score in enumerate(scores) if score is not None]
    return -max(known)[1] if known else None


def exhausted(scores: Sequence[float | None], run: Run) -> bool:
    """Whether `run.patience` evaluations have passed without a new best."""
    if run.patience is None or not scores:
        return False
    at = best(scores, run)
    return len(scores) - 1 - (-1 if at is None else at) >= run.patience


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
