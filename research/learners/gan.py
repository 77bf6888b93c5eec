"""Generative adversarial networks (Goodfellow et al. 2014, arXiv:1406.2661).

`gan` reads as their Algorithm 1 does: k updates of the discriminator on images and samples, then one of the generator.
The losses are theirs (the generator's is not that of the box but -log D(G(z)), of their section 3), that of LSGAN (Mao
et al. 2017, arXiv:1611.04076), the hinge (Lim & Ye 2017, arXiv:1705.02894) and Wasserstein's (Arjovsky, Chintala &
Bottou 2017, arXiv:1701.07875). There, clipped weights bound the critic; here, a gradient penalty or spectral
normalisation does.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core.errors import UserError, between, positive
from research.core.experiment import Experiment, Feeds, Inference, Load, Report, Run
from research.core.metrics import Mean, Metrics, mean
from research.core.modules import Network, network
from research.core.optimizers import Optimizer
from research.core.state import Batch, Learner, State, evaluated, example_keys, fold_name, learner, owned, rng
from research.core.types import Tree
from research.core.update import Aux, scan_updates, strided, updater
from research.data.images import Images, ImageSpec
from research.data.pixels import centred
from research.evaluation import samples
from research.learners.adversarial import Adversarial
from research.learners.generative import Generative
from research.nets.conv import recomputed_statistics
from research.nets.dcgan import DCGANDiscriminator, DCGANGenerator
from research.nets.gan import DenseGenerator

STATISTICS = 512
"""Samples over which batch statistics are recomputed."""

LossName = Literal["non_saturating", "least_squares", "hinge", "wasserstein"]


class GANLoss(NamedTuple):
    """The terms of both losses, functions of scores [batch, ...].

    real, fake  their sum is the discriminator's loss
    generator   of the samples' scores
    """

    real: Callable[[jax.Array], jax.Array]
    fake: Callable[[jax.Array], jax.Array]
    generator: Callable[[jax.Array], jax.Array]


LOSSES: dict[LossName, GANLoss] = {
    # -log D(x) - log(1 - D(G(z))), and -log D(G(z)), where D is the score's sigmoid.
    "non_saturating": GANLoss(lambda s: jax.nn.softplus(-s), jax.nn.softplus, lambda s: jax.nn.softplus(-s)),
    "least_squares": GANLoss(lambda s: (s - 1) ** 2 / 2, lambda s: s**2 / 2, lambda s: (s - 1) ** 2 / 2),
    "hinge": GANLoss(lambda s: jax.nn.relu(1 - s), lambda s: jax.nn.relu(1 + s), lambda s: -s),
    "wasserstein": GANLoss(lambda s: -s, lambda s: s, lambda s: -s),
}


@dataclass(frozen=True, kw_only=True)
class GAN(Adversarial, Generative):
    """An experiment with a generator and a discriminator. A step takes `num_updates` batches of `data.batch` images.

    Attributes:
        generator: a Flax module: (noise, labels) -> images
        discriminator: a Flax module: (images, labels) -> scores [batch]
        latent: length of the noise vector, which is normally distributed
        loss: adversarial loss; non_saturating is the original one, least_squares that of LSGAN
        num_updates: updates of the discriminator for each update of the generator
        gradient_penalty: weight of the gradient penalty of WGAN-GP (Gulrajani et al. 2017, arXiv:1704.00028, with the
            loss wasserstein: 10); None for no penalty
        r1: weight gamma of the R1 penalty (Mescheder, Geiger & Nowozin 2018, arXiv:1801.04406); None for no penalty
        average: decay of the moving average of the generator that is evaluated; None to evaluate the last generator
    """

    data: Images = field(default_factory=Images)
    generator: nn.Module = field(default_factory=DCGANGenerator)
    discriminator: nn.Module = field(default_factory=DCGANDiscriminator)
    latent: int = 100
    loss: LossName = "non_saturating"
    num_updates: int = 1
    gradient_penalty: float | None = None
    r1: float | None = None
    average: float | None = None
    run: Run = field(default_factory=lambda: Run(metric="discriminator_loss", mode="min"))

    adversaries = ("discriminator", "generator")

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "", "latent", "num_updates")
        between(self, "", 0, 1, "average")
        between(self, "", 0, math.inf, "gradient_penalty", "r1")
        if self.penalised and getattr(self.discriminator, "norm", None) == "batch":
            raise UserError(
                "gradient_penalty and r1 are of each image alone, and batch normalisation couples them: "
                "--discriminator.norm layer (or none)"
            )

    @property
    def penalised(self) -> bool:
        """Whether the loss of the discriminator has a penalty on its gradient."""
        return self.gradient_penalty is not None or self.r1 is not None

    def warnings(self) -> tuple[str, ...]:
        """See `Experiment`."""
        if self.loss != "wasserstein" or self.penalised or getattr(self.discriminator, "spectral", False):
            return ()
        return ("nothing bounds the critic of the loss wasserstein: give --gradient-penalty 10",)

    def build(self) -> Learner:
        """See `Experiment`."""
        return gan(self, self.data.spec())

    def networks(self, images: ImageSpec) -> tuple[Network, Network]:
        """The generator and the discriminator for such images."""
        classes = images.classes if self.conditional else 0
        return (
            network(self.generator.clone(shape=images.shape, classes=classes), self.update.dtype),
            network(self.discriminator.clone(classes=classes), self.update.dtype),
        )

    def feeds(self) -> Feeds:
        """See `Experiment`."""
        return replace(self.data, batch=self.num_updates * self.data.batch).feeds()

    def generate(self, generator: Network, state: State, noise: jax.Array, labels: jax.Array) -> jax.Array:
        """Images in [-1, 1] by the generator that is evaluated, from noise [batch, latent] and labels i32[batch]."""
        return generator.apply(*self.evaluated_generator(generator, state), (noise, labels))[0]

    def evaluated_generator(self, generator: Network, state: State) -> tuple[Tree, dict[str, Tree]]:
        """The parameters and collections of the generator that is evaluated.

        The batch statistics in the State are those of the last weights. Those of averaged ones are computed anew.
        """
        params, own = evaluated(state, "generator"), owned(state, "generator")
        if self.average is not None and "batch_stats" in own:
            keys = example_keys(jax.random.key(0), jnp.arange(STATISTICS))
            some = jax.vmap(lambda key: jax.random.normal(key, (self.latent,)))(keys)
            inputs = (some, jnp.arange(STATISTICS) % self.data.spec().classes)
            own = recomputed_statistics(generator, params, own, inputs, keys)
        return params, own

    def samples(self, state: State, noise: jax.Array, labels: jax.Array) -> jax.Array:
        """`generate` by the config's own generator."""
        return self.generate(self.networks(self.data.spec())[0], state, noise, labels)

    def reports(self, load: Load) -> Iterable[Report]:
        """See `Experiment`."""
        return samples.reports(self, self.samples, self.latent, load)

    def inference(self, state: State) -> dict[str, Inference]:
        """See `Experiment`."""
        spec, generator = self.data.spec(), self.networks(self.data.spec())[0]
        params, own = jax.jit(lambda state: self.evaluated_generator(generator, state))(state)
        images = lambda noise, labels: generator.apply(params, own, (noise, labels))[0]
        return samples.inference(images, self.latent, spec, self.conditional)


def gan(config: GAN, images: ImageSpec) -> Learner:
    """The learner: Algorithm 1 of Goodfellow et al. 2014, or of Gulrajani et al. 2017.

    The names are "generator" and "discriminator".
    """
    generator, discriminator = config.networks(images)
    gan_loss, steps, num_updates = LOSSES[config.loss], config.run.steps, config.num_updates
    init_state, update = updater(
        config.update,
        {
            "discriminator": (config.discriminator_optimizer, steps * num_updates),
            "generator": (config.generator_optimizer, steps),
        },
        {"generator": config.average},
    )

    def init(key: jax.Array) -> State:
        keys, labels = jax.random.split(key), jnp.zeros(1, jnp.int32)
        nets = {
            "generator": generator.init(keys[0], (jnp.zeros((1, config.latent)), labels)),
            "discriminator": discriminator.init(keys[1], (jnp.zeros((1, *images.shape)), labels)),
        }
        return init_state(key, nets)

    def noise(keys: jax.Array) -> jax.Array:
        return jax.vmap(lambda key: jax.random.normal(key, (config.latent,)))(fold_name(keys, "noise"))

    def discriminator_loss(params: Tree, state: State, batch: Batch, rng: jax.Array) -> tuple[Mean, Aux]:
        reals, labels, own = centred(batch.inputs), batch.targets, owned(state, "discriminator")
        inputs = (noise(rng), labels)
        fakes, _ = generator.apply(state.params["generator"], owned(state, "generator"), inputs, rng=rng)
        real, moved = discriminator.apply(params, own, (reals, labels), rng=rng)
        fake, moved = discriminator.apply(params, moved, (fakes, labels), rng=rng)
        values = gan_loss.real(real) + gan_loss.fake(fake)
        score_fn = lambda x: discriminator.apply(params, own, (x, labels), rng=rng)[0]
        if config.gradient_penalty is not None:
            epsilon = jax.vmap(jax.random.uniform)(fold_name(rng, "epsilon"))
            values += config.gradient_penalty * gradient_penalty(score_fn, reals, fakes, epsilon)
        if config.r1 is not None:
            values += config.r1 / 2 * gradient_norm_squared(score_fn, reals)
        scores = {"real_score": mean(real, batch.mask), "fake_score": mean(fake, batch.mask)}
        return mean(values, batch.mask), Aux(scores, moved)

    def generator_loss(params: Tree, state: State, batch: Batch, rng: jax.Array) -> tuple[Mean, Aux]:
        fakes, moved = generator.apply(params, owned(state, "generator"), (noise(rng), batch.targets), rng=rng)
        inputs = (fakes, batch.targets)
        score, _ = discriminator.apply(state.params["discriminator"], owned(state, "discriminator"), inputs, rng=rng)
        return mean(gan_loss.generator(score), batch.mask), Aux(moved=moved)

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        # k times: sample m examples of noise and m of the data; update the discriminator.
        parts = strided(batch, num_updates)
        state, d = scan_updates(update, state, "discriminator", discriminator_loss, parts)
        # Sample m examples of noise; update the generator.
        state, g = update(state, "generator", generator_loss, jax.tree.map(lambda x: x[-1], parts))
        return state, {**d.metrics, **g.metrics}

    def evaluate(state: State, batch: Batch) -> Metrics:
        """Both losses on images that were not trained on, without penalties; the noise is the same each time."""
        keys = example_keys(rng(state._replace(step=jnp.int32(0)), "evaluate"), batch.index)
        fakes = config.generate(generator, state, noise(keys), batch.targets)
        params, own = state.params["discriminator"], owned(state, "discriminator")
        real, fake = (discriminator.apply(params, own, (x, batch.targets))[0] for x in (centred(batch.inputs), fakes))
        return {
            "discriminator_loss": mean(gan_loss.real(real) + gan_loss.fake(fake), batch.mask),
            "generator_loss": mean(gan_loss.generator(fake), batch.mask),
            "real_score": mean(real, batch.mask),
            "fake_score": mean(fake, batch.mask),
        }

    return learner(init, step, evaluate)


def gradient_penalty(
    score_fn: Callable[[jax.Array], jax.Array], reals: jax.Array, fakes: jax.Array, epsilon: jax.Array
) -> jax.Array:
    """The gradient penalty f32[batch] of Gulrajani et al. 2017, at epsilon f32[batch] of the way from fakes to reals.

    score_fn: images [batch, ...] -> f32[batch], each that of its image alone.
    """
    share = epsilon.reshape(-1, *(1,) * (reals.ndim - 1))
    squared = gradient_norm_squared(score_fn, share * reals + (1 - share) * fakes)
    return (jnp.sqrt(squared + 1e-12) - 1) ** 2  # the root has no slope at 0


def gradient_norm_squared(score_fn: Callable[[jax.Array], jax.Array], images: jax.Array) -> jax.Array:
    """The squared norm f32[batch] of the score's gradient by each image; gamma / 2 times it is the penalty R1."""
    gradient = jax.grad(lambda x: score_fn(x).sum())(images)
    return (gradient.reshape(len(images), -1) ** 2).sum(1)


def tiny() -> dict[str, Experiment]:
    """Tiny settings, for the tests of what holds for every learner: SGD, dropout on."""
    sgd = Optimizer(name="sgd", learning_rate=0.05)
    data = Images(name="digits", batch=32, evaluation_batch=40)
    run = Run(steps=12, steps_per_dispatch=3, evaluate_every=6, save_every=6, metric="discriminator_loss", mode="min")
    return {
        "gan": GAN(
            data=data,
            generator=DCGANGenerator(widths=(8, 4)),
            discriminator=DCGANDiscriminator(widths=(4, 8), spectral=True),
            latent=4,
            average=0.9,
            generator_optimizer=sgd,
            discriminator_optimizer=sgd,
            run=run,
        ),
        "wgan_gp": GAN(
            data=data,
            generator=DenseGenerator(widths=(8,)),
            discriminator=DCGANDiscriminator(widths=(4,), hidden=6, norm="none"),
            latent=4,
            conditional=True,
            loss="wasserstein",
            num_updates=2,
            gradient_penalty=10.0,
            generator_optimizer=sgd,
            discriminator_optimizer=replace(sgd, learning_rate=0.002),  # the penalty is steep
            run=run,
        ),
    }
