"""CycleGAN's nets: Zhu, Park, Isola & Efros 2017 (arXiv:1703.10593). They read no labels."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core.errors import Mistake
from research.core.experiment import positive
from research.nets.gan import Conv, Norm, leaky, padded, smallest


class CycleGenerator(nn.Module):
    """CycleGAN's generator, after Johnson, Alahi & Fei-Fei 2016 (arXiv:1603.08155).

    A wide convolution, two that halve the image, residual blocks, two that double it, and a wide one.

    Attributes:
        width: channels of the first layer; four times as many in the blocks
        blocks: residual blocks; 9 for images of 256x256, 6 for smaller ones
        side: of the first and last kernel, an odd number
        norm: instance, as in the paper, takes away how bright an image is, and its contrast; layer leaves the colours
    """

    width: int = 64
    blocks: int = 9
    side: int = 7
    norm: Literal["instance", "layer"] = "instance"

    def __post_init__(self) -> None:
        positive(self, "generator", "width", "blocks", "side")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Images [batch, height, width, channels] -> images of the same shape."""
        if min(smallest("generator", images.shape[1:], 2)) < 2:
            raise Mistake("generator: images of 8x8 or more expected, which can be halved twice")
        # No biases but the last: instance norms would take them away again, and layer norms have their own.
        reflected = lambda x, width, side, name=None: Conv(width, side, pad=0, use_bias=False, name=name)(
            padded(x, side // 2, "reflect"), train
        )
        norm = lambda x: Norm(self.norm)(x, train)
        x = nn.relu(norm(reflected(images.transpose(3, 1, 2, 0), self.width, self.side, "stem")))
        for factor in (2, 4):
            x = nn.relu(norm(Conv(factor * self.width, 3, stride=2, use_bias=False)(x, train)))
        for _ in range(self.blocks):
            y = nn.relu(norm(reflected(x, 4 * self.width, 3)))
            x = x + norm(reflected(y, 4 * self.width, 3))
        for factor in (2, 1):
            x = nn.relu(norm(Conv(factor * self.width, 3, up=True, use_bias=False)(x, train)))
        x = Conv(images.shape[-1], self.side, pad=0, name="head")(padded(x, self.side // 2, "reflect"), train)
        return jnp.tanh(x).transpose(3, 1, 2, 0)


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola, Zhu, Zhou & Efros 2017, arXiv:1611.07004): a score for each patch, of 70x70 by default.

    Attributes:
        widths: channels of the 4x4 convolutions; all but the last have stride 2
        norm: after each of them but the first
    """

    widths: tuple[int, ...] = (64, 128, 256, 512)
    norm: Literal["instance", "layer", "none"] = "instance"

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
            norm, name = self.norm if layer else "none", None if layer else "stem"
            stride = 2 if layer < len(self.widths) - 1 else 1
            x = leaky(Norm(norm)(Conv(width, stride=stride, use_bias=norm == "none", name=name)(x, train), train))
        return Conv(1, name="head")(x, train)[0].transpose(2, 0, 1)
