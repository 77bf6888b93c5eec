"""The nets of DCGAN: Radford, Metz & Chintala 2016 (arXiv:1511.06434)."""

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
    ProjectAndReshape,
    Score,
    downsampled_size,
    leaky_relu,
    with_label,
)


class DCGANGenerator(Generator):
    """The generator of DCGAN: transposed 4x4 convolutions, each of which doubles the height and width.

    Attributes:
        widths: channels of the image that the noise is projected to, then output channels of all convolutions but the
            last; each adds a convolution, so the projected image is smaller than the output by 2**len(widths)
        hidden: width of a dense layer before the projection; 0 for no such layer. InfoGAN has one for MNIST (Chen et
            al. 2016, arXiv:1606.03657, appendix C.1): in small images convolutions alone see parts of an object only
        norm: normalisation after each layer but the last
    """

    widths: tuple[int, ...] = (128, 64)
    hidden: int = 0
    norm: Normalisation = "batch"

    @nn.compact
    def __call__(self, inputs: Labelled, train: bool = False) -> jax.Array:
        projected = (self.widths[0], *downsampled_size("generator.widths", self.shape, len(self.widths)))
        norm = lambda x: nn.relu(Norm(self.norm)(x, train))
        z = with_label(*inputs, self.classes)
        if self.hidden:
            z = norm(Dense(self.hidden, name="stem")(z, train).T[:, None, None])[:, 0, 0].T
        x = norm(ProjectAndReshape(projected, name=None if self.hidden else "stem")(z, train))
        for width in self.widths[1:]:
            x = norm(Conv(width, transpose=True, use_bias=self.norm == "none")(x, train))
        return jnp.tanh(Conv(self.shape[-1], transpose=True, name="head")(x, train)).transpose(3, 1, 2, 0)


class DCGANDiscriminator(Discriminator):
    """The discriminator of DCGAN: 4x4 convolutions of stride 2.

    Attributes:
        widths: output channels of each convolution
        hidden: width of a dense layer after the convolutions; 0 for no such layer; see `DCGANGenerator`
        norm: normalisation after each layer but the first and the last; batch excludes a gradient penalty, since it
            makes the score of an image depend on the other images
        spectral: whether all kernels are spectrally normalised
    """

    widths: tuple[int, ...] = (64, 128)
    hidden: int = 0
    norm: Normalisation = "batch"
    spectral: bool = False

    @nn.compact
    def __call__(self, inputs: Labelled, train: bool = False) -> jax.Array:
        images, labels = inputs
        downsampled_size("discriminator.widths", images.shape[1:], len(self.widths))
        x = images.transpose(3, 1, 2, 0)
        for layer, width in enumerate(self.widths):
            norm, name = self.norm if layer else "none", None if layer else "stem"
            x = Conv(width, stride=2, spectral=self.spectral, use_bias=norm == "none", name=name)(x, train)
            x = leaky_relu(Norm(norm)(x, train))
        features = x.reshape(-1, x.shape[-1]).T
        if self.hidden:
            x = Dense(self.hidden, self.spectral)(features, train).T[:, None, None]
            features = leaky_relu(Norm(self.norm)(x, train))[:, 0, 0].T
        return Score(self.classes, self.spectral, name="head")(features, labels, train)
