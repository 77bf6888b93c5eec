"""Augmentation of images together with their boxes: a pure function of one key for each example, see `augment.py`."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from research.core.errors import between
from research.data.boxes import Objects
from research.data.canvases import interpolation


@dataclass(frozen=True)
class BoxAugment:
    """Random changes of each training image and its boxes; each is off by default.

    Attributes:
        flip: flip half of the images from left to right
        flip_vertical: flip half of the images upside down, where an object is the same then
        scaling: largest factor of size is 1 + scaling, the smallest one 1 / (1 + scaling)
        stretch: likewise, how much more the height changes than the width
        shift: largest shift, as a fraction of the image's height and width; what moves in has the image's mean colour
        brightness: largest number that is added to all pixels, which are in 0 ... 1, or subtracted
        contrast: largest relative change of the pixels' distances from the image's mean
        colour: largest relative change of each channel
        min_visible: an object of which less than this part is left inside the image is dropped; and one of which
            nothing is left
    """

    flip: bool = False
    flip_vertical: bool = False
    scaling: float = 0.0
    stretch: float = 0.0
    shift: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    colour: float = 0.0
    min_visible: float = 0.3

    def __post_init__(self) -> None:
        names = ("scaling", "stretch", "shift", "brightness", "contrast", "colour")
        between(self, "augment", 0, math.inf, *names)
        between(self, "augment", 0, 1, "min_visible")


def augment_boxes(
    config: BoxAugment, keys: jax.Array, images: jax.Array, objects: Objects
) -> tuple[jax.Array, Objects]:
    """Augments each image f32[batch, height, width, channels] in 0 ... 1, and its objects, by the key at its position.

    Colours change first. Flips, scaling, stretching and shift are one linear resampling along each axis.
    """
    return jax.vmap(lambda *one: _augment_one(config, *one))(keys, images, objects)


def _augment_one(config: BoxAugment, key: jax.Array, image: jax.Array, objects: Objects) -> tuple[jax.Array, Objects]:
    height, width, channels = image.shape
    factor, taller, light, apart, *rest = jax.random.uniform(key, (8 + channels,), minval=-1)
    move, sides, tint = jnp.stack(rest[:2]), jnp.stack(rest[2:4]), jnp.stack(rest[4:])

    image = image * (1 + config.colour * tint)
    image = (image - image.mean()) * (1 + config.contrast * apart) + image.mean() + config.brightness * light
    image = image.clip(0, 1)

    extent = jnp.array([height, width], jnp.float32)
    stretched = jnp.log1p(config.stretch) * taller / 2
    zoom = jnp.exp(jnp.log1p(config.scaling) * factor + jnp.stack([stretched, -stretched]))
    mirror = jnp.where(sides < jnp.array([0.0 if config.flip_vertical else -2, 0.0 if config.flip else -2]), -1, 1)
    zoom, centre = zoom * mirror, extent / 2 + config.shift * move * extent
    # A point p of the image moves to (p - extent / 2) * zoom + centre; pixel k has its middle at k + 1/2.
    rows, columns = (
        interpolation((jnp.arange(n) + 0.5 - centre[axis]) / zoom[axis] + n / 2 - 0.5, n, 1 / jnp.abs(zoom[axis]))
        for axis, n in enumerate((height, width))
    )
    mean = image.mean((0, 1))
    image = jnp.einsum("yh,hwc,xw->yxc", rows, image - mean, columns, precision="highest") + mean

    corners = (objects.boxes.reshape(-1, 2, 2) - extent / 2) * zoom + centre
    low, high = corners.min(1), corners.max(1)
    area = lambda low, high: jnp.maximum(high - low, 0).prod(-1)
    seen = low.clip(0, extent), high.clip(0, extent)
    inside = (low >= 0).all(-1) & (high <= extent).all(-1)  # of which the areas need not be the same to the bit
    valid = objects.valid & (area(*seen) > 0) & (inside | (area(*seen) >= config.min_visible * area(low, high)))
    boxes = jnp.where(valid[:, None], jnp.concatenate(seen, -1), 0)
    return image, Objects(boxes, jnp.where(valid, objects.labels, 0), valid)
