"""Augmentation of images together with their masks: a pure function of one key for each example."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from research.core.errors import UserError
from research.data.masks import VOID


@dataclass(frozen=True)
class AugmentMasks:
    """Random changes of each training image, and of its mask where pixels move; each is off by default.

    Attributes:
        crop: height and width of the random crop that is trained on; None: those of the image
        scaling: range of the factor by which the image is enlarged before it is cropped; None: it is not. Where the
            crop is larger than the enlarged image, what lies outside is black, before colours change, and has no class
        flip: flip half of the images from left to right
        colour: largest relative change of brightness, contrast and saturation, each drawn by itself; None: no change
    """

    crop: tuple[int, int] | None = None
    scaling: tuple[float, float] | None = None
    flip: bool = False
    colour: float | None = None

    def __post_init__(self) -> None:
        if self.crop is not None and min(self.crop) < 1:
            raise UserError(f"augment.crop must be at least 1 pixel high and wide, not {self.crop}")
        if self.scaling is not None and not 0 < self.scaling[0] <= self.scaling[1] < math.inf:
            raise UserError(f"augment.scaling are a smallest and a largest factor above 0, not {self.scaling}")


def augment_masks(
    config: AugmentMasks, keys: jax.Array, images: jax.Array, masks: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Augments each image and its mask by the key at their position.

    keys    [batch]. If they are derived from the global index of the examples, the result does not depend on where in
            the batch, or on which device, an example is
    images  f32[batch, height, width, channels] in 0 ... 1
    masks   u8[batch, height, width]

    Returns images [batch, crop height, crop width, channels] and masks likewise. Images are interpolated, bilinearly;
    a mask takes the class of the nearest pixel.
    """
    if config == AugmentMasks():
        return images, masks
    return jax.vmap(lambda key, image, mask: _augment_one(config, key, image, mask))(keys, images, masks)


def _augment_one(
    config: AugmentMasks, key: jax.Array, image: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    # Each effect has numbers of its own, so that it does not depend on which others are on.
    side, enlargement, *places_and_colours = jax.random.uniform(key, (7,))
    places, colours = places_and_colours[:2], places_and_colours[2:]
    low, high = config.scaling or (1.0, 1.0)
    factor = low * (high / low) ** enlargement  # as often larger as smaller
    sizes = config.crop or mask.shape
    # Without scaling a crop starts at a whole pixel, so that nothing is interpolated.
    y, x = (
        _points(*axis, factor, whole=config.scaling is None) for axis in zip(mask.shape, sizes, places, strict=True)
    )
    if config.flip:
        x = jnp.where(side < 0.5, mask.shape[1] - 1 - x, x)
    if config.scaling or config.crop or config.flip:
        image = jnp.einsum(
            "ah,bw,hwc->abc", _bilinear(y, mask.shape[0]), _bilinear(x, mask.shape[1]), image, precision="highest"
        )
        mask = _nearest(mask, y, x)
    if config.colour is not None:
        image = _recoloured(image, *(1 + config.colour * (2 * c - 1) for c in colours))
    return image, mask


def _points(size: int, crop: int, place: jax.Array, factor: jax.Array, whole: bool) -> jax.Array:
    """Where a crop of so many pixels lies along an axis of `size` pixels enlarged by a factor, f32[crop].

    whole  whether it starts at a whole pixel
    """
    room = size - crop / factor  # below 0 where the crop is the larger one; it then lies around the image
    start = jnp.sign(room) * jnp.floor(place * (abs(room) + 1)) if whole else jnp.where(room == 0, 0, room * place)
    return start + (jnp.arange(crop) + 0.5) / factor - 0.5


def _bilinear(at: jax.Array, size: int) -> jax.Array:
    """The weights f32[points, size] of an axis' pixels at the points; all of them are 0 outside.

    The outermost pixels reach half a pixel beyond their centres, and there they count wholly.
    """
    inside = (at >= -0.5) & (at <= size - 0.5)
    distances = jnp.abs(at.clip(0, size - 1)[:, None] - jnp.arange(size))
    return inside[:, None] * jnp.maximum(0, 1 - distances)


def _nearest(mask: jax.Array, y: jax.Array, x: jax.Array) -> jax.Array:
    """The mask's classes at the rows y and columns x, and VOID outside of it."""
    rows, columns = (jnp.round(at).astype(jnp.int32) for at in (y, x))
    inside = lambda at, size: (at >= 0) & (at < size)
    taken = mask.at[rows].get(mode="clip")[:, jnp.clip(columns, 0, mask.shape[1] - 1)]
    return jnp.where(inside(rows, mask.shape[0])[:, None] & inside(columns, mask.shape[1]), taken, VOID)


def _recoloured(image: jax.Array, brightness: jax.Array, contrast: jax.Array, saturation: jax.Array) -> jax.Array:
    """The image with the three changed by these factors, in 0 ... 1."""
    image = image * brightness
    image = image.mean() + contrast * (image - image.mean())
    grey = image.mean(-1, keepdims=True)
    return (grey + saturation * (image - grey)).clip(0, 1)
