"""Metrics that merge: their leaves add up over microbatches, devices, steps and batches.

A metric is a pytree with a method `compute`, which gives numbers by name once everything has been added up. What is no
sum (BLEU, FID) is a host-side evaluation, see `experiment.Report`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

Numbers = dict[str, Any]
"""Numbers by name: a float, or a list with one for each seed; None where nothing was counted or it is not finite."""


@runtime_checkable
class Metric(Protocol):
    """A pytree of arrays that add up."""

    def compute(self, name: str) -> Mapping[str, Any]:
        """Numbers by name, from leaves that are NumPy arrays; `name` is what the learner calls the metric.

        Leaves may have a further leading axis, of seeds; then the numbers have it too.
        """
        ...


class Mean(NamedTuple):
    """A weighted mean that can still be merged: add both fields.

    total  f32[], the weighted sum
    count  f32[], the sum of the weights
    """

    total: jax.Array
    count: jax.Array  # type: ignore[assignment]  # a field, not tuple's method

    @property
    def value(self) -> jax.Array:
        """total / count, and 0 where nothing was counted."""
        return self.total / jnp.where(self.count == 0, 1, self.count)

    def compute(self, name: str) -> Mapping[str, Any]:
        """The mean under the metric's own name; NaN where nothing was counted."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return {name: np.divide(self.total, self.count)}


class Perplexity(Mean):
    """exp of the mean of losses in nats per token."""

    def compute(self, name: str) -> Mapping[str, Any]:
        """The perplexity under the metric's own name; infinite where it overflows, NaN where nothing was counted."""
        with np.errstate(over="ignore"):
            return {name: np.exp(super().compute(name)[name])}


Metrics = dict[str, Metric]


def mean(values: jax.Array, mask: jax.Array | None = None) -> Mean:
    """The Mean of `values` over all axes; `mask` ([batch], weights) is broadcast over the trailing ones."""
    values = jnp.asarray(values, jnp.float32)
    if mask is None:
        return Mean(values.sum(), jnp.float32(values.size))
    weights = jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim)), values.shape)
    # where, not a product alone: what is masked out may be NaN.
    return Mean(jnp.where(weights == 0, 0, values * weights).sum(), weights.sum().astype(jnp.float32))


@struct.dataclass
class ConfusionMatrix:
    """Counts of examples by true and predicted class.

    counts  f32[classes, classes], [true, predicted]
    names   of the classes; static
    """

    counts: jax.Array
    names: tuple[str, ...] = struct.field(pytree_node=False)

    def compute(self, name: str) -> Mapping[str, Any]:
        """`macro_f1`, the unweighted mean of the classes' F1, and the precision, recall and F1 of each class.

        A class that neither occurs nor is predicted counts as 0.
        """
        counts = np.asarray(self.counts, np.float64)
        true, predicted, right = counts.sum(-1), counts.sum(-2), np.diagonal(counts, axis1=-2, axis2=-1)
        share = lambda part, whole: part / np.maximum(whole, 1)
        by_class = {
            "precision": share(right, predicted),
            "recall": share(right, true),
            "f1": share(2 * right, true + predicted),
        }
        named = ((f"{kind}_{c}", x[..., n]) for kind, x in by_class.items() for n, c in enumerate(self.names))
        return {"macro_f1": by_class["f1"].mean(-1), **dict(named)}


@struct.dataclass
class Overlap(ConfusionMatrix):
    """Counts of pixels by true and predicted class, and the intersection over union (IoU) that they give."""

    def compute(self, name: str) -> Mapping[str, Any]:
        """The IoU of each class, `iou_CLASS`, and `mean_iou`, their unweighted mean.

        A class that neither occurs nor is predicted has none (NaN), and the mean is that of the others.
        """
        counts = np.asarray(self.counts, np.float64)
        right = np.diagonal(counts, axis1=-2, axis2=-1)
        union = counts.sum(-1) + counts.sum(-2) - right
        with np.errstate(divide="ignore", invalid="ignore"):
            iou = right / union
            mean = np.where(union > 0, iou, 0).sum(-1) / (union > 0).sum(-1)
        return {"mean_iou": mean, **{f"iou_{c}": iou[..., n] for n, c in enumerate(self.names)}}


def confusion(predicted: jax.Array, labels: jax.Array, mask: jax.Array, names: Sequence[str]) -> ConfusionMatrix:
    """The ConfusionMatrix of predictions and labels, i32[batch] each; `names` of the classes."""
    one_hot = lambda x: jax.nn.one_hot(x, len(names))
    counts = jnp.einsum("b,bt,bp->tp", mask, one_hot(labels), one_hot(predicted), precision="highest")
    return ConfusionMatrix(counts, tuple(names))


def added(metrics: Metrics) -> Metrics:
    """Metrics whose leaves have a leading axis, of steps or of parts of a batch, added up over it."""
    return jax.tree.map(lambda x: x.sum(0), metrics)


def merged(metrics: Metrics) -> Numbers:
    """The numbers of metrics with a leading axis, of steps or of batches: added up over it on the host, in float64."""
    return computed(jax.tree.map(lambda x: np.asarray(x, np.float64).sum(0), metrics))


def computed(metrics: Metrics) -> Numbers:
    """The numbers of metrics that have been added up."""
    return {key: plain(x) for name, metric in metrics.items() for key, x in metric.compute(name).items()}


def plain(value: Any) -> Any:
    """`value` for JSON: arrays as lists, and None for numbers that are not finite (JSON has no NaN)."""
    if isinstance(value, Mapping):
        return {name: plain(x) for name, x in value.items()}
    if isinstance(value, str) or value is None:
        return value
    if isinstance(value, list | tuple):
        return [plain(x) for x in value]
    value = np.asarray(value).tolist()  # a float32 becomes the float64 that it equals, and is written out in full
    if isinstance(value, list):
        return plain(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
