"""Corruptions of images, each in five severities: seven of those of ImageNet-C.

Hendrycks & Dietterich 2019, arXiv:1903.12261, with the strengths that their code has for CIFAR-10-C. Each is a pure
function of a key: (key, image f32[height, width, channels] in 0 ... 1, severity i32[] from 0 to 4) -> the same.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Corruption = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def gaussian_noise(key: jax.Array, image: jax.Array, severity: jax.Array) -> jax.Array:
    """Normal noise, the same everywhere."""
    return image + _at(severity, 0.04, 0.06, 0.08, 0.09, 0.10) * jax.random.normal(key, image.shape)


def shot_noise(key: jax.Array, image: jax.Array, severity: jax.Array) -> jax.Array:
    """The noise of counting few photons."""
    photons = _at(severity, 500, 250, 100, 75, 50)
    return jax.random.poisson(key, image * photons, image.shape) / photons


def impulse_noise(key: jax.Array, image: jax.Array, severity: jax.Array) -> jax.Array:
    """Some numbers become 0 or 1."""
    at = jax.random.uniform(key, image.shape) / _at(severity, 0.01, 0.02, 0.03, 0.05, 0.07)
    return jnp.where(at < 0.5, 0, jnp.where(at < 1, 1, image))


def speckle_noise(key: jax.Array, image: jax.Array, severity: jax.Array) -> jax.Array:
    """Normal noise in proportion to each number."""
    return image * (1 + _at(severity, 0.06, 0.1, 0.12, 0.16, 0.2) * jax.random.normal(key, image.shape))


def gaussian_blur(key: jax.Array, image: jax.Array, severity: jax.Array) -> jax.Array:
    """A normal kernel along both axes, over four standard deviations; the border repeats."""
    sigma, reach = _at(severity, 0.4, 0.6, 0.7, 0.8, 1.0), 4
    kernel = jnp.exp(-0.5 * (jnp.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        pads = [(reach, reach) if n == axis else (0, 0) for n in range(3)]
        padded, size = jnp.pad(image, pads, mode="edge"), image.shape[axis]
        parts = [jax.lax.slice_in_dim(padded, n, n + size, axis=axis) for n in range(2 * reach + 1)]
        image = sum(weight * part for weight, part in zip(kernel, parts, strict=True))
    return image


def contrast(key: jax.Array, image: jax.Array, severity: jax.Array) -> jax.Array:
    """Differences from each channel's mean become smaller."""
    middle = image.mean((0, 1), keepdims=True)
    return middle + (image - middle) * _at(severity, 0.75, 0.5, 0.4, 0.3, 0.15)


def brightness(key: jax.Array, image: jax.Array, severity: jax.Array) -> jax.Array:
    """All becomes lighter: the value of HSV, which is the largest channel, rises, and hue and saturation stay."""
    value = image.max(-1, keepdims=True)
    brighter = jnp.clip(value + _at(severity, 0.05, 0.1, 0.15, 0.2, 0.3), 0, 1)
    return jnp.where(value > 0, image * brighter / jnp.maximum(value, 1e-6), brighter)


CORRUPTIONS: tuple[Corruption, ...] = (
    gaussian_noise,
    shot_noise,
    impulse_noise,
    speckle_noise,
    gaussian_blur,
    contrast,
    brightness,
)


def corrupted(corruption: Corruption, keys: jax.Array, images: jax.Array, severity: jax.Array) -> jax.Array:
    """Images f32[batch, height, width, channels] in 0 ... 1, each by its key, still in 0 ... 1."""
    return jnp.clip(jax.vmap(corruption, (0, 0, None))(keys, images, severity), 0, 1)


def _at(severity: jax.Array, *strengths: float) -> jax.Array:
    return jnp.array(strengths, jnp.float32)[severity]
