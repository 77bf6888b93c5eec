"""Q-networks, which give the value of every action: for vectors, and for the images of MinAtar."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core.errors import positive
from research.core.modules import FromData, RandomByExample, own_keys
from research.nets.conv import Conv


class QNet(nn.Module):
    """What Q-networks have in common. Each gives f32[batch, outputs * atoms].

    Attributes:
        layer_norm: whether layers are followed by layer normalisation (Ba, Kiros & Hinton 2016, arXiv:1607.06450)
        dueling: whether the last layer gives the value of the state and the actions' advantages over their mean, whose
            sums the outputs are (Wang et al. 2016, arXiv:1511.06581)
        noisy: whether dense layers are noisy, see `NoisyDense`; epsilon may then be 0
        outputs: number of actions
        atoms: numbers that describe the distribution of an action's return; 1 is its expectation
    """

    layer_norm: bool = False
    dueling: bool = False
    noisy: bool = False
    outputs: FromData[int] = 0
    atoms: FromData[int] = 1

    def dense(self, x: jax.Array, width: int, train: bool, name: str | None = None) -> jax.Array:
        """A dense layer, without what follows it."""
        return NoisyDense(width, name=name)(x, train) if self.noisy else nn.Dense(width, name=name)(x)

    def activated(self, x: jax.Array, axis: int = -1) -> jax.Array:
        """What follows a layer whose features are in `axis`."""
        return nn.relu(nn.LayerNorm(reduction_axes=axis, feature_axes=axis)(x) if self.layer_norm else x)

    def head(self, x: jax.Array, train: bool) -> jax.Array:
        """The last layer: [batch, features] -> [batch, outputs * atoms]."""
        outputs = self.dense(x, self.outputs * self.atoms, train, "head")
        if not self.dueling:
            return outputs
        advantage = outputs.reshape(-1, self.outputs, self.atoms)
        value = self.dense(x, self.atoms, train, "value")[:, None]
        return (value + advantage - advantage.mean(1, keepdims=True)).reshape(outputs.shape)


class MLP(QNet):
    """Dense layers with ReLU.

    Attributes:
        widths: widths of the hidden layers; 120 and 84 are those of CleanRL's DQN (Huang et al. 2022, arXiv:2111.08819)
    """

    widths: tuple[int, ...] = (120, 84)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Observations f32[batch, ...] -> the actions' values f32[batch, outputs * atoms]."""
        x = x.reshape(x.shape[0], -1)
        for layer, width in enumerate(self.widths):
            x = self.activated(self.dense(x, width, train, None if layer else "stem"))
        return self.head(x, train)


class MinAtarNet(QNet):
    """A 3x3 convolution and a dense layer: the network of MinAtar's own DQN (Young & Tian 2019, arXiv:1903.03176).

    Attributes:
        channels: output channels of the convolution
        hidden: width of the dense layer before the last one
    """

    channels: int = 16
    hidden: int = 128

    def __post_init__(self) -> None:
        positive(self, "net", "hidden")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Observations f32[batch, 10, 10, channels] -> the actions' values f32[batch, outputs * atoms]."""
        x = x.transpose(3, 1, 2, 0)  # the layout of conv.py
        x = Conv(self.channels, padding="VALID", name="stem")(x)
        x = self.activated(x, axis=0)
        x = self.activated(self.dense(x.reshape(-1, x.shape[-1]).T, self.hidden, train))
        return self.head(x, train)


class Table(nn.Module):
    """A table of values: one number for each state and action, which are 0 at first.

    States are one-hot vectors, as `environments.make` encodes whole numbers. Gradient descent on half the squared error
    of one entry is the update of tabular Q-learning.
    """

    outputs: FromData[int] = 0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """States f32[batch, ...] -> the actions' values f32[batch, outputs]."""
        x = x.reshape(x.shape[0], -1)
        return nn.Dense(self.outputs, use_bias=False, kernel_init=nn.initializers.zeros, name="table")(x)


class NoisyDense(RandomByExample):
    """A dense layer whose weights are noisy in training (Fortunato et al. 2018, arXiv:1706.10295, section 3).

    The noise is factorised, and every example has its own: y = W x + b + e' (s (e x)) + s' e', where e and e' are
    f(normal) = sign * sqrt(|normal|), of the size of x and of y.

    Attributes:
        width: number of outputs
        sigma: the scale of the noise at the start, times the root of the number of inputs; .5 is the paper's
    """

    width: int = 0
    sigma: float = 0.5

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, keys: jax.Array | None = None) -> jax.Array:
        """[batch, features] -> [batch, width]; without noise where `train` is False. `keys` as for `Dropout`."""
        bound = 1 / math.sqrt(x.shape[-1])
        uniform = lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)
        scale = nn.initializers.constant(self.sigma * bound)
        kernel = self.param("kernel", uniform, (x.shape[-1], self.width))
        bias = self.param("bias", uniform, (self.width,))
        kernel_noise = self.param("kernel_noise", scale, (x.shape[-1], self.width))
        bias_noise = self.param("bias_noise", scale, (self.width,))
        outputs = x @ kernel + bias
        if not train:
            return outputs
        keys = own_keys(self.make_rng("dropout"), len(x), keys)
        normal = jax.vmap(lambda key: jax.random.normal(key, (x.shape[-1] + self.width,)))(keys).astype(x.dtype)
        noise = jnp.sign(normal) * jnp.sqrt(jnp.abs(normal))
        of_inputs, of_outputs = noise[:, : x.shape[-1]], noise[:, x.shape[-1] :]
        return outputs + of_outputs * ((of_inputs * x) @ kernel_noise + bias_noise)
