"""Augmentation of images: a pure function of one key for each example, traced inside the compiled step."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from research.core.errors import UserError


@dataclass(frozen=True)
class Augment:
    """Random changes of each training image, applied in this order; each is off by default.

    Attributes:
        flip: flip half of the images from left to right
        rotation: largest angle of rotation in degrees, in either direction; None: no rotation
        scaling: largest relative change of size, so that factors are in 1 - scaling ... 1 + scaling; None: no scaling
        shift: largest shift in pixels, along both axes and in either direction; what moves in is black ("pad and crop")
        cutout: side in pixels of a black square, centred anywhere in the image and cut off at its edges (DeVries &
            Taylor 2017, arXiv:1708.04552); 0: no square
        noise: standard deviation of Gaussian noise, for pixels in 0 ... 1; None: no noise
    """

    flip: bool = False
    rotation: float | None = None
    scaling: float | None = None
    shift: int = 0
    cutout: int = 0
    noise: float | None = None

    def __post_init__(self) -> None:
        # In a sweep the floats are traced, so nothing may branch on their values.
        for name in ("shift", "cutout"):
            if getattr(self, name) < 0:
                raise UserError(f"augment.{name} must be at least 0, not {getattr(self, name)}")


def augment(config: Augment, keys: jax.Array, images: jax.Array) -> jax.Array:
    """Augments each image by the key at its position.

    keys    [batch]. If they are derived from the global index of the examples, the result does not depend on where in
            the batch, or on which device, an example is
    images  f32[batch, height, width, channels] in 0 ... 1; the result has the same shape

    Rotation, scaling, flip and shift are one bilinear resampling. Without rotation and scaling, pixels are moved
    unchanged.
    """
    return jax.vmap(lambda key, image: _augment_one(config, key, image))(keys, images)


def _augment_one(config: Augment, key: jax.Array, image: jax.Array) -> jax.Array:
    """Augments one image [height, width, channels]."""
    height, width, _ = image.shape
    # Each effect has numbers of its own, so that it does not depend on which others are on.
    dy, dx, side, angle, factor, cy, cx = jax.random.uniform(key, (7,))
    dy, dx = (jnp.floor(d * (2 * config.shift + 1)) - config.shift for d in (dy, dx))
    mirror = jnp.where(side < 0.5, -1.0, 1.0) if config.flip else 1.0
    y, x = jnp.arange(height, dtype=jnp.float32), jnp.arange(width, dtype=jnp.float32)
    my, mx = (height - 1) / 2, (width - 1) / 2

    if config.rotation is not None or config.scaling is not None:
        angle = jnp.deg2rad((2 * angle - 1) * (0.0 if config.rotation is None else config.rotation))
        factor = 1 + (2 * factor - 1) * (0.0 if config.scaling is None else config.scaling)
        sine, cosine = jnp.sin(angle) / factor, jnp.cos(angle) / factor
        v, u = (y - dy - my)[:, None], (x - dx - mx)[None, :]
        image = _bilinear(image, my + cosine * v - sine * u, mx + mirror * (sine * v + cosine * u))
    elif config.shift or config.flip:
        image = _gather(image, y - dy, mx + mirror * (x - dx - mx))
    if config.cutout:
        top, left = (jnp.floor(c * n) - config.cutout // 2 for c, n in ((cy, height), (cx, width)))
        inside = lambda at, first: (at >= first) & (at < first + config.cutout)
        image = jnp.where((inside(y, top)[:, None] & inside(x, left)[None, :])[..., None], 0, image)
    if config.noise is not None:
        image = image + config.noise * jax.random.normal(jax.random.fold_in(key, 1), image.shape)
    return image


def _gather(image: jax.Array, y: jax.Array, x: jax.Array) -> jax.Array:
    """The pixels at the rows y[height] and columns x[width], whole numbers; 0 outside of the image."""
    height, width, _ = image.shape
    inside = ((y >= 0) & (y < height))[:, None] & ((x >= 0) & (x < width))[None, :]
    rows, columns = (jnp.clip(at, 0, n - 1).astype(jnp.int32) for at, n in ((y, height), (x, width)))
    return jnp.where(inside[..., None], image[rows[:, None], columns[None, :]], 0)


def _bilinear(image: jax.Array, y: jax.Array, x: jax.Array) -> jax.Array:
    """The image at the points y, x [height, width], interpolated between its pixels; 0 outside of it."""
    order1 = lambda channel: jax.scipy.ndimage.map_coordinates(channel, (y, x), order=1, mode="constant")
    return jax.vmap(order1, in_axes=2, out_axes=2)(image)
