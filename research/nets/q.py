"""Q-networks, which give the value of every action: for vectors, and for the images of MinAtar."""

import flax.linen as nn
import jax

from research.core.modules import FromData
from research.nets.conv import Conv


class MLP(nn.Module):
    """Dense layers with ReLU.

    Attributes:
        widths: widths of the hidden layers; 120 and 84 are those of CleanRL's DQN (Huang et al. 2022, arXiv:2111.08819)
    """

    widths: tuple[int, ...] = (120, 84)
    outputs: FromData[int] = 0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Observations f32[batch, ...] -> the actions' values f32[batch, outputs]."""
        x = x.reshape(x.shape[0], -1)
        for layer, width in enumerate(self.widths):
            x = nn.relu(nn.Dense(width, name=None if layer else "stem")(x))
        return nn.Dense(self.outputs, name="head")(x)


class MinAtarNet(nn.Module):
    """A 3x3 convolution and a dense layer: the network of MinAtar's own DQN (Young & Tian 2019, arXiv:1903.03176).

    Attributes:
        channels: output channels of the convolution
        hidden: width of the dense layer before the last one
    """

    channels: int = 16
    hidden: int = 128
    outputs: FromData[int] = 0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Observations f32[batch, 10, 10, channels] -> the actions' values f32[batch, outputs]."""
        x = x.transpose(3, 1, 2, 0)  # the layout of conv.py
        x = nn.relu(Conv(self.channels, padding="VALID", name="stem")(x))
        x = x.reshape(-1, x.shape[-1]).T
        x = nn.relu(nn.Dense(self.hidden)(x))
        return nn.Dense(self.outputs, name="head")(x)
