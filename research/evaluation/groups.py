"""How a classifier's rates differ between groups of examples: fairness metrics and calibration by group.

Classes are taken one against the rest: a rate of a class c is that of the binary classifier "c or not". One number for
all classes is that of the positive class where there are two, and the mean over the classes where there are more, see
`over_classes`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from research.core.errors import UserError

BINS = 15
"""Bins of equal width of the confidence, as in Guo, Pleiss, Sun & Weinberger 2017 (arXiv:1706.04599)."""

MOST = 50
"""Groups at most."""


class Groups(NamedTuple):
    """Examples in groups: the number of each example's group, i[examples], and the groups' names."""

    of: np.ndarray
    names: tuple[str, ...]


class ByGroup(NamedTuple):
    """Counts by group, a metric: they add up over parts of the data.

    confusion  f64[..., groups, classes, classes], examples by true and predicted class
    bins       f64[..., groups, BINS, 3], by confidence: examples, the sum of their confidences, those predicted rightly
    """

    confusion: np.ndarray
    bins: np.ndarray

    def compute(self, name: str) -> Mapping[str, Any]:
        """The differences between the groups by name, see `Differences`, one number for all classes."""
        return {f"{name}_{key}": value for key, value in differences(rates(self)).overall().items()}


class Rates(NamedTuple):
    """Rates of each group, f64[..., groups] or [..., groups, classes]; NaN where it has no example to count.

    accuracy           share of examples that are predicted rightly
    calibration_error  expected calibration error: the mean distance, over examples, of their bin's accuracy and mean
                       confidence
    selection          [..., classes], share of examples that are predicted to be of a class
    true_positive      [..., classes], the same share of the examples that are of it
    false_positive     [..., classes], the same share of the examples that are not
    """

    accuracy: np.ndarray
    calibration_error: np.ndarray
    selection: np.ndarray
    true_positive: np.ndarray
    false_positive: np.ndarray


class Differences(NamedTuple):
    """The largest rate of a group less the smallest, f64[...] or [..., classes]; NaN where fewer than two have one.

    accuracy            of the accuracies
    calibration_error   of the expected calibration errors
    demographic_parity  [..., classes], of the selection rates
    true_positive       [..., classes], of the true-positive rates: equality of opportunity
    equalised_odds      [..., classes], the larger of the differences of true- and of false-positive rates, where both
                        are (Hardt, Price & Srebro 2016, arXiv:1610.02413)
    """

    accuracy: np.ndarray
    calibration_error: np.ndarray
    demographic_parity: np.ndarray
    true_positive: np.ndarray
    equalised_odds: np.ndarray

    def overall(self) -> dict[str, np.ndarray]:
        """The differences by name, [...], one number for all classes."""
        whole = ("accuracy", "calibration_error")
        return {key: x if key in whole else over_classes(x) for key, x in self._asdict().items()}


def grouped(values: Sequence[Any], pattern: str | None = None, quantiles: int = 4) -> Groups:
    """Examples in groups of equal values, in order.

    pattern    a regular expression; the group of a text is what its first parentheses match, or else the whole match.
               Texts that it does not match are the group "no match"
    quantiles  number of groups, of about as many examples each, of numbers with more different values than that; NaN
               is a group besides

    Raises UserError where no text matches, or there are more than `MOST` groups, or only one.
    """
    if pattern is not None:
        values = _matched(pattern, [str(value) for value in values])
    found = np.asarray(values)
    known = found == found  # all but NaN
    if found.dtype.kind in "iuf" and len(different := np.unique(found[known])) > quantiles:
        # The first group has the smallest number at least, and of equal numbers none is in another group.
        edges = np.maximum(np.quantile(found[known], np.arange(1, quantiles) / quantiles), different[1])
        places = np.where(known, np.searchsorted(edges, found, side="right"), quantiles)
        there, of = np.unique(places, return_inverse=True)
        ends = [(found[of == n].min(), found[of == n].max()) for n in range(len(there))]
        # As few digits as tell the groups apart.
        named = (tuple(_range(low, high, digits) for low, high in ends) for digits in (3, 6, 17))
        groups = Groups(of, next(names for names in named if len(set(names)) == len(ends)))
    else:
        there, of = np.unique(found.astype(str) if found.dtype.kind not in "iuf" else found, return_inverse=True)
        groups = Groups(of, tuple(map(str, there.tolist())))
    if len(groups.names) > MOST:
        raise UserError(
            f"{len(groups.names)} different values, such as {groups.names[0]}, are more than {MOST} groups: give "
            "--pattern, a regular expression whose parentheses match the part to group by"
        )
    if len(groups.names) < 2:
        raise UserError(f"all examples are in one group, {groups.names[0]}: there is nothing to compare")
    return groups


def _range(low: float, high: float, digits: int) -> str:
    """The name of a group of numbers; that of NaN is "nan"."""
    return f"{low:.{digits}g}" + (f" to {high:.{digits}g}" if low <= high else "")


def _matched(pattern: str, texts: Sequence[str]) -> list[str]:
    """The part of each text that matches, see `grouped`."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"pattern {pattern!r} is no regular expression: {error}") from None
    found = [compiled.search(text) for text in texts]
    if not any(found):
        raise UserError(f"pattern {pattern!r} matches no value, such as {texts[0][:60]!r}")
    part = 1 if compiled.groups else 0
    return ["no match" if match is None else match[part] or "" for match in found]


def count(
    groups: np.ndarray,
    num_groups: int,
    labels: np.ndarray,
    probabilities: np.ndarray,
    weights: np.ndarray | None = None,
) -> ByGroup:
    """The counts of examples in groups i[examples], with labels i[examples] and probabilities [examples, classes].

    weights  of the examples, f[examples]; None: 1 each
    """
    classes, predicted = probabilities.shape[1], probabilities.argmax(1)
    confidence = probabilities.max(1).astype(np.float64)
    bins = np.clip(np.ceil(confidence * BINS) - 1, 0, BINS - 1).astype(int)
    weights = np.ones(len(labels)) if weights is None else weights
    add = lambda cell, size, each: np.bincount(cell, weights * each, size)
    confusion = add((groups * classes + labels) * classes + predicted, num_groups * classes**2, 1.0)
    of_bins = [add(groups * BINS + bins, num_groups * BINS, x) for x in (1.0, confidence, predicted == labels)]
    return ByGroup(confusion.reshape(num_groups, classes, classes), np.stack(of_bins, -1).reshape(num_groups, BINS, 3))


def rates(counts: ByGroup) -> Rates:
    """The rates of each group, see `Rates`."""
    confusion, bins = (np.asarray(x, np.float64) for x in counts)
    true, predicted = confusion.sum(-1), confusion.sum(-2)
    right, total = np.diagonal(confusion, axis1=-2, axis2=-1), confusion.sum((-2, -1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return Rates(
            right.sum(-1) / total,
            np.abs(bins[..., 2] - bins[..., 1]).sum(-1) / total,
            predicted / total[..., None],
            right / true,
            (predicted - right) / (total[..., None] - true),
        )


def differences(found: Rates) -> Differences:
    """The differences between the groups, see `Differences`."""

    def of(x: np.ndarray, axis: int) -> np.ndarray:
        several = (~np.isnan(x)).sum(axis) > 1
        return np.where(several, _over(np.nanmax, x, axis) - _over(np.nanmin, x, axis), np.nan)

    true_positive, false_positive = of(found.true_positive, -2), of(found.false_positive, -2)
    return Differences(
        of(found.accuracy, -1),
        of(found.calibration_error, -1),
        of(found.selection, -2),
        true_positive,
        np.maximum(true_positive, false_positive),
    )


def over_classes(x: np.ndarray) -> np.ndarray:
    """One number for all classes, [...], of numbers [..., classes]: of two the last one's, which is the positive class;
    of more the mean of those that are not NaN."""
    return x[..., -1] if x.shape[-1] == 2 else mean(x)


def mean(x: np.ndarray) -> np.ndarray:
    """The mean over the last axis of what is not NaN; NaN where nothing is."""
    return _over(np.nanmean, x, -1)


def _over(reduce: Any, x: np.ndarray, axis: int) -> np.ndarray:
    """A reduction that passes over NaN, and is NaN, without a warning, where there is nothing else."""
    nothing = np.isnan(x).all(axis)
    return np.where(nothing, np.nan, reduce(np.where(np.expand_dims(nothing, axis), 0, x), axis))


def bootstrapped(
    groups: np.ndarray, num_groups: int, labels: np.ndarray, probabilities: np.ndarray, samples: int
) -> Rates:
    """The rates of so many bootstrap samples, leaves [samples, ...]: examples are drawn anew within each group."""
    random = np.random.default_rng(0)
    weights = np.zeros((samples, len(labels)))
    for group in range(num_groups):
        places = np.flatnonzero(groups == group)
        if len(places):
            weights[:, places] = random.multinomial(len(places), np.full(len(places), 1 / len(places)), samples)
    each = [rates(count(groups, num_groups, labels, probabilities, one)) for one in weights]
    return Rates(*(np.stack(parts) for parts in zip(*each, strict=True)))


def shuffled(groups: np.ndarray, num_groups: int, labels: np.ndarray, probabilities: np.ndarray, samples: int) -> Rates:
    """The rates of so many random assignments of examples to groups of the same sizes, leaves [samples, ...].

    Their differences are those of chance: with few examples, groups that are alike differ too.
    """
    random = np.random.default_rng(0)
    each = [rates(count(random.permutation(groups), num_groups, labels, probabilities)) for _ in range(samples)]
    return Rates(*(np.stack(parts) for parts in zip(*each, strict=True)))
