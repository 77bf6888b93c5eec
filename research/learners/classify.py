"""Image classification: `supervised` with cross-entropy, and augmentation inside the compiled step."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import flax.linen as nn
import jax
import jax.numpy as jnp

from research import reports
from research.data.augment import Augment, augment
from research.data.images import Images
from research.descend import Descent
from research.experiment import Feeds, Mistake, Report, Run
from research.learners.supervised import supervised
from research.lift import averaged
from research.losses import classification
from research.nets.cnn import CNN
from research.network import forward
from research.optim import Optimizer, optimizer, schedule
from research.state import Learner, Tree


@dataclass(frozen=True)
class Classify:
    """An experiment in image classification.

    Attributes:
        data: the images
        net: a Flax module: images -> logits, with a field `outputs` for the number of classes
        augment: what is done to training images
        smoothing: of the labels
        average: decay of the averaged weights that are evaluated, None to evaluate the last ones
    """

    data: Images = field(default_factory=Images)
    net: nn.Module = field(default_factory=CNN)
    augment: Augment = field(default_factory=Augment)
    smoothing: float = 0.0
    average: float | None = None
    optimizer: Optimizer = field(default_factory=Optimizer)
    descent: Descent = field(default_factory=Descent)
    run: Run = field(default_factory=Run)

    def __post_init__(self) -> None:
        if self.data.batch % self.descent.micro:
            raise Mistake(f"descent.micro={self.descent.micro} does not divide data.batch={self.data.batch}")

    def build(self, axis: str | None = None) -> Learner:
        """See `Experiment`."""
        images = self.data.spec()
        scaled = lambda pixels: pixels.astype(jnp.float32) / 255
        standardised = lambda pixels: (pixels - jnp.array(images.mean)) / jnp.array(images.std)
        learner = supervised(
            net=self.net.clone(outputs=images.classes),
            example=jnp.zeros((1, *images.shape)),
            criterion=classification(self.smoothing),
            judge=classification(),
            tx=optimizer(self.optimizer, self.run.steps),
            rate=schedule(self.optimizer, self.run.steps),
            prepare=lambda pixels: standardised(scaled(pixels)),
            augment=lambda keys, pixels: standardised(augment(self.augment, keys, scaled(pixels))),
            how=self.descent,
            axis=axis,
        )
        return learner if self.average is None else averaged(learner, self.average)

    def feeds(self) -> Feeds:
        """See `Experiment`."""
        return self.data.feeds()

    def divisible(self) -> dict[str, int]:
        """See `Experiment`."""
        return {
            "data.batch": self.data.batch // self.descent.micro,
            "data.evaluation_batch": self.data.evaluation_batch,
        }

    def logits(self, params: Tree, collections: dict[str, Tree], pixels: jax.Array) -> jax.Array:
        """What the net makes of images u8[batch, height, width, channels], as they are evaluated: [batch, classes]."""
        images = self.data.spec()
        net = self.net.clone(outputs=images.classes)
        inputs = (pixels.astype(jnp.float32) / 255 - jnp.array(images.mean)) / jnp.array(images.std)
        return forward(net, collections.get("average", params), collections, inputs)[0]

    def reports(self) -> Iterable[Report]:
        """See `Experiment`."""
        return reports.classification(self.logits, self.data.spec().names), reports.filters
