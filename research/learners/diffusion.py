"""Denoising diffusion (DDPM: Ho, Jain & Abbeel 2020, arXiv:2006.11239), sampled by DDIM.

`diffusion` reads as their Algorithm 1 does. DDIM (Song, Meng & Ermon 2021, arXiv:2010.02502) takes far fewer steps to
sample than there are noise levels; with as many, and `eta` 1, it is Algorithm 2 of DDPM.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from research.core.errors import UserError, between, positive
from research.core.experiment import Experiment, Inference, Load, Report, Run
from research.core.metrics import Mean, Metrics, mean
from research.core.modules import network
from research.core.optimizers import Optimizer
from research.core.state import Batch, Learner, State, evaluated, example_keys, fold_name, learner, rng
from research.core.types import Tree
from research.core.update import Aux, updater
from research.data.augment import Augment, augment
from research.data.images import Images
from research.data.pixels import scaled
from research.evaluation import samples
from research.learners.generative import Generative
from research.nets.unet import UNet

Schedule = Literal["linear", "cosine"]


@dataclass(frozen=True, kw_only=True)
class Diffusion(Generative):
    """An experiment in denoising diffusion.

    Attributes:
        net: a Flax module: (noisy images, times, labels) -> the noise in them
        augment: augmentation of training images
        timesteps: number T of noise levels
        schedule: how the noise grows: linear, DDPM's, or cosine (Nichol & Dhariwal 2021, arXiv:2102.09672)
        label_dropout: share of training images whose label is hidden, which guidance needs; None for no hidden labels
        guidance: weight w of classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598): the noise that is
            predicted with the label, and w times what the label has changed in it; None for no guidance
        sampling_steps: steps of DDIM in which a sample is made
        eta: how random DDIM's steps are: None or 0, not at all; 1, as DDPM's
        average: decay of the moving average of the weights that is evaluated; None to evaluate the last weights
        optimizer: optimizer of the net
    """

    net: nn.Module = field(default_factory=UNet)
    augment: Augment = field(default_factory=Augment)
    timesteps: int = 1000
    schedule: Schedule = "linear"
    label_dropout: float | None = None
    guidance: float | None = None
    sampling_steps: int = 50
    eta: float | None = None
    average: float | None = 0.999
    optimizer: Optimizer = field(default_factory=Optimizer)
    run: Run = field(default_factory=lambda: Run(metric="loss", mode="min"))

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "", "timesteps", "sampling_steps")
        between(self, "", 0, 1, "average", "label_dropout", "eta")
        if self.sampling_steps > self.timesteps:
            raise UserError(f"sampling_steps={self.sampling_steps} are more than the {self.timesteps} timesteps")
        if self.label_dropout is not None and not self.conditional:
            raise UserError("label_dropout hides labels from a net that reads them: give conditional too")
        hidden = self.label_dropout
        never = hidden is None or (isinstance(hidden, int | float) and not 0 < hidden < 1)
        if self.guidance is not None and (never or not self.conditional):
            raise UserError(
                "guidance needs a net that was trained with and without labels: give conditional, and a label_dropout "
                "between 0 and 1"
            )

    def module(self) -> nn.Module:
        """The net for the data's images and labels."""
        spec = self.data.spec()
        return self.net.clone(outputs=spec.shape[-1], classes=spec.classes if self.conditional else 0)

    def build(self) -> Learner:
        """See `Experiment`."""
        return diffusion(self)

    def samples(self, state: State, noise: jax.Array, labels: jax.Array) -> jax.Array:
        """Images in [-1, 1] made of noise f32[batch, height, width, channels] by DDIM, with the evaluated weights."""
        net, params = network(self.module(), self.update.dtype), evaluated(state, "net")

        def predicted(x: jax.Array, t: jax.Array) -> jax.Array:
            times = jnp.broadcast_to(t, x.shape[:1])
            epsilon, _ = net.apply(params, {}, (x, times, labels))
            if self.guidance is None:
                return epsilon
            without, _ = net.apply(params, {}, (x, times, jnp.full_like(labels, self.data.spec().classes)))
            return epsilon + self.guidance * (epsilon - without)

        return ddim(predicted, noise, alpha_bars(self.schedule, self.timesteps), self.sampling_steps, self.eta)

    def reports(self, load: Load) -> Iterable[Report]:
        """See `Experiment`."""
        return samples.reports(self, self.samples, self.data.spec().shape, load)

    def inference(self, state: State) -> dict[str, Inference]:
        """See `Experiment`."""
        images, spec = partial(self.samples, state), self.data.spec()
        return samples.inference(images, spec.shape, spec, self.conditional)


def diffusion(config: Diffusion) -> Learner:
    """The learner: Algorithm 1 of Ho et al. 2020. The name is "net"."""
    spec, net = config.data.spec(), network(config.module(), config.update.dtype)
    alpha_bar, hidden = alpha_bars(config.schedule, config.timesteps), config.label_dropout
    init_state, update = updater(config.update, {"net": (config.optimizer, config.run.steps)}, {"net": config.average})

    def init(key: jax.Array) -> State:
        one = jnp.zeros(1, jnp.int32)
        return init_state(key, {"net": net.init(key, (jnp.zeros((1, *spec.shape)), one, one))})

    def errors(params: Tree, batch: Batch, keys: jax.Array, labels: jax.Array, train: bool) -> Mean:
        """|epsilon - epsilon_theta(x_t, t)|^2, a mean over pixels, for t and epsilon by the examples' keys."""
        x_0 = 2 * batch.inputs - 1
        t = jax.vmap(lambda key: jax.random.randint(key, (), 1, config.timesteps + 1))(fold_name(keys, "t"))
        epsilon = jax.vmap(lambda key: jax.random.normal(key, spec.shape))(fold_name(keys, "epsilon"))
        x_t = noisy(x_0, epsilon, alpha_bar[t])
        predicted, _ = net.apply(params, {}, (x_t, t, labels), rng=keys if train else None)
        return mean(optax.squared_error(predicted, epsilon).mean((1, 2, 3)), batch.mask)

    def loss(params: Tree, state: State, batch: Batch, rng: jax.Array) -> tuple[Mean, Aux]:
        labels = batch.targets
        if hidden is not None:
            hide = jax.vmap(lambda key: jax.random.uniform(key) < hidden)(fold_name(rng, "labels"))
            labels = jnp.where(hide, spec.classes, labels)
        return errors(params, batch, rng, labels, train=True), Aux()

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        # x_0 ~ q, t ~ uniform, epsilon ~ normal; a gradient step on |epsilon - epsilon_theta(x_t, t)|^2.
        images = augment(config.augment, example_keys(rng(state, "augment"), batch.index), scaled(batch.inputs))
        state, aux = update(state, "net", loss, batch._replace(inputs=images))
        return state, dict(aux.metrics)

    def evaluate(state: State, batch: Batch) -> Metrics:
        """The same loss on images that were not trained on; times and noise are the same each time."""
        keys = example_keys(rng(state._replace(step=jnp.int32(0)), "evaluate"), batch.index)
        batch = batch._replace(inputs=scaled(batch.inputs))
        return {"loss": errors(evaluated(state, "net"), batch, keys, batch.targets, train=False)}

    return learner(init, step, evaluate)


def alpha_bars(schedule: Schedule, timesteps: int) -> jax.Array:
    """alpha-bar f32[T + 1]: the share of the image in the variance of x_t, from 1 at t = 0 to about 0 at t = T.

    linear  the products of 1 - beta_t, where beta_t grows linearly from 0.0001 to 0.02 for T = 1000; for other T the
            betas are 1000 / T times as large
    cosine  cos^2 of (t / T + 0.008) / 1.008 of a right angle, over its value at t = 0, with beta_t at most 0.999
    """
    if schedule == "linear":
        beta = 1000 / timesteps * np.linspace(1e-4, 0.02, timesteps)
    else:
        share = np.cos((np.arange(timesteps + 1) / timesteps + 0.008) / 1.008 * np.pi / 2) ** 2
        beta = 1 - share[1:] / share[:-1]
    return jnp.array(np.concatenate([[1.0], np.cumprod(1 - beta.clip(max=0.999))]), jnp.float32)


def noisy(x_0: jax.Array, epsilon: jax.Array, alpha_bar: jax.Array) -> jax.Array:
    """x_t, of images and noise [batch, ...] and alpha-bar f32[batch] (equation 4 of Ho et al. 2020)."""
    alpha_bar = alpha_bar.reshape(-1, *(1,) * (x_0.ndim - 1))
    return jnp.sqrt(alpha_bar) * x_0 + jnp.sqrt(1 - alpha_bar) * epsilon


def ddim(
    predicted: Callable[[jax.Array, jax.Array], jax.Array],
    noise: jax.Array,
    alpha_bar: jax.Array,
    steps: int,
    eta: float | None = None,
) -> jax.Array:
    """Samples x_0 [batch, ...], from noise x_T [batch, ...], in `steps` steps of DDIM.

    Their times grow quadratically, as in Song et al. 2021 for CIFAR-10: evenly spaced ones lose fine details.

    predicted  (x_t, t i32[]) -> the noise in x_t
    alpha_bar  f32[T + 1], see `alpha_bars`
    eta        see `Diffusion`; the noise of an example's steps is drawn by the bits of its first number in x_T
    """
    number = np.arange(steps, -1, -1)
    times = jnp.asarray(number + ((number / steps) ** 2 * (len(alpha_bar) - 1 - steps)).round().astype(np.int32))
    keys = jax.vmap(jax.random.key)(jax.lax.bitcast_convert_type(noise.reshape(noise.shape[0], -1)[:, 0], jnp.uint32))

    def step(x: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        now, before = at
        x, deviation = reverse(x, predicted(x, now), alpha_bar[now], alpha_bar[before], eta)
        if deviation is not None:
            fresh = lambda key: jax.random.normal(jax.random.fold_in(key, now), x.shape[1:])
            x = x + deviation * jax.vmap(fresh)(keys)
        return x, None

    return jax.lax.scan(step, noise, (times[:-1], times[1:]))[0]


def reverse(
    x_t: jax.Array, epsilon: jax.Array, alpha_bar: jax.Array, alpha_bar_before: jax.Array, eta: float | None
) -> tuple[jax.Array, jax.Array | None]:
    """The mean of x at the step before, less noisy, given x_t and the noise predicted in it; and its deviation f32[].

    This is equation 12 of Song et al. 2021, where the predicted x_0 is kept in [-1, 1]. With eta 1 and the next lower
    t, it is DDPM's posterior q(x_t-1 | x_t, x_0). The deviation is None where eta is. Both alpha-bars are f32[].
    """
    x_0 = ((x_t - jnp.sqrt(1 - alpha_bar) * epsilon) / jnp.sqrt(alpha_bar)).clip(-1, 1)
    epsilon = (x_t - jnp.sqrt(alpha_bar) * x_0) / jnp.sqrt(1 - alpha_bar)
    if eta is None:
        return jnp.sqrt(alpha_bar_before) * x_0 + jnp.sqrt(1 - alpha_bar_before) * epsilon, None
    variance = eta**2 * (1 - alpha_bar_before) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_before)
    mean = jnp.sqrt(alpha_bar_before) * x_0 + jnp.sqrt(jnp.maximum(1 - alpha_bar_before - variance, 0)) * epsilon
    return mean, jnp.sqrt(variance)


def tiny() -> dict[str, Experiment]:
    """A tiny setting, for the tests of what holds for every learner: SGD, dropout on."""
    return {
        "diffusion": Diffusion(
            data=Images(name="digits", batch=32, evaluation_batch=40),
            net=UNet(widths=(4,), blocks=1, attention=(0,), head_width=4, dropout=0.2),
            augment=Augment(flip=True),
            timesteps=20,
            conditional=True,
            label_dropout=0.1,
            guidance=0.5,
            sampling_steps=4,
            average=0.9,
            optimizer=Optimizer(name="sgd", learning_rate=0.05),
            run=Run(steps=12, steps_per_dispatch=3, evaluate_every=6, save_every=6, metric="loss", mode="min"),
        )
    }
