"""Augmentation of images: a pure function of one key for each example, traced inside the compiled step."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from research.core.errors import UserError, between


@dataclass(frozen=True)
class Augment:
    """Random changes of each training image, applied in this order; each is off by default.

    They are drawn by the step and the image's place in the data: where a batch is larger than the data and has an image
    twice, both are changed alike.

    Attributes:
        crop: smallest area of a random part, as a fraction of the image's, that is resized to the whole image; its
            sides, as fractions of the image's, are in a ratio of 3/4 to 4/3 (after Szegedy et al. 2015,
            arXiv:1409.4842, where they are so in pixels: the same for square images); None: no part
        jitter: strength s of random changes of colour, in four fifths of the images: brightness, contrast and
            saturation by factors in 1 - 0.8 s ... 1 + 0.8 s, so that s is at most 1.25, and hue by at most 72 s degrees
            (Chen et al. 2020, arXiv:2002.05709, appendix A); of images of one channel, brightness and contrast alone;
            None: no changes
        grey: probability that an image of three channels loses its colours; None: 0
        flip: flip half of the images from left to right
        alternate: with flip: a random half of them in the first pass over the data, and in each later one those that
            were not in the one before it, so that two passes show both sides of each image (Jordan 2024,
            arXiv:2404.00498)
        rotation: largest angle of rotation in degrees, in either direction; None: no rotation
        scaling: largest relative change of size, so that factors are in 1 - scaling ... 1 + scaling; None: no scaling
        shift: largest shift in pixels, along both axes and in either direction ("pad and crop")
        edge: what moves in: black, or the image reflected at its outermost pixels
        cutout: side in pixels of a black square, centred anywhere in the image and cut off at its edges (DeVries &
            Taylor 2017, arXiv:1708.04552); 0: no square
        noise: standard deviation of Gaussian noise, for pixels in 0 ... 1; None: no noise
    """

    crop: float | None = None
    jitter: float | None = None
    grey: float | None = None
    flip: bool = False
    alternate: bool = False
    rotation: float | None = None
    scaling: float | None = None
    shift: int = 0
    edge: Literal["black", "reflect"] = "black"
    cutout: int = 0
    noise: float | None = None

    def __post_init__(self) -> None:
        between(self, "augment", 0, 1, "crop", "grey", "scaling")
        between(self, "augment", 0, math.inf, "shift", "cutout", "rotation", "noise")
        between(self, "augment", 0, 1.25, "jitter")
        if self.alternate and not self.flip:
            raise UserError("augment.alternate is how images are flipped: give augment.flip too, or leave it out")


def augment(config: Augment, keys: jax.Array, images: jax.Array, mirrored: jax.Array | None = None) -> jax.Array:
    """Augments each image by the key at its position.

    keys    [batch]. If they are derived from the global index of the examples, the result does not depend on where in
            the batch, or on which device, an example is
    images  f32[batch, height, width, channels] in 0 ... 1; the result has the same shape
    mirrored  bool[batch], the images to flip, see `alternating`; None: random ones. Raises UserError where
            `config.alternate` needs it

    Rotation, scaling, flip and shift are one bilinear resampling. Without rotation and scaling, pixels are moved
    unchanged.
    """
    if config.flip and config.alternate:
        if mirrored is None:
            raise UserError(
                "augment.alternate: this learner does not count passes over the data, and can't flip by them"
            )
        return jax.vmap(lambda *one: _augment_one(config, *one))(keys, images, mirrored)
    return jax.vmap(lambda key, image: _augment_one(config, key, image))(keys, images)


def alternating(keys: jax.Array, epoch: jax.Array) -> jax.Array:
    """Which images are flipped, bool[batch]: a random half in pass 0, in each later one those that were not before it.

    keys   [batch], of each example's own, the same at every step
    epoch  u32[batch], the pass over the data that each example is of
    """
    return (jax.vmap(jax.random.bits)(keys) + epoch) % 2 == 1


Views = Literal["one", "mirror", "mirror_shift"]
"""What a net sees of an image in evaluation, see `views`."""


def views(kind: Views, images: jax.Array) -> Iterator[tuple[float, jax.Array]]:
    """The views of images [batch, height, width, channels] whose outputs are averaged in evaluation, with weights.

    one           the images as they are
    mirror        and as mirror images
    mirror_shift  half of the weight on these two, and half on both of them moved by a pixel, up and left or down and
                  right, with reflected edges (Jordan 2024, arXiv:2404.00498: multi-crop)
    """
    height, width = images.shape[1:3]
    moved: list[tuple[float, jax.Array]] = [(1.0, images)]
    if kind == "mirror_shift":
        padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), "reflect")
        crops = [padded[:, at : at + height, at : at + width] for at in (0, 2)]
        moved = [(0.5, images), *((0.25, crop) for crop in crops)]
    for weight, view in moved:
        if kind == "one":
            yield weight, view
        else:
            yield weight / 2, view
            yield weight / 2, view[:, :, ::-1]


def _augment_one(config: Augment, key: jax.Array, image: jax.Array, mirrored: jax.Array | None = None) -> jax.Array:
    """Augments one image [height, width, channels]."""
    height, width, channels = image.shape
    if config.crop is not None:
        image = _resized_crop(jax.random.fold_in(key, 2), image, config.crop)
    if config.jitter is not None:
        image = _jittered(jax.random.fold_in(key, 3), image, config.jitter)
    if config.grey is not None and channels == 3:
        image = jnp.where(jax.random.uniform(jax.random.fold_in(key, 4)) < config.grey, _grey(image), image)
    # Each effect has numbers of its own, so that it does not depend on which others are on.
    dy, dx, side, angle, factor, cy, cx = jax.random.uniform(key, (7,))
    dy, dx = (jnp.floor(d * (2 * config.shift + 1)) - config.shift for d in (dy, dx))
    mirror = jnp.where(side < 0.5 if mirrored is None else mirrored, -1.0, 1.0) if config.flip else 1.0
    y, x = jnp.arange(height, dtype=jnp.float32), jnp.arange(width, dtype=jnp.float32)
    my, mx = (height - 1) / 2, (width - 1) / 2

    if config.rotation is not None or config.scaling is not None:
        angle = jnp.deg2rad((2 * angle - 1) * (0.0 if config.rotation is None else config.rotation))
        factor = 1 + (2 * factor - 1) * (0.0 if config.scaling is None else config.scaling)
        sine, cosine = jnp.sin(angle) / factor, jnp.cos(angle) / factor
        v, u = (y - dy - my)[:, None], (x - dx - mx)[None, :]
        image = _bilinear(image, my + cosine * v - sine * u, mx + mirror * (sine * v + cosine * u), config.edge)
    elif config.shift or config.flip:
        image = _gather(image, y - dy, mx + mirror * (x - dx - mx), config.edge)
    if config.cutout:
        top, left = (jnp.floor(c * n) - config.cutout // 2 for c, n in ((cy, height), (cx, width)))
        inside = lambda at, first: (at >= first) & (at < first + config.cutout)
        image = jnp.where((inside(y, top)[:, None] & inside(x, left)[None, :])[..., None], 0, image)
    if config.noise is not None:
        image = image + config.noise * jax.random.normal(jax.random.fold_in(key, 1), image.shape)
    return image


def _resized_crop(key: jax.Array, image: jax.Array, smallest: float) -> jax.Array:
    """A random part of the image, resized to the image's shape by bilinear interpolation.

    Its area is uniform in `smallest` ... 1, and its ratio of sides log-uniform in 3/4 ... 4/3, all as fractions of the
    image's. Sides are at most the image's.
    """
    area, ratio, top, left = jax.random.uniform(key, (4,))
    root = jnp.exp((ratio - 0.5) * jnp.log(4 / 3))
    side = jnp.sqrt(smallest + (1 - smallest) * area)
    share = jnp.minimum(jnp.stack([side * root, side / root]), 1)  # of height and width
    first = jnp.stack([top, left]) * (1 - share) * jnp.array(image.shape[:2])
    return jax.image.scale_and_translate(
        image, image.shape, (0, 1), 1 / share, -first / share, method="linear", antialias=False
    )


def _jittered(key: jax.Array, image: jax.Array, strength: float) -> jax.Array:
    """The image with another brightness, contrast, saturation and hue, changed in this order and cut off at 0 and 1."""
    some, *factors, angle = jax.random.uniform(key, (5,))
    brightness, contrast, saturation = (1 + 0.8 * strength * (2 * factor - 1) for factor in factors)
    mixed = lambda a, b, share: jnp.clip(b + share * (a - b), 0, 1)
    found = jnp.clip(brightness * image, 0, 1)
    if image.shape[2] == 3:
        found = mixed(found, _grey(found).mean(), contrast)
        found = mixed(found, _grey(found), saturation)
        found = jnp.clip(found @ _hue_rotation(0.4 * jnp.pi * strength * (2 * angle - 1)), 0, 1)
    else:
        found = mixed(found, found.mean(), contrast)
    return jnp.where(some < 0.8, found, image)


def _grey(image: jax.Array) -> jax.Array:
    """The luma of ITU-R BT.601 in all three channels."""
    return jnp.broadcast_to((image @ jnp.array([0.299, 0.587, 0.114]))[..., None], image.shape)


def _hue_rotation(angle: jax.Array) -> jax.Array:
    """The rotation of colours about the axis of greys, f32[3, 3], by an angle in radians: colours @ rotation."""
    cosine, sine = jnp.cos(angle), jnp.sin(angle) / 3**0.5
    cross = jnp.array([[0.0, 1.0, -1.0], [-1.0, 0.0, 1.0], [1.0, -1.0, 0.0]])
    return cosine * jnp.eye(3) + sine * cross + (1 - cosine) / 3


def _gather(image: jax.Array, y: jax.Array, x: jax.Array, edge: str) -> jax.Array:
    """The pixels at the rows y[height] and columns x[width], whole numbers; outside of the image see `Augment.edge`."""
    height, width, _ = image.shape
    if edge == "reflect":
        y, x = (n - 1 - abs(n - 1 - at % max(2 * n - 2, 1)) for at, n in ((y, height), (x, width)))
    inside = ((y >= 0) & (y < height))[:, None] & ((x >= 0) & (x < width))[None, :]
    rows, columns = (jnp.clip(at, 0, n - 1).astype(jnp.int32) for at, n in ((y, height), (x, width)))
    return jnp.where(inside[..., None], image[rows[:, None], columns[None, :]], 0)


def _bilinear(image: jax.Array, y: jax.Array, x: jax.Array, edge: str) -> jax.Array:
    """The image at the points y, x [height, width], interpolated between its pixels; outside see `Augment.edge`."""
    mode = "mirror" if edge == "reflect" else "constant"
    order1 = lambda channel: jax.scipy.ndimage.map_coordinates(channel, (y, x), order=1, mode=mode)
    return jax.vmap(order1, in_axes=2, out_axes=2)(image)
