"""Inception-v3 as a feature extractor for FID (Szegedy, Vanhoucke, Ioffe, Shlens & Wojna 2015, arXiv:1512.00567).

This is the net of TensorFlow's graph of 2015-12-05, on which published FIDs are computed (Heusel et al. 2017,
arXiv:1706.08500): its average pools do not count padding, and the last block has a max pool. The weights are those of
the port to PyTorch (pytorch-fid's pt_inception-2015-12-05), with the names and layouts that they have there. They are
not included. These lines convert the port's file to one that can be read without unpickling:

    import numpy, torch
    weights = torch.load("pt_inception-2015-12-05-6726825d.pth", weights_only=True)
    numpy.savez("inception.npz", **{name: value.numpy() for name, value in weights.items()})

The tests compare this net with a PyTorch module that has the same random weights. It has not been tested with the
trained ones.
"""

import hashlib
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from research.core.errors import UserError
from research.data.pixels import centred

SIDE = 299
"""Height and width of the net's input, in pixels."""

FEATURES = 2048
"""Features of an image: the channels of the last block."""

BATCH = 50
"""Images that are computed at a time."""

Padding = Literal["SAME", "VALID"]


class Convolution(nn.Module):
    """A convolution without bias, batch normalization with stored statistics, and ReLU."""

    features: int
    kernel: tuple[int, int]
    stride: int
    padding: Padding

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, height, width, channels] -> [batch, height', width', features]."""
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        shape = (self.features, x.shape[-1], *self.kernel)
        kernel = self.param("conv.weight", nn.initializers.variance_scaling(2.0, "fan_in", "normal", 1, 0), shape)
        inits = {"weight": ones, "bias": zeros, "running_mean": zeros, "running_var": ones}
        scale, shift, mean, variance = (self.param(f"bn.{name}", f, (self.features,)) for name, f in inits.items())
        strides, layout = (self.stride, self.stride), ("NHWC", "OIHW", "NHWC")
        y = lax.conv_general_dilated(x, kernel, strides, self.padding, dimension_numbers=layout)
        return nn.relu((y - mean) * (scale * lax.rsqrt(variance + 1e-3)) + shift)


class Inception(nn.Module):
    """Images f32[batch, height, width, 3] in [-1, 1], of 75x75 pixels or more, to features [batch, 2048]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = conv(x, "Conv2d_1a_3x3", 32, 3, 3, stride=2)
        x = conv(x, "Conv2d_2a_3x3", 32, 3, 3, padding="VALID")
        x = max_pool(conv(x, "Conv2d_2b_3x3", 64, 3, 3))
        x = conv(x, "Conv2d_3b_1x1", 80)
        x = max_pool(conv(x, "Conv2d_4a_3x3", 192, 3, 3, padding="VALID"))
        for name, pooled in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = block_35(x, name, pooled)
        x = reduction_17(x, "Mixed_6a")
        for name, width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
            x = block_17(x, name, width)
        x = reduction_8(x, "Mixed_7a")
        x = block_8(x, "Mixed_7b", avg_pool)
        x = block_8(x, "Mixed_7c", lambda x: max_pool(x, 1, "SAME"))
        return x.mean((1, 2))


def block_35(x: jax.Array, name: str, pooled: int) -> jax.Array:
    """A block at 35x35 pixels; `pooled` is the number of channels of the pooling branch."""
    small = conv(x, f"{name}.branch1x1", 64)
    large = chain(x, f"{name}.branch5x5", (48,), (64, 5, 5))
    double = chain(x, f"{name}.branch3x3dbl", (64,), (96, 3, 3), (96, 3, 3))
    return concatenate(small, large, double, conv(avg_pool(x), f"{name}.branch_pool", pooled))


def reduction_17(x: jax.Array, name: str) -> jax.Array:
    """The block that reduces 35x35 pixels to 17x17."""
    large = conv(x, f"{name}.branch3x3", 384, 3, 3, stride=2)
    double = chain(x, f"{name}.branch3x3dbl", (64,), (96, 3, 3), (96, 3, 3, 2))
    return concatenate(large, double, max_pool(x))


def block_17(x: jax.Array, name: str, width: int) -> jax.Array:
    """A block at 17x17 pixels; `width` is the number of channels between its 1x7 and 7x1 convolutions."""
    small = conv(x, f"{name}.branch1x1", 192)
    large = chain(x, f"{name}.branch7x7", (width,), (width, 1, 7), (192, 7, 1))
    both = (width, 7, 1), (width, 1, 7)
    double = chain(x, f"{name}.branch7x7dbl", (width,), *both, (width, 7, 1), (192, 1, 7))
    return concatenate(small, large, double, conv(avg_pool(x), f"{name}.branch_pool", 192))


def reduction_8(x: jax.Array, name: str) -> jax.Array:
    """The block that reduces 17x17 pixels to 8x8."""
    large = chain(x, f"{name}.branch3x3", (192,), (320, 3, 3, 2))
    double = chain(x, f"{name}.branch7x7x3", (192,), (192, 1, 7), (192, 7, 1), (192, 3, 3, 2))
    return concatenate(large, double, max_pool(x))


def block_8(x: jax.Array, name: str, pool: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """A block at 8x8 pixels, with 1x3 and 3x1 convolutions side by side."""
    small = conv(x, f"{name}.branch1x1", 320)
    large = fork(conv(x, f"{name}.branch3x3_1", 384), f"{name}.branch3x3_2")
    double = fork(chain(x, f"{name}.branch3x3dbl", (448,), (384, 3, 3)), f"{name}.branch3x3dbl_3")
    return concatenate(small, *large, *double, conv(pool(x), f"{name}.branch_pool", 192))


def fork(x: jax.Array, name: str) -> tuple[jax.Array, jax.Array]:
    """A 1x3 and a 3x1 convolution of the same input."""
    return conv(x, f"{name}a", 384, 1, 3), conv(x, f"{name}b", 384, 3, 1)


def chain(x: jax.Array, name: str, *layers: tuple[int, ...]) -> jax.Array:
    """Convolutions NAME_1, NAME_2, ..., each (features, height, width, stride); the last three default to 1."""
    for at, layer in enumerate(layers, 1):
        x = conv(x, f"{name}_{at}", *layer)
    return x


def conv(
    x: jax.Array,
    name: str,
    features: int,
    height: int = 1,
    width: int = 1,
    stride: int = 1,
    *,
    padding: Padding | None = None,
) -> jax.Array:
    """A `Convolution`; by default it is padded where its stride is 1."""
    padding = padding or ("SAME" if stride == 1 else "VALID")
    return Convolution(features, (height, width), stride, padding, name=name)(x)


def concatenate(*branches: jax.Array) -> jax.Array:
    """The branches, concatenated along the channels."""
    return jnp.concatenate(branches, -1)


def max_pool(x: jax.Array, stride: int = 2, padding: Padding = "VALID") -> jax.Array:
    """Max pooling of 3x3 pixels."""
    return nn.max_pool(x, (3, 3), (stride, stride), padding)


def avg_pool(x: jax.Array) -> jax.Array:
    """Average pooling of 3x3 pixels; padding is not counted."""
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


class FeatureExtractor(NamedTuple):
    """Inception with trained weights; made by `load_extractor`.

    features  u8[images, height, width, 1 or 3] -> f32[images, 2048]
    sha256    of the weights' file, in hexadecimal
    """

    features: Callable[[np.ndarray], np.ndarray]
    sha256: str


def load_extractor(path: str) -> FeatureExtractor:
    """Inception with the weights in the file `path`, see the module's docstring.

    Raises UserError where the file does not hold such weights.
    """
    params = load_weights(path)
    with Path(path).open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    apply = jax.jit(lambda params, images: Inception().apply({"params": params}, resize(images)))

    def features(images: np.ndarray) -> np.ndarray:
        parts = (images[start : start + BATCH] for start in range(0, len(images), BATCH))
        return np.concatenate([np.asarray(apply(params, part)) for part in parts])

    return FeatureExtractor(features, sha256)


def resize(images: jax.Array) -> jax.Array:
    """u8[batch, height, width, 1 or 3] -> f32[batch, 299, 299, 3] in [-1, 1], bilinear as in the port to PyTorch."""
    images = jnp.broadcast_to(centred(images), (*images.shape[:3], 3))
    return jax.image.resize(images, (len(images), SIDE, SIDE, 3), "bilinear", antialias=False)


def load_weights(path: str) -> dict[str, dict[str, np.ndarray]]:
    """The parameters of `Inception` in the .npz file `path`. Other arrays in it, such as the classifier's, are ignored.

    Raises UserError where the file can't be read, or a parameter is missing or has another shape.
    """
    advice = "make it from pytorch-fid's weights by the three lines in research/evaluation/inception.py"
    image = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
    expected = jax.eval_shape(Inception().init, jax.random.key(0), image)["params"]
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {name: file[name] for name in (f"{a}.{b}" for a in expected for b in expected[a]) if name in file}
    except (OSError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"inception: {path} can't be read as an .npz file of arrays ({error}): {advice}") from None
    for layer, leaves in expected.items():
        for leaf, like in leaves.items():
            found = held.get(f"{layer}.{leaf}")
            if found is None:
                raise UserError(f"inception: {path} holds no {layer}.{leaf}: {advice}")
            if not isinstance(found, np.ndarray) or found.shape != like.shape or found.dtype.kind != "f":
                shown = f"{found.dtype} {found.shape}" if isinstance(found, np.ndarray) else "no array"
                raise UserError(f"inception: {layer}.{leaf} in {path} is {shown}, not floats {like.shape}: {advice}")
    return {a: {b: held[f"{a}.{b}"].astype(np.float32) for b in leaves} for a, leaves in expected.items()}
