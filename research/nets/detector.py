"""A one-stage detector: a residual backbone, a feature pyramid (Lin et al. 2017, arXiv:1612.03144) and FCOS's head.

FCOS: Tian, Shen, Chen & He 2019 (arXiv:1904.01355). All norms are group normalisation (Wu & He 2018, arXiv:1803.08494),
with which a detector trains from scratch (He, Girshick & Dollar 2019, arXiv:1811.08883).
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core.errors import UserError, positive
from research.core.modules import FromData
from research.nets.conv import Conv, GroupNorm, convolve
from research.nets.residual import upsample

PRIOR = 0.01
"""Probability that the untrained net gives each class at each location (Lin et al. 2017, arXiv:1708.02002)."""


class Outputs(NamedTuple):
    """What a detector says of every location of every level, the finest level first, row by row.

    logits      [batch, locations, classes], of each class
    distances   [batch, locations, 4], from the location to the top, left, bottom and right of its object, in strides
    centerness  [batch, locations], logits
    """

    logits: jax.Array
    distances: jax.Array
    centerness: jax.Array


class Detector(nn.Module):
    """Images to `Outputs`.

    Attributes:
        stem: output channels of the first convolution, which halves the height and width
        widths: output channels of each stage of the backbone; each stage halves the height and width once more
        blocks: number of residual blocks (two 3x3 convolutions each) in each stage
        levels: how many of the stages, from the last one back, are levels of the pyramid, on which objects are found
        channels: channels of the pyramid and of the head
        tower: number of 3x3 convolutions in each of the head's two branches, for classes and for boxes
        groups: number of groups of group normalisation
    """

    stem: int = 32
    widths: tuple[int, ...] = (64, 128, 192)
    blocks: tuple[int, ...] = (1, 2, 2)
    levels: int = 2
    channels: int = 96
    tower: int = 2
    groups: int = 8
    outputs: FromData[int] = 0

    def __post_init__(self) -> None:
        positive(self, "net", "stem", "widths", "blocks", "levels", "channels", "groups")
        if len(self.widths) != len(self.blocks):
            raise UserError(f"net.widths {self.widths} and net.blocks {self.blocks} must have the same length")
        if self.levels > len(self.widths):
            raise UserError(f"net.levels {self.levels} must be at most the number of stages, {len(self.widths)}")
        super().__post_init__()

    @property
    def strides(self) -> tuple[int, ...]:
        """The distance of neighbouring locations of each level, in pixels."""
        return tuple(4 * 2**stage for stage in range(len(self.widths)))[-self.levels :]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> Outputs:
        """Images f32[batch, height, width, channels] -> what is at each location."""
        side = self.strides[-1]
        if x.shape[1] % side or x.shape[2] % side:
            raise UserError(f"images of {x.shape[1]}x{x.shape[2]}: the detector needs multiples of {side}")
        x = x.transpose(3, 1, 2, 0)
        x = nn.relu(GroupNorm(self.groups)(Conv(self.stem, stride=2, use_bias=False, name="stem")(x)))
        stages = []
        for width, blocks in zip(self.widths, self.blocks, strict=True):
            for block in range(blocks):
                x = Block(width, 1 if block else 2, self.groups)(x)
            stages.append(x)

        norm = lambda x: GroupNorm(self.groups)(x)
        pyramid: list[jax.Array] = []
        for stage in reversed(stages[-self.levels :]):
            lateral = norm(Conv(self.channels, kernel_size=1, use_bias=False)(stage))
            above = lateral + upsample(pyramid[0]) if pyramid else lateral
            pyramid.insert(0, above)
        head = Head(self.channels, self.tower, self.groups, self.outputs, name="head")
        found = []
        for level, x in enumerate(pyramid):
            x = nn.relu(norm(Conv(self.channels, use_bias=False)(x)))
            logits, distances, centerness = head(x)
            scale = self.param(f"scale_{level}", nn.initializers.ones, ())
            found.append(Outputs(logits, jnp.exp(scale * distances), centerness[..., 0]))
        return Outputs(*(jnp.concatenate(parts, 1) for parts in zip(*found, strict=True)))


class Head(nn.Module):
    """The head that all levels share: two branches, the second one for boxes and centerness; see `Detector`."""

    channels: int
    tower: int
    groups: int
    outputs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[channels, height, width, batch] -> [batch, height * width, n]: class logits, log distances, centerness."""
        classes = boxes = x
        for _ in range(self.tower):
            conv = lambda x: nn.relu(GroupNorm(self.groups)(Conv(self.channels, use_bias=False)(x)))
            classes, boxes = conv(classes), conv(boxes)
        output = lambda n, name, bias=0.0: Output(n, bias, name=name)
        logits = output(self.outputs, "classes", -math.log((1 - PRIOR) / PRIOR))(classes)
        return logits, output(4, "distances")(boxes), output(1, "centerness")(boxes)


class Output(nn.Module):
    """A 3x3 convolution with small initial weights, whose outputs are a row for each location."""

    features: int
    bias: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[channels, height, width, batch] -> [batch, height * width, features]."""
        kernel = self.param("kernel", nn.initializers.normal(0.01), (3, 3, x.shape[0], self.features))
        bias = self.param("bias", nn.initializers.constant(self.bias), (self.features,))
        y = convolve(x, kernel)
        return y.transpose(3, 1, 2, 0).reshape(y.shape[-1], -1, self.features) + bias


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut around them, with group normalisation."""

    width: int
    stride: int
    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[channels, height, width, batch] -> [self.width, height / stride, width / stride, batch]."""
        norm = lambda x: GroupNorm(self.groups)(x)
        y = nn.relu(norm(Conv(self.width, stride=self.stride, use_bias=False)(x)))
        y = norm(Conv(self.width, use_bias=False)(y))
        if x.shape != y.shape:
            x = norm(Conv(self.width, kernel_size=1, stride=self.stride, use_bias=False)(x))
        return nn.relu(x + y)
