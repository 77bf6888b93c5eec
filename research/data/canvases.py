"""Images with boxes that are made on the device, in the compiled step: digits at random places of an empty canvas."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from research.core.errors import UserError
from research.core.experiment import Feeds
from research.core.state import Batch, example_keys
from research.data import images, tfds
from research.data.boxes import BoxData, Objects
from research.data.checks import check_fields
from research.data.feed import EvalBatches, take
from research.data.images import ImageSpec
from research.data.order import indices, split

MARGIN = 1 / 14
"""Width of the margin between a digit's ink and its box, as a fraction of the digit's image: a one is no line."""

INK = 32
"""The least value of a pixel that is ink."""

MAX_OVERLAP = 0.1
"""Largest part of a digit's box on a canvas that may be covered by another one's."""


@dataclass(frozen=True)
class Canvases(BoxData):
    """Digits at random places and in random sizes on black canvases, which are made on the device.

    A canvas is drawn by the key of its index: training has as many as there are training digits, each always the same.
    A digit that would overlap an earlier one is left out.

    Attributes:
        name: digits, or a data set of TensorFlow Datasets that has labelled images, such as mnist
        dir: directory of TensorFlow Datasets; None: the environment variable TFDS_DATA_DIR, else the default directory
            of the library
        batch: size of the global training batch
        evaluation_batch: size of validation and test batches
        validation: fraction of the training digits that validation canvases are drawn from, at least one digit
        seed: seed of that split, of the training canvases and of their order
        limit: largest number of digits and of canvases to use from each split; None: all
        size: height and width of a canvas
        objects: largest number of digits on a canvas; it is drawn from 1 ... `objects`
        scales: smallest and largest size of a digit, as a factor of its own
        canvases: number of validation canvases and of test canvases, the same in every run
    """

    name: str = "mnist"
    batch: int = 32
    evaluation_batch: int = 40
    size: int = 96
    objects: int = 6
    scales: tuple[float, float] = (0.75, 1.5)
    canvases: int = 1000

    def __post_init__(self) -> None:
        check_fields(self, "size", "objects", "canvases")
        if not 0 < self.scales[0] <= self.scales[1]:
            raise UserError(f"data.scales are a smallest and a largest factor above 0, not {self.scales}")

    def spec(self) -> ImageSpec:
        """See `BoxData`."""
        return _canvas_spec(self, tfds.directory(self.dir))

    def arrays(self) -> images.Arrays:
        """The digits, the same at each call: the only method that a new source overrides."""
        return images.arrays(self.name, tfds.directory(self.dir), self.limit)

    def load(self) -> images.Arrays:
        """`arrays`, checked. Raises UserError where the largest digit does not fit a canvas, else as `spec` does."""
        digits = images.checked(self.arrays(), f"data.name {self.name}", self.limit)
        side = round(max(digits.train_images.shape[1:3]) * self.scales[1])
        if side > self.size:
            raise UserError(f"data.size {self.size} is less than that of the largest digit, {side}: see --data.scales")
        return digits

    def feeds(self) -> Feeds:
        """See `BoxData`."""
        data = self.load()
        rest, held_out = split(len(data.train_labels), self.validation, self.seed)
        of_train = lambda places, seed: self._feed(data.train_images[places], data.train_labels[places], seed)
        return Feeds(
            train=of_train(rest, self.seed),
            validation=self._fixed(of_train(held_out, -1)),
            test=self._fixed(self._feed(data.test_images, data.test_labels, -2)),
        )

    def _feed(self, digits: np.ndarray, labels: np.ndarray, seed: int) -> "CanvasFeed":
        flat = digits.reshape(len(digits), -1)
        drawing = (self.size, self.objects, self.scales)
        return CanvasFeed(flat, labels, ink_boxes(digits), digits.shape[1:], *drawing, self.batch, seed)

    def _fixed(self, feed: "CanvasFeed") -> EvalBatches:
        """Canvases to evaluate on, on the host."""
        count, size = min(self.canvases, self.limit or self.canvases), self.evaluation_batch
        places = [np.arange(start, start + size, dtype=np.int32) for start in range(0, count, size)]
        parts = [jax.device_get(_drawn(feed, place)) for place in places]
        whole = jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *parts)
        return EvalBatches.of(functools.partial(take, whole, None), count, size)


@struct.dataclass
class CanvasFeed:
    """Canvases, drawn inside the compiled step.

    digits   u8[digits, numbers], and their `shape`, static
    labels   i32[digits]
    ink      f32[digits, 4], the digits' boxes in their own pixels
    others   static; see `Canvases`
    """

    digits: Any
    labels: Any
    ink: Any
    shape: tuple[int, ...] = struct.field(pytree_node=False)
    side: int = struct.field(pytree_node=False)
    objects: int = struct.field(pytree_node=False)
    scales: tuple[float, float] = struct.field(pytree_node=False)
    batch: int = struct.field(pytree_node=False)
    seed: int = struct.field(pytree_node=False)
    resident: bool = struct.field(pytree_node=False, default=True)

    @property
    def size(self) -> int:
        """The number of training canvases."""
        return len(self.labels)

    def batch_at(self, step: Any, rows: Any = None) -> Batch:
        """The global batch of a step, or the given rows of it; both arguments may be traced."""
        index = indices(step, self.batch, self.size, self.seed, jnp, rows)
        return Batch(index, jnp.ones(index.shape, jnp.float32), *self.draw(index))

    def draw(self, index: jax.Array) -> tuple[jax.Array, Objects]:
        """The canvases of these indices, i32[batch]: u8[batch, height, width, channels], and their digits."""
        # A seed below 0 is that of canvases to evaluate on.
        keys = example_keys(jax.random.key(self.seed & 0xFFFFFFFF), index)
        return jax.vmap(self._canvas)(keys)

    def _canvas(self, key: jax.Array) -> tuple[jax.Array, Objects]:
        which, number, size, place = jax.random.split(key, 4)
        chosen = jax.random.randint(which, (self.objects,), 0, self.size)
        count = jax.random.randint(number, (), 1, self.objects + 1)
        low, high = (np.log(scale) for scale in self.scales)
        scale = jnp.exp(jax.random.uniform(size, (self.objects,), minval=low, maxval=high))
        ink, labels = (jnp.asarray(x)[chosen] for x in (self.ink, self.labels))
        ink = ink * scale[:, None]
        extent = ink[:, 2:] - ink[:, :2]
        corner = jax.random.uniform(place, (self.objects, 2)) * (self.side - extent)
        boxes = jnp.concatenate([corner, corner + extent], 1)

        overlap = _overlap(boxes)
        valid = jnp.zeros(self.objects, bool)
        for n in range(self.objects):
            covered = valid & (overlap[n] > MAX_OVERLAP)
            valid = valid.at[n].set((n < count) & ~covered.any())

        digits = jnp.asarray(self.digits)[chosen].reshape(-1, *self.shape).astype(jnp.float32)
        pixels, origin = jnp.arange(self.side) + 0.5, corner - ink[:, :2]
        at = (pixels - origin[..., None]) / scale[:, None, None] - 0.5  # [objects, 2, side], in the digits' pixels
        rows, columns = (
            jax.vmap(lambda at, scale, n=n: interpolation(at, self.shape[n], 1 / scale))(at[:, n], scale)
            for n in (0, 1)
        )
        drawn = (
            jnp.einsum("nyh,nhwc,nxw->nyxc", rows, digits, columns, precision="highest") * valid[:, None, None, None]
        )
        image = jnp.round(drawn.max(0)).clip(0, 255).astype(jnp.uint8)
        keep = lambda x: jnp.where(valid.reshape(-1, *(1,) * (x.ndim - 1)), x, 0)
        return image, Objects(keep(boxes), keep(labels), valid)


@jax.jit
def _drawn(feed: CanvasFeed, index: Any) -> tuple[jax.Array, Objects]:
    return feed.draw(index)


def interpolation(at: jax.Array, size: int, step: jax.Array) -> jax.Array:
    """The matrix f32[n, size] that takes `size` pixels to their values at the points `at` f32[n], linearly; 0 outside.

    at    in pixels; pixel k is at k
    step  distance of neighbouring points, f32[], at most `size`; above 1 the values are weighted means over twice as
          many pixels, so that nothing is skipped
    """
    near = lambda at, pixels: jnp.maximum(0, 1 - jnp.abs(at[:, None] - pixels) / jnp.maximum(step, 1))
    # A row is divided by what it would add up to if there were pixels on all sides.
    return near(at, jnp.arange(size)) / near(at % 1, jnp.arange(-size, size + 2)).sum(1, keepdims=True)


def ink_boxes(digits: np.ndarray) -> np.ndarray:
    """The boxes around the ink of digits u8[n, height, width, channels], with a margin: f32[n, 4] in their pixels."""
    ink: np.ndarray = np.max(digits, -1) >= INK
    ink |= ~ink.any((1, 2), keepdims=True)  # of a digit without ink, all of it
    first = lambda line: np.stack([line.argmax(1), line.shape[1] - line[:, ::-1].argmax(1)])
    (ymin, ymax), (xmin, xmax) = first(ink.any(2)), first(ink.any(1))
    limits = np.array(digits.shape[1:3] * 2)
    margin = MARGIN * limits * [-1, -1, 1, 1]
    return np.clip(np.stack([ymin, xmin, ymax, xmax], 1) + margin, 0, limits).astype(np.float32)


def _overlap(boxes: jax.Array) -> jax.Array:
    """The largest covered part of either box of each pair of boxes [n, 4]: [n, n]."""
    low, high = jnp.maximum(boxes[:, None, :2], boxes[:, :2]), jnp.minimum(boxes[:, None, 2:], boxes[:, 2:])
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    return jnp.maximum(high - low, 0).prod(-1) / jnp.minimum(area[:, None], area)


@functools.lru_cache(maxsize=2)
def _canvas_spec(data: Canvases, dir: str | None) -> ImageSpec:
    """`dir`: the directory of the data, a part of the cache's key."""
    digits = data.load()
    feed = data._feed(digits.train_images, digits.train_labels, data.seed)
    some, _ = _drawn(feed, np.arange(64, dtype=np.int32))
    channels = digits.train_images.shape[-1]
    shape = (data.size, data.size, channels)
    return ImageSpec(shape, len(digits.names), digits.names, *images.moments(np.asarray(some)))
