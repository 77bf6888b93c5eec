"""Masked autoencoders: He, Chen, Xie, Li, Dollár & Girshick 2022 (arXiv:2111.06377)."""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core.errors import positive
from research.nets.dense import Dense
from research.nets.transformer import KERNEL_INIT, TENSOR_AXES, Blocks, Stack
from research.nets.vit import SMALL, PatchEncoder, Positions, to_all_patches


class MaskedAutoencoder(nn.Module):
    """Encodes some of an image's patches, and decodes all of them.

    The encoder's parameters have the same names as those of a `ViT`.

    Attributes:
        stack: the blocks of the encoder
        patch: side of a patch, in pixels; it divides the image's height and width
        decoder: the blocks of the decoder
    """

    stack: Stack = SMALL
    patch: int = 4
    decoder: Stack = Stack(layers=2, width=128, heads=4, positions="sinusoidal")

    tensor_axes: ClassVar[Mapping[str, int]] = TENSOR_AXES

    def __post_init__(self) -> None:
        positive(self, "net", "patch")
        super().__post_init__()

    def setup(self) -> None:
        self.encoder = PatchEncoder(self.stack, self.patch)
        self.unmasking = Unmasking(self.decoder, self.patch)

    def __call__(self, inputs: tuple[jax.Array, jax.Array], train: bool = False) -> jax.Array:
        """(images [batch, height, width, channels], kept i32[batch, n]) -> the patches [batch, patches, numbers]."""
        images, kept = inputs
        return self.unmasking(self.encoder(images, train, kept), kept, images.shape[1:], train)

    def features(self, images: jax.Array, train: bool = False) -> jax.Array:
        """The mean over all patches of the encoder's features, [batch, width], as a `ViT` reads it."""
        return self.encoder(images, train).mean(1)


class Unmasking(nn.Module):
    """The decoder: features of the patches that are kept, and a learned token for each other one, make all patches."""

    stack: Stack
    patch: int

    @nn.compact
    def __call__(self, x: jax.Array, kept: jax.Array, shape: tuple[int, ...], train: bool) -> jax.Array:
        """x [batch, n, features] at the places kept i32[batch, n] -> [batch, patches, numbers].

        shape: (height, width, channels) of the images
        """
        height, width, channels = shape
        grid = height // self.patch, width // self.patch
        x = Dense(self.stack.width, kernel_init=nn.initializers.xavier_uniform(), name="stem")(x)
        token = self.param("token", KERNEL_INIT, (self.stack.width,)).astype(x.dtype)
        everywhere = jnp.broadcast_to(token, (x.shape[0], grid[0] * grid[1], self.stack.width))
        x = everywhere.at[jnp.arange(x.shape[0])[:, None], kept].set(x)
        x = Positions(self.stack, grid, name="positions")(x)
        x = Blocks(self.stack, name="blocks")(x, to_all_patches(), train)[0]
        return Dense(self.patch**2 * channels, kernel_init=nn.initializers.xavier_uniform(), name="head")(x)
