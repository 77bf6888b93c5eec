"""Image classification: `supervised` with cross-entropy, and augmentation inside the compiled step."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core.experiment import Feeds, Load, Report
from research.core.losses import classification
from research.core.modules import forward
from research.core.state import Learner, Tree
from research.data.augment import Augment, augment
from research.data.images import Images
from research.evaluation import images as reports
from research.learners.supervised import Training
from research.nets.cnn import CNN


@dataclass(frozen=True, kw_only=True)
class Classify(Training):
    """An experiment in image classification.

    Attributes:
        data: the images
        net: a Flax module: images -> logits, with a field `outputs` for the number of classes
        augment: what is done to training images
        smoothing: of the labels
    """

    data: Images = field(default_factory=Images)
    net: nn.Module = field(default_factory=CNN)
    augment: Augment = field(default_factory=Augment)
    smoothing: float = 0.0

    def build(self, axis: str | None = None) -> Learner:
        """See `Experiment`."""
        images = self.data.spec()
        scaled = lambda pixels: pixels.astype(jnp.float32) / 255
        standardised = lambda pixels: (pixels - jnp.array(images.mean)) / jnp.array(images.std)
        return self.learner(
            self.net.clone(outputs=images.classes),
            jnp.zeros((1, *images.shape)),
            classification(self.smoothing),
            judge=classification(),
            prepare=lambda batch: batch._replace(inputs=standardised(scaled(batch.inputs))),
            augment=lambda keys, batch: batch._replace(
                inputs=standardised(augment(self.augment, keys, scaled(batch.inputs)))
            ),
            axis=axis,
        )

    def feeds(self) -> Feeds:
        """See `Experiment`."""
        return self.data.feeds()

    def logits(self, params: Tree, collections: dict[str, Tree], pixels: jax.Array) -> jax.Array:
        """Logits [batch, classes] of images u8[batch, height, width, channels], by the evaluated weights."""
        images = self.data.spec()
        net = self.net.clone(outputs=images.classes)
        inputs = (pixels.astype(jnp.float32) / 255 - jnp.array(images.mean)) / jnp.array(images.std)
        return forward(net, collections.get("average", params), collections, inputs)[0]

    def reports(self, load: Load) -> Iterable[Report]:
        """See `Experiment`."""
        return reports.classification(self.logits, self.data.spec().names), reports.filters()
