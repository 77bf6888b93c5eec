"""CycleGAN: unpaired image translation (Zhu, Park, Isola & Efros 2017, arXiv:1703.10593).

G translates X to Y and F translates Y to X; D_X and D_Y tell images from translations. A step reads as the paper's
section 4 does: update the generators, then the discriminators, on translations out of a pool of past ones (Shrivastava
et al. 2017, arXiv:1612.07828).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core.devices import gathered, position
from research.core.errors import UserError, between, positive
from research.core.experiment import Experiment, Inference, Load, Report, Run
from research.core.metrics import Mean, Metrics, mean
from research.core.modules import network
from research.core.optimizers import Optimizer
from research.core.state import Batch, Learner, State, example_keys, learner, rng
from research.core.types import Tree
from research.core.update import Aux, updater
from research.data.augment import Augment, augment
from research.data.pixels import centred, scaled
from research.data.unpaired import Unpaired
from research.evaluation import samples
from research.evaluation.classifier import load_classifier
from research.learners.adversarial import Adversarial
from research.nets.cyclegan import CycleGenerator, PatchDiscriminator
from research.nets.gan import Conv

Terms = dict[str, jax.Array]
"""The terms of a loss by name, f32[batch] each."""


@dataclass(frozen=True, kw_only=True)
class CycleGAN(Adversarial):
    """An experiment in translation between two sets of images.

    Attributes:
        data: the two sets
        generator: a Flax module without batch statistics: images -> images; there are two of it
        discriminator: likewise: images -> scores [batch, ...]; two as well
        augment: augmentation of training images
        cycle: weight of the cycle loss |F(G(x)) - x| + |G(F(y)) - y|
        identity: weight of the identity loss |G(y) - y| + |F(x) - x|; None for no identity loss
        pool: number of past translations that are kept for the discriminator of each set
    """

    data: Unpaired = field(default_factory=Unpaired)
    generator: nn.Module = field(default_factory=CycleGenerator)
    discriminator: nn.Module = field(default_factory=PatchDiscriminator)
    augment: Augment = field(default_factory=Augment)
    cycle: float = 10.0
    identity: float | None = 5.0
    pool: int = 50
    run: Run = field(default_factory=lambda: Run(metric="cycle_error", mode="min"))

    adversaries = ("generators", "discriminators")

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "", "pool")
        between(self, "", 0, math.inf, "cycle", "identity")
        if self.sample_metrics_every is not None and self.classifier_dir is None:
            raise UserError("sample_metrics_every needs classifier_dir, the classifier that evaluates the translations")

    def build(self) -> Learner:
        """See `Experiment`."""
        return cyclegan(self, self.data.load().train_x.shape[1:])

    def translate(self, state: State, images: jax.Array, to_y: bool) -> jax.Array:
        """Translations [batch, h, w, c] in [-1, 1] of images u8[batch, h, w, c], by G to Y or by F to X."""
        net = network(self.generator, self.update.dtype)
        return net.apply(state.params["generators"]["G" if to_y else "F"], {}, centred(images))[0]

    def reports(self, load: Load) -> Iterable[Report]:
        """See `Experiment`."""
        found = [samples.translation_grid(self.translate, self.run.evaluate_every)]
        if self.classifier_dir is not None:
            shape = self.data.load().train_x.shape[1:]
            classifier = load_classifier(load, self.classifier_dir, self.classifier_hash, shape)
            found.append(samples.translation_metrics(self.translate, self.data, classifier, self.sample_metrics_every))
        return found

    def inference(self, state: State) -> dict[str, Inference]:
        """The translations from X to Y and from Y to X."""

        def one(side: int) -> Inference:
            return Inference(
                lambda images: self.translate(state, images, to_y=side == 0),
                lambda batch: {"images": batch.inputs[side]},
                "translations",
                "The images that go in are pixels from 0 to 255, which the program scales. What comes out: "
                + samples.PIXELS,
            )

        return {"x_to_y": one(0), "y_to_x": one(1)}


def cyclegan(config: CycleGAN, shape: tuple[int, ...]) -> Learner:
    """The learner, for images of `shape` (height, width, channels).

    The names are "generators", two nets {"G", "F"}, and "discriminators", {"X", "Y"}. The pools are
    collections["pool"] {"X", "Y"}, f32[pool, h, w, c]: the same on every device.
    """
    generator = network(config.generator, config.update.dtype)
    discriminator = network(config.discriminator, config.update.dtype)
    init_state, update = updater(
        config.update,
        {
            "generators": (config.generator_optimizer, config.run.steps),
            "discriminators": (config.discriminator_optimizer, config.run.steps),
        },
    )

    def init(key: jax.Array) -> State:
        keys, image = jax.random.split(key, 4), jnp.zeros((1, *shape))
        init_nets = lambda net, names, keys: {n: net.init(k, image)[0] for n, k in zip(names, keys, strict=True)}
        nets: dict[str, tuple[Tree, dict[str, Tree]]] = {
            "generators": (init_nets(generator, "GF", keys[:2]), {}),
            "discriminators": (init_nets(discriminator, "XY", keys[2:]), {}),
        }
        return init_state(key, nets, {"pool": {name: jnp.zeros((config.pool, *shape)) for name in "XY"}})

    def translate(params: Tree, images: jax.Array, rng: jax.Array | None = None) -> jax.Array:
        return generator.apply(params, {}, images, rng=rng)[0]

    def score(params: Tree, images: jax.Array, rng: jax.Array | None = None) -> jax.Array:
        return discriminator.apply(params, {}, images, rng=rng)[0]

    def generator_terms(
        nets: Tree, critics: Tree, x: jax.Array, y: jax.Array, rng: jax.Array | None = None
    ) -> tuple[Terms, Terms, dict[str, jax.Array]]:
        """The terms of the generators' loss on x and on y, and the translations {"X", "Y"}."""

        def one(there: Tree, back: Tree, critic: Tree, x: jax.Array) -> tuple[Terms, jax.Array]:
            fake = translate(there, x, rng)
            terms = {
                "adversarial": per_example_mean((score(critic, fake, rng) - 1) ** 2),
                "cycle_error": per_example_mean(jnp.abs(translate(back, fake, rng) - x)),
            }
            if config.identity is not None:
                terms["identity_error"] = per_example_mean(jnp.abs(translate(back, x, rng) - x))
            return terms, fake

        of_x, fake_y = one(nets["G"], nets["F"], critics["Y"], x)
        of_y, fake_x = one(nets["F"], nets["G"], critics["X"], y)
        return of_x, of_y, {"X": fake_x, "Y": fake_y}

    def weighted(terms: Terms) -> jax.Array:
        total = terms["adversarial"] + config.cycle * terms["cycle_error"]
        return total if config.identity is None else total + config.identity * terms["identity_error"]

    def discriminator_terms(
        critic: Tree, reals: jax.Array, fakes: jax.Array, rng: jax.Array | None = None
    ) -> jax.Array:
        """The loss of one discriminator, f32[batch]; halved, which slows it down beside the generators."""
        real, fake = score(critic, reals, rng), score(critic, fakes, rng)
        return (per_example_mean((real - 1) ** 2) + per_example_mean(fake**2)) / 2

    def generator_loss(params: Tree, state: State, batch: Any, rng: jax.Array) -> tuple[Mean, Aux]:
        x, y, mask = batch
        of_x, of_y, fakes = generator_terms(params, state.params["discriminators"], x, y, rng)
        metrics = {name: mean((of_x[name] + of_y[name]) / 2, mask) for name in of_x}
        return mean(weighted(of_x) + weighted(of_y), mask), Aux(metrics, rows=fakes)

    def discriminator_loss(params: Tree, state: State, batch: Any, rng: jax.Array) -> tuple[Mean, Aux]:
        x, y, fake, mask = batch
        of_x, of_y = (discriminator_terms(params[n], real, fake[n], rng) for n, real in zip("XY", (x, y), strict=True))
        return mean(of_x + of_y, mask), Aux()

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        def augmented(name: str, images: jax.Array) -> jax.Array:
            keys = example_keys(rng(state, f"augment {name}"), batch.index)
            return 2 * augment(config.augment, keys, scaled(images)) - 1

        x, y = map(augmented, "XY", batch.inputs)
        state, g = update(state, "generators", generator_loss, (x, y, batch.mask))
        # The discriminators see the translations of the generators before their update, out of the pools.
        state, fakes = pool_fakes(state, g.rows)
        state, d = update(state, "discriminators", discriminator_loss, (x, y, fakes, batch.mask))
        return state, {**g.metrics, **d.metrics}

    def evaluate(state: State, batch: Batch) -> Metrics:
        """The losses on images that were not trained on; the discriminators' with the present translations."""
        x, y = (centred(images) for images in batch.inputs)
        critics, (mask_x, mask_y) = state.params["discriminators"], batch.targets
        of_x, of_y, fakes = generator_terms(state.params["generators"], critics, x, y)
        of_both = lambda a, b: jax.tree.map(jnp.add, mean(a, mask_x), mean(b, mask_y))
        loss = discriminator_terms(critics["X"], x, fakes["X"]) + discriminator_terms(critics["Y"], y, fakes["Y"])
        return {
            **{name: of_both(of_x[name], of_y[name]) for name in of_x},
            "generators_loss": mean(weighted(of_x) + weighted(of_y), mask_x * mask_y),
            "discriminators_loss": mean(loss, mask_x * mask_y),
        }

    return learner(init, step, evaluate)


def pool_fakes(state: State, fakes: dict[str, jax.Array]) -> tuple[State, dict[str, jax.Array]]:
    """The State with the translations {"X", "Y"} in its pools, and what the discriminators read in place of these.

    The pools are the same on all devices, and take the translations of all of them.
    """
    pools, pooled = {}, {}
    for name, images in fakes.items():
        global_batch = gathered(images)
        keys = example_keys(rng(state, f"pool {name}"), jnp.arange(len(global_batch)))
        pools[name], found = query_pool(state.collections["pool"][name], global_batch, keys, state.step)
        pooled[name] = found[position(len(images))]
    return state._replace(collections=state.collections | {"pool": pools}), pooled


def per_example_mean(values: jax.Array) -> jax.Array:
    """The mean of each example: [batch, ...] -> [batch]."""
    return values.reshape(len(values), -1).mean(1)


def query_pool(pool: jax.Array, images: jax.Array, keys: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The pool after a step, and the images that the discriminator reads in place of `images` [batch, ...].

    The images are taken one after another. Until the pool is full, an image is added to it and returned. After that,
    half of the images are exchanged for a random one of the pool, which is returned; the others are returned.

    pool  [size, ...]; full after size / batch steps
    keys  of each image, [batch]
    """
    size = len(pool)

    def one(pool: jax.Array, draw: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        image, place, exchange, before = draw
        filling = before < size
        place = jnp.where(filling, before, place)
        past = pool[place]
        pool = pool.at[place].set(jnp.where(filling | exchange, image, past))
        return pool, jnp.where(filling | ~exchange, image, past)

    place = jax.vmap(lambda key: jax.random.randint(key, (), 0, size))(keys)
    exchange = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, 1)))(keys)
    # A step later than the pool's size finds it full: so the product can't overflow.
    before = jnp.minimum(step, size) * len(images) + jnp.arange(len(images))
    return jax.lax.scan(one, pool, (images, place, exchange, before))


class _Translator(nn.Module):
    """Images -> images by one convolution: `CycleGenerator` takes a minute to compile."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        return nn.tanh(Conv(images.shape[-1], 3)(images.transpose(3, 1, 2, 0), train)).transpose(3, 1, 2, 0)


def tiny() -> dict[str, Experiment]:
    """Tiny settings, for the tests of what holds for every learner: SGD, dropout on."""
    sgd = Optimizer(name="sgd", learning_rate=0.05)
    return {
        "cyclegan": CycleGAN(
            data=Unpaired(name="digits", classes=("3", "8"), batch=8, evaluation_batch=16),
            generator=_Translator(),
            discriminator=PatchDiscriminator(widths=(4,)),
            augment=Augment(flip=True),
            pool=12,
            generator_optimizer=sgd,
            discriminator_optimizer=sgd,
            run=Run(steps=12, steps_per_dispatch=3, evaluate_every=6, save_every=6, metric="cycle_error", mode="min"),
        )
    }
