"""Residual GANs: Gulrajani et al. 2017 (arXiv:1704.00028), and SN-GAN (Miyato et al. 2018, arXiv:1802.05957)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.nets.gan import (
    Conv,
    Discriminator,
    Generator,
    Labelled,
    Norm,
    ProjectAndReshape,
    Score,
    downsampled_size,
    with_label,
)


class ResidualGenerator(Generator):
    """The residual generator of Gulrajani et al. 2017 and of SN-GAN.

    Attributes:
        widths: output channels of each block; each block doubles the height and width
    """

    widths: tuple[int, ...] = (256, 256, 256)

    @nn.compact
    def __call__(self, inputs: Labelled, train: bool = False) -> jax.Array:
        projected = (self.widths[0], *downsampled_size("generator.widths", self.shape, len(self.widths)))
        x = ProjectAndReshape(projected, None, name="stem")(with_label(*inputs, self.classes), train)
        norm = lambda x: nn.relu(Norm("batch")(x, train))
        for width in self.widths:
            y = Conv(width, 3, init_std=None)(upsample(norm(x)), train)
            y = Conv(width, 3, init_std=None)(norm(y), train)
            x = y + Conv(width, 1, pad=0, init_std=None)(upsample(x), train)
        return jnp.tanh(Conv(self.shape[-1], 3, init_std=None, name="head")(norm(x), train)).transpose(3, 1, 2, 0)


class ResidualDiscriminator(Discriminator):
    """The residual discriminator of SN-GAN, with a projection of the pooled features on the label's embedding.

    Attributes:
        widths: output channels of each block
        downsampling_blocks: how many of the blocks, from the first on, halve the height and width
        spectral: whether all kernels are spectrally normalised
    """

    widths: tuple[int, ...] = (128, 128, 128, 128)
    downsampling_blocks: int = 2
    spectral: bool = True

    @nn.compact
    def __call__(self, inputs: Labelled, train: bool = False) -> jax.Array:
        images, labels = inputs
        downsampled_size("discriminator.downsampling_blocks", images.shape[1:], self.downsampling_blocks)
        conv = lambda x, width, kernel_size, name=None: Conv(
            width, kernel_size, pad=kernel_size // 2, spectral=self.spectral, init_std=None, name=name
        )(x, train)
        x = images.transpose(3, 1, 2, 0)
        for block, width in enumerate(self.widths):
            resize = downsample if block < self.downsampling_blocks else lambda x: x
            y = nn.relu(x) if block else x  # a ReLU would discard the dark half of the image itself
            stem, shortcut = (None, None) if block else ("stem", "stem_shortcut")
            y = resize(conv(nn.relu(conv(y, width, 3, stem)), width, 3))
            # Pooling before the 1x1 convolution equals pooling after it, and is cheaper.
            x = y + (conv(resize(x), width, 1, shortcut) if x.shape != y.shape else x)
        return Score(self.classes, self.spectral, None, name="head")(nn.relu(x).sum((1, 2)).T, labels, train)


def upsample(x: jax.Array) -> jax.Array:
    """Repeat each pixel as a square of 2x2: [channels, height, width, batch] -> [..., 2 * height, 2 * width, batch]."""
    channels, height, width, batch = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (channels, height, 2, width, 2, batch))
    return x.reshape(channels, 2 * height, 2 * width, batch)


def downsample(x: jax.Array) -> jax.Array:
    """The mean of each 2x2 square: [channels, height, width, batch] -> [channels, height / 2, width / 2, batch]."""
    channels, height, width, batch = x.shape
    return x.reshape(channels, height // 2, 2, width // 2, 2, batch).mean((2, 4))
