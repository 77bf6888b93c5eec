"""Inception-v3 as FID reads it (Szegedy, Vanhoucke, Ioffe, Shlens & Wojna 2015, arXiv:1512.00567).

The net of TensorFlow's graph of 2015-12-05, in which published FIDs are (Heusel et al. 2017, arXiv:1706.08500): an
average pool counts the pixels that there are, and the last block's pool is a maximum. Its weights are those of the port
to PyTorch (pytorch-fid's pt_inception-2015-12-05), with the names and layouts they have there. They don't come with
this; of the port's file, one makes a file that nobody has to unpickle:

    import numpy, torch
    weights = torch.load("pt_inception-2015-12-05-6726825d.pth", weights_only=True)
    numpy.savez("inception.npz", **{name: value.numpy() for name, value in weights.items()})

The tests compare this net with a PyTorch module, both with the same random weights. It has not been checked with the
real ones.
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

from research.core.errors import Mistake

SIDE = 299
"""Of the images it reads, in pixels."""

FEATURES = 2048
"""Of each image: the last block's channels."""

BATCH = 50
"""Images that are read at a time."""

Padding = Literal["SAME", "VALID"]


class Convolution(nn.Module):
    """A convolution without bias, batch normalisation by given statistics, and ReLU."""

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
        given = {"weight": ones, "bias": zeros, "running_mean": zeros, "running_var": ones}
        scale, shift, mean, variance = (self.param(f"bn.{name}", of, (self.features,)) for name, of in given.items())
        strides, layout = (self.stride, self.stride), ("NHWC", "OIHW", "NHWC")
        y = lax.conv_general_dilated(x, kernel, strides, self.padding, dimension_numbers=layout)
        return nn.relu((y - mean) * (scale * lax.rsqrt(variance + 1e-3)) + shift)


class Inception(nn.Module):
    """Images f32[batch, height, width, 3] in [-1, 1], of 75x75 pixels or more, to features [batch, 2048]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = conv(x, "Conv2d_1a_3x3", 32, 3, 3, stride=2)
        x = conv(x, "Conv2d_2a_3x3", 32, 3, 3, padding="VALID")
        x = maximum(conv(x, "Conv2d_2b_3x3", 64, 3, 3))
        x = conv(x, "Conv2d_3b_1x1", 80)
        x = maximum(conv(x, "Conv2d_4a_3x3", 192, 3, 3, padding="VALID"))
        for name, pooled in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = at_35(x, name, pooled)
        x = to_17(x, "Mixed_6a")
        for name, width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
            x = at_17(x, name, width)
        x = to_8(x, "Mixed_7a")
        x = at_8(x, "Mixed_7b", average)
        x = at_8(x, "Mixed_7c", lambda x: maximum(x, 1, "SAME"))
        return x.mean((1, 2))


def at_35(x: jax.Array, name: str, pooled: int) -> jax.Array:
    """A block at 35x35 pixels; `pooled`: channels of the pool's branch."""
    small = conv(x, f"{name}.branch1x1", 64)
    large = chain(x, f"{name}.branch5x5", (48,), (64, 5, 5))
    double = chain(x, f"{name}.branch3x3dbl", (64,), (96, 3, 3), (96, 3, 3))
    return beside(small, large, double, conv(average(x), f"{name}.branch_pool", pooled))


def to_17(x: jax.Array, name: str) -> jax.Array:
    """From 35x35 pixels to 17x17."""
    large = conv(x, f"{name}.branch3x3", 384, 3, 3, stride=2)
    double = chain(x, f"{name}.branch3x3dbl", (64,), (96, 3, 3), (96, 3, 3, 2))
    return beside(large, double, maximum(x))


def at_17(x: jax.Array, name: str, width: int) -> jax.Array:
    """A block at 17x17 pixels; `width`: channels between its convolutions of 7 pixels, which go one way each."""
    small = conv(x, f"{name}.branch1x1", 192)
    large = chain(x, f"{name}.branch7x7", (width,), (width, 1, 7), (192, 7, 1))
    both = (width, 7, 1), (width, 1, 7)
    double = chain(x, f"{name}.branch7x7dbl", (width,), *both, (width, 7, 1), (192, 1, 7))
    return beside(small, large, double, conv(average(x), f"{name}.branch_pool", 192))


def to_8(x: jax.Array, name: str) -> jax.Array:
    """From 17x17 pixels to 8x8."""
    large = chain(x, f"{name}.branch3x3", (192,), (320, 3, 3, 2))
    double = chain(x, f"{name}.branch7x7x3", (192,), (192, 1, 7), (192, 7, 1), (192, 3, 3, 2))
    return beside(large, double, maximum(x))


def at_8(x: jax.Array, name: str, pool: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """A block at 8x8 pixels, whose convolutions of 3 pixels go both ways, side by side."""
    small = conv(x, f"{name}.branch1x1", 320)
    large = forked(conv(x, f"{name}.branch3x3_1", 384), f"{name}.branch3x3_2")
    double = forked(chain(x, f"{name}.branch3x3dbl", (448,), (384, 3, 3)), f"{name}.branch3x3dbl_3")
    return beside(small, *large, *double, conv(pool(x), f"{name}.branch_pool", 192))


def forked(x: jax.Array, name: str) -> tuple[jax.Array, jax.Array]:
    """Along the rows, and along the columns."""
    return conv(x, f"{name}a", 384, 1, 3), conv(x, f"{name}b", 384, 3, 1)


def chain(x: jax.Array, name: str, *layers: tuple[int, ...]) -> jax.Array:
    """Convolutions NAME_1, NAME_2, ..., each (features, height, width, stride), the last three 1 if left out."""
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
    """A `Convolution`; padded to keep the image's size, but not where it has a stride."""
    padding = padding or ("SAME" if stride == 1 else "VALID")
    return Convolution(features, (height, width), stride, padding, name=name)(x)


def beside(*branches: jax.Array) -> jax.Array:
    """The channels of all branches."""
    return jnp.concatenate(branches, -1)


def maximum(x: jax.Array, stride: int = 2, padding: Padding = "VALID") -> jax.Array:
    """The maximum of 3x3 pixels."""
    return nn.max_pool(x, (3, 3), (stride, stride), padding)


def average(x: jax.Array) -> jax.Array:
    """The mean of those of 3x3 pixels that are in the image."""
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


class Reader(NamedTuple):
    """What reads images.

    read    u8[images, height, width, 1 or 3] -> features f32[images, 2048]
    sha256  of the file of its weights, in hexadecimal
    """

    read: Callable[[np.ndarray], np.ndarray]
    sha256: str


def reader(path: str) -> Reader:
    """Inception with the weights in the file `path`, see the module. Raises Mistake where it holds no such weights."""
    params = weights(path)
    with Path(path).open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    net = jax.jit(lambda params, images: Inception().apply({"params": params}, resized(images)))

    def read(images: np.ndarray) -> np.ndarray:
        parts = (images[start : start + BATCH] for start in range(0, len(images), BATCH))
        return np.concatenate([np.asarray(net(params, part)) for part in parts])

    return Reader(read, sha256)


def resized(images: jax.Array) -> jax.Array:
    """u8[batch, height, width, 1 or 3] -> f32[batch, 299, 299, 3] in [-1, 1]: bilinear, as the port to PyTorch does."""
    images = jnp.broadcast_to(images.astype(jnp.float32) / 127.5 - 1, (*images.shape[:3], 3))
    return jax.image.resize(images, (len(images), SIDE, SIDE, 3), "bilinear", antialias=False)


def weights(path: str) -> dict[str, dict[str, np.ndarray]]:
    """The parameters of `Inception` in the .npz file `path`; what else it holds, such as the classifier, is ignored."""
    mend = "make it of pytorch-fid's weights by the three lines in research/nets/inception.py"
    image = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
    wanted = jax.eval_shape(Inception().init, jax.random.key(0), image)["params"]
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {name: file[name] for name in (f"{a}.{b}" for a in wanted for b in wanted[a]) if name in file}
    except (OSError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise Mistake(f"inception: {path} can't be read as an .npz file of arrays ({error}): {mend}") from None
    for layer, leaves in wanted.items():
        for leaf, like in leaves.items():
            found = held.get(f"{layer}.{leaf}")
            if found is None:
                raise Mistake(f"inception: {path} holds no {layer}.{leaf}: {mend}")
            if not isinstance(found, np.ndarray) or found.shape != like.shape or found.dtype.kind != "f":
                shown = f"{found.dtype} {found.shape}" if isinstance(found, np.ndarray) else "no array"
                raise Mistake(f"inception: {layer}.{leaf} in {path} is {shown}, not floats {like.shape}: {mend}")
    return {a: {b: held[f"{a}.{b}"].astype(np.float32) for b in leaves} for a, leaves in wanted.items()}
