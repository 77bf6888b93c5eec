"""Nets that give every action's value: for vectors, and for MinAtar's images."""

import flax.linen as nn
import jax

from research.core.modules import Filled
from research.nets.conv import Conv


class MLP(nn.Module):
    """Dense layers with ReLU; 120 and 84 wide as in CleanRL's DQN (Huang et al. 2022, arXiv:2111.08819)."""

    widths: tuple[int, ...] = (120, 84)
    outputs: Filled[int] = 0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """f32[batch, ...] -> f32[batch, outputs]."""
        x = x.reshape(x.shape[0], -1)
        for layer, width in enumerate(self.widths):
            x = nn.relu(nn.Dense(width, name=None if layer else "stem")(x))
        return nn.Dense(self.outputs, name="head")(x)


class MinAtarNet(nn.Module):
    """A 3x3 convolution and a dense layer, as in MinAtar's own DQN (Young & Tian 2019, arXiv:1903.03176).

    Attributes:
        channels: of the convolution
        hidden: width of the dense layer
    """

    channels: int = 16
    hidden: int = 128
    outputs: Filled[int] = 0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Images f32[batch, 10, 10, objects] -> f32[batch, outputs]."""
        x = nn.relu(
            Conv(self.channels, padding="VALID", name="stem")(x.transpose(3, 1, 2, 0))
        )  # its layout, see conv.py
        x = x.reshape(-1, x.shape[-1]).T
        x = nn.relu(nn.Dense(self.hidden)(x))
        return nn.Dense(self.outputs, name="head")(x)
