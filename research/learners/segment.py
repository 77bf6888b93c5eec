"""Semantic segmentation: cross-entropy and Dice loss of every pixel, by U-Net; images and masks augmented together."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core.errors import between
from research.core.experiment import Experiment, Inference, Load, Report, Run
from research.core.losses import Criterion, cross_entropy
from research.core.metrics import Mean, Metrics, Overlap, confusion, mean
from research.core.optimizers import Optimizer
from research.core.state import Batch, Learner, State
from research.data.augment_masks import AugmentMasks, augment_masks
from research.data.masks import VOID, Masks
from research.data.pixels import scaled, standardised
from research.evaluation import masks as reports
from research.learners.supervised import Supervised, pixel_inference, supervised
from research.nets.unet import UNet


@dataclass(frozen=True, kw_only=True)
class Segment(Supervised):
    """An experiment in semantic segmentation.

    Attributes:
        data: the images and their masks
        net: a Flax module: images -> logits of each pixel, with a field `outputs` for the number of classes
        augment: augmentation of training images and their masks
        balance: how much the cross-entropy of rare classes counts: a pixel's weight is its class' share of all pixels
            to the power -balance, beside the other pixels of its image; 0: all alike
        dice: weight of the Dice loss (Milletari, Navab & Ahmadi 2016, arXiv:1606.04797) beside the cross-entropy;
            None for none
    """

    data: Masks = field(default_factory=Masks)
    net: nn.Module = field(default_factory=UNet)
    augment: AugmentMasks = field(default_factory=AugmentMasks)
    balance: float = 0.0
    dice: float | None = None
    run: Run = field(default_factory=lambda: Run(metric="mean_iou"))

    def __post_init__(self) -> None:
        super().__post_init__()
        between(self, "", 0, math.inf, "balance", "dice")

    def module(self) -> nn.Module:
        """See `Supervised`."""
        return self.net.clone(outputs=self.data.spec().images.classes)

    def build(self) -> Learner:
        """See `Experiment`."""
        spec, shares = self.data.spec()

        def augmented(keys: jax.Array, batch: Batch) -> Batch:
            images, masks = augment_masks(self.augment, keys, scaled(batch.inputs), batch.targets)
            return batch._replace(inputs=standardised(images, spec), targets=masks)

        return supervised(
            self.network(self.module()),
            self.updater(),
            jnp.zeros((1, *spec.shape)),
            segmentation(weights(shares, self.balance), self.dice),
            eval_criterion=segmentation(names=spec.names),
            augment=augmented,
            prepare=lambda batch: batch._replace(inputs=standardised(scaled(batch.inputs), spec)),
        )

    def logits(self, state: State, images: jax.Array) -> jax.Array:
        """Of u8[batch, height, width, channels], as the net is evaluated: [batch, height, width, classes]."""
        return self.outputs(state, standardised(scaled(images), self.data.spec().images))

    def reports(self, load: Load) -> Iterable[Report]:
        """See `Experiment`."""
        return (reports.segmentation(self.logits, self.data.spec().images.names, self.run.evaluate_every),)

    def inference(self, state: State) -> dict[str, Inference]:
        """See `Experiment`."""
        about, names = "The largest of a pixel's logits is that of its predicted class.", self.data.spec().images.names
        return pixel_inference(lambda images: self.logits(state, images), "logits", about, names)


def weights(shares: Sequence[float], balance: float) -> jax.Array:
    """The weights f32[classes] of pixels, share ** -balance, next to each other in one image: see `segmentation`.

    A class that does not occur has the weight of the rarest one that does.
    """
    share = jnp.array(shares)
    rarest = jnp.where(share > 0, share, 1).min()
    return jnp.maximum(share, rarest) ** -balance


def segmentation(weights: jax.Array | None = None, dice: float | None = None, names: tuple[str, ...] = ()) -> Criterion:
    """The loss of logits f32[batch, height, width, classes] against masks u8[batch, height, width].

    It is a mean over images, which all count alike: of each one the weighted mean cross-entropy of its pixels, in nats,
    and `dice` times its Dice loss.
    Pixels without a class (VOID) count for nothing. The accuracy is that of pixels.

    weights  f32[classes], how much a pixel of each class counts in the cross-entropy; None: all alike
    dice     weight of the Dice loss, or None
    names    of the classes, in evaluation: the intersection over union of each is reported, see `Overlap`
    """

    def criterion(logits: jax.Array, masks: jax.Array, mask: jax.Array) -> tuple[Mean, Metrics]:
        valid = (masks != VOID).astype(jnp.float32)
        labels = jnp.where(masks == VOID, 0, masks).astype(jnp.int32)
        counted = mask * valid.any((1, 2))  # an image without any class counts for nothing
        weight = valid if weights is None else valid * weights[labels]
        losses = (weight * cross_entropy(logits, labels)).sum((1, 2)) / jnp.maximum(weight.sum((1, 2)), 1e-8)
        if dice is not None:
            losses += dice * dice_loss(logits, labels, valid)
        predicted, pixels = logits.argmax(-1), mask[:, None, None] * valid
        metrics: Metrics = {"accuracy": mean(predicted == labels, pixels)}
        if names:
            counts = confusion(predicted.ravel(), labels.ravel(), pixels.ravel(), names).counts
            metrics["overlap"] = Overlap(counts, names)
        return mean(losses, counted), metrics

    return criterion


def dice_loss(logits: jax.Array, labels: jax.Array, valid: jax.Array) -> jax.Array:
    """1 - 2 |P T| / (|P| + |T|) of each class that the image has, their mean f32[batch].

    |P| and |T| are sums of the predicted probabilities and of the true ones, 0 or 1, over pixels with valid 1, and
    |P T| is that of their products.

    logits f32[batch, height, width, classes], labels i32[batch, height, width], valid f32[batch, height, width]
    """
    predicted = jax.nn.softmax(logits) * valid[..., None]
    true = jax.nn.one_hot(labels, logits.shape[-1]) * valid[..., None]
    both, sizes = (predicted * true).sum((1, 2)), (predicted + true).sum((1, 2))
    present = true.any((1, 2))
    share = jnp.where(present, 2 * both / jnp.maximum(sizes, 1e-8), 0).sum(-1) / jnp.maximum(present.sum(-1), 1)
    return 1 - share


def tiny() -> dict[str, Experiment]:
    """A tiny setting, for the tests of what holds for every learner: SGD, dropout on."""
    return {
        "segment": Segment(
            data=Masks(batch=32, evaluation_batch=40),
            net=UNet(widths=(4,), blocks=1, dropout=0.2),
            augment=AugmentMasks(crop=(6, 7), scaling=(0.8, 1.5), flip=True, colour=0.2),
            balance=0.5,
            dice=0.5,
            average=0.9,
            optimizer=Optimizer(name="sgd", learning_rate=0.05),
            run=Run(steps=12, steps_per_dispatch=3, evaluate_every=6, save_every=6, metric="mean_iou"),
        )
    }
