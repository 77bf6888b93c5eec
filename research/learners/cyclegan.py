"""CycleGAN: unpaired image translation (Zhu, Park, Isola & Efros 2017, arXiv:1703.10593).

G translates X to Y and F translates Y to X; D_X and D_Y tell images from translations. A step reads as the paper's
section 4 does: update the generators, then the discriminators, on translations out of a pool of past ones (Shrivastava
et al. 2017, arXiv:1612.07828).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core.errors import Mistake
from research.core.experiment import Feeds, Load, Report, Run, positive
from research.core.modules import forward, initialise
from research.core.optimizers import optimizer, schedule
from research.core.state import Batch, Learner, Mean, Metrics, State, Tree, each, mean, stream
from research.core.update import cast, descend
from research.data.augment import Augment, augment
from research.data.unpaired import Unpaired
from research.evaluation import samples
from research.evaluation.classifier import load_classifier
from research.learners.players import Players, prepared, together
from research.nets.cyclegan import CycleGenerator, PatchDiscriminator


@dataclass(frozen=True, kw_only=True)
class CycleGAN(Players):
    """An experiment in translation between two sets of images.

    Attributes:
        data: the two sets
        generator: a Flax module without batch statistics: images -> images; there are two of it
        discriminator: likewise: images -> scores [batch, ...]; two as well
        augment: what is done to training images
        cycle: the weight of |F(G(x)) - x| + |G(F(y)) - y|
        identity: the weight of |G(y) - y| + |F(x) - x|, or None
        pool: past translations kept, of each set
    """

    data: Unpaired = field(default_factory=Unpaired)
    generator: nn.Module = field(default_factory=CycleGenerator)
    discriminator: nn.Module = field(default_factory=PatchDiscriminator)
    augment: Augment = field(default_factory=Augment)
    cycle: float = 10.0
    identity: float | None = 5.0
    pool: int = 50
    run: Run = field(default_factory=lambda: Run(metric="cycle_error", goal="min"))

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "", "pool")
        if self.sample_metrics_every is not None and self.classifier_dir is None:
            raise Mistake("sample_metrics_every needs classifier_dir, the classifier that evaluates the translations")

    def build(self, axis: str | None = None) -> Learner:
        """See `Experiment`."""
        return cyclegan(self, self.data.arrays().train_x.shape[1:], axis)

    def feeds(self) -> Feeds:
        """See `Experiment`."""
        return self.data.feeds()

    def translate(self, params: Tree, images: jax.Array, to_y: bool) -> jax.Array:
        """Translations [batch, h, w, c] in [-1, 1] of images u8[batch, h, w, c], by G to Y or by F to X."""
        return forward(self.generator, params["generator"]["G" if to_y else "F"], {}, prepared(images))[0]

    def reports(self, load: Load) -> Iterable[Report]:
        """See `Experiment`."""
        found = [samples.translation_grid(self.translate, self.run.evaluate_every)]
        if self.classifier_dir is not None:
            shape = self.data.arrays().train_x.shape[1:]
            classifier = load_classifier(load, self.classifier_dir, self.classifier_hash, shape)
            found.append(samples.translation_metrics(self.translate, self.data, classifier, self.sample_metrics_every))
        return found


def cyclegan(config: CycleGAN, shape: tuple[int, ...], axis: str | None = None) -> Learner:
    """The learner, for images of `shape` (height, width, channels).

    params is {"generator": {"G", "F"}, "discriminator": {"X", "Y"}}, opt_state has the same two names; the pools are
    collections["pool"] {"X", "Y"}, f32[pool, h, w, c]: the same on every device.
    """
    how = {"generator": config.generator_optimizer, "discriminator": config.discriminator_optimizer}
    txs = {name: optimizer(tx, config.run.steps) for name, tx in how.items()}
    rates = {name: schedule(tx, config.run.steps) for name, tx in how.items()}

    def init(key: jax.Array) -> State:
        keys, image = jax.random.split(key, 4), jnp.zeros((1, *shape))
        made = lambda net, names, keys: {n: initialise(net, k, image)[0] for n, k in zip(names, keys, strict=True)}
        params = {
            "generator": made(config.generator, "GF", keys[:2]),
            "discriminator": made(config.discriminator, "XY", keys[2:]),
        }
        opt_state = {name: txs[name].init(nets) for name, nets in params.items()}
        pools = {name: jnp.zeros((config.pool, *shape)) for name in "XY"}
        return State(jnp.int32(0), key, params, opt_state, {"pool": pools}, ())

    def generate(params: Tree, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return forward(config.generator, params, {}, images, key)[0]

    def score(params: Tree, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return forward(config.discriminator, params, {}, images, key)[0]

    def generators(
        nets: Tree, discriminators: Tree, x: jax.Array, y: jax.Array, key: jax.Array | None = None
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """What the generators descend, f32[batch] of x and of y: adversarial, cycle_error and identity_error."""

        def one(there: Tree, back: Tree, critic: Tree, x: jax.Array) -> dict[str, jax.Array]:
            fake = generate(there, x, key)
            values = {
                "adversarial": alone((score(critic, fake, key) - 1) ** 2),
                "cycle_error": alone(jnp.abs(generate(back, fake, key) - x)),
            }
            if config.identity is not None:
                values["identity_error"] = alone(jnp.abs(generate(back, x, key) - x))
            return values

        forth = one(nets["G"], nets["F"], discriminators["Y"], x)
        return forth, one(nets["F"], nets["G"], discriminators["X"], y)

    def objective(values: dict[str, jax.Array]) -> jax.Array:
        total = values["adversarial"] + config.cycle * values["cycle_error"]
        return total if config.identity is None else total + config.identity * values["identity_error"]

    def telling(critic: Tree, reals: jax.Array, fakes: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """What a discriminator descends, f32[batch]; halved, which slows it down beside the generators."""
        return (alone((score(critic, reals, key) - 1) ** 2) + alone(score(critic, fakes, key) ** 2)) / 2

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        grown = lambda name, images: augment(
            config.augment, each(stream(state, f"augment {name}"), batch.index), images.astype(jnp.float32) / 255
        )
        x, y = (2 * grown(name, images) - 1 for name, images in zip("XY", batch.inputs, strict=True))
        nets, critics = state.params["generator"], state.params["discriminator"]

        def generator_loss(
            nets: Tree, collections: dict[str, Tree], batch: Any, key: jax.Array
        ) -> tuple[Mean, tuple[dict[str, Tree], Metrics]]:
            x, y, mask = batch
            of_x, of_y = generators(nets, cast(critics, config.descent.dtype), x, y, key)
            metrics = {name: mean((of_x[name] + of_y[name]) / 2, mask) for name in of_x}
            return mean(objective(of_x) + objective(of_y), mask), (collections, metrics)

        def discriminator_loss(
            critics: Tree, collections: dict[str, Tree], batch: Any, key: jax.Array
        ) -> tuple[Mean, tuple[dict[str, Tree], Metrics]]:
            x, y, fake_x, fake_y, mask = batch
            values = telling(critics["X"], x, fake_x, key) + telling(critics["Y"], y, fake_y, key)
            return mean(values, mask), (collections, {})

        def down(name: str, loss: Any, data: Any) -> tuple[Tree, Tree, Metrics]:
            net, opt_state = state.params[name], state.opt_state[name]
            net, opt_state, _, metrics = descend(
                loss, txs[name], net, opt_state, {}, data, stream(state, name), config.descent, axis
            )
            return net, opt_state, metrics

        # The translations of the generators as they are before their update.
        key, still = stream(state, "generator"), cast(nets, config.descent.dtype)
        fakes = {"X": generate(still["F"], y, key), "Y": generate(still["G"], x, key)}

        nets, nets_opt, made = down("generator", generator_loss, (x, y, batch.mask))

        pools, shown = {}, {}
        for name, images in fakes.items():
            everyone = images if axis is None else jax.lax.all_gather(images, axis, tiled=True)
            luck = each(stream(state, f"pool {name}"), jnp.arange(len(everyone)))
            pools[name], given = queried(state.collections["pool"][name], everyone, luck, state.step)
            own = 0 if axis is None else jax.lax.axis_index(axis) * len(images)
            shown[name] = jax.lax.dynamic_slice_in_dim(given, own, len(images))

        told_apart = x, y, shown["X"], shown["Y"], batch.mask
        critics, critics_opt, told = down("discriminator", discriminator_loss, told_apart)

        metrics = together({"generator": made, "discriminator": told})
        metrics |= {f"{name}_learning_rate": mean(rate(state.step)) for name, rate in rates.items()}
        return State(
            state.step + 1,
            state.key,
            {"generator": nets, "discriminator": critics},
            {"generator": nets_opt, "discriminator": critics_opt},
            {"pool": pools},
            state.world,
        ), metrics

    def evaluate(state: State, batch: Batch) -> Metrics:
        """The losses on images that were not trained on; the discriminators' with translations of the moment."""
        x, y = (prepared(images) for images in batch.inputs)
        nets, critics = state.params["generator"], state.params["discriminator"]
        of_x, of_y = generators(nets, critics, x, y)
        mask_x, mask_y = batch.targets
        merged = lambda a, b: jax.tree.map(jnp.add, mean(a, mask_x), mean(b, mask_y))
        metrics = {name: merged(of_x[name], of_y[name]) for name in of_x}
        metrics["generator_loss"] = mean(objective(of_x) + objective(of_y), mask_x * mask_y)
        told = telling(critics["X"], x, generate(nets["F"], y)) + telling(critics["Y"], y, generate(nets["G"], x))
        metrics["discriminator_loss"] = mean(told, mask_x * mask_y)
        return metrics

    return Learner(init, step, evaluate)


def alone(values: jax.Array) -> jax.Array:
    """The mean of each example: [batch, ...] -> [batch]."""
    return values.reshape(len(values), -1).mean(1)


def queried(pool: jax.Array, images: jax.Array, keys: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The pool after a step, and what the discriminator is shown in place of `images` [batch, ...], one after another.

    Until the pool is full an image enters it, and is shown. Then, half of the time, it changes places with a random
    one of the pool; otherwise it is shown.

    pool  [size, ...]; full after size / batch steps
    keys  of each image, [batch]
    """
    size = len(pool)

    def one(pool: jax.Array, image_and_luck: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        image, place, exchange, seen = image_and_luck
        filling = seen < size
        place = jnp.where(filling, seen, place)
        past = pool[place]
        pool = pool.at[place].set(jnp.where(filling | exchange, image, past))
        return pool, jnp.where(filling | ~exchange, image, past)

    place = jax.vmap(lambda key: jax.random.randint(key, (), 0, size))(keys)
    exchange = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, 1)))(keys)
    # A step later than the pool's size finds it full: so the product can't overflow.
    seen = jnp.minimum(step, size) * len(images) + jnp.arange(len(images))
    return jax.lax.scan(one, pool, (images, place, exchange, seen))
