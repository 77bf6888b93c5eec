"""Image repair: denoising, super-resolution and inpainting by a U-Net, plain or with an adversarial loss.

The net predicts what is to be added to the damaged image. With an adversarial loss, as in SRGAN (Ledig et al. 2017,
arXiv:1609.04802), it also learns to make what a discriminator takes for an undamaged image.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core.errors import UserError, between, positive
from research.core.experiment import Experiment, Inference, Load, Report, Run
from research.core.metrics import Mean, Metrics, mean
from research.core.modules import network
from research.core.optimizers import Optimizer
from research.core.state import Batch, Learner, State, evaluated, example_keys, learner, owned, rng
from research.core.types import Tree
from research.core.update import Aux, updater
from research.data.augment import Augment, augment
from research.data.images import Images
from research.data.pixels import scaled
from research.evaluation.quality import psnr, ssim
from research.evaluation.rows import image_rows
from research.learners.adversarial import ADAM
from research.nets.dcgan import DCGANDiscriminator
from research.nets.unet import UNet

Task = Literal["denoising", "super_resolution", "inpainting"]


class Damaged(NamedTuple):
    """Damaged images, [batch, ...].

    images   f32[batch, height, width, channels] in about 0 ... 1, what the net starts from
    missing  f32[batch, height, width, 1], 1 where the net may change the image
    others   by name, repairs that need no training: "identity", which is none, and "bicubic"
    """

    images: jax.Array
    missing: jax.Array
    others: Mapping[str, jax.Array]


@dataclass(frozen=True, kw_only=True)
class Restore(Experiment):
    """An experiment in image repair.

    Attributes:
        data: the images
        net: a Flax module: damaged images and where they are damaged -> what is to be added to them
        augment: augmentation of training images, before they are damaged
        task: denoising; super_resolution, of images whose sides were halved; or inpainting, of images with a hole
        noise: standard deviation of the noise of denoising, for pixels in 0 ... 1
        hole: side in pixels of the square of inpainting, which lies anywhere inside the image
        loss: mean absolute (l1) or squared (l2) error of the pixels
        adversarial: weight of the adversarial loss beside it; None for none
        discriminator: a Flax module for that loss: (images, labels) -> scores [batch]
        average: decay of the moving average of the net's weights that is evaluated; None to evaluate the last weights
        optimizer: optimizer of the net
        discriminator_optimizer: optimizer of the discriminator
    """

    data: Images = field(default_factory=Images)
    net: nn.Module = field(default_factory=UNet)
    augment: Augment = field(default_factory=Augment)
    task: Task = "denoising"
    noise: float = 0.1
    hole: int = 8
    loss: Literal["l1", "l2"] = "l1"
    adversarial: float | None = None
    discriminator: nn.Module = field(default_factory=lambda: DCGANDiscriminator(spectral=True, norm="none"))
    average: float | None = None
    optimizer: Optimizer = field(default_factory=Optimizer)
    discriminator_optimizer: Optimizer = ADAM
    run: Run = field(default_factory=lambda: Run(metric="psnr"))

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "", "hole")
        between(self, "", 0, 1, "average")
        between(self, "", 0, math.inf, "noise", "adversarial")

    def build(self) -> Learner:
        """See `Experiment`."""
        shape = self.data.spec().shape
        if self.task == "super_resolution" and (shape[0] % 2 or shape[1] % 2):
            raise UserError(f"super_resolution needs images of even sides, not {shape[0]}x{shape[1]}")
        if self.task == "inpainting" and self.hole > min(shape[:2]):
            raise UserError(f"hole={self.hole} is larger than the images, {shape[0]}x{shape[1]}")
        return restore(self)

    def damaged(self, keys: jax.Array, images: jax.Array) -> Damaged:
        """Images f32[batch, height, width, channels] in 0 ... 1, damaged by the key at their position, keys [batch]."""
        _, height, width, _ = images.shape
        everywhere = jnp.ones((*images.shape[:3], 1))
        match self.task:
            case "denoising":
                noise = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(keys)
                found = images + self.noise * noise
                return Damaged(found, everywhere, {"identity": found})
            case "super_resolution":
                small = halved(images)
                bicubic = jax.image.resize(small, images.shape, "cubic")
                return Damaged(bicubic, everywhere, {"identity": small.repeat(2, 1).repeat(2, 2), "bicubic": bicubic})
        missing = jax.vmap(lambda key: square(key, height, width, self.hole))(keys)[..., None]
        found = jnp.where(missing > 0, 0.5, images)
        return Damaged(found, missing, {"identity": found})

    def restored(self, params: Tree, damaged: Damaged, rng: jax.Array | None = None) -> jax.Array:
        """The images repaired by the net with these parameters, in training with a key for each, rng [batch]."""
        net = network(self.net.clone(outputs=damaged.images.shape[-1]), self.update.dtype)
        inputs = jnp.concatenate([2 * damaged.images - 1, damaged.missing], -1)
        return damaged.images + damaged.missing * net.apply(params, {}, inputs, rng=rng)[0]

    def evaluation(self, state: State, batch: Batch) -> tuple[jax.Array, Damaged, jax.Array]:
        """(originals, damaged, restored) of a batch; an example is damaged in the same way each time."""
        keys = example_keys(rng(state._replace(step=jnp.int32(0)), "evaluate"), batch.index)
        damaged = self.damaged(keys, scaled(batch.inputs))
        return scaled(batch.inputs), damaged, self.restored(evaluated(state, "net"), damaged)

    def reports(self, load: Load) -> Iterable[Report]:
        """See `Experiment`."""

        def compare(state: State, batch: Batch) -> tuple[jax.Array, ...]:
            """Rows of the damaged images, of repairs that need no training, of the net's, and of the originals."""
            originals, damaged, restored = self.evaluation(state, batch)
            return *damaged.others.values(), restored, originals

        return (image_rows("repaired", compare, self.run.evaluate_every),)

    def inference(self, state: State) -> dict[str, Inference]:
        """See `Experiment`."""

        def images(images: jax.Array, missing: jax.Array) -> jax.Array:
            return self.restored(evaluated(state, "net"), Damaged(images, missing, {}))

        def inputs(batch: Batch) -> dict[str, jax.Array]:
            damaged = self.evaluation(state, batch)[1]
            return {"images": damaged.images, "missing": damaged.missing}

        about = (
            "Damaged images, [batch, height, width, channels], are of pixels in [0, 1], and so are the repaired ones; "
            "noise, the interpolation and the net may leave these bounds. A low resolution is first doubled "
            "bicubically. What is missing is 1 at pixels to repair and 0 elsewhere, [batch, height, width, 1]; a hole "
            "is 0.5."
        )
        return {"inference": Inference(images, inputs, "images", about)}


def halved(images: jax.Array) -> jax.Array:
    """The mean of each 2x2 square: [batch, height, width, channels] -> [batch, height / 2, width / 2, channels]."""
    batch, height, width, channels = images.shape
    return images.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def square(key: jax.Array, height: int, width: int, side: int) -> jax.Array:
    """1 in a square that lies anywhere inside, 0 elsewhere: f32[height, width]."""

    def inside(key: jax.Array, size: int) -> jax.Array:
        first = jax.random.randint(key, (), 0, size - side + 1)
        return (jnp.arange(size) >= first) & (jnp.arange(size) < first + side)

    rows, columns = jax.random.split(key)
    return (inside(rows, height)[:, None] & inside(columns, width)).astype(jnp.float32)


def in_turns(a: jax.Array, b: jax.Array) -> jax.Array:
    """The rows of a and of b [batch, ...] in turns: [2 batch, ...]."""
    return jnp.stack([a, b], 1).reshape(-1, *a.shape[1:])


def restore(config: Restore) -> Learner:
    """The learner. The names are "net" and, with an adversarial loss, "discriminator"."""
    spec, adversarial, steps = config.data.spec(), config.adversarial, config.run.steps
    discriminator = network(config.discriminator.clone(classes=0), config.update.dtype)
    net = network(config.net.clone(outputs=spec.shape[-1]), config.update.dtype)
    optimizers = {"net": (config.optimizer, steps)}
    if adversarial is not None:
        optimizers["discriminator"] = (config.discriminator_optimizer, steps)
    init_state, update = updater(config.update, optimizers, {"net": config.average})
    distance = jnp.abs if config.loss == "l1" else jnp.square

    def init(key: jax.Array) -> State:
        keys, (height, width, channels) = jax.random.split(key), spec.shape
        nets = {"net": net.init(keys[0], jnp.zeros((1, height, width, channels + 1)))}
        if adversarial is not None:
            nets["discriminator"] = discriminator.init(keys[1], (jnp.zeros((1, *spec.shape)), jnp.zeros(1, jnp.int32)))
        return init_state(key, nets)

    def score(params: Tree, state: State, images: jax.Array, rng: jax.Array) -> tuple[jax.Array, dict[str, Tree]]:
        labels = jnp.zeros(len(images), jnp.int32)
        return discriminator.apply(params, owned(state, "discriminator"), (2 * images - 1, labels), rng=rng)

    def discriminator_loss(params: Tree, state: State, batch: Batch, rng: jax.Array) -> tuple[Mean, Aux]:
        fakes = config.restored(state.params["net"], batch.inputs, rng)
        # One after the other, not all originals first: each device keeps its share of the batch.
        both, moved = score(params, state, in_turns(batch.targets, fakes), in_turns(rng, rng))
        real, fake = both[::2], both[1::2]
        return mean(jax.nn.softplus(-real) + jax.nn.softplus(fake), batch.mask), Aux(moved=moved)

    def restore_loss(params: Tree, state: State, batch: Batch, rng: jax.Array) -> tuple[Mean, Aux]:
        images = config.restored(params, batch.inputs, rng)
        losses = error = distance(images - batch.targets).mean((1, 2, 3))
        if adversarial is not None:
            losses = error + adversarial * jax.nn.softplus(-score(state.params["discriminator"], state, images, rng)[0])
        return mean(losses, batch.mask), Aux({config.loss: mean(error, batch.mask)})

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        keys = lambda name: example_keys(rng(state, name), batch.index)
        images = augment(config.augment, keys("augment"), scaled(batch.inputs))
        batch = batch._replace(inputs=config.damaged(keys("damage"), images), targets=images)
        metrics: Metrics = {}
        if adversarial is not None:
            state, d = update(state, "discriminator", discriminator_loss, batch)
            metrics |= d.metrics
        state, aux = update(state, "net", restore_loss, batch)
        return state, {**metrics, **aux.metrics}

    def evaluate(state: State, batch: Batch) -> Metrics:
        """PSNR and SSIM, of the net's images and of those that need no training; means over images."""
        originals, damaged, restored = config.evaluation(state, batch)
        found: Metrics = {config.loss: mean(distance(restored - originals).mean((1, 2, 3)), batch.mask)}
        for name, images in {"": restored, **damaged.others}.items():
            prefix = f"{name}_" if name else ""
            images = images.clip(0, 1)
            found |= {
                f"{prefix}psnr": mean(psnr(images, originals), batch.mask),
                f"{prefix}ssim": mean(ssim(images, originals), batch.mask),
            }
        return found

    return learner(init, step, evaluate)


def tiny() -> dict[str, Experiment]:
    """Tiny settings, for the tests of what holds for every learner: SGD, dropout on."""
    sgd = Optimizer(name="sgd", learning_rate=0.05)
    plain = Restore(
        data=Images(name="digits", batch=32, evaluation_batch=40),
        net=UNet(widths=(4,), blocks=1, dropout=0.2),
        augment=Augment(flip=True),
        task="super_resolution",
        average=0.9,
        optimizer=replace(sgd, learning_rate=0.1),  # below, norms move by less than rounding
        discriminator_optimizer=replace(sgd, learning_rate=0.02),
        run=Run(steps=12, steps_per_dispatch=3, evaluate_every=6, save_every=6, metric="psnr"),
    )
    return {
        "restore": plain,
        "restore_adversarial": replace(
            plain,
            net=UNet(widths=(4,), blocks=1),
            task="inpainting",
            hole=4,
            adversarial=1.0,
            optimizer=replace(sgd, learning_rate=0.1),
            discriminator=DCGANDiscriminator(widths=(4,), hidden=6, norm="none", spectral=True),
        ),
    }
