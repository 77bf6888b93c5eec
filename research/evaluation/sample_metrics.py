"""How far samples are from data, measured on their features f[examples, dimensions], in float64.

The values depend on what the features are of: FID and KID compare with published ones on Inception's alone
(`nets/inception.py`), precision and recall on those of VGG-16, which is not here.
"""

from typing import NamedTuple

import numpy as np

from research.core.errors import Mistake

ROWS = 1000
"""Of a matrix of distances that are held at a time."""


class Estimate(NamedTuple):
    """A mean over blocks, and its standard error (NaN of a single block)."""

    mean: float
    error: float


class PrecisionRecall(NamedTuple):
    """precision: the share of samples that lie among the data; recall: the share of data that lie among the samples."""

    precision: float
    recall: float


def fid(x: np.ndarray, y: np.ndarray) -> float:
    """The Fréchet distance between normal distributions with the means and covariances of features x and y.

    Heusel, Ramsauer, Unterthiner, Nessler & Hochreiter 2017 (arXiv:1706.08500); biased upwards where there are few.

    Raises Mistake where there are too few of either for a covariance of full rank.
    """
    x, y = _features(x, y, x.shape[-1] + 1, "FID")
    covariance = lambda z: np.atleast_2d(np.cov(z, rowvar=False))
    a, b = covariance(x), covariance(y)
    # tr (ab)^(1/2) = tr (a^(1/2) b a^(1/2))^(1/2), and that matrix is symmetric: no root has an imaginary part.
    values, vectors = np.linalg.eigh(a)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ b @ root).clip(0)).sum()
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * cross)


def kid(x: np.ndarray, y: np.ndarray, block: int = 1000) -> Estimate:
    """The squared maximum mean discrepancy of features x and y with the kernel (x·y / dimensions + 1)**3.

    Bińkowski, Sutherland, Arbel & Gretton 2018 (arXiv:1801.01401). Unbiased (so it may be below 0): of each block of
    at most `block` examples of x, and as many of y. Both are shuffled before, always alike, since
    data may be sorted.

    Raises Mistake where there are fewer than two of either.
    """
    x, y = _features(x, y, 2, "KID")
    block = min(block, len(x), len(y))
    count = min(len(x), len(y)) // block
    luck = np.random.default_rng(0)
    x, y = luck.permutation(x), luck.permutation(y)
    found = [_mmd(x[n * block : (n + 1) * block], y[n * block : (n + 1) * block]) for n in range(count)]
    return Estimate(float(np.mean(found)), float(np.std(found, ddof=1) / count**0.5) if count > 1 else float("nan"))


def _mmd(x: np.ndarray, y: np.ndarray) -> float:
    kernel = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3
    others = lambda k: (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))
    return others(kernel(x, x)) + others(kernel(y, y)) - 2 * kernel(x, y).mean()


def precision_recall(data: np.ndarray, samples: np.ndarray, neighbours: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi, Karras, Laine, Lehtinen & Aila 2019, arXiv:1904.06991).

    A set's manifold is the union of the balls about its features that reach to their `neighbours`-th nearest other one.

    Raises Mistake where there are not more than `neighbours` of either.
    """
    data, samples = _features(data, samples, neighbours + 1, "precision and recall")
    return PrecisionRecall(_covered(samples, data, neighbours), _covered(data, samples, neighbours))


def _covered(points: np.ndarray, centres: np.ndarray, neighbours: int) -> float:
    """The share of `points` that lie in the manifold of `centres`."""
    # The nearest of all is the centre itself.
    radii = np.concatenate([np.partition(d, neighbours)[:, neighbours] for d in _distances(centres, centres)])
    return float(np.concatenate([(d <= radii).any(1) for d in _distances(points, centres)]).mean())


def _distances(x: np.ndarray, y: np.ndarray):
    """The squared distances of all x and y, some rows at a time."""
    squares = (y**2).sum(1)
    for start in range(0, len(x), ROWS):
        part = x[start : start + ROWS]
        found = (part**2).sum(1)[:, None] + squares - 2 * part @ y.T
        if x is y:
            found[np.arange(len(part)), start + np.arange(len(part))] = 0
        yield found.clip(0)


def _features(x: np.ndarray, y: np.ndarray, least: int, what: str) -> tuple[np.ndarray, np.ndarray]:
    for z in (x, y):
        if z.ndim != 2 or z.shape[1] != x.shape[1]:
            raise ValueError(f"features [examples, dimensions] of one kind expected, not {x.shape} and {y.shape}")
        if len(z) < least:
            raise Mistake(f"{what} of features of {z.shape[1]} dimensions needs {least} images or more, not {len(z)}")
    return np.asarray(x, np.float64), np.asarray(y, np.float64)


def ensemble_accuracy(logits: np.ndarray, truth: np.ndarray) -> float:
    """The share of examples that the mean prediction of several nets has right: a deep ensemble.

    logits  [nets, examples, classes]; truth  i[examples]

    Lakshminarayanan, Pritzel & Blundell 2017 (arXiv:1612.01474).
    """
    likely = np.exp(logits - logits.max(-1, keepdims=True))
    mean = (likely / likely.sum(-1, keepdims=True)).mean(0)
    return float((mean.argmax(-1) == truth).mean())
