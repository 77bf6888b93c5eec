"""RandAugment (Cubuk et al. 2020, arXiv:1909.13719): a pure function of one key for each example, see `augment.py`.

The operations are those of Pillow on pixels of whole numbers 0 ... 255, and their strengths those of torchvision.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from research.core.errors import between

OPERATIONS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "colour",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)
"""The operations that are drawn from. The first six move pixels; the others change their values."""

MOVES = OPERATIONS.index("rotate") + 1
"""How many of them move pixels."""

STRONGEST = 30
"""The largest magnitude."""


@dataclass(frozen=True)
class RandAugment:
    """Some operations that are drawn anew for each training image, one after another; off by default.

    Attributes:
        operations: how many of the 14 operations; 0: none. The paper's are 2
        magnitude: their strength, 0 ... 30; the paper's for ImageNet and ResNet-50 is 9
    """

    operations: int = 0
    magnitude: int = 9

    def __post_init__(self) -> None:
        between(self, "randaugment", 0, math.inf, "operations")
        between(self, "randaugment", 0, STRONGEST, "magnitude")


def randaugment(config: RandAugment, keys: jax.Array, images: jax.Array) -> jax.Array:
    """Augments each image by the key at its position.

    keys    [batch], by the global index of the examples
    images  f32[batch, height, width, channels] in 0 ... 1; the result has the same shape
    """

    def one(key: jax.Array, image: jax.Array) -> jax.Array:
        pixels = jnp.round(image * 255)
        for n in range(config.operations):
            which, side = jax.random.split(jax.random.fold_in(key, n))
            sign = jnp.where(jax.random.bernoulli(side), 1.0, -1.0)
            pixels = operation(jax.random.randint(which, (), 0, len(OPERATIONS)), pixels, config.magnitude, sign)
        return pixels / 255

    return jax.vmap(one)(keys, images) if config.operations else images


def operation(number: jax.Array | int, image: jax.Array, magnitude: int, sign: jax.Array | float) -> jax.Array:
    """One of `OPERATIONS` by its number, of whole numbers f32[height, width, channels] in 0 ... 255.

    sign  1 or -1, the direction of those that have one
    """
    share = magnitude / STRONGEST
    factor = 1 + sign * 0.9 * share
    values = (
        lambda image: brightness(image, factor),
        lambda image: colour(image, factor),
        lambda image: contrast(image, factor),
        lambda image: sharpness(image, factor),
        lambda image: posterize(image, 8 - round(4 * share)),
        lambda image: solarize(image, 255 * (1 - share)),
        autocontrast,
        equalize,
    )
    move = lambda image: affine(image, _matrices(image.shape, share, sign)[jnp.minimum(number, MOVES - 1)])
    return jax.lax.switch(jnp.maximum(number - MOVES + 1, 0), (move, *values), image)


def _matrices(shape: tuple[int, ...], share: float, sign: jax.Array | float) -> jax.Array:
    """What `affine` takes for each of the operations that move pixels, f32[MOVES, 2, 3]."""
    height, width, _ = shape
    shear, angle = sign * 0.3 * share, jnp.deg2rad(-sign * 30 * share)
    x, y = (jnp.trunc(sign * 150 / 331 * share * size) for size in (width, height))
    cosine, sine, zero, one = jnp.cos(angle), jnp.sin(angle), jnp.float32(0), jnp.float32(1)
    back = lambda a, b: (a + b) / 2  # the middle of the image stays
    rotation = (
        (cosine, sine, back(width * (1 - cosine), -height * sine)),
        (-sine, cosine, back(width * sine, height * (1 - cosine))),
    )
    stay_x, stay_y = (one, zero, zero), (zero, one, zero)
    found = (
        (stay_x, stay_y),
        ((one, shear, zero), stay_y),
        (stay_x, (shear, one, zero)),
        ((one, zero, x), stay_y),
        (stay_x, (zero, one, y)),
        rotation,
    )
    return jnp.stack([jnp.stack([jnp.stack([jnp.float32(v) for v in row]) for row in matrix]) for matrix in found])


def affine(image: jax.Array, matrix: jax.Array) -> jax.Array:
    """The image whose pixel (x, y) is that of the image at matrix @ (x, y, 1), f32[2, 3], and 0 outside of it.

    The middle of the first pixel is at (1/2, 1/2); the nearest pixel is taken.
    """
    height, width, _ = image.shape
    x, y = (jnp.arange(size) + 0.5 for size in (width, height))
    column, row = (jnp.floor(a * x[None, :] + b * y[:, None] + c).astype(jnp.int32) for a, b, c in matrix)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return jnp.where(inside[..., None], image[row.clip(0, height - 1), column.clip(0, width - 1)], 0)


def blended(one: jax.Array, image: jax.Array, factor: jax.Array | float) -> jax.Array:
    """one + factor * (image - one), cut off to whole numbers in 0 ... 255."""
    return jnp.floor((one + factor * (image - one)).clip(0, 255))


def grey(image: jax.Array) -> jax.Array:
    """The luma of ITU-R BT.601, f32[height, width, 1]; that of one channel is itself."""
    if image.shape[2] == 1:
        return image
    weights = jnp.array([19595, 38470, 7471], jnp.float32) / 2**16
    return jnp.floor((image * weights).sum(-1, keepdims=True) + 0.5)


def brightness(image: jax.Array, factor: jax.Array | float) -> jax.Array:
    """The image, made brighter by a factor above 1."""
    return blended(jnp.zeros_like(image), image, factor)


def colour(image: jax.Array, factor: jax.Array | float) -> jax.Array:
    """The image with its distance from grey multiplied."""
    return blended(grey(image), image, factor)


def contrast(image: jax.Array, factor: jax.Array | float) -> jax.Array:
    """The image with its distance from the mean grey multiplied."""
    return blended(jnp.floor(grey(image).mean() + 0.5), image, factor)


def sharpness(image: jax.Array, factor: jax.Array | float) -> jax.Array:
    """The image with its distance from a smoothed one multiplied; the pixels at the edge stay."""
    height, width, _ = image.shape
    shifted = [image[y : y + height - 2, x : x + width - 2] for y in range(3) for x in range(3)]
    smooth = jnp.floor((sum(shifted) + 4 * shifted[4]) / 13 + 0.5)
    return blended(image.at[1:-1, 1:-1].set(smooth), image, factor)


def posterize(image: jax.Array, bits: int) -> jax.Array:
    """The image with so many bits of each pixel."""
    step = 2 ** (8 - bits)
    return jnp.floor(image / step) * step


def solarize(image: jax.Array, threshold: float) -> jax.Array:
    """The image with the pixels from the threshold on inverted."""
    return jnp.where(image < threshold, image, 255 - image)


def autocontrast(image: jax.Array) -> jax.Array:
    """The image with each channel stretched to 0 ... 255; one that is constant stays."""
    low, high = image.min((0, 1)), image.max((0, 1))
    scale = 255 / jnp.where(high > low, high - low, 1)
    return jnp.where(high > low, jnp.floor((image * scale - low * scale).clip(0, 255)), image)


def equalize(image: jax.Array) -> jax.Array:
    """The image with each channel's values spread so that its histogram is flat, as Pillow does it."""

    def channel(pixels: jax.Array) -> jax.Array:
        ordered = jnp.sort(pixels.ravel())
        below = jnp.searchsorted(ordered, jnp.arange(256.0)).astype(jnp.int32)  # pixels below each value
        largest = (ordered == ordered[-1]).sum()
        step = (ordered.size - largest) // 255
        table = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
        return jnp.where(step > 0, table[pixels.astype(jnp.int32)].astype(jnp.float32), pixels)

    return jax.vmap(channel, 2, 2)(image)
