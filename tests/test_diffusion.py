"""Diffusion: schedules, DDPM's posterior and loss, and DDIM, against sums written out and against known answers."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from research.core.errors import UserError
from research.core.experiment import Run
from research.core.optimizers import Optimizer
from research.core.state import example_keys, fold_name, rng
from research.data.images import Images
from research.evaluation.samples import latent_inputs
from research.learners.diffusion import Diffusion, alpha_bars, ddim, noisy, reverse
from research.nets.unet import UNet
from research.training import config, run

random = np.random.default_rng(0)
T = 1000


class Linear(nn.Module):
    """Not a denoiser: a number times the noisy image, plus the time / 1000, plus a tenth of the label."""

    outputs: int = 0
    classes: int = 0

    @nn.compact
    def __call__(self, inputs, train=False):
        images, times, labels = inputs
        factor = self.param("factor", nn.initializers.constant(0.5), ())
        return factor * images + ((times / 1000 + 0.1 * labels)[:, None, None, None]).astype(images.dtype)


# Schedules.


def test_the_linear_schedule():
    expected = [1.0]
    for t in range(T):
        expected.append(expected[-1] * (1 - (1e-4 + (0.02 - 1e-4) * t / (T - 1))))
    found = alpha_bars("linear", T)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found[T] == pytest.approx(4.036e-5, rel=1e-3)  # as DDPM has it
    short = alpha_bars("linear", 100)  # about the same noise at the same share of the way
    np.testing.assert_allclose(short, found[::10], atol=0.01)
    assert (np.diff(alpha_bars("linear", 10)) < 0).all() and alpha_bars("linear", 10).min() > 0


def test_the_cosine_schedule():
    share = lambda t: np.cos((t / T + 0.008) / 1.008 * np.pi / 2) ** 2
    found = np.asarray(alpha_bars("cosine", T))
    t = np.arange(T)  # the last beta is cut
    np.testing.assert_allclose(found[:T], share(t) / share(0), rtol=1e-4)
    assert found[T] == pytest.approx(found[T - 1] * 0.001, rel=1e-3)


def test_noisy_images_have_the_variance_of_the_schedule():
    images, epsilon = (random.normal(size=(2, 5000)).astype(np.float32) for _ in range(2))
    found = np.asarray(noisy(3 * images, epsilon, jnp.array([0.36, 1.0])))
    np.testing.assert_allclose(found[0], 0.6 * 3 * images[0] + 0.8 * epsilon[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[1], 3 * images[1])


# One step back, and all of them.


@pytest.mark.parametrize("t", [1, 2, 500, 1000])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_random_step_is_ddpms_posterior(schedule, t):
    """Equations 6 and 7 of Ho et al. 2020."""
    alpha_bar = np.asarray(alpha_bars(schedule, T), np.float64)
    x_0, epsilon = random.uniform(-0.9, 0.9, (4, 3)), random.normal(size=(4, 3))
    now, before = alpha_bar[t], alpha_bar[t - 1]
    alpha = now / before
    beta = 1 - alpha
    x_t = np.sqrt(now) * x_0 + np.sqrt(1 - now) * epsilon
    mean = np.sqrt(before) * beta / (1 - now) * x_0 + np.sqrt(alpha) * (1 - before) / (1 - now) * x_t
    variance = (1 - before) / (1 - now) * beta
    with jax.enable_x64(True):
        found, deviation = reverse(jnp.array(x_t), jnp.array(epsilon), jnp.array(now), jnp.array(before), 1.0)
        np.testing.assert_allclose(found, mean, rtol=1e-6, atol=1e-9)
        assert float(deviation) ** 2 == pytest.approx(variance, rel=1e-6, abs=1e-12)


def test_a_step_without_randomness_keeps_the_noise():
    """The predicted noise is scaled to the level before; a predicted image outside of [-1, 1] is cut."""
    found, deviation = reverse(jnp.array([0.5, 3.0]), jnp.array([0.4, 0.0]), jnp.array(0.64), jnp.array(0.91), None)
    x_0 = (0.5 - 0.6 * 0.4) / 0.8
    assert deviation is None and found[0] == pytest.approx(np.sqrt(0.91) * x_0 + 0.3 * 0.4)
    noise = (3.0 - 0.8 * 1.0) / 0.6
    assert found[1] == pytest.approx(np.sqrt(0.91) * 1.0 + 0.3 * noise)


@pytest.mark.parametrize("steps, eta", [(1, None), (50, None), (7, 0.0), (1, 1.0), (7, 1.0)])
def test_with_the_noise_known_the_image_comes_back(steps, eta):
    image, alpha_bar = random.uniform(-1, 1, (1, 4, 4, 1)).astype(np.float32), alpha_bars("cosine", 100)
    known = lambda x, t: (x - jnp.sqrt(alpha_bar[t]) * image) / jnp.sqrt(1 - alpha_bar[t])
    noise = random.normal(size=(3, 4, 4, 1)).astype(np.float32)
    found = jax.jit(lambda noise: ddim(known, noise, alpha_bar, steps, eta))(noise)
    np.testing.assert_allclose(found, np.repeat(image, 3, 0), atol=2e-3)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_samples_of_a_normal_distribution(schedule):
    """Of images from N(0, s^2) the best prediction is known. DDIM then scales the noise by s; drawn anew, it has s."""
    s, alpha_bar = 0.2, alpha_bars(schedule, T)
    best = lambda x, t: jnp.sqrt(1 - alpha_bar[t]) / (alpha_bar[t] * s**2 + 1 - alpha_bar[t]) * x
    noise = random.normal(size=(4000, 1)).astype(np.float32)
    sample = jax.jit(lambda eta, steps: ddim(best, noise, alpha_bar, steps, eta), static_argnums=(0, 1))
    exact = np.asarray(sample(None, T))
    np.testing.assert_allclose(exact, s * noise, atol=0.02)
    np.testing.assert_allclose(sample(None, 50), s * noise, atol=0.06)
    drawn = np.asarray(sample(1.0, T))
    assert drawn.std() == pytest.approx(s, rel=0.06) and abs(np.corrcoef(drawn[:, 0], noise[:, 0])[0, 1]) < 0.2


def test_an_examples_sample_depends_on_its_noise_alone():
    noise = random.normal(size=(4, 2, 2, 1)).astype(np.float32)
    sample = jax.jit(lambda noise: ddim(lambda x, t: 0.3 * x, noise, alpha_bars("cosine", 20), 5, 1.0))
    np.testing.assert_allclose(sample(noise)[2:], sample(noise[2:]), rtol=1e-5)


# The learner.


def small(**fields):
    """An experiment with the made-up net."""
    data = Images(limit=100, batch=8, evaluation_batch=16)
    return Diffusion(data=data, net=Linear(), **{"conditional": True, **fields})


def test_the_loss_by_a_loop():
    experiment = small(schedule="cosine")
    learner, batch = experiment.build(), experiment.feeds().validation[0]
    state = jax.jit(learner.init)(jax.random.key(3))
    found = jax.jit(learner.evaluate)(state, batch)["loss"]
    keys, alpha_bar = example_keys(rng(state, "evaluate"), batch.index), np.asarray(alpha_bars("cosine", T))
    losses, times = [], []
    draw_time = jax.vmap(lambda key: jax.random.randint(key, (), 1, T + 1))
    draw_noise = jax.vmap(lambda key: jax.random.normal(key, (8, 8, 1)))
    draws = jax.jit(lambda keys: (draw_time(fold_name(keys, "t")), draw_noise(fold_name(keys, "epsilon"))))
    drawn = zip(*map(np.asarray, draws(keys)), strict=True)
    for n, (t, epsilon) in zip(range(int(batch.mask.sum())), drawn, strict=False):
        x_0 = batch.inputs[n] / 127.5 - 1
        x_t = np.sqrt(alpha_bar[t]) * x_0 + np.sqrt(1 - alpha_bar[t]) * epsilon
        losses.append(((0.5 * x_t + t / 1000 + 0.1 * batch.targets[n] - epsilon) ** 2).mean())
        times.append(t)
    assert float(found.value) == pytest.approx(np.mean(losses), rel=1e-4) and found.count == len(losses)
    assert min(times) >= 1 and len(set(times)) > 5


def test_a_step_hides_labels():
    """Hidden labels are 10, which this net adds 1.0 for: with all of them hidden, the labels do not matter."""
    for share, equal in ((1.0, True), (0.0, False)):
        experiment = small(label_dropout=share)
        learner, batch = experiment.build(), experiment.feeds().train.batch_at(0)
        state, step = jax.jit(learner.init)(jax.random.key(0)), jax.jit(learner.step)
        losses = [
            float(step(state, batch._replace(targets=labels))[1]["loss"].value)
            for labels in (batch.targets, jnp.zeros(8, jnp.int32), jnp.full(8, 10))
        ]
        assert (len(set(losses)) == 1) == equal


def test_guidance():
    """epsilon + w (epsilon - epsilon without label); this net's differ by a tenth of the difference of the labels."""
    plain, guided = small(sampling_steps=1), small(sampling_steps=1, label_dropout=0.1, guidance=2.0)
    state = jax.jit(plain.build().init)(jax.random.key(0))
    noise, labels = jnp.full((2, 8, 8, 1), 0.01), jnp.array([0, 9])
    now = float(alpha_bars("linear", T)[T])
    for experiment, w in ((plain, 0.0), (guided, 2.0)):
        epsilon = 0.5 * 0.01 + 1.0 + 0.1 * np.array([0, 9]) + w * 0.1 * (np.array([0, 9]) - 10)
        expected = ((0.01 - np.sqrt(1 - now) * epsilon) / np.sqrt(now)).clip(-1, 1)
        np.testing.assert_allclose(experiment.samples(state, noise, labels)[:, 0, 0, 0], expected, rtol=1e-4)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"sampling_steps": 2000}, "sampling_steps=2000 are more than the 1000 timesteps"),
        ({"guidance": 1.0}, "guidance needs a net that was trained with and without labels"),
        ({"guidance": 1.0, "label_dropout": 0.0}, "give conditional, and a label_dropout between 0 and 1"),
        ({"guidance": 1.0, "label_dropout": 1.0}, "give conditional, and a label_dropout between 0 and 1"),
        ({"timesteps": 0}, "timesteps must be at least 1"),
        ({"label_dropout": 10.0}, "label_dropout must be between 0 and 1, not 10"),
        ({"eta": -1.0}, "eta must be between 0 and 1, not -1"),
        ({"label_dropout": 0.1, "conditional": False}, "label_dropout hides labels from a net that reads them"),
        ({"sample_metrics_every": 1000}, "sample_metrics_every needs classifier_dir or inception"),
    ],
)
def test_what_cannot_be(fields, message):
    with pytest.raises(UserError, match=message):
        small(**fields)


def test_a_run_learns_and_leaves_pictures(tmp_path):
    experiment = Diffusion(
        data=Images(limit=400, batch=32, evaluation_batch=40),
        net=UNet(widths=(8,), blocks=1),
        timesteps=100,
        conditional=True,
        sampling_steps=5,
        optimizer=Optimizer(learning_rate=5e-3),
        run=Run(steps=60, steps_per_dispatch=20, evaluate_every=20, save_every=60, metric="loss", mode="min"),
    )
    result = run.train("digits_ddpm", config.Command(experiment, workdir=tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["split"] == "train"]
    assert losses[-1] < 0.6 * losses[0] and result["test"]["loss"]["mean"] < 0.8
    for name in ("samples.png", "interpolations.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 400


def test_noise_of_the_shape_of_an_image():
    noise, labels = latent_inputs(0, 7, (4, 5, 1), 3)
    assert noise.shape == (7, 4, 5, 1) and labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert latent_inputs(0, 7, 6, 3)[0].shape == (7, 6)


def test_what_is_exported_makes_the_same_samples():
    experiment = dataclasses.replace(small(sampling_steps=2), conditional=False)
    state, batch = jax.jit(experiment.build().init)(jax.random.key(0)), experiment.feeds().validation[0]
    exported = experiment.inference(state)["inference"]
    inputs = exported.inputs(batch)
    assert list(inputs) == ["noise"]
    expected = experiment.samples(state, inputs["noise"], jnp.zeros(16, jnp.int32))
    np.testing.assert_allclose(exported.function(**inputs), expected, rtol=1e-5)
