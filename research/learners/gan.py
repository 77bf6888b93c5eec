"""Generative adversarial networks (Goodfellow et al. 2014, arXiv:1406.2661).

`gan` reads as their Algorithm 1 does: for k critic updates, descend the discriminator on images and samples; then
descend the generator. The losses are theirs, that of LSGAN (Mao et al. 2017, arXiv:1611.04076), the hinge (Lim & Ye
2017, arXiv:1705.02894) and Wasserstein's (Arjovsky, Chintala & Bottou 2017, arXiv:1701.07875).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core.errors import Mistake
from research.core.experiment import Feeds, Load, Report, Run, positive
from research.core.modules import forward, initialise, on_axis
from research.core.optimizers import optimizer, schedule
from research.core.state import Batch, Learner, Mean, Metrics, State, Tree, each, mean, stream
from research.core.transformations import followed
from research.core.update import cast, descend
from research.data.images import Images, ImageSpec
from research.evaluation import samples
from research.evaluation.classifier import load_classifier
from research.learners.players import Players, prepared, together
from research.nets.dcgan import DCGANDiscriminator, DCGANGenerator

LossName = Literal["non_saturating", "least_squares", "hinge", "wasserstein"]


class Adversary(NamedTuple):
    """What is descended, functions of scores [batch, ...]: the discriminator's of images and samples; the generator's.

    real, fake  their sum is the discriminator's loss
    generator   of the samples' scores
    """

    real: Callable[[jax.Array], jax.Array]
    fake: Callable[[jax.Array], jax.Array]
    generator: Callable[[jax.Array], jax.Array]


ADVERSARIES: dict[LossName, Adversary] = {
    # -log D(x) - log(1 - D(G(z))), and -log D(G(z)), where D is the score's sigmoid.
    "non_saturating": Adversary(lambda s: jax.nn.softplus(-s), jax.nn.softplus, lambda s: jax.nn.softplus(-s)),
    "least_squares": Adversary(lambda s: (s - 1) ** 2 / 2, lambda s: s**2 / 2, lambda s: (s - 1) ** 2 / 2),
    "hinge": Adversary(lambda s: jax.nn.relu(1 - s), lambda s: jax.nn.relu(1 + s), lambda s: -s),
    "wasserstein": Adversary(lambda s: -s, lambda s: s, lambda s: -s),
}


@dataclass(frozen=True, kw_only=True)
class GAN(Players):
    """An experiment with two players. `data.batch` is the batch of one update; a step takes `critic_updates` of them.

    Attributes:
        data: the images
        generator: a Flax module: (noise, labels) -> images
        discriminator: a Flax module: (images, labels) -> scores [batch]
        latent: numbers of noise, normal
        conditional: both nets read the label; a sample's is that of the image beside it in the batch
        loss: non_saturating, least_squares (LSGAN), hinge or wasserstein
        critic_updates: of the discriminator, before each of the generator
        gradient_penalty: its weight, or None (Gulrajani et al. 2017, arXiv:1704.00028: 10, with wasserstein)
        r1: gamma of the penalty R1, or None (Mescheder, Geiger & Nowozin 2018, arXiv:1801.04406)
        average: decay of the averaged generator that is evaluated, None to evaluate the last one
        inception: path of an .npz file of Inception-v3's weights, see research/evaluation/inception.py, for the
            Inception FID
        num_samples: samples that the sample metrics (FID, ...) are computed on; more than the features that the
            classifier or Inception has
    """

    data: Images = field(default_factory=Images)
    generator: nn.Module = field(default_factory=DCGANGenerator)
    discriminator: nn.Module = field(default_factory=DCGANDiscriminator)
    latent: int = 100
    conditional: bool = False
    loss: LossName = "non_saturating"
    critic_updates: int = 1
    gradient_penalty: float | None = None
    r1: float | None = None
    average: float | None = None
    run: Run = field(default_factory=lambda: Run(metric="discriminator_loss", goal="min"))
    inception: str | None = None
    num_samples: int = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "", "latent", "critic_updates", "num_samples")
        if self.sample_metrics_every is not None and self.classifier_dir is None and self.inception is None:
            raise Mistake("sample_metrics_every needs classifier_dir or inception, which evaluates the samples")
        penalised = self.gradient_penalty is not None or self.r1 is not None
        if penalised and getattr(self.discriminator, "norm", None) == "batch":
            raise Mistake(
                "gradient_penalty and r1 are of each image alone, and batch normalisation couples them: "
                "--discriminator.norm layer (or none)"
            )

    def build(self, axis: str | None = None) -> Learner:
        """See `Experiment`."""
        return gan(self, self.data.spec(), axis)

    def feeds(self) -> Feeds:
        """See `Experiment`."""
        return replace(self.data, batch=self.critic_updates * self.data.batch).feeds()

    def samples(self, params: Tree, collections: dict[str, Tree], noise: jax.Array, labels: jax.Array) -> jax.Array:
        """Samples [batch, h, w, c] in [-1, 1] of the evaluated generator: noise [batch, latent], labels i32[batch]."""
        images = self.data.spec()
        generator = self.generator.clone(shape=images.shape, classes=images.classes if self.conditional else 0)
        weights: Tree = collections.get("average", params)
        return forward(generator, weights["generator"], belonging(collections, "generator"), (noise, labels))[0]

    def reports(self, load: Load) -> Iterable[Report]:
        """See `Experiment`."""
        images, latent, num_samples, every = self.data.spec(), self.latent, self.num_samples, self.sample_metrics_every
        num_labels = images.classes if self.conditional else None
        found = [
            samples.sample_grid(self.samples, latent, num_labels, self.run.evaluate_every),
            samples.animation(),
            samples.interpolation_grid(self.samples, latent, num_labels),
        ]
        if self.classifier_dir is not None:
            classifier = load_classifier(load, self.classifier_dir, self.classifier_hash, images.shape)
            found.append(
                samples.classifier_metrics(
                    self.samples, latent, self.data, classifier, num_samples, self.conditional, every
                )
            )
        if self.inception is not None:
            found.append(samples.inception_metrics(self.samples, latent, self.data, self.inception, num_samples, every))
        return found


def gan(config: GAN, images: ImageSpec, axis: str | None = None) -> Learner:
    """The learner: Algorithm 1 of Goodfellow et al. 2014, or of Gulrajani et al. 2017.

    The two nets are `state.params["generator"]` and `["discriminator"]`; each of `state.collections` is a dict of the
    same names: "batch_stats", which a net's own updates move, and "average".
    """
    classes = images.classes if config.conditional else 0
    generator = on_axis(config.generator.clone(shape=images.shape, classes=classes), axis)
    discriminator = on_axis(config.discriminator.clone(classes=classes), axis)
    adversary, updates = ADVERSARIES[config.loss], config.critic_updates
    turns = {"generator": config.run.steps, "discriminator": config.run.steps * updates}
    how = {"generator": config.generator_optimizer, "discriminator": config.discriminator_optimizer}
    txs = {name: optimizer(how[name], turns[name]) for name in turns}

    def init(key: jax.Array) -> State:
        keys = jax.random.split(key)
        labels = jnp.zeros(1, jnp.int32)
        nets = {
            "generator": initialise(generator, keys[0], (jnp.zeros((1, config.latent)), labels)),
            "discriminator": initialise(discriminator, keys[1], (jnp.zeros((1, *images.shape)), labels)),
        }
        params = {name: net[0] for name, net in nets.items()}
        collections: dict[str, Tree] = {}
        for name, (_, own) in nets.items():
            collections = returned(collections, name, own)
        if config.average is not None:
            collections["average"] = {"generator": jax.tree.map(jnp.copy, params["generator"])}
        opt_state = {name: txs[name].init(net) for name, net in params.items()}
        return State(jnp.int32(0), key, params, opt_state, collections, ())

    def noise(key: jax.Array, index: jax.Array) -> jax.Array:
        return jax.vmap(lambda key: jax.random.normal(key, (config.latent,)))(each(key, index))

    def discriminator_loss(
        params: Tree, collections: dict[str, Tree], batch: Any, key: jax.Array
    ) -> tuple[Mean, tuple[dict[str, Tree], Metrics]]:
        reals, fakes, labels, epsilon, mask = batch
        alone = lambda x: forward(discriminator, params, collections, (x, labels), key)[0]
        real, moved = forward(discriminator, params, collections, (reals, labels), key)
        fake, moved = forward(discriminator, params, moved, (fakes, labels), key)
        values = adversary.real(real) + adversary.fake(fake)
        if config.gradient_penalty is not None:
            values += config.gradient_penalty * penalty(alone, reals, fakes, epsilon)
        if config.r1 is not None:
            values += config.r1 / 2 * slope(alone, reals)
        return mean(values, mask), (moved, {"real_score": mean(real, mask), "fake_score": mean(fake, mask)})

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        # Each update has every n-th of a device's examples: the same ones, however many devices there are.
        parts = jax.tree.map(lambda x: x.reshape(-1, updates, *x.shape[1:]).swapaxes(0, 1), batch)
        generating = state.params["generator"], belonging(state.collections, "generator")
        latent, luck = stream(state, "latent"), stream(state, "epsilon")
        *dropouts, dropout = jax.random.split(stream(state, "dropout"), updates + 1)

        def critic_update(carry: tuple[Tree, Tree, dict[str, Tree]], turn: Any) -> tuple[Any, Metrics]:
            # Sample m examples of noise and m of the data; update the discriminator.
            part, key = turn
            inputs = cast(generating[0], config.descent.dtype), generating[1], (noise(latent, part.index), part.targets)
            fakes, _ = forward(generator, *inputs, key)
            epsilon = jax.vmap(jax.random.uniform)(each(luck, part.index))
            data = prepared(part.inputs), fakes, part.targets, epsilon, part.mask
            *moved, metrics = descend(discriminator_loss, txs["discriminator"], *carry, data, key, config.descent, axis)
            return tuple(moved), metrics

        own = belonging(state.collections, "discriminator")
        carry = state.params["discriminator"], state.opt_state["discriminator"], own
        (critic, critic_opt, own), critic_metrics = jax.lax.scan(critic_update, carry, (parts, jnp.stack(dropouts)))
        collections = returned(state.collections, "discriminator", own)

        def generator_loss(
            params: Tree, collections: dict[str, Tree], batch: Any, key: jax.Array
        ) -> tuple[Mean, tuple[dict[str, Tree], Metrics]]:
            z, labels, mask = batch
            fakes, collections = forward(generator, params, collections, (z, labels), key)
            score, _ = forward(discriminator, cast(critic, config.descent.dtype), own, (fakes, labels), key)
            return mean(adversary.generator(score), mask), (collections, {})

        # Sample m examples of noise; update the generator.
        last = jax.tree.map(lambda x: x[-1], parts)
        data = noise(stream(state, "generator"), last.index), last.targets, last.mask
        made, made_opt, moved, metrics = descend(
            generator_loss,
            txs["generator"],
            generating[0],
            state.opt_state["generator"],
            generating[1],
            data,
            dropout,
            config.descent,
            axis,
        )
        collections = returned(collections, "generator", moved)
        if config.average is not None:
            before = state.collections["average"]["generator"]
            collections |= {"average": {"generator": followed(before, made, config.average, state.step + 1)}}

        all_metrics = together(
            {"discriminator": jax.tree.map(lambda x: x.sum(0), critic_metrics), "generator": metrics}
        )
        for name, tx in how.items():
            rate = schedule(tx, turns[name])
            all_metrics[f"{name}_learning_rate"] = mean(rate(state.step * (turns[name] // config.run.steps)))
        return State(
            state.step + 1,
            state.key,
            {"generator": made, "discriminator": critic},
            {"generator": made_opt, "discriminator": critic_opt},
            collections,
            state.world,
        ), all_metrics

    def evaluate(state: State, batch: Batch) -> Metrics:
        """The players' losses on images that were not trained on, without penalties; the same noise each time."""
        weights: Tree = state.collections.get("average", state.params)
        z = noise(stream(state._replace(step=jnp.int32(0)), "evaluate"), batch.index)
        inputs = z, batch.targets
        fakes, _ = forward(generator, weights["generator"], belonging(state.collections, "generator"), inputs)
        critic = state.params["discriminator"], belonging(state.collections, "discriminator")
        real, fake = (forward(discriminator, *critic, (x, batch.targets))[0] for x in (prepared(batch.inputs), fakes))
        return {
            "discriminator_loss": mean(adversary.real(real) + adversary.fake(fake), batch.mask),
            "generator_loss": mean(adversary.generator(fake), batch.mask),
            "real_score": mean(real, batch.mask),
            "fake_score": mean(fake, batch.mask),
        }

    return Learner(init, step, evaluate)


def penalty(score: Callable[[jax.Array], jax.Array], reals: jax.Array, fakes: jax.Array, epsilon: jax.Array) -> Any:
    """The gradient penalty f32[batch] of Gulrajani et al. 2017, at epsilon f32[batch] of the way from fakes to reals.

    score: images [batch, ...] -> f32[batch], each that of its image alone.
    """
    share = epsilon.reshape(-1, *(1,) * (reals.ndim - 1))
    squared = slope(score, share * reals + (1 - share) * fakes)
    return (jnp.sqrt(squared + 1e-12) - 1) ** 2  # the root has no slope at 0


def slope(score: Callable[[jax.Array], jax.Array], images: jax.Array) -> jax.Array:
    """The squared norm f32[batch] of the score's gradient with respect to each image; gamma / 2 times it is R1."""
    gradient = jax.grad(lambda x: score(x).sum())(images)
    return (gradient.reshape(len(images), -1) ** 2).sum(1)


def belonging(collections: dict[str, Tree], net: str) -> dict[str, Tree]:
    """What of each collection belongs to `net`: {"batch_stats": {"generator": x, ...}} -> {"batch_stats": x}."""
    return {kind: nets[net] for kind, nets in collections.items() if net in nets}


def returned(collections: dict[str, Tree], net: str, own: dict[str, Tree]) -> dict[str, Tree]:
    """The collections with what belongs to `net` put back; see `belonging`."""
    return collections | {kind: {**collections.get(kind, {}), net: tree} for kind, tree in own.items()}
