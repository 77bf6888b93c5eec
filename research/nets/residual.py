"""Residual nets: of Gulrajani et al. 2017 (arXiv:1704.00028), and SN-GAN's (Miyato et al. 2018, arXiv:1802.05957)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.nets.gan import Conv, Discriminator, Generator, Labelled, Norm, Score, Seed, smallest, with_label


class ResidualGenerator(Generator):
    """The residual generator of Gulrajani et al. 2017, and of SN-GAN.

    Attributes:
        widths: channels of each block, which doubles the image
    """

    widths: tuple[int, ...] = (256, 256, 256)

    @nn.compact
    def __call__(self, inputs: Labelled, train: bool = False) -> jax.Array:
        first = (self.widths[0], *smallest("generator.widths", self.shape, len(self.widths)))
        x = Seed(first, None, name="stem")(with_label(*inputs, self.classes), train)
        norm = lambda x: nn.relu(Norm("batch")(x, train))
        for width in self.widths:
            y = Conv(width, 3, deviation=None)(doubled(norm(x)), train)
            y = Conv(width, 3, deviation=None)(norm(y), train)
            x = y + Conv(width, 1, pad=0, deviation=None)(doubled(x), train)
        return jnp.tanh(Conv(self.shape[-1], 3, deviation=None, name="head")(norm(x), train)).transpose(3, 1, 2, 0)


class ResidualDiscriminator(Discriminator):
    """The residual discriminator of SN-GAN, with the pooled features' projection on the label.

    Attributes:
        widths: channels of each block
        halvings: so many blocks, the first ones, halve the image
        spectral: spectral normalisation of all kernels
    """

    widths: tuple[int, ...] = (128, 128, 128, 128)
    halvings: int = 2
    spectral: bool = True

    @nn.compact
    def __call__(self, inputs: Labelled, train: bool = False) -> jax.Array:
        images, labels = inputs
        smallest("discriminator.halvings", images.shape[1:], self.halvings)
        conv = lambda x, width, side, name=None: Conv(
            width, side, pad=side // 2, spectral=self.spectral, deviation=None, name=name
        )(x, train)
        x = images.transpose(3, 1, 2, 0)
        for block, width in enumerate(self.widths):
            halve = halved if block < self.halvings else lambda x: x
            y = x if block == 0 else nn.relu(x)  # the image itself has no negative half to cut off
            stem, shortcut = (None, None) if block else ("stem", "stem_shortcut")
            y = halve(conv(nn.relu(conv(y, width, 3, stem)), width, 3))
            # Pooling before the 1x1 convolution is the same as after it, and cheaper.
            x = y + (conv(halve(x), width, 1, shortcut) if x.shape != y.shape else x)
        return Score(self.classes, self.spectral, None, name="head")(nn.relu(x).sum((1, 2)).T, labels, train)


def doubled(x: jax.Array) -> jax.Array:
    """[channels, height, width, batch] with each pixel as a square of 2x2."""
    channels, height, width, batch = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (channels, height, 2, width, 2, batch))
    return x.reshape(channels, 2 * height, 2 * width, batch)


def halved(x: jax.Array) -> jax.Array:
    """The mean of each 2x2 square: [channels, height, width, batch] -> [channels, height / 2, width / 2, batch]."""
    channels, height, width, batch = x.shape
    return x.reshape(channels, height // 2, 2, width // 2, 2, batch).mean((2, 4))
