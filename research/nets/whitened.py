"""A small convolutional net for few passes over the data, whose first layer whitens patches (Jordan 2024)."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from research.core.errors import UserError, between, positive
from research.core.modules import FromData
from research.nets.conv import BatchNorm, convolve, larger, max_pool


class WhitenedCNN(nn.Module):
    """A convolution that whitens patches, stages of two 3x3 convolutions, and a linear layer.

    Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (arXiv:2404.00498), after Page 2018. It takes images
    [batch, height, width, channels] and transposes them to [channels, height, width, batch], the layout of `conv.py`.

    Attributes:
        widths: output channels of each stage; a stage begins with a convolution and 2x2 max pooling
        patch: side of the patches that the first layer whitens, in pixels; its filters are no subject of training, see
            `--freeze stem/kernel`
        scale: factor of the logits
        momentum: decay of the running averages of batch statistics
        moments: the patches' second moments, see `Images.patch_moments`; (): numbers are independent, of variance 1
    """

    widths: tuple[int, ...] = (64, 256, 256)
    patch: int = 2
    scale: float = 1 / 9
    momentum: float = 0.6
    moments: FromData[tuple[float, ...]] = ()
    outputs: FromData[int] = 0

    def __post_init__(self) -> None:
        positive(self, "net", "widths", "patch")
        between(self, "net", 0, 1, "momentum")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Images f32[batch, height, width, channels] -> logits [batch, outputs]; of 0 outputs, the features that the
        last layer would read. Raises UserError where the images are too small for the stages."""
        least = self.patch - 1 + 2 ** len(self.widths)
        if min(x.shape[1:3]) < least:
            raise UserError(f"net.widths: {len(self.widths)} stages need images of at least {least} pixels a side")
        x = x.transpose(3, 1, 2, 0)
        norm = lambda x: BatchNorm(self.momentum, 1e-12, scale=False)(x, train)
        x = _gelu(Whitening(self.patch, self.moments, name="stem")(x))
        for width in self.widths:
            x = _gelu(norm(max_pool(IdentityConv(width)(x))))
            x = _gelu(norm(IdentityConv(width)(x)))
        pixels = [x[:, row, column] for row in range(x.shape[1]) for column in range(x.shape[2])]
        x = functools.reduce(larger, pixels).T
        if not self.outputs:
            return x
        return self.scale * nn.Dense(self.outputs, use_bias=False, kernel_init=_uniform, name="head")(x)


class Whitening(nn.Module):
    """A convolution without padding, whose filters make the numbers of a patch uncorrelated and of variance 1.

    They are the eigenvectors of the second moments over the roots of the eigenvalues, and the same with the other sign.

    Attributes:
        patch: side of the patches
        moments: as in `WhitenedCNN`
    """

    patch: int
    moments: tuple[float, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[channels, height, width, batch] -> [2 * patch * patch * channels, height', width', batch]."""
        size = self.patch * self.patch * len(x)
        moments = np.reshape(self.moments, (size, size)) if self.moments else np.eye(size)
        shape = (self.patch, self.patch, len(x), 2 * size)
        kernel = self.param("kernel", lambda _: jnp.asarray(whitening(moments).reshape(shape), jnp.float32))
        bias = self.param("bias", nn.initializers.zeros, (2 * size,))
        return self.product(x, kernel) + bias[:, None, None, None]

    def product(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """The convolution without the bias; of int8, in int32."""
        return convolve(x, kernel, padding="VALID")


class IdentityConv(nn.Module):
    """A 3x3 convolution without bias, whose first filters hand on one channel each at the start.

    (Zagoruyko & Komodakis 2017, arXiv:1706.00388.) The others start uniform, as those of PyTorch.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[channels, height, width, batch] -> [features, height, width, batch]."""
        return self.product(x, self.param("kernel", _identity, (3, 3, len(x), self.features)))

    def product(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """The convolution; of int8, in int32."""
        return convolve(x, kernel)


def _uniform(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """Numbers between -1 and 1 over the root of the inputs of a feature."""
    return nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")(key, shape, dtype)


def _identity(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
    height, width, channels, features = shape
    first = min(channels, features)
    one = jnp.zeros((height, width, channels, first), dtype).at[height // 2, width // 2].set(jnp.eye(channels, first))
    return _uniform(key, shape, dtype).at[..., :first].set(one)


def whitening(moments: np.ndarray, eps: float = 5e-4) -> np.ndarray:
    """Filters f64[size, 2 * size] of second moments [size, size]: the products of patches of which these are the
    moments with the first half of the filters have second moments near the identity, the largest eigenvalue first.

    eps: number added to the eigenvalues
    """
    values, vectors = np.linalg.eigh(moments)
    vectors = vectors[:, ::-1] / np.sqrt(values[::-1] + eps)
    # LAPACK's signs differ: the largest component is made positive.
    vectors = vectors * np.sign(np.take_along_axis(vectors, abs(vectors).argmax(0)[None], 0))
    return np.concatenate([vectors, -vectors], 1)


def _gelu(x: jax.Array) -> jax.Array:
    return nn.gelu(x, approximate=False)
