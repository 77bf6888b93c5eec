"""Encoders and decoders of autoencoders, dense and convolutional.

An encoder makes numbers [batch, outputs] of images [batch, height, width, channels] in [0, 1]; a decoder makes logits
of their pixels of codes [batch, latent].
"""

import math

import flax.linen as nn
import jax

from research.core.errors import positive
from research.core.modules import FromData
from research.nets.conv import Conv
from research.nets.dense import Dense
from research.nets.gan import Conv as TransposedConv
from research.nets.gan import downsampled_size

RESIDUAL_SCALE = 0.1
"""Factor of what a residual block adds, as in the code of Kingma et al. 2016; there is no normalisation."""


class Encoder(nn.Module, kw_only=True):
    """Images [batch, height, width, channels] -> [batch, outputs]."""

    outputs: FromData[int] = 0

    def __post_init__(self) -> None:
        positive(self, "encoder", "widths")
        super().__post_init__()


class Decoder(nn.Module, kw_only=True):
    """Codes [batch, latent] -> logits [batch, height, width, channels] of the pixels."""

    shape: FromData[tuple[int, ...]] = ()

    def __post_init__(self) -> None:
        positive(self, "decoder", "widths")
        super().__post_init__()


class DenseEncoder(Encoder):
    """Dense layers with tanh, those of Burda, Grosse & Salakhutdinov 2016 (arXiv:1509.00519, section 5).

    Attributes:
        widths: widths of the hidden layers
    """

    widths: tuple[int, ...] = (200, 200)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        return Dense(self.outputs, name="head")(_hidden(images.reshape(images.shape[0], -1), self.widths))


class DenseDecoder(Decoder):
    """Dense layers with tanh, those of Burda, Grosse & Salakhutdinov 2016 (arXiv:1509.00519, section 5).

    Attributes:
        widths: widths of the hidden layers
    """

    widths: tuple[int, ...] = (200, 200)

    @nn.compact
    def __call__(self, codes: jax.Array, train: bool = False) -> jax.Array:
        return Dense(math.prod(self.shape), name="head")(_hidden(codes, self.widths)).reshape(-1, *self.shape)


def _hidden(x: jax.Array, widths: tuple[int, ...]) -> jax.Array:
    for layer, width in enumerate(widths):
        x = nn.tanh(Dense(width, name=f"hidden_{layer}" if layer else "stem")(x))
    return x


class ConvEncoder(Encoder):
    """A residual net with ELU, like that of Kingma et al. 2016 (arXiv:1606.04934, section 6.1).

    Attributes:
        widths: output channels of each stage; each stage halves the height and width
        blocks: number of residual blocks (two 3x3 convolutions each) in each stage
        hidden: width of the dense layer before the last one
    """

    widths: tuple[int, ...] = (16, 32)
    blocks: int = 2
    hidden: int = 512

    def __post_init__(self) -> None:
        positive(self, "encoder", "hidden")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        downsampled_size("encoder.widths", images.shape[1:], len(self.widths))
        x = images.transpose(3, 1, 2, 0)
        for stage, width in enumerate(self.widths):
            x = Conv(width, stride=2, name=None if stage else "stem")(nn.elu(x) if stage else x)
            x = Residual(self.blocks)(x)
        x = nn.elu(x).reshape(-1, x.shape[-1]).T
        return Dense(self.outputs, name="head")(nn.elu(Dense(self.hidden)(x)))


class ConvDecoder(Decoder):
    """A residual net with ELU, the mirror image of `ConvEncoder`; transposed 4x4 convolutions double height and width.

    Attributes:
        widths: channels of each stage
        blocks: number of residual blocks (two 3x3 convolutions each) in each stage
        hidden: width of the first dense layer
    """

    widths: tuple[int, ...] = (32, 16)
    blocks: int = 2
    hidden: int = 512

    def __post_init__(self) -> None:
        positive(self, "decoder", "hidden")
        super().__post_init__()

    @nn.compact
    def __call__(self, codes: jax.Array, train: bool = False) -> jax.Array:
        smallest = self.widths[0], *downsampled_size("decoder.widths", self.shape, len(self.widths))
        x = nn.elu(Dense(self.hidden, name="stem")(codes))
        x = Dense(math.prod(smallest))(x).T.reshape(*smallest, -1)
        for width in (*self.widths[1:], self.widths[-1]):
            x = Residual(self.blocks)(x)
            x = TransposedConv(width, transpose=True, init_std=None)(nn.elu(x), train)
        return Conv(self.shape[-1], name="head")(nn.elu(x)).transpose(3, 1, 2, 0)


class Residual(nn.Module):
    """Blocks of two 3x3 convolutions after ELU, each with a residual sum: [channels, height, width, batch] -> the same.

    Attributes:
        blocks: how many
    """

    blocks: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(self.blocks):
            y = Conv(len(x))(nn.elu(Conv(len(x))(nn.elu(x))))
            x += RESIDUAL_SCALE * y
        return x
