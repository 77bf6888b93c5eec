"""FID, KID, precision and recall against direct computations: SciPy's matrix root, and sums written out."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from research.core.errors import UserError
from research.evaluation.predictions import ensemble_accuracy
from research.evaluation.sample_metrics import fid, kid, precision_recall

DRAWS = np.random.default_rng(0).normal(size=(108, 5))
X = DRAWS[:60] @ DRAWS[60:65] + 1
Y = DRAWS[65:] * [1.0, 2.0, 0.5, 1.0, 3.0]


def test_fid_is_the_frechet_distance_of_two_normals():
    a, b = np.cov(X.T), np.cov(Y.T)
    expected = ((X.mean(0) - Y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert fid(X, Y) == pytest.approx(expected, rel=1e-9)
    assert fid(Y, X) == pytest.approx(expected, rel=1e-9)
    assert fid(X, X) == pytest.approx(0, abs=1e-9)
    # A shift adds its squared length; float32 features far from 0 lose nothing to float32 sums.
    assert fid(X, X + 3) == pytest.approx(5 * 9, rel=1e-9)
    far = (X + 1000).astype(np.float32)
    assert fid(far, far + np.float32(2)) == pytest.approx(5 * 4, rel=1e-3)


def test_fid_of_constant_features():
    """As those that a ReLU has cut off: the covariance has no full rank."""
    x, y = (np.concatenate([z, np.zeros((len(z), 2))], 1) for z in (X, Y))
    assert fid(x, y) == pytest.approx(fid(X, Y), rel=1e-6)


def mmd(x, y):
    """The unbiased estimate, term by term."""
    kernel = lambda a, b: (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3
    among = lambda z: np.mean([kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j])
    return among(x) + among(y) - 2 * np.mean([kernel(a, b) for a in x for b in y])


def test_kid_is_the_mean_of_unbiased_blocks():
    shuffle = np.random.default_rng(0).permutation
    x, y = shuffle(X), shuffle(Y)
    assert kid(X, Y) == pytest.approx(mmd(x[: len(Y)], y), rel=1e-9)
    blocks = [mmd(x[:20], y[:20]), mmd(x[20:40], y[20:40])]
    assert kid(X, Y, block=20) == pytest.approx(np.mean(blocks), rel=1e-9)


def test_kid_of_one_distribution_is_about_zero(rng):
    x, y = (rng.normal(size=(2000, 4)) for _ in range(2))
    assert abs(kid(x, y, block=200)) < 0.1


def test_kid_does_not_hang_on_the_datas_order(rng):
    x, y = (np.sort(rng.normal(size=(2000, 1)), axis=0) for _ in range(2))
    assert abs(kid(x, y[::-1], block=200)) < 0.5
    assert mmd(x[:40], y[::-1][:40]) > 10


def test_precision_and_recall_by_hand():
    # On a line: each point's ball reaches to its second nearest other one.
    data = np.array([[0.0], [1.0], [2.0], [10.0]])  # radii 2, 1, 2, 9: covers -2 ... 19
    samples = np.array([[0.5], [3.9], [-1.9], [19.5]])  # radii 3.4, 5.8, 5.8, 19: covers all of data
    assert precision_recall(data, samples, 2) == (0.75, 1.0)
    near = np.array([[0.0], [0.1], [0.2], [0.3]])  # the widest balls reach from -0.2 to 0.5
    assert precision_recall(data, near, 2) == (1.0, 0.25)


def test_precision_and_recall_against_all_distances(monkeypatch, rng):
    monkeypatch.setattr("research.evaluation.sample_metrics.ROWS", 7)  # several parts, the last one smaller

    def covered(points, centres, k=3):
        distance = lambda a, b: np.linalg.norm(a[:, None] - b[None], axis=-1)
        radii = np.sort(distance(centres, centres), 1)[:, k]
        return (distance(points, centres) <= radii).any(1).mean()

    x, y = X, X[:40] * 0.7 + rng.normal(size=(40, 5))
    found = precision_recall(x, y)
    assert found == pytest.approx((covered(y, x), covered(x, y)))
    assert 0 < found.precision < 1 and 0 < found.recall < 1


def test_too_few_images_are_a_mistake():
    with pytest.raises(UserError, match="FID on features of 5 dimensions needs 6 images or more, not 5"):
        fid(X[:5], Y)
    assert np.isfinite(fid(X[:6], Y))
    with pytest.raises(UserError, match="not 1"):
        kid(X, Y[:1])
    with pytest.raises(UserError, match="4 images or more, not 3"):
        precision_recall(X[:3], Y)
    with pytest.raises(ValueError, match="of equal dimensions"):
        fid(X, Y[:, :4])


def test_an_ensemble_is_right_where_its_mean_is():
    logits = np.log([[[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]], [[0.4, 0.6], [0.3, 0.7], [0.4, 0.6]]])
    # The mean has 0.65, 0.45 and 0.3 for the first class: right where the truth is 0, 1, 1.
    shifted = logits + np.array([[7.0], [0.0], [-9.0]])
    assert ensemble_accuracy(shifted, np.array([0, 1, 1])) == 1
    assert ensemble_accuracy(logits, np.array([0, 0, 1])) == pytest.approx(2 / 3)
    assert ensemble_accuracy(logits[:1], np.array([0, 0, 1])) == 1
    lost = np.full_like(logits[:1], np.nan)
    assert ensemble_accuracy(np.concatenate([lost, logits[:1]]), np.array([0, 0, 1])) == 1
