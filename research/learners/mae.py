"""Masked autoencoders: a Vision Transformer predicts the patches of an image that are hidden from it.

He, Chen, Xie, Li, Dollár & Girshick 2022, "Masked autoencoders are scalable vision learners" (arXiv:2111.06377).
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from research.core.errors import UserError
from research.core.experiment import Experiment, Report, Run
from research.core.metrics import Mean, Metrics, mean
from research.core.optimizers import Optimizer
from research.core.state import Batch, Learner, State, evaluated, example_keys, fold_name, learner, owned, rng
from research.core.types import Tree
from research.core.update import Aux
from research.data.augment import Augment, augment
from research.data.images import Images
from research.data.pixels import scaled, standardised
from research.evaluation.rows import image_rows
from research.learners.self_supervised import SelfSupervised
from research.nets.masked_autoencoder import MaskedAutoencoder
from research.nets.transformer import Stack
from research.nets.vit import patches, unpatched

CROPS = Augment(crop=0.2, flip=True)
"""The paper's augmentation."""


@dataclass(frozen=True, kw_only=True)
class MAE(SelfSupervised):
    """An experiment with a masked autoencoder.

    A classifier whose net is a ViT with the same blocks starts from the encoder (`--init-from`).

    Attributes:
        net: the encoder and the decoder
        masked: fraction of an image's patches that is hidden
        augment: augmentation of training images
    """

    net: MaskedAutoencoder = field(default_factory=MaskedAutoencoder)
    masked: float = 0.75
    augment: Augment = CROPS

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.masked < 1:
            raise UserError(f"masked is a fraction between 0 and 1, not {self.masked}")

    def build(self) -> Learner:
        """See `Experiment`. The name is "net"."""
        spec, net = self.data.spec(), self.network(self.net)
        init_state, update = self.updater()
        if self.patch_count < 2:
            shape = f"{spec.shape[0]}x{spec.shape[1]}"
            raise UserError(f"net.patch={self.net.patch} makes one patch of images of {shape}: give a smaller one")

        def init(key: jax.Array) -> State:
            example = jnp.zeros((1, *spec.shape)), self.kept(jax.random.key(0)[None])
            return init_state(key, {"net": net.init(key, example)})

        def loss(params: Tree, state: State, batch: Batch, rng: jax.Array) -> tuple[Mean, Aux]:
            kept = self.kept(fold_name(rng, "masks"))
            predicted, moved = net.apply(params, owned(state, "net"), (batch.inputs, kept), rng=rng)
            return masked_error(predicted, patches(batch.inputs, self.net.patch), kept, batch.mask), Aux(moved=moved)

        def step(state: State, batch: Batch) -> tuple[State, Metrics]:
            keys = example_keys(rng(state, "augment"), batch.index)
            images = standardised(augment(self.augment, keys, scaled(batch.inputs)), spec)
            state, aux = update(state, "net", loss, batch._replace(inputs=images))
            return state, dict(aux.metrics)

        def evaluate(state: State, batch: Batch) -> Metrics:
            """The loss of images that were not trained on, with the same patches hidden each time."""
            x, kept, predicted = self.predicted(state, batch)
            return {"loss": masked_error(predicted, patches(x, self.net.patch), kept, batch.mask)}

        return learner(init, step, evaluate)

    @property
    def patch_count(self) -> int:
        """The number of patches of an image."""
        height, width, _ = self.data.spec().shape
        return (height // self.net.patch) * (width // self.net.patch)

    def kept(self, keys: jax.Array) -> jax.Array:
        """The places i32[batch, n] of the patches that are not hidden, a random order's first, by keys [batch]."""
        count = self.patch_count
        visible = min(max(1, round(count * (1 - self.masked))), count - 1)
        return jax.vmap(lambda key: jax.random.permutation(key, count)[:visible])(keys)

    def predicted(self, state: State, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The standardised images of a test batch, the places that are kept, and the predicted patches."""
        x = standardised(scaled(batch.inputs), self.data.spec())
        kept = self.kept(example_keys(jax.random.key(0), batch.index))
        return x, kept, self.outputs(state, (x, kept))

    def features(self, state: State, images: jax.Array) -> jax.Array:
        """The features [batch, width] of u8[batch, height, width, channels], as they are evaluated."""
        x = standardised(scaled(images), self.data.spec())
        return self.network(self.net).apply(evaluated(state, "net"), owned(state, "net"), x, method="features")[0]

    def pictures(self) -> Report:
        """See `SelfSupervised`."""
        spec, side = self.data.spec(), self.net.patch

        def rows(state: State, batch: Batch) -> tuple[jax.Array, ...]:
            """Images with the hidden patches grey, with the predicted ones in their places, and as they are.

            Predictions are in units of a patch's own mean and standard deviation, which are taken from the image.
            """
            x, kept, predicted = self.predicted(state, batch)
            truth = patches(x, side)
            visible = is_kept(kept, truth.shape[1])[:, :, None]
            centre, scale = statistics(truth)
            shown = jnp.where(visible, truth, 0), jnp.where(visible, truth, predicted * scale + centre), truth
            return tuple(unpatched(each, spec.shape) * jnp.array(spec.std) + jnp.array(spec.mean) for each in shown)

        return image_rows("reconstructions", rows, self.run.evaluate_every)


def masked_error(predicted: jax.Array, truth: jax.Array, kept: jax.Array, mask: jax.Array) -> Mean:
    """The squared error of the hidden patches, the mean over them and over their numbers.

    predicted  f32[batch, patches, numbers], each patch in units of its own mean and standard deviation
    truth      f32[batch, patches, numbers], the patches themselves
    kept       i32[batch, n], the places of the patches that are not hidden, which do not count
    mask       f32[batch]
    """
    centre, scale = statistics(truth)
    error = ((predicted - (truth - centre) / scale) ** 2).mean(2)
    hidden = 1.0 - is_kept(kept, truth.shape[1])
    return mean((error * hidden).sum(1) / hidden.sum(1), mask)


def statistics(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mean and the standard deviation of each patch, [batch, patches, 1], of x [batch, patches, numbers]."""
    return x.mean(2, keepdims=True), jnp.sqrt(x.var(2, keepdims=True) + 1e-6)


def is_kept(kept: jax.Array, count: int) -> jax.Array:
    """Which of `count` patches are among the places kept i32[batch, n]: bool[batch, count]."""
    return (kept[:, :, None] == jnp.arange(count)).any(1)


def tiny() -> dict[str, Experiment]:
    """A tiny setting, for the tests of what holds for every learner: SGD, dropout on."""
    stack = Stack(layers=2, width=8, heads=2, positions="sinusoidal", dropout=0.1, scan_unroll=1)
    return {
        "mae": MAE(
            data=Images(name="digits", batch=32, evaluation_batch=40),
            net=MaskedAutoencoder(stack, patch=2, decoder=stack),
            augment=Augment(shift=1),
            probe_labels=(50,),
            optimizer=Optimizer(name="sgd", learning_rate=0.1),
            run=Run(steps=12, steps_per_dispatch=3, evaluate_every=6, save_every=6, metric="loss", mode="min"),
        )
    }
