"""Statistics of a few runs (Agarwal et al. 2021, arXiv:2108.13264, whose package rliable defines them the same way).

Scores are [runs, tasks]: of each task as many runs, with seeds of their own; one task is [runs, 1]. Intervals are
stratified bootstrap intervals: runs are drawn with replacement within each task.
"""

from collections.abc import Callable

import numpy as np

Aggregate = Callable[[np.ndarray], np.ndarray]
"""Scores [..., runs, tasks] -> a number [...] each."""


def mean(scores: np.ndarray) -> np.ndarray:
    """The mean over runs and tasks."""
    return scores.mean((-2, -1))


def median(scores: np.ndarray) -> np.ndarray:
    """The median over tasks of the means over runs."""
    return np.median(scores.mean(-2), -1)


def iqm(scores: np.ndarray) -> np.ndarray:
    """The interquartile mean: that of the runs of all tasks without the lowest and the highest quarter of them."""
    flat = np.sort(scores.reshape(*scores.shape[:-2], -1), -1)
    cut = flat.shape[-1] // 4
    return flat[..., cut : flat.shape[-1] - cut].mean(-1)


def optimality_gap(scores: np.ndarray, best: float = 1.0) -> np.ndarray:
    """How far runs fall short of `best` in the mean; what is better counts as `best`."""
    return best - np.minimum(scores, best).mean((-2, -1))


def probability_of_improvement(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """The probability that a run of ours is better than one of theirs, a mean over the tasks; ties count half.

    Scores [..., runs, tasks]; the numbers of runs may differ.
    """
    a, b = ours[..., :, None, :], theirs[..., None, :, :]
    return ((a > b) + 0.5 * (a == b)).mean((-3, -2, -1))


def profile(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """The performance profile: the share of runs above each of the thresholds [n], [..., n]."""
    return (scores[..., None] > thresholds).mean((-3, -2))


def interval(aggregate: Callable[..., np.ndarray], *scores: np.ndarray) -> np.ndarray:
    """The 95 % percentile bootstrap interval of `aggregate(*scores)`, [2, ...]: (low, high); the draws are seeded."""
    random = np.random.default_rng(0)
    drawn = [x[random.integers(0, len(x), (2000, *x.shape)), np.arange(x.shape[1])] for x in scores]
    return np.quantile(aggregate(*drawn), [0.025, 0.975], axis=0)
