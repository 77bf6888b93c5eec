"""U-Net (Ronneberger, Fischer & Brox 2015, arXiv:1505.04597), of the residual blocks of Ho, Jain & Abbeel 2020.

A path that halves the resolution from level to level, and one that doubles it again and reads at each level what the
first one found there. The blocks are those of DDPM (arXiv:2006.11239): group normalisation, SiLU and 3x3 convolutions,
which keep the size, so that any image comes out as it went in. One net serves segmentation, diffusion and image repair.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core.errors import UserError, positive
from research.core.modules import Dropout, FromData
from research.nets.attention import attend
from research.nets.conv import Conv, GroupNorm
from research.nets.residual import downsample, upsample
from research.nets.transformer import sinusoids

Inputs = jax.Array | tuple[jax.Array, jax.Array, jax.Array]
"""Images f32[batch, height, width, channels], or (images, times i32[batch], labels i32[batch])."""


class UNet(nn.Module):
    """U-Net with residual blocks: images, or (images, times, labels) -> images of the same height and width.

    Images whose sides are no multiples of 2 ** (levels - 1) are padded with their edges, and the outputs are cropped.

    Attributes:
        widths: channels of each level; each level but the first halves the height and width
        blocks: residual blocks of each level, on the way down and again on the way up
        attention: levels (0 is the full resolution) whose blocks are followed by self-attention
        head_width: channels of one attention head
        dropout: dropout rate in each block
        outputs: channels of the outputs
        classes: number of labels that the net reads besides the times; 0 for none
    """

    widths: tuple[int, ...] = (32, 64, 128)
    blocks: int = 2
    attention: tuple[int, ...] = ()
    head_width: int = 32
    dropout: float = 0.0
    outputs: FromData[int] = 0
    classes: FromData[int] = 0

    def __post_init__(self) -> None:
        positive(self, "net", "widths", "blocks", "head_width")
        if self.attention and not all(0 <= level < len(self.widths) for level in self.attention):
            raise UserError(f"net.attention {self.attention}: levels 0 ... {len(self.widths) - 1} expected")
        super().__post_init__()

    @nn.compact
    def __call__(self, inputs: Inputs, train: bool = False) -> jax.Array:
        """f32[batch, height, width, channels] -> [batch, height, width, outputs]; see `Inputs`."""
        images, *conditions = inputs if isinstance(inputs, tuple) else (inputs,)
        embedding: jax.Array | None = None
        if conditions:
            embedding = Embedding(4 * self.widths[0], self.classes)(conditions[0], conditions[1], images.dtype)
        _, height, width, _ = images.shape
        x, (top, left) = _padded(images.transpose(3, 1, 2, 0), 2 ** (len(self.widths) - 1))

        def level_block(x: jax.Array, level: int) -> jax.Array:
            x = ResidualBlock(self.widths[level], self.dropout)(x, embedding, train)
            return SelfAttention(self.head_width)(x) if level in self.attention else x

        levels, skips = range(len(self.widths)), []
        x = Conv(self.widths[0], name="stem")(x)
        for level in levels:
            x = downsample(x) if level else x
            for _ in range(self.blocks):
                x = level_block(x, level)
                skips.append(x)
        x = level_block(x, levels[-1])
        for level in reversed(levels):
            for _ in range(self.blocks):
                x = level_block(jnp.concatenate([x, skips.pop()]), level)
            x = upsample(x) if level else x
        x = Conv(self.outputs, zero=True, name="head")(nn.silu(GroupNorm()(x)))
        return x[:, top : top + height, left : left + width].transpose(3, 1, 2, 0)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each after group normalisation and SiLU, and a shortcut. The second one starts from zero.

    The embedding of times and labels, where there is one, is added to each channel between the two.
    """

    width: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array | None, train: bool) -> jax.Array:
        """[channels, height, width, batch], and the embedding [batch, features] -> [width, height, width, batch]."""
        y = Conv(self.width)(nn.silu(GroupNorm()(x)))
        if embedding is not None:
            y += nn.Dense(self.width)(nn.silu(embedding)).T[:, None, None]
        y = Dropout(self.dropout, batch_axis=3)(nn.silu(GroupNorm()(y)), train)
        y = Conv(self.width, zero=True)(y)
        return y + (x if x.shape == y.shape else Conv(self.width, kernel_size=1, name="shortcut")(x))


class SelfAttention(nn.Module):
    """Residual self-attention over all pixels of an image, after group normalisation; its last layer starts at 0."""

    head_width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[channels, height, width, batch] -> the same."""
        channels, height, width, batch = x.shape
        heads = max(1, channels // self.head_width)
        if channels % heads:
            raise UserError(f"net.head_width={self.head_width} makes {heads} heads, which do not divide {channels}")
        y = GroupNorm()(x).reshape(channels, -1, batch).T
        q, k, v = jnp.split(nn.Dense(3 * channels)(y).reshape(batch, height * width, heads, -1), 3, -1)
        y = attend(q, k, v, None, causal=False, flash=False).reshape(batch, height * width, channels)
        y = nn.Dense(channels, kernel_init=nn.initializers.zeros)(y)
        return x + y.T.reshape(x.shape)


class Embedding(nn.Module):
    """Times and labels as vectors: sines and cosines of the times (Vaswani et al. 2017) through a small MLP.

    A label's vector, where there are labels, is added. Label `classes` stands for no label.
    """

    width: int
    classes: int

    @nn.compact
    def __call__(self, times: jax.Array, labels: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """i32[batch] each -> [batch, width] of `dtype`."""
        x = sinusoids(times, self.width).astype(dtype)  # of integers: bfloat16 has not all of them up to 1,000
        x = nn.Dense(self.width)(nn.silu(nn.Dense(self.width)(x)))
        return x + nn.Embed(self.classes + 1, self.width)(labels) if self.classes else x


def _padded(x: jax.Array, unit: int) -> tuple[jax.Array, tuple[int, int]]:
    """Images [channels, height, width, batch], padded with their edges to multiples of `unit`; the padding before."""
    missing = [-size % unit for size in x.shape[1:3]]
    pads = [(n // 2, n - n // 2) for n in missing]
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)), mode="edge") if any(missing) else x
    return x, (pads[0][0], pads[1][0])
