"""Adversarial training: what a classifier's step needs to train on images that an attack has changed."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from research.core.errors import UserError, between
from research.core.losses import Criterion, cross_entropy
from research.core.metrics import Mean, mean
from research.core.modules import Network
from research.core.state import Batch, State, owned
from research.core.types import Tree
from research.core.update import Aux, Loss
from research.evaluation.attacks import Attack, projected_gradient


@dataclass(frozen=True)
class AdversarialTraining(Attack):
    """Adversarial training: on images that an attack has changed, by the net as it is at this step.

    Attributes:
        ramp: number of steps at the start of training in which the radius grows from 0
        trades: weight of the divergence between the predictions of the image and of the changed one, which is then
            what the attack raises, beside the loss of the image as it is (TRADES, Zhang et al. 2019,
            arXiv:1901.08573: beta, there 6; its attack starts beside the image, this one anywhere in the radius); None:
            the loss of the changed image alone (Madry et al. 2018, arXiv:1706.06083)
    """

    ramp: int = 0
    trades: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        between(self, "adversarial", 0, math.inf, "ramp", "trades")
        if self.trades is not None and not self.steps:
            raise UserError("adversarial.trades compares images with attacked ones: give --adversarial.steps too")

    @property
    def paired(self) -> bool:
        """Whether the loss is of the image and of the changed one: TRADES."""
        return self.steps > 0 and self.trades is not None

    def radius_at(self, step: jax.Array) -> jax.Array:
        """The radius in training, f32[]."""
        return self.radius * jnp.minimum(1, (step + 1) / max(self.ramp, 1))


def changed(
    config: AdversarialTraining,
    logits: Callable[[jax.Array], jax.Array],
    batch: Batch,
    keys: jax.Array,
    radius: jax.Array | float | None = None,
) -> jax.Array:
    """The images of a batch, `batch.inputs` in 0 ... 1, as the attack changes them.

    logits  images [batch, height, width, channels] -> [batch, classes]
    keys    [batch], of the random starts
    radius  takes the place of the config's own
    """
    if not config.paired:
        loss = lambda images: cross_entropy(logits(images), batch.targets)
    else:
        natural = logits(batch.inputs)
        loss = lambda images: divergence(natural, logits(images))
    return projected_gradient(config, loss, batch.inputs, keys, radius)


def trades_loss(net: Network, beta: Any, criterion: Criterion) -> Loss:
    """The loss for `update` of (images, changed images): `criterion` of the first, and beta times their divergence."""

    def loss(params: Tree, state: State, batch: Batch, rng: jax.Array) -> tuple[Mean, Aux]:
        images, changed = batch.inputs
        logits, moved = net.apply(params, owned(state, "net"), images, rng=rng)
        others, moved = net.apply(params, moved, changed, rng=rng)
        value, metrics = criterion(logits, batch.targets, batch.mask)
        apart = mean(divergence(logits, others), batch.mask)
        return Mean(value.total + beta * apart.total, value.count), Aux({**metrics, "divergence": apart}, moved)

    return loss


def divergence(logits: jax.Array, others: jax.Array) -> jax.Array:
    """Kullback & Leibler's divergence f32[batch] from the predictions of `logits` [batch, classes] to the others'."""
    p, q = jax.nn.log_softmax(logits), jax.nn.log_softmax(others)
    return (jnp.exp(p) * (p - q)).sum(-1)
