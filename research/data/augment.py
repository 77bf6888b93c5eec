"""Augmentation of images: a pure function of a key for each example, traced inside the compiled step."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from research.core.errors import Mistake


@dataclass(frozen=True)
class Augment:
    """What is drawn anew for each training image, in this order; off unless set.

    Attributes:
        flip: left to right, in half of the images
        rotation: by up to so many degrees either way, or None
        scaling: by a factor of 1 +- up to so much, or None
        shift: by up to so many pixels either way along both axes, black moving in: "pad and crop"
        cutout: the side in pixels of a square blacked out (DeVries & Taylor 2017, arXiv:1708.04552), its centre
            anywhere in the image, so that it may be cut off at the edge
        noise: the standard deviation of Gaussian noise, or None
    """

    flip: bool = False
    rotation: float | None = None
    scaling: float | None = None
    shift: int = 0
    cutout: int = 0
    noise: float | None = None

    def __post_init__(self) -> None:
        # The floats may be traced, in a sweep: no branch on them.
        for name in ("shift", "cutout"):
            if getattr(self, name) < 0:
                raise Mistake(f"augment.{name} must be at least 0, not {getattr(self, name)}")


def augment(how: Augment, keys: jax.Array, images: jax.Array) -> jax.Array:
    """`images` f32[batch, height, width, channels] in [0, 1], each as its key in `keys` [batch] has it; same shape.

    With keys folded by global index (`state.each`), what becomes of an example does not depend on its place in the
    batch. Rotation, scaling, flip and shift are one bilinear resampling; without the first two, pixels are moved
    unchanged.
    """
    return jax.vmap(lambda key, image: _one(how, key, image))(keys, images)


def _one(how: Augment, key: jax.Array, image: jax.Array) -> jax.Array:
    """One image [height, width, channels]."""
    height, width, _ = image.shape
    # Each effect has its own draws, whatever else is on.
    dy, dx, side, angle, factor, cy, cx = jax.random.uniform(key, (7,))
    dy, dx = (jnp.floor(d * (2 * how.shift + 1)) - how.shift for d in (dy, dx))
    mirror = jnp.where(side < 0.5, -1.0, 1.0) if how.flip else 1.0
    y, x = jnp.arange(height, dtype=jnp.float32), jnp.arange(width, dtype=jnp.float32)
    my, mx = (height - 1) / 2, (width - 1) / 2

    if how.rotation is not None or how.scaling is not None:
        angle = jnp.deg2rad((2 * angle - 1) * (0.0 if how.rotation is None else how.rotation))
        factor = 1 + (2 * factor - 1) * (0.0 if how.scaling is None else how.scaling)
        sine, cosine = jnp.sin(angle) / factor, jnp.cos(angle) / factor
        v, u = (y - dy - my)[:, None], (x - dx - mx)[None, :]
        image = _bilinear(image, my + cosine * v - sine * u, mx + mirror * (sine * v + cosine * u))
    elif how.shift or how.flip:
        image = _moved(image, y - dy, mx + mirror * (x - dx - mx))
    if how.cutout:
        top, left = (jnp.floor(c * n) - how.cutout // 2 for c, n in ((cy, height), (cx, width)))
        inside = lambda at, first: (at >= first) & (at < first + how.cutout)
        image = jnp.where((inside(y, top)[:, None] & inside(x, left)[None, :])[..., None], 0, image)
    if how.noise is not None:
        image = image + how.noise * jax.random.normal(jax.random.fold_in(key, 1), image.shape)
    return image


def _moved(image: jax.Array, y: jax.Array, x: jax.Array) -> jax.Array:
    """The pixels at rows y[height] and columns x[width], whole numbers; 0 outside of the image."""
    height, width, _ = image.shape
    inside = ((y >= 0) & (y < height))[:, None] & ((x >= 0) & (x < width))[None, :]
    rows, columns = (jnp.clip(at, 0, n - 1).astype(jnp.int32) for at, n in ((y, height), (x, width)))
    return jnp.where(inside[..., None], image[rows[:, None], columns[None, :]], 0)


def _bilinear(image: jax.Array, y: jax.Array, x: jax.Array) -> jax.Array:
    """The image at the points y, x [height, width], between its pixels; 0 outside of it."""
    order1 = lambda channel: jax.scipy.ndimage.map_coordinates(channel, (y, x), order=1, mode="constant")
    return jax.vmap(order1, in_axes=2, out_axes=2)(image)
