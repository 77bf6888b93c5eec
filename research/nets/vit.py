"""Vision Transformer: the blocks of `transformer.py` on the patches of an image.

Dosovitskiy et al. 2021, "An image is worth 16x16 words" (arXiv:2010.11929), in the plain form of Beyer, Zhai &
Kolesnikov 2022, "Better plain ViT baselines for ImageNet-1k" (arXiv:2205.01580): fixed sin-cos positions along both
axes, and the mean over the patches in place of a class token.
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core.errors import UserError, positive
from research.core.modules import FromData
from research.nets.dense import Dense
from research.nets.transformer import KERNEL_INIT, TENSOR_AXES, AttentionInputs, Blocks, Stack, sinusoids

SMALL = Stack(layers=6, width=192, heads=3, mlp_dim=384, positions="sinusoidal")
"""A stack for images of 32x32 pixels."""


class PatchEncoder(nn.Module):
    """Features of each patch of an image that depend on all patches.

    Attributes:
        stack: the blocks; their positions are sinusoidal, of the patch's row and of its column, or learned
        patch: side of a patch, in pixels
    """

    stack: Stack
    patch: int

    @nn.compact
    def __call__(self, images: jax.Array, train: bool, kept: jax.Array | None = None) -> jax.Array:
        """[batch, height, width, channels] -> [batch, patches, features].

        kept: i32[batch, n], the patches that are encoded, counted along rows; None: all

        Raises UserError where the patches do not cover the image, or the positions are rotary.
        """
        grid = images.shape[1] // self.patch, images.shape[2] // self.patch
        stem = Dense(self.stack.width, kernel_init=nn.initializers.lecun_normal(), name="stem")
        x = stem(patches(images, self.patch))
        x = Positions(self.stack, grid, name="positions")(x)
        if kept is not None:
            x = jnp.take_along_axis(x, kept[:, :, None], 1)
        return Blocks(self.stack, name="blocks")(x, to_all_patches(), train)[0]


class Positions(nn.Module):
    """Adds the embeddings of the positions in a grid of patches.

    Attributes:
        grid: rows and columns
    """

    stack: Stack
    grid: tuple[int, int]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, patches, width], row by row -> the same. Raises UserError where the positions are rotary."""
        match self.stack.positions:
            case "sinusoidal":
                table = grid_sinusoids(self.grid, self.stack.width)
            case "learned":
                table = self.param("embedding", KERNEL_INIT, x.shape[1:])
            case "rotary":
                raise UserError("stack.positions: those of patches are sinusoidal or learned, not rotary")
        return x + table.astype(x.dtype)


class ViT(nn.Module):
    """A Vision Transformer that classifies images: a linear layer on the mean of the patches' features.

    Attributes:
        stack: the blocks; their positions are sinusoidal, of the patch's row and of its column, or learned
        patch: side of a patch, in pixels; it divides the image's height and width
    """

    stack: Stack = SMALL
    patch: int = 4
    outputs: FromData[int] = 0

    tensor_axes: ClassVar[Mapping[str, int]] = TENSOR_AXES

    def __post_init__(self) -> None:
        positive(self, "net", "patch")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Images f32[batch, height, width, channels] -> logits [batch, outputs]; of 0 outputs, the features that the
        last layer would read."""
        features = PatchEncoder(self.stack, self.patch, name="encoder")(x, train).mean(1)
        if not self.outputs:
            return features
        return Dense(self.outputs, kernel_init=nn.initializers.zeros, name="head")(features)


def to_all_patches() -> AttentionInputs:
    """Attention from each patch to all patches."""
    return AttentionInputs(jnp.zeros((1, 1), jnp.int32), None, None)


def patches(images: jax.Array, side: int) -> jax.Array:
    """Images [batch, height, width, channels] as patches [batch, patches, side * side * channels], row by row.

    Raises UserError where they do not cover the image.
    """
    batch, height, width, channels = images.shape
    if height % side or width % side:
        raise UserError(f"net.patch={side} does not divide images of {height}x{width}")
    x = images.reshape(batch, height // side, side, width // side, side, channels)
    return x.swapaxes(2, 3).reshape(batch, -1, side * side * channels)


def unpatched(x: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """The images [batch, *shape], (height, width, channels), whose square `patches` are x [batch, patches, numbers]."""
    height, width, channels = shape
    side = round((x.shape[2] / channels) ** 0.5)
    x = x.reshape(-1, height // side, width // side, side, side, channels)
    return x.swapaxes(2, 3).reshape(-1, *shape)


def grid_sinusoids(grid: tuple[int, int], width: int) -> jax.Array:
    """Sinusoidal embeddings [rows * columns, width]: half of the features are those of the row, half of the column."""
    if width % 4:
        raise UserError(f"stack.width must be a multiple of 4 for sinusoidal positions of patches, not {width}")
    row, column = jnp.divmod(jnp.arange(grid[0] * grid[1]), grid[1])
    return jnp.concatenate([sinusoids(at, width // 2) for at in (row, column)], -1)
