"""DCGAN's nets: Radford, Metz & Chintala 2016 (arXiv:1511.06434)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.nets.gan import (
    Conv,
    Dense,
    Discriminator,
    Generator,
    Labelled,
    Norm,
    Normalisation,
    Score,
    Seed,
    leaky,
    smallest,
    with_label,
)


class DCGANGenerator(Generator):
    """DCGAN's generator: each width's layer doubles the image.

    Attributes:
        widths: channels, of the first layer on; the images are 2**len(widths) times what the noise is projected to
        hidden: features of a dense layer before them, or 0 for none (InfoGAN's for MNIST, Chen et al. 2016,
            arXiv:1606.03657, appendix C.1: where images are small, convolutions alone see no more than parts of them)
        norm: after each layer but the last
    """

    widths: tuple[int, ...] = (128, 64)
    hidden: int = 0
    norm: Normalisation = "batch"

    @nn.compact
    def __call__(self, inputs: Labelled, train: bool = False) -> jax.Array:
        first = (self.widths[0], *smallest("generator.widths", self.shape, len(self.widths)))
        norm = lambda x: nn.relu(Norm(self.norm)(x, train))
        z = with_label(*inputs, self.classes)
        if self.hidden:
            z = norm(Dense(self.hidden, name="stem")(z, train).T[:, None, None])[:, 0, 0].T
        x = norm(Seed(first, name=None if self.hidden else "stem")(z, train))
        for width in self.widths[1:]:
            x = norm(Conv(width, up=True, use_bias=self.norm == "none")(x, train))
        return jnp.tanh(Conv(self.shape[-1], up=True, name="head")(x, train)).transpose(3, 1, 2, 0)


class DCGANDiscriminator(Discriminator):
    """DCGAN's discriminator: 4x4 convolutions of stride 2, one a width; see `DCGANGenerator`.

    Attributes:
        widths: channels, of the first layer on
        hidden: features of a dense layer after them, or 0 for none; see `DCGANGenerator`
        norm: after each layer but the first; batch would couple the examples, which a gradient penalty forbids
        spectral: spectral normalisation of all kernels
    """

    widths: tuple[int, ...] = (64, 128)
    hidden: int = 0
    norm: Normalisation = "batch"
    spectral: bool = False

    @nn.compact
    def __call__(self, inputs: Labelled, train: bool = False) -> jax.Array:
        images, labels = inputs
        smallest("discriminator.widths", images.shape[1:], len(self.widths))
        x = images.transpose(3, 1, 2, 0)
        for layer, width in enumerate(self.widths):
            norm, name = self.norm if layer else "none", None if layer else "stem"
            x = Conv(width, stride=2, spectral=self.spectral, use_bias=norm == "none", name=name)(x, train)
            x = leaky(Norm(norm)(x, train))
        features = x.reshape(-1, x.shape[-1]).T
        if self.hidden:
            x = Dense(self.hidden, self.spectral)(features, train).T[:, None, None]
            features = leaky(Norm(self.norm)(x, train))[:, 0, 0].T
        return Score(self.classes, self.spectral, name="head")(features, labels, train)
