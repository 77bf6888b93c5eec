"""Whole steps of the learners, written out a second time; DQN's is in test_dqn.py.

The GAN's and CycleGAN's are worked in NumPy for tiny linear nets, gradients by hand. Of the supervised learners all but
the net is written out. Updates are plain gradient descent. Two or more steps are taken, so that what a step leaves
behind (counts, pools, averages) is seen by the next one.
"""

import zlib
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learners import EXPERIMENTS

from research.core.metrics import mean
from research.core.modules import network
from research.core.optimizers import Optimizer
from research.core.special_tokens import PAD
from research.core.state import Batch, owned
from research.core.update import Aux, UpdateConfig, updater
from research.data.augment import Augment, augment
from research.data.images import ImageSpec
from research.learners.cyclegan import cyclegan
from research.learners.gan import gan
from research.learners.masked import mask_tokens

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


def test_a_step_of_the_gan_moves_batch_statistics():
    """The discriminator's by its images, then by its samples; the generator's by the samples of its own update."""
    experiment = EXPERIMENTS["gan"]
    learner, (generator, discriminator) = experiment.build(), experiment.networks(experiment.data.spec())
    root, batch = jax.random.key(6), experiment.feeds().train.batch_at(0)
    before = jax.jit(learner.init)(root)
    after, _ = jax.jit(learner.step)(before, batch)

    def drawn(name):
        keys = jax.vmap(lambda n: jax.random.fold_in(key_of(root, name, 0), n))(jnp.arange(len(batch.index)))
        return keys, jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, zlib.crc32(b"noise")), (4,)))(keys)

    apply_g, apply_d = (jax.jit(lambda *x, f=net.apply: f(*x[:3], rng=x[3])) for net in (generator, discriminator))
    (keys, noise), own = drawn("discriminator"), before.collections
    fakes, _ = apply_g(before.params["generator"], own["generator"], (noise, batch.targets), keys)
    moved = own["discriminator"]
    for images in (batch.inputs / np.float32(127.5) - 1, fakes):
        _, moved = apply_d(before.params["discriminator"], moved, (images, batch.targets), keys)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, after.collections["discriminator"], moved)
    keys, noise = drawn("generator")
    _, moved = apply_g(before.params["generator"], own["generator"], (noise, batch.targets), keys)
    jax.tree.map(close, after.collections["generator"], moved)


CYCLE, IDENTITY, POOL = 3.0, 0.5, 6


def test_steps_of_cyclegan():
    """Section 4 of Zhu et al. 2017: both generators together, then both discriminators, on fakes out of the pools."""
    experiment = replace(
        EXPERIMENTS["cyclegan"],
        generator=Translator(),
        discriminator=Patches(),
        augment=Augment(flip=True),
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

    def flipped(name, images, at):
        """Images, half of them flipped, in [-1, 1]."""
        keys = jax.vmap(lambda n: jax.random.fold_in(key_of(root, f"augment {name}", at), n))(jnp.arange(BATCH))
        return np.asarray(2 * augment(Augment(flip=True), keys, images / np.float32(255)) - 1).reshape(BATCH, PIXELS)

    for at in range(4):
        images_x, images_y = (pixels(2 * at + n, BATCH)[0] for n in (0, 1))
        x, y = flipped("X", images_x, at), flipped("Y", images_y, at)
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


def nats(logits, targets, smoothing):
    """The cross-entropy of softmax(logits) against targets smoothed over all classes."""
    wanted = (1 - smoothing) * jax.nn.one_hot(targets, logits.shape[-1]) + smoothing / logits.shape[-1]
    return -(wanted * (logits - jnp.log(jnp.exp(logits).sum(-1, keepdims=True)))).sum(-1)


def as_images(experiment, batch, key):
    """Scaled to [0, 1], augmented in training, less the mean over the standard deviation of each channel."""
    images, spec = jnp.asarray(batch.inputs, jnp.float32) / 255, experiment.data.spec()
    if key is not None:
        images = augment(experiment.augment, jax.vmap(lambda n: jax.random.fold_in(key, n))(batch.index), images)
    return (images - np.array(spec.mean)) / np.array(spec.std), batch.targets


def as_hidden(experiment, batch, key):
    """A share of the tokens hidden, in evaluation always the same ones."""
    key, size = jax.random.key(0) if key is None else key, experiment.data.spec().tokenizer.size
    count = round(experiment.share * batch.inputs.shape[1])
    one = lambda n, text: mask_tokens(jax.random.fold_in(key, n), text, count, size, size)
    text, places, targets = jax.vmap(one)(batch.index, batch.inputs)
    return (text, places), targets


as_they_are = lambda experiment, batch, key: (batch.inputs, batch.targets)
SUPERVISED = {
    "cnn": ({}, as_images, None, 0.1),
    "lstm": ({}, as_they_are, -1, 0.0),
    "sentences": ({"smoothing": 0.2}, as_they_are, None, 0.2),
    "masked": ({"share": 0.5}, as_hidden, PAD, 0.0),
    "translator": ({}, as_they_are, PAD, 0.1),
}
"""By name: fields, (experiment, batch, key or None in evaluation) -> (inputs, targets), the target that does not count,
the label smoothing in training."""


@pytest.mark.parametrize("name", SUPERVISED)
def test_steps_of_supervised_learners(name):
    fields, prepared, ignored, smoothing = SUPERVISED[name]
    fields = {**fields, "optimizer": SGD, "average": 0.15, "update": UpdateConfig()}
    experiment = replace(EXPERIMENTS[name], **fields)
    module = experiment.module()
    if name == "masked":
        texts = experiment.data.spec()
        size = texts.tokenizer.size
        module = experiment.net.clone(vocabulary=size, context=texts.length, outputs=size)
    learner, net, feeds = experiment.build(), network(module), experiment.feeds()
    root = jax.random.key(5)
    state, step = jax.jit(learner.init)(root), jax.jit(learner.step)
    params, own = state.params["net"], state.collections.get("net", {})
    average = params

    def loss(params, own, batch, key, rng, smoothing):
        """The mean loss of a batch, and what moves."""
        inputs, targets = prepared(experiment, batch, key)
        logits, moved = net.apply(params, own, inputs, rng=rng)
        weights = jnp.broadcast_to(batch.mask.reshape(-1, *[1] * (targets.ndim - 1)), targets.shape)
        if logits.ndim > targets.ndim + 1:  # of two readers
            targets = jnp.broadcast_to(targets[:, None], logits.shape[:-1])
            weights = jnp.broadcast_to(weights[:, None], logits.shape[:-1])
        if ignored is not None:
            weights = weights * (targets != ignored)
        return (weights * nats(logits, targets, smoothing)).sum() / weights.sum(), moved

    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    for at in range(2):
        batch = feeds.train.batch_at(at)
        state, metrics = step(state, batch)
        update_key = key_of(root, "net", at)
        keys = jax.vmap(lambda n, key=update_key: jax.random.fold_in(key, n))(jnp.arange(len(batch.mask)))
        (value, own), slope = gradient(params, own, batch, key_of(root, "augment", at), keys, smoothing)
        params = jax.tree.map(lambda p, g: p - RATE * g, params, slope)
        keep = min(0.15, (2 + at) / (11 + at))
        average = jax.tree.map(lambda a, p, keep=keep: keep * a + (1 - keep) * p, average, params)
        assert metrics["loss"].value == pytest.approx(float(value), rel=1e-5)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)
    jax.tree.map(close, state.params["net"], params)
    jax.tree.map(close, state.collections["average"]["net"], average)
    jax.tree.map(close, state.collections.get("net", {}), own)

    # Evaluation: the averaged parameters, no augmentation, no dropout, no smoothing; padding does not count.
    for batch in (feeds.validation[0], feeds.validation[-1]):
        value, _ = jax.jit(loss)(average, own, batch, None, None, 0.0)
        found = jax.jit(learner.evaluate)(state, batch)
        assert found["loss"].value == pytest.approx(float(value), rel=1e-5)
        if name == "sentences":
            counts = found["confusion"].counts
            assert counts.sum() == batch.mask.sum() and found["accuracy"].total == jnp.trace(counts)
        if name == "lstm":
            assert found["perplexity"].compute("it")["it"] == pytest.approx(np.exp(float(value)), rel=1e-5)


def counting(params, state, batch, rng):
    """A loss whose forward pass counts the examples it has seen, in a collection."""
    seen = owned(state, "net")["seen"] + len(batch)
    return mean(params["kernel"] * batch), Aux(moved={"seen": seen}, rows=jnp.broadcast_to(seen, batch.shape))


def test_microbatches_and_updates_follow_one_another():
    """Collections go from one microbatch to the next, and the learning rate by the updates, not by the steps."""
    falling = replace(SGD, schedule="linear", learning_rate=1.0)
    init, update = updater(UpdateConfig(grad_accum_steps=3), {"net": (falling, 4)})
    state = init(jax.random.key(0), {"net": ({"kernel": jnp.float32(0)}, {"seen": jnp.int32(0)})})
    kernel, rates = 0.0, []
    for at in range(3):
        state, aux = update(state, "net", counting, jnp.ones(6))
        # Microbatch k has every third example from the k-th on.
        assert aux.rows.tolist() == [6 * at + 2, 6 * at + 4, 6 * at + 6] * 2
        kernel -= 1 - at / 4
        rates.append(float(aux.metrics["learning_rate"].value))
    assert rates == [1.0, 0.75, 0.5] and state.params["net"]["kernel"] == kernel and state.step == 0
    assert state.collections["net"]["seen"] == 18
