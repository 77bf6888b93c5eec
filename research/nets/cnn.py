"""Convolutional nets: a plain one and ResNet.

They take images [batch, height, width, channels] and transpose them to [channels, height, width, batch], the layout of
`conv.py`.
"""

from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core.errors import UserError, positive
from research.core.modules import Dropout, FromData
from research.nets.conv import BatchNorm, Conv, max_pool


class CNN(nn.Module):
    """Stages of 3x3 convolutions and ReLU, each stage followed by 2x2 max pooling; then a linear layer.

    Attributes:
        widths: output channels of the convolutions of each stage
        depth: number of convolutions in each stage
        norm: whether batch normalisation precedes each ReLU
        hidden: width of a dense layer before the last one; 0 for no such layer
        dropout: dropout rate before each dense layer
    """

    widths: tuple[int, ...] = (32, 64)
    depth: int = 2
    norm: bool = True
    hidden: int = 0
    dropout: float = 0.0
    outputs: FromData[int] = 0

    def __post_init__(self) -> None:
        positive(self, "net", "widths", "depth")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Images f32[batch, height, width, channels] -> logits [batch, outputs]; of 0 outputs, the features that the
        last layer would read. Raises UserError where the images are too small for the stages."""
        if min(x.shape[1:3]) < 2 ** len(self.widths):
            least = 2 ** len(self.widths)
            raise UserError(f"net.widths: {len(self.widths)} stages need images of at least {least} pixels a side")
        x = x.transpose(3, 1, 2, 0)
        for stage, width in enumerate(self.widths):
            for layer in range(self.depth):
                x = Conv(width, use_bias=not self.norm, name=None if stage or layer else "stem")(x)
                x = nn.relu(BatchNorm()(x, train) if self.norm else x)
            x = max_pool(x)
        x = x.reshape(-1, x.shape[-1]).T
        x = Dropout(self.dropout)(x, train)
        if self.hidden:
            x = nn.relu(nn.Dense(self.hidden)(x))
            x = Dropout(self.dropout)(x, train)
        return nn.Dense(self.outputs, name="head")(x) if self.outputs else x


class ResNet(nn.Module):
    """Residual net of basic blocks for small images (He, Zhang, Ren & Sun 2016, arXiv:1512.03385, section 4.2).

    Attributes:
        widths: output channels of each stage; every stage but the first halves the height and width
        blocks: number of basic blocks (two 3x3 convolutions each) in each stage: 3 3 3 is ResNet-20, 2 2 2 2 ResNet-18
        shortcut: how a shortcut changes its shape: pad with zero channels (the paper's option A), or project by a 1x1
            convolution (option B)
    """

    widths: tuple[int, ...] = (16, 32, 64)
    blocks: tuple[int, ...] = (3, 3, 3)
    shortcut: Literal["pad", "project"] = "pad"
    outputs: FromData[int] = 0

    def __post_init__(self) -> None:
        positive(self, "net", "widths", "blocks")
        stages(self.widths, self.blocks)
        if self.shortcut == "pad" and list(self.widths) != sorted(self.widths):
            raise UserError(f"net.widths {self.widths} fall, and net.shortcut pad adds channels: choose project")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Images f32[batch, height, width, channels] -> logits [batch, outputs]; of 0 outputs, the features that the
        last layer would read."""
        x = x.transpose(3, 1, 2, 0)
        x = nn.relu(BatchNorm()(Conv(self.widths[0], use_bias=False, name="stem")(x), train))
        for width, stride in stages(self.widths, self.blocks):
            x = BasicBlock(width, stride, self.shortcut)(x, train)
        x = x.mean((1, 2)).T
        return nn.Dense(self.outputs, name="head")(x) if self.outputs else x


def stages(widths: Sequence[int], blocks: Sequence[int]) -> list[tuple[int, int]]:
    """(width, stride) of each block of a residual net, whose stages but the first begin with a stride of 2.

    Raises UserError where there are not as many widths as numbers of blocks.
    """
    if len(widths) != len(blocks):
        raise UserError(f"net.widths {widths} and net.blocks {blocks} must have the same length")
    return [
        (width, 2 if stage > 0 and block == 0 else 1)
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True))
        for block in range(count)
    ]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut around them, see `ResNet`."""

    width: int
    stride: int
    shortcut: Literal["pad", "project"]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[channels, height, width, batch] -> [self.width, height / stride, width / stride, batch]."""
        y = Conv(self.width, stride=self.stride, use_bias=False)(x)
        y = nn.relu(BatchNorm()(y, train))
        y = BatchNorm()(Conv(self.width, use_bias=False)(y), train)
        if x.shape != y.shape:
            if self.shortcut == "pad":
                missing = self.width - x.shape[0]
                x = x[:, :: self.stride, :: self.stride]
                x = jnp.pad(x, ((missing // 2, missing - missing // 2), (0, 0), (0, 0), (0, 0)))
            else:
                x = Conv(self.width, kernel_size=1, stride=self.stride, use_bias=False)(x)
                x = BatchNorm()(x, train)
        return nn.relu(x + y)
