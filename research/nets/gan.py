"""The layers of generators and discriminators, and dense ones of both.

Images are [batch, height, width, channels] in [-1, 1]. The layers take them as [channels, height, width, batch], see
`conv.py`. A generator's input is (noise [batch, latent], labels i32[batch]), a discriminator's is (images, labels).
Labels are read where `classes` is greater than 0.
"""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core.errors import UserError, positive
from research.core.modules import FromData
from research.nets.conv import BatchNorm, convolve, convolve_transposed, normalise

Normalisation = Literal["batch", "instance", "layer", "none"]
Labelled = tuple[jax.Array, jax.Array]
"""(noise or images, labels), leaves [batch, ...]."""

NEGATIVE_SLOPE = 0.2
"""The slope of leaky ReLUs below 0."""


class Weight(nn.Module):
    """A kernel [..., features], divided by its largest singular value if `spectral`.

    Spectral normalisation is by Miyato, Kataoka, Koyama & Yoshida 2018 (arXiv:1802.05957). The batch statistic u
    estimates the right singular vector of the kernel as a matrix [-1, features]; each training pass updates it by one
    power iteration.

    Attributes:
        init_std: standard deviation of the normal distribution that the kernel starts from; None: Glorot & Bengio's
            uniform distribution
    """

    shape: tuple[int, ...]
    spectral: bool = False
    init_std: float | None = 0.02

    @nn.compact
    def __call__(self, train: bool) -> jax.Array:
        """The kernel, of `shape`."""
        init = nn.initializers.glorot_uniform() if self.init_std is None else nn.initializers.normal(self.init_std)
        kernel = self.param("kernel", init, self.shape)
        if not self.spectral:
            return kernel
        matrix = kernel.reshape(-1, self.shape[-1]).astype(jnp.float32)
        constant = jax.lax.stop_gradient(matrix)
        draw = lambda: unit(jax.random.normal(self.make_rng("params"), self.shape[-1:]))
        u = self.variable("batch_stats", "u", draw)
        right = u.value
        left = unit(constant @ right)
        if train and not self.is_initializing():
            right = u.value = unit(left @ constant)
        return kernel / (left @ matrix @ right).astype(kernel.dtype)


def unit(x: jax.Array) -> jax.Array:
    """`x` divided by its length."""
    return x / jnp.maximum(jnp.linalg.norm(x), 1e-12)


class Dense(nn.Module):
    """A linear layer: [batch, inputs] -> [batch, features]."""

    features: int
    spectral: bool = False
    init_std: float | None = 0.02
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = x @ Weight((x.shape[-1], self.features), self.spectral, self.init_std)(train)
        return y if not self.use_bias else y + self.param("bias", nn.initializers.zeros, (self.features,))


class Conv(nn.Module):
    """A convolution, or with `transpose` a transposed one of stride 2, which doubles the height and width.

    Attributes:
        pad: rows and columns of zeros that are added on each side of the image, unless `transpose`
    """

    features: int
    kernel_size: int = 4
    stride: int = 1
    pad: int = 1
    transpose: bool = False
    spectral: bool = False
    init_std: float | None = 0.02
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[channels, height, width, batch] -> [features, height', width', batch]."""
        shape = (self.kernel_size, self.kernel_size, x.shape[0], self.features)
        w = Weight(shape, self.spectral, self.init_std)(train)
        y = convolve_transposed(x, w) if self.transpose else convolve(pad(x, self.pad), w, self.stride, "VALID")
        if not self.use_bias:
            return y
        return y + self.param("bias", nn.initializers.zeros, (self.features,))[:, None, None, None]


def pad(x: jax.Array, pixels: int, mode: Literal["constant", "reflect"] = "constant") -> jax.Array:
    """Pad images [channels, height, width, batch] on each side, with zeros or with their reflection."""
    return jnp.pad(x, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)), mode)


class Norm(nn.Module):
    """Normalisation of [channels, height, width, batch].

    batch: over the global batch; layer: over each image (Ba, Kiros & Hinton 2016, arXiv:1607.06450); instance: over
    each channel of each image, without scale and bias (Ulyanov, Vedaldi & Lempitsky 2016, arXiv:1607.08022); none:
    the identity.

    Raises UserError for instance normalisation of 1x1 images, whose result is 0 whatever they are.
    """

    kind: Normalisation

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        match self.kind:
            case "batch":
                return BatchNorm()(x, train)
            case "instance":
                if x.shape[1:3] == (1, 1):
                    raise UserError(
                        "norm instance makes 0 of every dense layer and image of 1x1: choose another norm, or leave "
                        "hidden out and give fewer widths"
                    )
                return normalise(x, (1, 2))
            case "layer":
                scale = self.param("scale", nn.initializers.ones, x.shape[:1])
                bias = self.param("bias", nn.initializers.zeros, x.shape[:1])
                return normalise(x, (0, 1, 2)) * scale[:, None, None, None] + bias[:, None, None, None]
        return x


def leaky_relu(x: jax.Array) -> jax.Array:
    """The leaky ReLU with `NEGATIVE_SLOPE`."""
    return nn.leaky_relu(x, NEGATIVE_SLOPE)


def downsampled_size(field: str, shape: tuple[int, ...], halvings: int) -> tuple[int, int]:
    """The height and width of images of `shape` (height, width, channels) after they are halved `halvings` times.

    Raises UserError, naming the option `field`, where they can't be.
    """
    height, width, _ = shape
    if height % 2**halvings or width % 2**halvings:
        most = (math.gcd(height, width) & -math.gcd(height, width)).bit_length() - 1
        raise UserError(f"{field}: images of {height}x{width} can be halved {most} times at most, not {halvings}")
    return height >> halvings, width >> halvings


class ProjectAndReshape(nn.Module):
    """A generator's first layer: a vector [batch, features] -> an image [channels, height, width, batch].

    Attributes:
        shape: (channels, height, width)
    """

    shape: tuple[int, int, int]
    init_std: float | None = 0.02

    @nn.compact
    def __call__(self, z: jax.Array, train: bool) -> jax.Array:
        return Dense(math.prod(self.shape), init_std=self.init_std)(z, train).T.reshape(*self.shape, -1)


def with_label(noise: jax.Array, labels: jax.Array, classes: int) -> jax.Array:
    """The noise [batch, latent] with the label as a one-hot vector [batch, classes] beside it, if there are classes.

    To the layer that reads it, the part of the label is an embedding.
    """
    return jnp.concatenate([noise, jax.nn.one_hot(labels, classes, dtype=noise.dtype)], 1) if classes else noise


class Score(nn.Module):
    """A discriminator's last layer: features [batch, n] -> scores [batch].

    A linear layer, plus the product of the features with the label's embedding if there are classes: the projection
    discriminator of Miyato & Koyama 2018 (arXiv:1802.05637). It has no bias, which would not change Wasserstein's loss.
    """

    classes: int
    spectral: bool = False
    init_std: float | None = 0.02

    @nn.compact
    def __call__(self, x: jax.Array, labels: jax.Array, train: bool) -> jax.Array:
        score = Dense(1, self.spectral, self.init_std, use_bias=False)(x, train)[:, 0]
        if not self.classes:
            return score
        embedding = Weight((self.classes, x.shape[1]), self.spectral, self.init_std)(train)
        return score + (jax.nn.one_hot(labels, self.classes, dtype=x.dtype) @ embedding * x).sum(1)


class Generator(nn.Module, kw_only=True):
    """(noise [batch, latent], labels i32[batch]) -> images [batch, height, width, channels] in [-1, 1]."""

    shape: FromData[tuple[int, ...]] = ()
    classes: FromData[int] = 0

    def __post_init__(self) -> None:
        positive(self, "generator", "widths")
        super().__post_init__()


class Discriminator(nn.Module, kw_only=True):
    """(images [batch, height, width, channels], labels i32[batch]) -> scores [batch]."""

    classes: FromData[int] = 0

    def __post_init__(self) -> None:
        positive(self, "discriminator", "widths")
        super().__post_init__()


class DenseGenerator(Generator):
    """Dense layers with ReLU, for images of any size.

    Attributes:
        widths: widths of the hidden layers
    """

    widths: tuple[int, ...] = (128, 128)

    @nn.compact
    def __call__(self, inputs: Labelled, train: bool = False) -> jax.Array:
        x = with_label(*inputs, self.classes)
        for layer, width in enumerate(self.widths):
            x = nn.relu(Dense(width, init_std=None, name=None if layer else "stem")(x, train))
        return jnp.tanh(Dense(math.prod(self.shape), init_std=None, name="head")(x, train)).reshape(-1, *self.shape)


class DenseDiscriminator(Discriminator):
    """Dense layers with leaky ReLU.

    Attributes:
        widths: widths of the hidden layers
        spectral: whether all kernels are spectrally normalised
    """

    widths: tuple[int, ...] = (128, 128)
    spectral: bool = False

    @nn.compact
    def __call__(self, inputs: Labelled, train: bool = False) -> jax.Array:
        images, labels = inputs
        x = images.reshape(len(images), -1)
        for layer, width in enumerate(self.widths):
            x = leaky_relu(Dense(width, self.spectral, None, name=None if layer else "stem")(x, train))
        return Score(self.classes, self.spectral, None, name="head")(x, labels, train)
