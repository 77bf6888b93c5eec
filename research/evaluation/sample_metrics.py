"""Sample metrics: distances between samples and data, on features f[examples, dimensions], in float64.

The values depend on the feature extractor. Published FID and KID are on the features of Inception
(`evaluation/inception.py`), published precision and recall on those of VGG-16, which is not included.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from research.core.errors import UserError

ROWS = 1000
"""Rows of a distance matrix that are computed at a time."""


class PrecisionRecall(NamedTuple):
    """precision: share of samples in the manifold of the data; recall: share of data in the manifold of the samples."""

    precision: float
    recall: float


def fid(x: np.ndarray, y: np.ndarray) -> float:
    """The Fréchet Inception distance: that of two normals with the means and covariances of the features x and y.

    Heusel, Ramsauer, Unterthiner, Nessler & Hochreiter 2017 (arXiv:1706.08500). It is biased upwards for few examples.

    Raises UserError where x or y has too few examples for a covariance of full rank.
    """
    x, y = _features(x, y, x.shape[-1] + 1, "FID")
    covariance = lambda z: np.atleast_2d(np.cov(z, rowvar=False))
    a, b = covariance(x), covariance(y)
    # tr (ab)^(1/2) = tr (a^(1/2) b a^(1/2))^(1/2), and the latter is symmetric, so all roots are real.
    values, vectors = np.linalg.eigh(a)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ b @ root).clip(0)).sum()
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * cross)


def kid(x: np.ndarray, y: np.ndarray, block: int = 1000) -> float:
    """The kernel Inception distance: the squared maximum mean discrepancy with the kernel (x·y / dimensions + 1)**3.

    Bińkowski, Sutherland, Arbel & Gretton 2018 (arXiv:1801.01401). It is the mean of unbiased estimates, which can be
    negative, on blocks of at most `block` examples of x and as many of y. Both are shuffled first, with a fixed seed,
    since data may be sorted.

    Raises UserError where x or y has fewer than two examples.
    """
    x, y = _features(x, y, 2, "KID")
    block = min(block, len(x), len(y))
    count = min(len(x), len(y)) // block
    rng = np.random.default_rng(0)
    x, y = rng.permutation(x), rng.permutation(y)
    values = [_mmd(x[n * block : (n + 1) * block], y[n * block : (n + 1) * block]) for n in range(count)]
    return float(np.mean(values))


def _mmd(x: np.ndarray, y: np.ndarray) -> float:
    kernel = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3
    others = lambda k: (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))
    return others(kernel(x, x)) + others(kernel(y, y)) - 2 * kernel(x, y).mean()


def precision_recall(data: np.ndarray, samples: np.ndarray, neighbours: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi, Karras, Laine, Lehtinen & Aila 2019, arXiv:1904.06991).

    The manifold of a set is the union of balls around its features; the radius of each is the distance to the
    `neighbours`-th nearest other feature.

    Raises UserError where data or samples have at most `neighbours` examples.
    """
    data, samples = _features(data, samples, neighbours + 1, "precision and recall")
    return PrecisionRecall(_coverage(samples, data, neighbours), _coverage(data, samples, neighbours))


def _coverage(points: np.ndarray, centres: np.ndarray, neighbours: int) -> float:
    """The share of `points` that lie in the manifold of `centres`."""
    # At index 0 is the distance of a centre to itself.
    radii = np.concatenate([np.partition(d, neighbours)[:, neighbours] for d in _distances(centres, centres)])
    return float(np.concatenate([(d <= radii).any(1) for d in _distances(points, centres)]).mean())


def _distances(x: np.ndarray, y: np.ndarray) -> Iterator[np.ndarray]:
    """The squared distances between all x and y, `ROWS` rows at a time."""
    squares = (y**2).sum(1)
    for start in range(0, len(x), ROWS):
        part = x[start : start + ROWS]
        distances = (part**2).sum(1)[:, None] + squares - 2 * part @ y.T
        if x is y:
            distances[np.arange(len(part)), start + np.arange(len(part))] = 0
        yield distances.clip(0)


def _features(x: np.ndarray, y: np.ndarray, least: int, metric: str) -> tuple[np.ndarray, np.ndarray]:
    for z in (x, y):
        if z.ndim != 2 or z.shape[1] != x.shape[1]:
            raise ValueError(
                f"features [examples, dimensions] of equal dimensions expected, not {x.shape} and {y.shape}"
            )
        if len(z) < least:
            raise UserError(
                f"{metric} on features of {z.shape[1]} dimensions needs {least} images or more, not {len(z)}"
            )
    return np.asarray(x, np.float64), np.asarray(y, np.float64)
