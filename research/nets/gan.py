"""Generators and discriminators: dense, DCGAN's, residual ones, and those of CycleGAN.

Images are [batch, height, width, channels] in [-1, 1]; inside they are [channels, height, width, batch], see `conv.py`.
A generator's input is (noise [batch, latent], labels i32[batch]), a discriminator's (images, labels); they read the
labels where `classes` is more than 0.
"""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.experiment import Mistake, positive
from research.nets.conv import BatchNorm, convolve, transposed
from research.network import Filled

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

    batch: over the batch (of all devices of `axis`); layer: over an image (Ba, Kiros & Hinton 2016, arXiv:1607.06450);
    instance: over each channel of an image, without scale and shift (Ulyanov, Vedaldi & Lempitsky 2016,
    arXiv:1607.08022).
    """

    kind: Normalisation
    axis: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        match self.kind:
            case "batch":
                return BatchNorm(axis=self.axis)(x, train)
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
    """Where a generator starts: noise, with the label's embedding, as an image [channels, height, width, batch]."""

    shape: tuple[int, int, int]
    classes: int
    deviation: float | None = 0.02

    @nn.compact
    def __call__(self, noise: jax.Array, labels: jax.Array, train: bool) -> jax.Array:
        z = with_label(noise, labels, self.classes)
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


class DenseGenerator(nn.Module):
    """Dense layers with ReLU, for images of any size.

    Attributes:
        widths: of the hidden layers
    """

    widths: tuple[int, ...] = (128, 128)
    shape: Filled[tuple[int, ...]] = ()
    classes: Filled[int] = 0

    @nn.compact
    def __call__(self, inputs: Labelled, train: bool = False) -> jax.Array:
        """(noise, labels) -> images [batch, height, width, channels]."""
        x = with_label(*inputs, self.classes)
        for width in self.widths:
            x = nn.relu(Dense(width, deviation=None)(x, train))
        return jnp.tanh(Dense(math.prod(self.shape), deviation=None)(x, train)).reshape(-1, *self.shape)


class DenseDiscriminator(nn.Module):
    """Dense layers with leaky ReLU.

    Attributes:
        widths: of the hidden layers
        spectral: spectral normalisation of all kernels
    """

    widths: tuple[int, ...] = (128, 128)
    spectral: bool = False
    classes: Filled[int] = 0

    @nn.compact
    def __call__(self, inputs: Labelled, train: bool = False) -> jax.Array:
        """(images, labels) -> scores [batch]."""
        images, labels = inputs
        x = images.reshape(len(images), -1)
        for width in self.widths:
            x = leaky(Dense(width, self.spectral, None)(x, train))
        return Score(self.classes, self.spectral, None)(x, labels, train)


class DCGANGenerator(nn.Module):
    """DCGAN's generator (Radford, Metz & Chintala 2016, arXiv:1511.06434): each width's layer doubles the image.

    Attributes:
        widths: channels, of the first layer on; the images are 2**len(widths) times what the noise is projected to
        norm: after each layer but the last
    """

    widths: tuple[int, ...] = (128, 64)
    norm: Normalisation = "batch"
    shape: Filled[tuple[int, ...]] = ()
    classes: Filled[int] = 0
    axis: Filled[str | None] = None

    def __post_init__(self) -> None:
        positive(self, "generator", "widths")
        super().__post_init__()

    @nn.compact
    def __call__(self, inputs: Labelled, train: bool = False) -> jax.Array:
        """(noise, labels) -> images [batch, height, width, channels]."""
        first = (self.widths[0], *smallest("generator.widths", self.shape, len(self.widths)))
        x = Seed(first, self.classes)(*inputs, train)
        x = nn.relu(Norm(self.norm, self.axis)(x, train))
        for width in self.widths[1:]:
            x = Conv(width, up=True, use_bias=self.norm == "none")(x, train)
            x = nn.relu(Norm(self.norm, self.axis)(x, train))
        return jnp.tanh(Conv(self.shape[-1], up=True)(x, train)).transpose(3, 1, 2, 0)


class DCGANDiscriminator(nn.Module):
    """DCGAN's discriminator: 4x4 convolutions of stride 2, one a width; see `DCGANGenerator`.

    Attributes:
        widths: channels, of the first layer on
        norm: after each layer but the first; batch would couple the examples, which a gradient penalty forbids
        spectral: spectral normalisation of all kernels
    """

    widths: tuple[int, ...] = (64, 128)
    norm: Normalisation = "batch"
    spectral: bool = False
    classes: Filled[int] = 0
    axis: Filled[str | None] = None

    def __post_init__(self) -> None:
        positive(self, "discriminator", "widths")
        super().__post_init__()

    @nn.compact
    def __call__(self, inputs: Labelled, train: bool = False) -> jax.Array:
        """(images, labels) -> scores [batch]."""
        images, labels = inputs
        smallest("discriminator.widths", images.shape[1:], len(self.widths))
        x = images.transpose(3, 1, 2, 0)
        for layer, width in enumerate(self.widths):
            norm = "none" if layer == 0 else self.norm
            x = Conv(width, stride=2, spectral=self.spectral, use_bias=norm == "none")(x, train)
            x = leaky(Norm(norm, self.axis)(x, train))
        return Score(self.classes, self.spectral)(x.reshape(-1, x.shape[-1]).T, labels, train)


class ResidualGenerator(nn.Module):
    """The residual generator of Gulrajani et al. 2017 (arXiv:1704.00028), and of SN-GAN (see `Weight`).

    Attributes:
        widths: channels of each block, which doubles the image
    """

    widths: tuple[int, ...] = (256, 256, 256)
    shape: Filled[tuple[int, ...]] = ()
    classes: Filled[int] = 0
    axis: Filled[str | None] = None

    def __post_init__(self) -> None:
        positive(self, "generator", "widths")
        super().__post_init__()

    @nn.compact
    def __call__(self, inputs: Labelled, train: bool = False) -> jax.Array:
        """(noise, labels) -> images [batch, height, width, channels]."""
        first = (self.widths[0], *smallest("generator.widths", self.shape, len(self.widths)))
        x = Seed(first, self.classes, None)(*inputs, train)
        norm = lambda x: nn.relu(Norm("batch", self.axis)(x, train))
        for width in self.widths:
            y = Conv(width, 3, deviation=None)(doubled(norm(x)), train)
            y = Conv(width, 3, deviation=None)(norm(y), train)
            x = y + Conv(width, 1, pad=0, deviation=None)(doubled(x), train)
        return jnp.tanh(Conv(self.shape[-1], 3, deviation=None)(norm(x), train)).transpose(3, 1, 2, 0)


class ResidualDiscriminator(nn.Module):
    """The residual discriminator of SN-GAN (see `Weight`), with the pooled features' projection on the label.

    Attributes:
        widths: channels of each block
        halvings: so many blocks, the first ones, halve the image
        spectral: spectral normalisation of all kernels
    """

    widths: tuple[int, ...] = (128, 128, 128, 128)
    halvings: int = 2
    spectral: bool = True
    classes: Filled[int] = 0

    def __post_init__(self) -> None:
        positive(self, "discriminator", "widths")
        super().__post_init__()

    @nn.compact
    def __call__(self, inputs: Labelled, train: bool = False) -> jax.Array:
        """(images, labels) -> scores [batch]."""
        images, labels = inputs
        smallest("discriminator.halvings", images.shape[1:], self.halvings)
        conv = lambda x, width, side: Conv(width, side, 1, side // 2, False, self.spectral, None)(x, train)
        x = images.transpose(3, 1, 2, 0)
        for block, width in enumerate(self.widths):
            halve = halved if block < self.halvings else lambda x: x
            y = x if block == 0 else nn.relu(x)  # the image itself has no negative half to cut off
            y = halve(conv(nn.relu(conv(y, width, 3)), width, 3))
            # Pooling before the 1x1 convolution is the same as after it, and cheaper.
            x = y + (conv(halve(x), width, 1) if x.shape != y.shape else x)
        return Score(self.classes, self.spectral, None)(nn.relu(x).sum((1, 2)).T, labels, train)


def doubled(x: jax.Array) -> jax.Array:
    """[channels, height, width, batch] with each pixel as a square of 2x2."""
    channels, height, width, batch = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (channels, height, 2, width, 2, batch))
    return x.reshape(channels, 2 * height, 2 * width, batch)


def halved(x: jax.Array) -> jax.Array:
    """The mean of each 2x2 square: [channels, height, width, batch] -> [channels, height / 2, width / 2, batch]."""
    channels, height, width, batch = x.shape
    return x.reshape(channels, height // 2, 2, width // 2, 2, batch).mean((2, 4))


class CycleGenerator(nn.Module):
    """CycleGAN's generator (Zhu, Park, Isola & Efros 2017, arXiv:1703.10593), after Johnson, Alahi & Fei-Fei 2016.

    A wide convolution, two that halve the image, residual blocks, two that double it, and a wide one.

    Attributes:
        width: channels of the first layer; four times as many in the blocks
        blocks: residual blocks; 9 for images of 256x256, 6 for smaller ones
        side: of the first and last kernel, an odd number
    """

    width: int = 64
    blocks: int = 9
    side: int = 7

    def __post_init__(self) -> None:
        positive(self, "generator", "width", "blocks", "side")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Images [batch, height, width, channels] -> images of the same shape."""
        if min(smallest("generator", images.shape[1:], 2)) < 2:
            raise Mistake("generator: images of 8x8 or more expected, which can be halved twice")
        # No biases but the last: the instance norms would take them away again.
        reflected = lambda x, width, side: Conv(width, side, pad=0, use_bias=False)(
            padded(x, side // 2, "reflect"), train
        )
        norm = lambda x: nn.relu(normalised(x, (1, 2)))
        x = norm(reflected(images.transpose(3, 1, 2, 0), self.width, self.side))
        for factor in (2, 4):
            x = norm(Conv(factor * self.width, 3, stride=2, use_bias=False)(x, train))
        for _ in range(self.blocks):
            y = norm(reflected(x, 4 * self.width, 3))
            x = x + normalised(reflected(y, 4 * self.width, 3), (1, 2))
        for factor in (2, 1):
            x = norm(Conv(factor * self.width, 3, up=True, use_bias=False)(x, train))
        x = Conv(images.shape[-1], self.side, pad=0)(padded(x, self.side // 2, "reflect"), train)
        return jnp.tanh(x).transpose(3, 1, 2, 0)


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola, Zhu, Zhou & Efros 2017, arXiv:1611.07004): a score for each patch, of 70x70 by default.

    Attributes:
        widths: channels of the 4x4 convolutions; all but the last have stride 2
        norm: after each of them but the first
    """

    widths: tuple[int, ...] = (64, 128, 256, 512)
    norm: Literal["instance", "none"] = "instance"

    def __post_init__(self) -> None:
        positive(self, "discriminator", "widths")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Images [batch, height, width, channels] -> scores [batch, height', width']."""
        if min(side >> len(self.widths) - 1 for side in images.shape[1:3]) < 3:
            raise Mistake(f"discriminator.widths: {images.shape[1]}x{images.shape[2]} is too small: give fewer widths")
        x = images.transpose(3, 1, 2, 0)
        for layer, width in enumerate(self.widths):
            norm = "none" if layer == 0 else self.norm
            stride = 2 if layer < len(self.widths) - 1 else 1
            x = leaky(Norm(norm)(Conv(width, stride=stride, use_bias=norm == "none")(x, train), train))
        return Conv(1)(x, train)[0].transpose(2, 0, 1)
