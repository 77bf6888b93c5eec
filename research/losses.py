"""Criteria: (outputs, targets, mask) -> (loss, metrics), all Means over the examples with mask 1."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from research.state import Mean, Metrics, mean

Criterion = Callable[[Any, Any, jax.Array], tuple[Mean, Metrics]]


def classification(smoothing: float = 0.0) -> Criterion:
    """Cross-entropy of logits f32[batch, classes] against labels i32[batch], in nats, and the accuracy.

    smoothing: the share of each target spread evenly over the classes (Szegedy et al. 2016, arXiv:1512.00567).
    """

    def criterion(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> tuple[Mean, Metrics]:
        targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
        loss = mean(optax.softmax_cross_entropy(logits, targets), mask)
        return loss, {"accuracy": mean(logits.argmax(-1) == labels, mask)}

    return criterion
