"""SimCLR: two views of an image are to be closer to each other than to the views of all other images of the batch.

Chen, Kornblith, Norouzi & Hinton 2020, "A simple framework for contrastive learning of visual representations"
(arXiv:2002.05709).
"""

import math
from dataclasses import dataclass, field

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from research.core.devices import gathered, position
from research.core.errors import between
from research.core.experiment import Experiment, Report, Run
from research.core.metrics import Mean, Metrics, mean
from research.core.optimizers import Optimizer
from research.core.state import Batch, Learner, State, evaluated, example_keys, fold_name, learner, owned
from research.core.types import Tree
from research.core.update import Aux
from research.data.augment import Augment, augment
from research.data.images import Images
from research.data.pixels import scaled, standardised
from research.evaluation.rows import image_rows
from research.learners.self_supervised import SelfSupervised
from research.nets.cnn import CNN, ResNet
from research.nets.projection import Projection

VIEWS = Augment(crop=0.08, flip=True, jitter=0.5, grey=0.2)
"""The paper's augmentation for CIFAR-10 (appendix B.9), which has no blur."""


@dataclass(frozen=True, kw_only=True)
class SimCLR(SelfSupervised):
    """An experiment with SimCLR.

    The parameters are those of `net` without its last layer, so that a classifier with this net starts from them
    (`--init-from`), and those of the projection beside them. Batch normalisation sees both views of the whole global
    batch at once.

    Attributes:
        net: a Flax module: images -> logits, with a field `outputs`; with 0 outputs it gives features
        projection: a Flax module: features -> projections, which the loss compares; it is not used afterwards
        augment: how views are made of an image
        temperature: divisor of the cosines of projections
    """

    net: nn.Module = field(default_factory=ResNet)
    projection: nn.Module = field(default_factory=Projection)
    augment: Augment = VIEWS
    temperature: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        between(self, "", 1e-3, math.inf, "temperature")

    def build(self) -> Learner:
        """See `Experiment`. The name is "net"."""
        spec = self.data.spec()
        encoder, projection = self.network(self.net.clone(outputs=0)), self.network(self.projection)
        init_state, update = self.updater()

        def init(key: jax.Array) -> State:
            keys, image = jax.random.split(key), jnp.zeros((1, *spec.shape))
            params, own = encoder.init(keys[0], image)
            features, _ = encoder.apply(params, own, image)
            projecting, _ = projection.init(keys[1], features)
            return init_state(key, {"net": (params | {"projection": projecting}, own)})

        def projections(
            params: Tree, own: dict[str, Tree], images: jax.Array, rng: jax.Array | None
        ) -> tuple[jax.Array, dict[str, Tree]]:
            h, moved = encoder.apply(encoding(params), own, images, rng=rng)
            z, _ = projection.apply(params["projection"], {}, h, rng=rng)
            return z, moved

        def contrastive_loss(params: Tree, state: State, batch: Batch, rng: jax.Array) -> tuple[Mean, Aux]:
            x = standardised(self.views(fold_name(rng, "views"), batch.inputs), spec)
            keys = jnp.stack([rng, fold_name(rng, "second")], 1).reshape(-1)
            z, moved = projections(params, owned(state, "net"), x, keys)
            value, accuracy = nt_xent(z, self.temperature, jnp.repeat(batch.mask, 2))
            return value, Aux({"accuracy": accuracy}, moved)

        def step(state: State, batch: Batch) -> tuple[State, Metrics]:
            state, aux = update(state, "net", contrastive_loss, batch, whole_batch=True)
            return state, dict(aux.metrics)

        def evaluate(state: State, batch: Batch) -> Metrics:
            """The loss of images that were not trained on, among those of a batch; the views are the same each time."""
            x = standardised(self.views(example_keys(jax.random.key(0), batch.index), batch.inputs), spec)
            z, _ = projections(evaluated(state, "net"), owned(state, "net"), x, None)
            value, accuracy = nt_xent(z, self.temperature, jnp.repeat(batch.mask, 2))
            return {"loss": value, "accuracy": accuracy}

        return learner(init, step, evaluate)

    def views(self, keys: jax.Array, images: jax.Array) -> jax.Array:
        """Two views of each of u8[batch, ...], one after the other: f32[2 * batch, ...] in [0, 1]."""
        x = scaled(images)
        both = [augment(self.augment, fold_name(keys, name), x) for name in ("first", "second")]
        return jnp.stack(both, 1).reshape(-1, *x.shape[1:])

    def features(self, state: State, images: jax.Array) -> jax.Array:
        """The features [batch, n] of u8[batch, height, width, channels], as they are evaluated."""
        x, params = standardised(scaled(images), self.data.spec()), encoding(evaluated(state, "net"))
        return self.network(self.net.clone(outputs=0)).apply(params, owned(state, "net"), x)[0]

    def pictures(self) -> Report:
        """See `SelfSupervised`."""

        def rows(state: State, batch: Batch) -> tuple[jax.Array, ...]:
            both = self.views(example_keys(jax.random.key(0), batch.index), batch.inputs)
            return scaled(batch.inputs), both[::2], both[1::2]

        return image_rows("views", rows, None)


def encoding(params: Tree) -> Tree:
    """The parameters of the encoder, which are all but those of the projection."""
    return {name: x for name, x in params.items() if name != "projection"}


def nt_xent(z: jax.Array, temperature: float, mask: jax.Array) -> tuple[Mean, Mean]:
    """The normalised temperature-scaled cross-entropy, and how often the other view is the nearest of all.

    z     f32[2 * batch, width], projections; the views of image i are at 2 * i and 2 * i + 1. Where an axis of devices
          is bound, they are one device's part of the global batch, and the negatives are those of all devices
    mask  f32[2 * batch], 0 for padding, which is neither counted nor a negative
    """
    z = z * jax.lax.rsqrt((z**2).sum(1, keepdims=True) + 1e-12)
    everything, there = gathered((z, mask))
    row, column = position(len(z)), jnp.arange(len(everything))
    similarity = z @ everything.T / temperature
    similarity = jnp.where((row[:, None] == column) | (there == 0), -1e9, similarity)
    positive = row ^ 1
    loss = optax.softmax_cross_entropy_with_integer_labels(similarity, positive)
    return mean(loss, mask), mean(similarity.argmax(1) == positive, mask)


def tiny() -> dict[str, Experiment]:
    """A tiny setting, for the tests of what holds for every learner: SGD, dropout on."""
    return {
        "simclr": SimCLR(
            data=Images(name="digits", batch=32, evaluation_batch=40),
            net=CNN(widths=(8,), depth=1),
            projection=Projection(hidden=16, width=8),
            augment=Augment(crop=0.3, flip=True, jitter=0.5, grey=0.2, noise=0.05),
            probe_labels=(50,),
            optimizer=Optimizer(name="sgd", learning_rate=0.05),
            run=Run(steps=12, steps_per_dispatch=3, evaluate_every=6, save_every=6, metric="loss", mode="min"),
        )
    }
