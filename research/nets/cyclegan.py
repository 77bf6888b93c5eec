"""The nets of CycleGAN: Zhu, Park, Isola & Efros 2017 (arXiv:1703.10593). They read no labels."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core.errors import UserError, positive
from research.nets.gan import Conv, Norm, downsampled_size, leaky_relu, pad


class CycleGenerator(nn.Module):
    """The generator of CycleGAN, after Johnson, Alahi & Fei-Fei 2016 (arXiv:1603.08155).

    A convolution with a large kernel, two that halve the height and width, residual blocks, two transposed
    convolutions that double them, and a last convolution with a large kernel.

    Attributes:
        width: output channels of the first layer; the residual blocks have four times as many
        blocks: number of residual blocks; the paper has 9 for images of 256x256 and 6 for smaller ones
        kernel_size: height and width of the first and the last kernel, an odd number
        norm: instance, as in the paper, discards the brightness and contrast of each channel; layer keeps the colours
    """

    width: int = 64
    blocks: int = 9
    kernel_size: int = 7
    norm: Literal["instance", "layer"] = "instance"

    def __post_init__(self) -> None:
        positive(self, "generator", "width", "blocks", "kernel_size")
        if self.kernel_size % 2 == 0:
            raise UserError(f"generator.kernel_size must be odd, not {self.kernel_size}")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Images [batch, height, width, channels] -> images of the same shape."""
        if min(downsampled_size("generator", images.shape[1:], 2)) < 2:
            raise UserError("generator: images of 8x8 or more expected, which can be halved twice")
        norm = lambda x: Norm(self.norm)(x, train)

        def reflected(x: jax.Array, width: int, kernel_size: int, name: str | None = None) -> jax.Array:
            """A convolution padded by reflection. It needs no bias: instance norms cancel it, layer norms have one."""
            x = pad(x, kernel_size // 2, "reflect")
            return Conv(width, kernel_size, pad=0, use_bias=False, name=name)(x, train)

        x = nn.relu(norm(reflected(images.transpose(3, 1, 2, 0), self.width, self.kernel_size, "stem")))
        for factor in (2, 4):
            x = nn.relu(norm(Conv(factor * self.width, 3, stride=2, use_bias=False)(x, train)))
        for _ in range(self.blocks):
            y = nn.relu(norm(reflected(x, 4 * self.width, 3)))
            x = x + norm(reflected(y, 4 * self.width, 3))
        for factor in (2, 1):
            x = nn.relu(norm(Conv(factor * self.width, 3, transpose=True, use_bias=False)(x, train)))
        x = pad(x, self.kernel_size // 2, "reflect")
        return jnp.tanh(Conv(images.shape[-1], self.kernel_size, pad=0, name="head")(x, train)).transpose(3, 1, 2, 0)


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola, Zhu, Zhou & Efros 2017, arXiv:1611.07004): a score for each patch, by default of 70x70 pixels.

    Attributes:
        widths: output channels of the 4x4 convolutions; all but the last have stride 2
        norm: normalisation after each of these convolutions but the first
    """

    widths: tuple[int, ...] = (64, 128, 256, 512)
    norm: Literal["instance", "layer", "none"] = "instance"

    def __post_init__(self) -> None:
        positive(self, "discriminator", "widths")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Images [batch, height, width, channels] -> scores [batch, height', width']."""
        if min(size >> len(self.widths) - 1 for size in images.shape[1:3]) < 3:
            raise UserError(
                f"discriminator.widths: {images.shape[1]}x{images.shape[2]} is too small: give fewer widths"
            )
        x = images.transpose(3, 1, 2, 0)
        for layer, width in enumerate(self.widths):
            norm, name = self.norm if layer else "none", None if layer else "stem"
            stride = 2 if layer < len(self.widths) - 1 else 1
            x = Conv(width, stride=stride, use_bias=norm == "none", name=name)(x, train)
            x = leaky_relu(Norm(norm)(x, train))
        return Conv(1, name="head")(x, train)[0].transpose(2, 0, 1)
