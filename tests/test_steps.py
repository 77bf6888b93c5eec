"""Whole steps of the GAN and of CycleGAN on tiny linear nets, against their algorithm boxes written out in NumPy.

Gradients are worked by hand; updates are plain gradient descent. Two or more steps are taken, so that what a step
leaves behind (counts, pools) is seen by the next one.
"""

import zlib
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learners import EXPERIMENTS

from research.core.optimizers import Optimizer
from research.core.state import Batch
from research.data.augment import Augment
from research.data.images import ImageSpec
from research.learners.cyclegan import cyclegan
from research.learners.gan import gan

RATE = 0.05
SGD = Optimizer(name="sgd", learning_rate=RATE, momentum=0.0, nesterov=False)
BATCH, PIXELS, LATENT, CLASSES = 4, 6, 3, 2
SHAPE = (2, 3, 1)
"""Of an image: PIXELS in all."""


def linear(features):
    return nn.Dense(features, use_bias=False, kernel_init=nn.initializers.normal(0.5), name="linear")


class Generator(nn.Module):
    """(noise, labels) -> images: linear in the noise and the one-hot label."""

    shape: tuple[int, ...] = SHAPE
    classes: int = CLASSES

    @nn.compact
    def __call__(self, inputs, train=False):
        noise, labels = inputs
        return linear(PIXELS)(jnp.concatenate([noise, jax.nn.one_hot(labels, CLASSES)], 1)).reshape(-1, *SHAPE)


class Discriminator(nn.Module):
    """(images, labels) -> scores: linear in the pixels and the one-hot label."""

    classes: int = CLASSES

    @nn.compact
    def __call__(self, inputs, train=False):
        images, labels = inputs
        return linear(1)(jnp.concatenate([images.reshape(-1, PIXELS), jax.nn.one_hot(labels, CLASSES)], 1))[:, 0]


class Translator(nn.Module):
    """Images -> images."""

    @nn.compact
    def __call__(self, images, train=False):
        return linear(PIXELS)(images.reshape(-1, PIXELS)).reshape(-1, *SHAPE)


class Patches(nn.Module):
    """Images -> two scores each."""

    @nn.compact
    def __call__(self, images, train=False):
        return linear(2)(images.reshape(-1, PIXELS))


def kernels(tree):
    """The kernels of linear nets, f64, by name."""
    if "linear" in tree:
        return np.asarray(tree["linear"]["kernel"], np.float64)
    return {name: kernels(net) for name, net in tree.items()}


def key_of(key, name, count):
    """The key of the rng stream `name` at a step or an update, as its definition has it."""
    return jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(name.encode())), count)


def pixels(seed, count):
    """Random images u8[count, ...], and the same as f64[count, PIXELS] in [-1, 1]."""
    images = np.random.default_rng(seed).integers(256, size=(count, *SHAPE), dtype=np.uint8)
    return images, images.reshape(count, PIXELS) / 127.5 - 1


def batch_of(inputs, targets, count):
    return Batch(np.arange(count), np.ones(count, np.float32), inputs, targets)


@pytest.mark.parametrize("num_updates", [1, 2])
def test_steps_of_the_gan(num_updates):
    """Algorithm 1 of Goodfellow et al. 2014 with LSGAN's losses; nets that read labels."""
    experiment = replace(
        EXPERIMENTS["gan"],
        generator=Generator(),
        discriminator=Discriminator(),
        latent=LATENT,
        conditional=True,
        loss="least_squares",
        num_updates=num_updates,
        average=None,
        generator_optimizer=SGD,
        discriminator_optimizer=SGD,
    )
    learner = gan(experiment, ImageSpec(SHAPE, CLASSES, ("a", "b"), (0.0,), (1.0,)))
    root = jax.random.key(3)
    state, step = learner.init(root), jax.jit(learner.step)
    net_g, net_d = kernels(state.params["generator"]), kernels(state.params["discriminator"])
    one_hot, drawn = np.eye(CLASSES), []

    def noise(name, count):
        """An example's noise is drawn by its position in the update's batch and the count of the net's updates."""
        one = lambda at: jax.random.normal(
            jax.random.fold_in(jax.random.fold_in(key_of(root, name, count), at), zlib.crc32(b"noise")), (LATENT,)
        )
        drawn.append(np.stack([one(at) for at in range(BATCH)]))
        return drawn[-1]

    for at in range(2):
        images, reals = pixels(at, num_updates * BATCH)
        labels = np.random.default_rng(10 + at).integers(CLASSES, size=num_updates * BATCH)
        state, metrics = step(state, batch_of(images, labels.astype(np.int32), num_updates * BATCH))
        d_losses = []
        for k in range(num_updates):
            # Every `num_updates`-th example from the k-th on.
            label = one_hot[labels[k::num_updates]]
            real = np.hstack([reals[k::num_updates], label])
            fake = np.hstack([np.hstack([noise("discriminator", at * num_updates + k), label]) @ net_g, label])
            d_losses.append(((real @ net_d - 1) ** 2 / 2 + (fake @ net_d) ** 2 / 2).mean())
            net_d = net_d - RATE * (real.T @ (real @ net_d - 1) + fake.T @ (fake @ net_d)) / BATCH
        # The labels are still those of the last part; the discriminator is the updated one.
        inputs = np.hstack([noise("generator", at), label])
        score = np.hstack([inputs @ net_g, label]) @ net_d
        g_loss = ((score - 1) ** 2 / 2).mean()
        net_g = net_g - RATE * inputs.T @ ((score - 1) @ net_d[:PIXELS].T) / BATCH

        np.testing.assert_allclose(kernels(state.params["discriminator"]), net_d, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(kernels(state.params["generator"]), net_g, rtol=1e-5, atol=1e-6)
        assert metrics["discriminator_loss"].value == pytest.approx(np.mean(d_losses), rel=1e-5)
        assert metrics["generator_loss"].value == pytest.approx(g_loss, rel=1e-5)
    # All noise is fresh: that of each update of a net, and that of the one net and the other.
    assert len(np.unique(np.concatenate(drawn), axis=0)) == BATCH * len(drawn) == BATCH * 2 * (num_updates + 1)


CYCLE, IDENTITY, POOL = 3.0, 0.5, 6


def test_steps_of_cyclegan():
    """Section 4 of Zhu et al. 2017: both generators together, then both discriminators, on fakes out of the pools."""
    experiment = replace(
        EXPERIMENTS["cyclegan"],
        generator=Translator(),
        discriminator=Patches(),
        augment=Augment(),
        cycle=CYCLE,
        identity=IDENTITY,
        pool=POOL,
        generator_optimizer=SGD,
        discriminator_optimizer=SGD,
    )
    learner = cyclegan(experiment, SHAPE)
    root = jax.random.key(4)
    state, step = learner.init(root), jax.jit(learner.step)
    g, d = kernels(state.params["generators"]), kernels(state.params["discriminators"])
    pools, exchanged = {"X": [], "Y": []}, 0

    def through(there, back, critic, x):
        """A generator's terms on images, and their gradients by the net there and by the net back."""
        fake = x @ there
        score, cycled, same = fake @ critic, fake @ back - x, x @ back - x
        terms = np.array([((score - 1) ** 2).mean(), np.abs(cycled).mean(), np.abs(same).mean()])
        sign_cycled, sign_same = np.sign(cycled) / cycled.size, np.sign(same) / same.size
        by_fake = 2 * (score - 1) / score.size @ critic.T + CYCLE * sign_cycled @ back.T
        return fake, terms, x.T @ by_fake, CYCLE * fake.T @ sign_cycled + IDENTITY * x.T @ sign_same

    def told(critic, real, fake):
        """A discriminator's loss, half the sum of its two parts, and the gradient."""
        a, b = real @ critic - 1, fake @ critic
        return ((a**2).mean() + (b**2).mean()) / 2, (real.T @ a / a.size + fake.T @ b / b.size)

    def from_pool(name, images, at):
        """What a discriminator is shown; the pool is a list of past images."""
        nonlocal exchanged
        shown, pool = [], pools[name]
        for n, image in enumerate(images):
            key = jax.random.fold_in(key_of(root, f"pool {name}", at), n)
            place = int(jax.random.randint(key, (), 0, POOL))
            if len(pool) < POOL:
                pool.append(image)
                shown.append(image)
            elif jax.random.bernoulli(jax.random.fold_in(key, 1)):
                shown.append(pool[place])
                pool[place] = image
                exchanged += 1
            else:
                shown.append(image)
        return np.stack(shown)

    for at in range(4):
        (images_x, x), (images_y, y) = pixels(2 * at, BATCH), pixels(2 * at + 1, BATCH)
        state, metrics = step(state, batch_of((images_x, images_y), (np.ones(BATCH), np.ones(BATCH)), BATCH))
        fake_y, terms_x, there_g, back_f = through(g["G"], g["F"], d["Y"], x)
        fake_x, terms_y, there_f, back_g = through(g["F"], g["G"], d["X"], y)
        g = {"G": g["G"] - RATE * (there_g + back_g), "F": g["F"] - RATE * (there_f + back_f)}
        shown = {"X": from_pool("X", fake_x, at), "Y": from_pool("Y", fake_y, at)}
        loss_x, gradient_x = told(d["X"], x, shown["X"])
        loss_y, gradient_y = told(d["Y"], y, shown["Y"])
        d = {"X": d["X"] - RATE * gradient_x, "Y": d["Y"] - RATE * gradient_y}

        for expected, found in ((g, state.params["generators"]), (d, state.params["discriminators"])):
            for name, kernel in kernels(found).items():
                np.testing.assert_allclose(kernel, expected[name], rtol=1e-5, atol=1e-6, err_msg=f"{name}, step {at}")
        found = {name: float(metric.value) for name, metric in metrics.items()}
        terms = terms_x + terms_y
        named = dict(zip(("adversarial", "cycle_error", "identity_error"), terms / 2, strict=True))
        assert {name: found[name] for name in named} == pytest.approx(named, rel=1e-5)
        assert found["generators_loss"] == pytest.approx(terms @ [1, CYCLE, IDENTITY], rel=1e-5)
        assert found["discriminators_loss"] == pytest.approx(loss_x + loss_y, rel=1e-5)
    assert exchanged > 2
