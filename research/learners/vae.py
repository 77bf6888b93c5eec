"""Autoencoders: the variational one, also trained by the importance-weighted bound, and the plain one.

Kingma & Welling 2014, "Auto-encoding variational Bayes" (arXiv:1312.6114). Burda, Grosse & Salakhutdinov 2016,
"Importance weighted autoencoders" (arXiv:1509.00519).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core.errors import UserError, between, positive
from research.core.experiment import Experiment, Inference, Load, Report, Run
from research.core.metrics import Mean, Metrics, mean
from research.core.modules import Network, network
from research.core.optimizers import Optimizer
from research.core.state import Batch, Learner, State, evaluated, example_keys, fold_name, learner
from research.core.types import Tree
from research.core.update import Aux, updater
from research.data.images import Images
from research.data.pixels import scaled
from research.evaluation import bounds, samples
from research.evaluation.rows import image_rows
from research.nets.autoencoder import ConvDecoder, ConvEncoder, DenseDecoder, DenseEncoder


@dataclass(frozen=True, kw_only=True)
class VAE(Experiment):
    """An experiment with an encoder q(z|x) and a decoder p(x|z) of images x, whose codes z are normally distributed.

    Pixels are Bernoulli variables, and losses are in nats per image.

    Attributes:
        data: the images
        encoder: a Flax module: images in [0, 1] -> numbers [batch, outputs]
        decoder: a Flax module: codes [batch, latent] -> logits of the pixels
        latent: length of a code
        variational: whether codes are drawn from q(z|x); without, this is a plain autoencoder, whose loss is the
            cross-entropy of the pixels
        binarise: whether pixels are drawn anew at each pass, 1 with the probability of their grey value; without, the
            grey values themselves are the targets of the cross-entropy
        num_samples: codes drawn for each image in training; 1: the loss is the negative evidence lower bound, with the
            divergence from the prior in closed form; more: the negative importance-weighted bound
        bound_samples: codes drawn for each image in the importance-weighted bound of the test
        average: decay of the moving average of the weights that is evaluated; None to evaluate the last weights
        optimizer: optimizer of both nets
    """

    data: Images = field(default_factory=Images)
    encoder: nn.Module = field(default_factory=ConvEncoder)
    decoder: nn.Module = field(default_factory=ConvDecoder)
    latent: int = 50
    variational: bool = True
    binarise: bool = True
    num_samples: int = 1
    bound_samples: int = 5000
    average: float | None = None
    optimizer: Optimizer = field(default_factory=Optimizer)
    run: Run = field(default_factory=lambda: Run(metric="loss", mode="min"))

    dtypes = ("float32", "bfloat16", "float16")

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "", "latent", "num_samples", "bound_samples")
        between(self, "", 0, 1, "average")
        if self.num_samples > 1 and not self.variational:
            raise UserError(
                f"num_samples={self.num_samples} is of variational autoencoders: give 1 with --no-variational"
            )

    def networks(self) -> tuple[Network, Network]:
        """The encoder and the decoder."""
        outputs = 2 * self.latent if self.variational else self.latent
        return (
            network(self.encoder.clone(outputs=outputs), self.update.dtype),
            network(self.decoder.clone(shape=self.data.spec().shape), self.update.dtype),
        )

    def build(self) -> Learner:
        """See `Experiment`. The name is "net"; its parameters are those of "encoder" and of "decoder"."""
        encoder, decoder = self.networks()
        init_state, update = updater(self.update, {"net": (self.optimizer, self.run.steps)}, {"net": self.average})

        def init(key: jax.Array) -> State:
            keys, image = jax.random.split(key), jnp.zeros((1, *self.data.spec().shape))
            params = {
                "encoder": encoder.init(keys[0], image)[0],
                "decoder": decoder.init(keys[1], jnp.zeros((1, self.latent)))[0],
            }
            return init_state(key, {"net": (params, {})})

        def loss(params: Tree, state: State, batch: Batch, rng: jax.Array) -> tuple[Mean, Aux]:
            x = self.pixels(fold_name(rng, "pixels"), batch.inputs)
            values, metrics = self.losses(params, x, fold_name(rng, "codes"), batch.mask)
            return mean(values, batch.mask), Aux(metrics)

        def step(state: State, batch: Batch) -> tuple[State, Metrics]:
            state, aux = update(state, "net", loss, batch)
            return state, dict(aux.metrics)

        def evaluate(state: State, batch: Batch) -> Metrics:
            """The same on images that were not trained on; pixels and codes are drawn alike each time."""
            keys = example_keys(jax.random.key(0), batch.index)
            x = self.pixels(fold_name(keys, "pixels"), batch.inputs)
            values, metrics = self.losses(evaluated(state, "net"), x, fold_name(keys, "codes"), batch.mask)
            return {"loss": mean(values, batch.mask), **metrics}

        return learner(init, step, evaluate)

    def pixels(self, keys: jax.Array, images: jax.Array) -> jax.Array:
        """Images u8[batch, ...] as what the nets model: f32[batch, ...] in [0, 1], of 0 and 1 if `binarise`."""
        grey = scaled(images)
        return jax.vmap(jax.random.bernoulli)(keys, grey).astype(jnp.float32) if self.binarise else grey

    def posterior(self, params: Tree, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The means and log-variances [batch, latent] of q(z|x); the log-variances of a plain autoencoder are -inf."""
        found, _ = self.networks()[0].apply(params["encoder"], {}, x)
        if not self.variational:
            return found, jnp.full_like(found, -jnp.inf)
        return found[:, : self.latent], found[:, self.latent :]

    def decode(self, params: Tree, codes: jax.Array) -> jax.Array:
        """The logits of pixels, [batch, height, width, channels], of codes [batch, latent]."""
        return self.networks()[1].apply(params["decoder"], {}, codes)[0]

    def log_likelihood(self, params: Tree, codes: jax.Array, x: jax.Array) -> jax.Array:
        """log p(x|z) f32[batch, n] of pixels x [batch, ...] in [0, 1] and codes z [batch, n, latent]."""
        logits = self.decode(params, codes.reshape(-1, self.latent)).reshape(*codes.shape[:2], -1)
        return (x.reshape(len(x), 1, -1) * logits - jax.nn.softplus(logits)).sum(-1)

    def losses(self, params: Tree, x: jax.Array, keys: jax.Array, mask: jax.Array) -> tuple[jax.Array, Metrics]:
        """The losses f32[batch] of images x f32[batch, ...] in nats, by codes drawn with keys [batch]; and metrics."""
        mu, log_variance = self.posterior(params, x)
        codes, noise = drawn(mu, log_variance, keys, jnp.arange(self.num_samples))
        likelihood = self.log_likelihood(params, codes, x)
        if not self.variational:
            return -likelihood[:, 0], {}
        divergence = (mu**2 + jnp.exp(log_variance) - 1 - log_variance).sum(1) / 2
        elbo = likelihood.mean(1) - divergence
        metrics: Metrics = {"elbo": mean(elbo, mask), "divergence": mean(divergence, mask)}
        if self.num_samples == 1:
            return -elbo, metrics
        weights = likelihood + log_prior_ratio(codes, noise, log_variance)
        return math.log(self.num_samples) - jax.nn.logsumexp(weights, 1), metrics

    def log_weights(self, params: Tree, batch: Batch, numbers: jax.Array) -> jax.Array:
        """log p(x, z) - log q(z|x) of a test batch's images and codes number `numbers` i32[n]: f32[batch, n]."""
        keys = example_keys(jax.random.key(0), batch.index)
        x = self.pixels(fold_name(keys, "pixels"), batch.inputs)
        mu, log_variance = self.posterior(params, x)
        codes, noise = drawn(mu, log_variance, fold_name(keys, "codes"), numbers)
        return self.log_likelihood(params, codes, x) + log_prior_ratio(codes, noise, log_variance)

    def samples(self, state: State, noise: jax.Array, labels: jax.Array | None = None) -> jax.Array:
        """The means of p(x|z) for codes [batch, latent], as images in [-1, 1]."""
        return 2 * jax.nn.sigmoid(self.decode(evaluated(state, "net"), noise)) - 1

    def reconstructions(self, state: State, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """The images of a test batch as the encoder reads them, and as the decoder makes them of q's means: [0, 1]."""
        params = evaluated(state, "net")
        x = self.pixels(fold_name(example_keys(jax.random.key(0), batch.index), "pixels"), batch.inputs)
        return x, jax.nn.sigmoid(self.decode(params, self.posterior(params, x)[0]))

    def reports(self, load: Load) -> Iterable[Report]:
        """See `Experiment`."""
        found = [image_rows("reconstructions", self.reconstructions, self.run.evaluate_every)]
        if self.variational:
            weights = lambda state, batch, numbers: self.log_weights(evaluated(state, "net"), batch, numbers)
            found += [
                samples.sample_grid(self.samples, self.latent, None, self.run.evaluate_every),
                samples.interpolation_grid(self.samples, self.latent, None),
                bounds.importance_weighted(weights, self.bound_samples),
            ]
        return found

    def inference(self, state: State) -> dict[str, Inference]:
        """See `Experiment`."""
        params, shape = evaluated(state, "net"), self.data.spec().shape
        images = "Images are f32[batch, height, width, channels] in [0, 1]"
        return {
            "encoder": Inference(
                lambda images: self.posterior(params, images)[0],
                lambda batch: {"images": scaled(batch.inputs)},
                "codes",
                f"{images}. Codes are {'means of q(z|x)' if self.variational else 'what the decoder reads'}.",
            ),
            "decoder": Inference(
                lambda codes: jax.nn.sigmoid(self.decode(params, codes)),
                lambda batch: {"codes": samples.latent_inputs(0, len(batch.index), self.latent, 1)[0]},
                "images",
                f"{images} of {'x'.join(map(str, shape))}: the probabilities that pixels are 1."
                + (" Codes drawn from the standard normal distribution make samples." if self.variational else ""),
            ),
        }


def drawn(mu: jax.Array, log_variance: jax.Array, keys: jax.Array, numbers: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Codes number `numbers` i32[n] of each example, [batch, n, latent], and the normal noise that they are made of.

    keys: [batch]; a code depends on its example's key and on its number alone
    """
    one = lambda key, number: jax.random.normal(jax.random.fold_in(key, number), mu.shape[1:])
    noise = jax.vmap(jax.vmap(one, (None, 0)), (0, None))(keys, numbers)
    return mu[:, None] + jnp.exp(log_variance / 2)[:, None] * noise, noise


def log_prior_ratio(codes: jax.Array, noise: jax.Array, log_variance: jax.Array) -> jax.Array:
    """log p(z) - log q(z|x) of codes [batch, n, latent], made of `noise`: [batch, n]."""
    return (noise**2 - codes**2 + log_variance[:, None]).sum(-1) / 2


def tiny() -> dict[str, Experiment]:
    """Tiny settings, for the tests of what holds for every learner: SGD."""
    sgd = Optimizer(name="sgd", learning_rate=0.002)
    data = Images(name="digits", batch=32, evaluation_batch=40)
    run = Run(steps=12, steps_per_dispatch=3, evaluate_every=6, save_every=6, metric="loss", mode="min")
    return {
        "vae": VAE(
            data=data,
            encoder=DenseEncoder(widths=(16,)),
            decoder=DenseDecoder(widths=(16,)),
            latent=4,
            num_samples=3,
            bound_samples=20,
            optimizer=sgd,
            run=run,
        ),
        "autoencoder": VAE(
            data=data,
            encoder=ConvEncoder(widths=(4,), blocks=1, hidden=16),
            decoder=ConvDecoder(widths=(4,), blocks=1, hidden=16),
            latent=4,
            variational=False,
            binarise=False,
            average=0.9,
            optimizer=sgd,
            run=run,
        ),
    }
