"""What generators and discriminators are made of, and the dense ones.

Images are [batch, height, width, channels] in [-1, 1]; inside they are [channels, height, width, batch], see `conv.py`.
A generator's input is (noise [batch, latent], labels i32[batch]), a discriminator's (images, labels); they read the
labels where `classes` is more than 0.
"""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core.errors import Mistake
from research.core.experiment import positive
from research.core.modules import Filled
from research.nets.conv import BatchNorm, convolve, transposed

Normalisation = Literal["batch", "instance", "layer", "none"]
Labelled = tuple[jax.Array, jax.Array]
"""(noise or images, labels), leaves [batch, ...]."""

SLOPE = 0.2
"""Of the leaky ReLUs, below 0."""


class Weight(nn.Module):
    """A kernel [..., features], divided by its largest singular value if `spectral`.

    Spectral normalisation: Miyato, Kataoka, Koyama & Yoshida 2018 (arXiv:1802.05957). A training pass moves u, the
    estimate of the right singular vector of the kernel as a matrix [-1, features], by one power iteration.
    """

    shape: tuple[int, ...]
    spectral: bool = False
    deviation: float | None = 0.02

    @nn.compact
    def __call__(self, train: bool) -> jax.Array:
        """The kernel. `deviation`: that of its first values, normal; None: Glorot & Bengio's."""
        init = nn.initializers.glorot_uniform() if self.deviation is None else nn.initializers.normal(self.deviation)
        kernel = self.param("kernel", init, self.shape)
        if not self.spectral:
            return kernel
        matrix = kernel.reshape(-1, self.shape[-1]).astype(jnp.float32)
        fixed = jax.lax.stop_gradient(matrix)
        u = self.variable("batch_stats", "u", lambda: unit(jax.random.normal(self.make_rng("params"), self.shape[-1:])))
        right = u.value
        left = unit(fixed @ right)
        if train and not self.is_initializing():
            right = u.value = unit(left @ fixed)
        return kernel / (left @ matrix @ right).astype(kernel.dtype)


def unit(x: jax.Array) -> jax.Array:
    """`x`, of length 1."""
    return x / jnp.maximum(jnp.linalg.norm(x), 1e-12)


class Dense(nn.Module):
    """A linear layer: [batch, features'] -> [batch, features]."""

    features: int
    spectral: bool = False
    deviation: float | None = 0.02
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = x @ Weight((x.shape[-1], self.features), self.spectral, self.deviation)(train)
        return y if not self.use_bias else y + self.param("bias", nn.initializers.zeros, (self.features,))


class Conv(nn.Module):
    """A convolution as GANs use it: padded by `pad` zeros on each side; `up` doubles the image (transposed)."""

    features: int
    kernel: int = 4
    stride: int = 1
    pad: int = 1
    up: bool = False
    spectral: bool = False
    deviation: float | None = 0.02
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[channels, height, width, batch] -> [features, height', width', batch]."""
        shape = (self.kernel, self.kernel, x.shape[0], self.features)
        w = Weight(shape, self.spectral, self.deviation)(train)
        y = transposed(x, w) if self.up else convolve(padded(x, self.pad), w, self.stride, "VALID")
        if not self.use_bias:
            return y
        return y + self.param("bias", nn.initializers.zeros, (self.features,))[:, None, None, None]


def padded(x: jax.Array, pad: int, mode: Literal["constant", "reflect"] = "constant") -> jax.Array:
    """[channels, height, width, batch] with `pad` more pixels on each side: zeros, or the image's reflection."""
    return jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode)


class Norm(nn.Module):
    """Normalisation of [channels, height, width, batch].

    batch: over the global batch; layer: over an image (Ba, Kiros & Hinton 2016, arXiv:1607.06450);
    instance: over each channel of an image, without scale and shift (Ulyanov, Vedaldi & Lempitsky 2016,
    arXiv:1607.08022).
    """

    kind: Normalisation

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        match self.kind:
            case "batch":
                return BatchNorm()(x, train)
            case "instance":
                return normalised(x, (1, 2))
            case "layer":
                scale = self.param("scale", nn.initializers.ones, x.shape[:1])
                bias = self.param("bias", nn.initializers.zeros, x.shape[:1])
                return normalised(x, (0, 1, 2)) * scale[:, None, None, None] + bias[:, None, None, None]
        return x


def normalised(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """`x` with mean 0 and variance 1 over `axes`, computed in float32."""
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(axes, keepdims=True)
    return (centred * jax.lax.rsqrt((centred**2).mean(axes, keepdims=True) + 1e-5)).astype(x.dtype)


def leaky(x: jax.Array) -> jax.Array:
    """The leaky ReLU."""
    return nn.leaky_relu(x, SLOPE)


def smallest(net: str, shape: tuple[int, ...], halvings: int) -> tuple[int, int]:
    """The height and width of images of `shape` (height, width, channels), halved so often.

    Raises Mistake, naming the field `net`, where they can't be.
    """
    height, width, _ = shape
    if height % 2**halvings or width % 2**halvings:
        most = (math.gcd(height, width) & -math.gcd(height, width)).bit_length() - 1
        mend = f"give at most {most}" if most else "images of odd size are for the dense nets"
        raise Mistake(
            f"{net}: images of {height}x{width} can't be halved {halvings} times, once for each width: {mend}"
        )
    return height >> halvings, width >> halvings


class Seed(nn.Module):
    """Where a generator starts: a vector [batch, features] as an image [channels, height, width, batch]."""

    shape: tuple[int, int, int]
    deviation: float | None = 0.02

    @nn.compact
    def __call__(self, z: jax.Array, train: bool) -> jax.Array:
        return Dense(math.prod(self.shape), deviation=self.deviation)(z, train).T.reshape(*self.shape, -1)


def with_label(noise: jax.Array, labels: jax.Array, classes: int) -> jax.Array:
    """The noise [batch, latent] and its label as a one-hot vector, to whose part a linear layer is an embedding."""
    return jnp.concatenate([noise, jax.nn.one_hot(labels, classes, dtype=noise.dtype)], 1) if classes else noise


class Score(nn.Module):
    """Features [batch, n] -> scores [batch]: linear, and the label's embedding times the features.

    The projection discriminator: Miyato & Koyama 2018 (arXiv:1802.05637). Without a bias: Wasserstein's loss is the
    same for any.
    """

    classes: int
    spectral: bool = False
    deviation: float | None = 0.02

    @nn.compact
    def __call__(self, x: jax.Array, labels: jax.Array, train: bool) -> jax.Array:
        score = Dense(1, self.spectral, self.deviation, use_bias=False)(x, train)[:, 0]
        if not self.classes:
            return score
        embedding = Weight((self.classes, x.shape[1]), self.spectral, self.deviation)(train)
        return score + (jax.nn.one_hot(labels, self.classes, dtype=x.dtype) @ embedding * x).sum(1)


class Generator(nn.Module, kw_only=True):
    """(noise [batch, latent], labels i32[batch]) -> images [batch, height, width, channels] in [-1, 1]."""

    shape: Filled[tuple[int, ...]] = ()
    classes: Filled[int] = 0

    def __post_init__(self) -> None:
        positive(self, "generator", "widths")
        super().__post_init__()


class Discriminator(nn.Module, kw_only=True):
    """(images [batch, height, width, channels], labels i32[batch]) -> scores [batch]."""

    classes: Filled[int] = 0

    def __post_init__(self) -> None:
        positive(self, "discriminator", "widths")
        super().__post_init__()


class DenseGenerator(Generator):
    """Dense layers with ReLU, for images of any size.

    Attributes:
        widths: of the hidden layers
    """

    widths: tuple[int, ...] = (128, 128)

    @nn.compact
    def __call__(self, inputs: Labelled, train: bool = False) -> jax.Array:
        x = with_label(*inputs, self.classes)
        for layer, width in enumerate(self.widths):
            x = nn.relu(Dense(width, deviation=None, name=None if layer else "stem")(x, train))
        return jnp.tanh(Dense(math.prod(self.shape), deviation=None, name="head")(x, train)).reshape(-1, *self.shape)


class DenseDiscriminator(Discriminator):
    """Dense layers with leaky ReLU.

    Attributes:
        widths: of the hidden layers
        spectral: spectral normalisation of all kernels
    """

    widths: tuple[int, ...] = (128, 128)
    spectral: bool = False

    @nn.compact
    def __call__(self, inputs: Labelled, train: bool = False) -> jax.Array:
        images, labels = inputs
        x = images.reshape(len(images), -1)
        for layer, width in enumerate(self.widths):
            x = leaky(Dense(width, self.spectral, None, name=None if layer else "stem")(x, train))
        return Score(self.classes, self.spectral, None, name="head")(x, labels, train)
