"""Recurrent Q-networks, for environments that an observation does not show whole."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core.modules import FromData


class RecurrentQ(nn.Module):
    """A dense layer, an LSTM and a linear layer (Hausknecht & Stone 2015, arXiv:1507.06527).

    Its memory is one array, f32[batch, 2 * width]: the LSTM's cell and hidden states. It is 0 where an episode starts.

    Attributes:
        width: width of the dense layer and of the LSTM
        outputs: number of actions
    """

    width: int = 64
    outputs: FromData[int] = 0

    def setup(self) -> None:
        self.stem = nn.Dense(self.width)
        self.lstm = nn.OptimizedLSTMCell(self.width)
        self.head = nn.Dense(self.outputs)

    def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """Flat observations that end in the memory, f32[batch, features + 2 * width].

        Returns the memory after them, and the actions' values f32[batch, outputs].
        """
        observation, cell, hidden = jnp.split(x, (x.shape[1] - 2 * self.width, x.shape[1] - self.width), 1)
        carry, features = self.lstm((cell, hidden), nn.relu(self.stem(observation)))
        return jnp.concatenate(carry, -1), self.head(features)
