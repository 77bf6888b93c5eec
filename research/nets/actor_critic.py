"""Actor-critic networks: parameters of a policy, and the value of an observation.

A policy over discrete actions has logits f32[batch, outputs]. One over continuous actions is Gaussian: the pair of its
mean f32[batch, outputs] and the logarithm of its standard deviation f32[outputs], which is a parameter that does not
depend on the observation (Schulman et al. 2015, arXiv:1502.05477).
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core.errors import positive
from research.core.modules import FromData
from research.nets.conv import Conv

Policy = jax.Array | tuple[jax.Array, jax.Array]


def orthogonal(scale: float = 1.0) -> nn.initializers.Initializer:
    """A random kernel [inputs, outputs] with orthonormal rows or columns, times `scale` (Saxe et al. 2014).

    arXiv:1312.6120. It is the orthogonal factor of the polar decomposition of a Gaussian matrix, which is as uniformly
    distributed as that of its QR decomposition, and is found by Newton and Schulz's iteration: by products alone.
    jax.numpy's `qr`, by which Flax's own does it, can deadlock under `vmap` on a CPU of two cores.
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        rows, columns = sorted(shape)
        x = jax.random.normal(key, (rows, columns))
        x /= jnp.sqrt((x**2).sum())  # so that no singular value is above 1

        def iterate(_: int, x: jax.Array) -> jax.Array:
            gram = jnp.matmul(x, x.T, precision="highest")
            return 1.5 * x - 0.5 * jnp.matmul(gram, x, precision="highest")

        # An iteration multiplies small singular values by 1.5: 60 of them take one of 1e-9 to 1.
        x = jax.lax.fori_loop(0, 60, iterate, x)
        return (scale * (x if shape == (rows, columns) else x.T)).astype(dtype)

    return init


def dense(width: int, name: str | None = None, scale: float = math.sqrt(2)) -> nn.Dense:
    """A dense layer with an orthogonal kernel."""
    return nn.Dense(width, kernel_init=orthogonal(scale), name=name)


class Tower(nn.Module):
    """Dense layers with tanh, and a linear one.

    Attributes:
        widths: widths of the hidden layers
        outputs: width of the last layer
        scale: scale of the last layer's initial weights
    """

    widths: tuple[int, ...]
    outputs: int
    scale: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """f32[batch, ...] -> f32[batch, outputs]."""
        x = x.reshape(x.shape[0], -1)
        for layer, width in enumerate(self.widths):
            x = nn.tanh(dense(width, None if layer else "stem")(x))
        return dense(self.outputs, "head", self.scale)(x)


class ActorCritic(nn.Module):
    """A net for the policy and one for the value, each of dense layers with tanh (Schulman et al. 2017).

    The initial weights are orthogonal, those of the policy's last layer 100 times smaller, so that at first all
    actions are about as likely (Andrychowicz et al. 2021, arXiv:2006.05990).

    Attributes:
        widths: widths of the hidden layers of each of the two
        log_std: initial logarithm of the standard deviation of continuous actions
    """

    widths: tuple[int, ...] = (64, 64)
    log_std: float = 0.0
    outputs: FromData[int] = 0
    continuous: FromData[bool] = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> tuple[Policy, jax.Array]:
        """Observations f32[batch, ...] -> (the policy's parameters, values f32[batch])."""
        policy = Tower(self.widths, self.outputs, 0.01, name="policy")(x)
        value = Tower(self.widths, 1, 1.0, name="value")(x)[:, 0]
        if not self.continuous:
            return policy, value
        log_std = self.param("log_std", nn.initializers.constant(self.log_std), (self.outputs,))
        return (policy, log_std), value


class MinAtarActorCritic(nn.Module):
    """The layers of MinAtar's DQN (Young & Tian 2019, arXiv:1903.03176), shared by the policy and the value.

    Attributes:
        channels: output channels of the convolution
        hidden: width of the dense layer before the last ones
    """

    channels: int = 16
    hidden: int = 128
    outputs: FromData[int] = 0

    def __post_init__(self) -> None:
        positive(self, "net", "hidden")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> tuple[Policy, jax.Array]:
        """Observations f32[batch, 10, 10, channels] -> (logits f32[batch, outputs], values f32[batch])."""
        x = x.transpose(3, 1, 2, 0)  # the layout of conv.py
        x = nn.relu(Conv(self.channels, padding="VALID", name="stem")(x))
        x = x.reshape(-1, x.shape[-1]).T
        x = nn.relu(dense(self.hidden)(x))
        return Tower((), self.outputs, 0.01, name="policy")(x), Tower((), 1, 1.0, name="value")(x)[:, 0]
