"""The projection head of contrastive learning: Chen et al. 2020 (arXiv:2002.05709, section 4.2)."""

import flax.linen as nn
import jax

from research.core.errors import positive
from research.nets.dense import Dense


class Projection(nn.Module):
    """A dense layer with ReLU, and a linear one.

    Attributes:
        hidden: width of the first layer
        width: width of the projections
    """

    hidden: int = 512
    width: int = 128

    def __post_init__(self) -> None:
        positive(self, "projection", "hidden")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Features [batch, n] -> projections [batch, width]."""
        return Dense(self.width, name="head")(nn.relu(Dense(self.hidden)(x)))
