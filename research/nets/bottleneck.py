"""Residual nets of bottleneck blocks, for large images: ResNet-50 and its relatives."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from research.core.errors import positive
from research.core.modules import FromData
from research.nets.cnn import stages
from research.nets.conv import BatchNorm, Conv

EXPANSION = 4
"""How many times as many channels a block gives as its 3x3 convolution has."""


class BottleneckResNet(nn.Module):
    """Residual net of bottleneck blocks (He, Zhang, Ren & Sun 2016, arXiv:1512.03385, section 4.1 and table 1).

    A block halves the height and width by its 3x3 convolution, not by its first one ("ResNet v1.5", as in torchvision).

    Attributes:
        widths: channels of the 3x3 convolutions of each stage, a quarter of its output channels; every stage but the
            first halves the height and width
        blocks: number of blocks in each stage: 3 4 6 3 is ResNet-50, 3 4 23 3 ResNet-101, 3 8 36 3 ResNet-152
        stem: output channels of the 7x7 convolution before them, which with the 3x3 max pooling after it divides the
            height and width by 4
        zero_init: whether the last scale of each block starts from zero, so that the block starts as its shortcut
            (Goyal et al. 2017, arXiv:1706.02677)
    """

    widths: tuple[int, ...] = (64, 128, 256, 512)
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    stem: int = 64
    zero_init: bool = True
    outputs: FromData[int] = 0

    def __post_init__(self) -> None:
        positive(self, "net", "widths", "blocks", "stem")
        stages(self.widths, self.blocks)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Images f32[batch, height, width, channels] -> logits [batch, outputs]; of 0 outputs, the features that the
        last layer would read."""
        x = x.transpose(3, 1, 2, 0)
        x = Conv(self.stem, kernel_size=7, stride=2, use_bias=False, name="stem")(x)
        x = overlapping_max_pool(nn.relu(BatchNorm()(x, train)))
        for width, stride in stages(self.widths, self.blocks):
            x = Bottleneck(width, stride, self.zero_init)(x, train)
        x = x.mean((1, 2)).T
        return nn.Dense(self.outputs, name="head")(x) if self.outputs else x


class Bottleneck(nn.Module):
    """Convolutions of 1x1, 3x3 and 1x1 and a shortcut around them, see `BottleneckResNet`."""

    width: int
    stride: int
    zero_init: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[channels, height, width, batch] -> [4 * self.width, height / stride, width / stride, batch]."""
        y = nn.relu(BatchNorm()(Conv(self.width, kernel_size=1, use_bias=False)(x), train))
        y = nn.relu(BatchNorm()(Conv(self.width, stride=self.stride, use_bias=False)(y), train))
        y = BatchNorm(zero=self.zero_init)(Conv(EXPANSION * self.width, kernel_size=1, use_bias=False)(y), train)
        if x.shape != y.shape:
            x = Conv(len(y), kernel_size=1, stride=self.stride, use_bias=False)(x)
            x = BatchNorm()(x, train)
        return nn.relu(x + y)


def overlapping_max_pool(x: jax.Array) -> jax.Array:
    """The maximum of each 3x3 square around every second pixel: [c, height, width, b] -> [c, height/2, width/2, b]."""
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")
