"""Autoencoders: the bounds against numerical integrals over one latent unit, by NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core.errors import UserError
from research.core.experiment import Split
from research.core.state import Batch, State
from research.data.images import Images
from research.evaluation import bounds
from research.learners.vae import VAE, drawn
from research.nets.autoencoder import ConvDecoder, ConvEncoder, DenseDecoder, DenseEncoder

CONFIG = VAE(
    data=Images(name="digits", evaluation_batch=7),
    encoder=DenseEncoder(widths=(6,)),
    decoder=DenseDecoder(widths=(6,)),
    latent=1,
)
Z = np.linspace(-12, 12, 4001)
STEP = Z[1] - Z[0]


@pytest.fixture(scope="module")
def model():
    """(parameters whose decoder depends on the code, a batch whose padding is one image, its binarised pixels)."""
    params = jax.jit(CONFIG.build().init)(jax.random.key(3)).params["net"]
    params["encoder"]["head"]["bias"] = jnp.array([1.5, 1.0])  # wider than the exact posterior: bounded weights
    batch = CONFIG.feeds().test[-1]
    assert 0 < batch.mask.sum() < 7
    x, _ = CONFIG.reconstructions(state_of(params), batch)
    return params, batch, np.asarray(x, np.float64).reshape(7, -1)


def state_of(params):
    return State(jnp.int32(0), jax.random.key(0), {"net": params}, {}, {}, ())


def integrals(params, x):
    """-log p(x) and -ELBO of binary pixels x [batch, pixels], by the trapezoidal rule over the code, in float64."""
    logits = np.asarray(CONFIG.decode(params, jnp.asarray(Z[:, None], jnp.float32)), np.float64).reshape(len(Z), -1)
    one = 1 / (1 + np.exp(-logits))
    log_joint = np.log(np.where(x[:, None] == 1, one, 1 - one)).sum(2) - Z**2 / 2 - np.log(2 * np.pi) / 2
    mu, log_variance = (
        np.asarray(part, np.float64) for part in CONFIG.posterior(params, x.reshape(7, 8, 8, 1).astype(np.float32))
    )
    log_q = -((Z - mu) ** 2) / (2 * np.exp(log_variance)) - (np.log(2 * np.pi) + log_variance) / 2
    assert np.allclose(np.exp(log_q).sum(1) * STEP, 1)
    nll = -np.log(np.exp(log_joint).sum(1) * STEP)
    return nll, -(np.exp(log_q) * (log_joint - log_q)).sum(1) * STEP


def test_bounds_are_those_of_the_integral(model):
    params, batch, x = model
    nll, negative_elbo = integrals(params, x)
    assert (negative_elbo - nll > 0.01).all(), "the posterior is not the exact one"

    found = -bounds.bounds(lambda numbers: CONFIG.log_weights(params, batch, numbers), 100_000)
    np.testing.assert_allclose(found, nll, atol=0.02)

    losses = jax.jit(lambda keys: CONFIG.losses(params, x.reshape(7, 8, 8, 1).astype(np.float32), keys, batch.mask)[0])
    each = jax.vmap(losses)(jax.random.split(jax.random.key(1), (20_000, 7)))
    error = np.std(each, 0) / 20_000**0.5
    assert (abs(each.mean(0) - negative_elbo) < 5 * error + 1e-3).all() and error.max() < 0.02

    several = dataclasses.replace(CONFIG, num_samples=10)
    losses = jax.jit(lambda keys: several.losses(params, x.reshape(7, 8, 8, 1).astype(np.float32), keys, batch.mask)[0])
    tighter = jax.vmap(losses)(jax.random.split(jax.random.key(1), (20_000, 7))).mean(0)
    assert ((nll - 0.02 < tighter) & (tighter < negative_elbo)).all()


def test_report_is_the_mean_over_the_images(model, tmp_path, monkeypatch):
    """In chunks of any size, without the padding."""
    params, batch, _ = model
    weights = lambda state, batch, numbers: CONFIG.log_weights(state.params["net"], batch, numbers)
    each = np.asarray(weights(state_of(params), batch, jnp.arange(50)), np.float64)
    expected = -np.log(np.exp(each).mean(1))[batch.mask > 0].mean()
    for at_once in (1, 21, 4096):
        monkeypatch.setattr(bounds, "AT_ONCE", at_once)
        found = bounds.importance_weighted(weights, 50).run(state_of(params), Split("test", [batch]), tmp_path)
        assert found == {"importance_weighted_nll": pytest.approx(expected, rel=1e-5)}


def test_pixels_are_binarised_anew():
    grey = jnp.full((20, 30, 30, 1), 51, jnp.uint8)
    first, second = (CONFIG.pixels(jax.random.split(jax.random.key(n), 20), grey) for n in range(2))
    assert set(np.unique(first)) == {0, 1} and abs(first.mean() - 0.2) < 0.03
    assert not np.array_equal(first, second) and not np.array_equal(first[0], first[1])
    np.testing.assert_allclose(
        dataclasses.replace(CONFIG, binarise=False).pixels(jax.random.split(jax.random.key(0), 20), grey), 0.2
    )


def test_codes_are_of_their_example_and_number():
    keys = jax.random.split(jax.random.key(0), 3)
    mu, log_variance = jnp.full((3, 2), 5.0), jnp.full((3, 2), np.log(4.0))
    codes, noise = drawn(mu, log_variance, keys, jnp.arange(4))
    np.testing.assert_allclose(codes, 5 + 2 * noise, rtol=1e-6)
    one, _ = drawn(mu[1:2], log_variance[1:2], keys[1:2], jnp.array([3]))
    np.testing.assert_array_equal(one[0, 0], codes[1, 3])
    assert len(np.unique(codes)) == codes.size


def test_plain_autoencoder():
    """Its loss is the cross-entropy of the grey values by the code itself."""
    config = dataclasses.replace(CONFIG, variational=False, binarise=False, latent=3)
    params = jax.jit(config.build().init)(jax.random.key(0)).params["net"]
    batch = config.feeds().test[0]
    x = np.float64(batch.inputs) / 255
    code, _ = config.posterior(params, jnp.float32(x))
    logits = np.float64(config.decode(params, code))
    one = 1 / (1 + np.exp(-logits))
    expected = -(x * np.log(one) + (1 - x) * np.log(1 - one)).sum((1, 2, 3)).mean()
    evaluate = jax.jit(config.build().evaluate)
    found = evaluate(state_of(params), Batch(batch.index, batch.mask, batch.inputs, ()))
    assert found["loss"].value == pytest.approx(expected, rel=1e-5)
    with pytest.raises(UserError, match="num_samples=2 is of variational"):
        dataclasses.replace(config, num_samples=2)


def test_convolutional_nets():
    images = jax.random.uniform(jax.random.key(0), (2, 28, 20, 3))
    encoder, decoder = ConvEncoder(widths=(4, 8), outputs=5), ConvDecoder(widths=(8, 4), shape=(28, 20, 3))
    codes, _ = jax.jit(encoder.init_with_output)(jax.random.key(1), images)
    assert codes.shape == (2, 5)
    _, variables = jax.jit(decoder.init_with_output)(jax.random.key(2), codes)
    decode = jax.jit(decoder.apply)
    logits, other = decode(variables, codes), decode(variables, codes.at[0].add(1))
    assert logits.shape == images.shape
    assert (other[0] != logits[0]).any((1, 2)).all() or (other[0] != logits[0]).all(-1).mean() > 0.9
    np.testing.assert_array_equal(other[1], logits[1])
    with pytest.raises(UserError, match=r"encoder\.widths: images of 7x8 can be halved 0 times at most, not 1"):
        jax.eval_shape(ConvEncoder(widths=(4,), outputs=5).init, jax.random.key(1), images[:, :7, :8])
