"""Images with boxes: the object detection data sets of TensorFlow Datasets, and digits on canvases.

A box is (ymin, xmin, ymax, xmax). The pixel in row r and column c covers r ... r + 1 and c ... c + 1.
"""

import functools
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from research.core.errors import UserError
from research.core.experiment import Feeds
from research.core.state import Batch, example_keys
from research.data import images, tfds
from research.data.checks import check_fields, check_images
from research.data.feed import EvalBatches, FeedName, feeds, take
from research.data.images import ImageSpec
from research.data.order import indices, split

TOLERANCE = 1e-4
"""How far, as a fraction of the image, a box may reach over its edge, as rounding makes it; it is cut off there."""

MARGIN = 1 / 14
"""Width of the margin between a digit's ink and its box, as a fraction of the digit's image: a one is no line."""

INK = 32
"""The least value of a pixel that is ink."""

MAX_OVERLAP = 0.1
"""Largest part of a digit's box on a canvas that may be covered by another one's."""


class Objects(NamedTuple):
    """The objects of images, padded to the same number n.

    boxes   f32[..., n, 4] in pixels, (ymin, xmin, ymax, xmax); 0 where there is no object
    labels  i32[..., n]; 0 where there is no object
    valid   bool[..., n], whether there is an object
    """

    boxes: Any
    labels: Any
    valid: Any


class Annotated(NamedTuple):
    """The images of one split with their objects, as a source returns them.

    images  u8[examples, height, width, channels]
    boxes   for each image f32[n, 4], as fractions of the image's height and width
    labels  for each image i32[n], indices into the names of the classes
    """

    images: np.ndarray
    boxes: Sequence[np.ndarray]
    labels: Sequence[np.ndarray]


class Arrays(NamedTuple):
    """What a source returns: two splits, and the names of the classes."""

    train: Annotated
    test: Annotated
    names: tuple[str, ...]


@dataclass(frozen=True)
class BoxData(ABC):
    """Images with boxes; inputs u8[batch, height, width, channels], targets `Objects` of n boxes [batch, n, ...]."""

    name: str = ""
    dir: str | None = None
    batch: int = 16
    evaluation_batch: int = 16
    validation: float = 0.1
    seed: int = 0
    limit: int | None = None

    @abstractmethod
    def spec(self) -> ImageSpec:
        """The properties that a learner needs. Raises UserError if the data is not there, RunError if it is damaged."""

    @abstractmethod
    def feeds(self) -> Feeds:
        """The feeds of a run. Raises as `spec` does."""


@dataclass(frozen=True)
class BoxedImages(BoxData):
    """A data set of TensorFlow Datasets with the features image and objects, which have a bbox and a label.

    Attributes:
        name: the data set, such as bccd, voc/2007 or coco/2017
        dir: directory of TensorFlow Datasets; None: the environment variable TFDS_DATA_DIR, else the default directory
            of the library
        batch: size of the global training batch
        evaluation_batch: size of validation and test batches
        validation: fraction of the training images that is held out for validation, at least one image
        seed: seed of that split and of the order of training
        limit: largest number of images to use from each split; None: all
        feed: where the training images are kept: on the device, or on the host, from where each dispatch's batches are
            sent to the device
        resize: height and width that each image is resized to when it is loaded, without regard to its proportions;
            None: the images have one shape already
        train_splits: splits to train on, together
        test_split: split to test on
        invalid: what happens with a box that is empty or not inside its image: it is an error, or it is dropped
        allow_empty: whether images without a box are allowed
    """

    name: str = "bccd"
    feed: FeedName = "device"
    resize: tuple[int, int] | None = None
    train_splits: tuple[str, ...] = ("train",)
    test_split: str = "test"
    invalid: Literal["error", "drop"] = "error"
    allow_empty: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "resize")

    def spec(self) -> ImageSpec:
        """See `BoxData`."""
        return _spec(self, tfds.directory(self.dir))

    def arrays(self) -> Arrays:
        """The images and boxes, the same at each call: the only method that a new source overrides."""
        dir = tfds.directory(self.dir)
        return arrays(self.name, dir, self.train_splits, self.test_split, self.resize, self.limit)

    def load(self) -> tuple[tuple[np.ndarray, Objects], tuple[np.ndarray, Objects], tuple[str, ...]]:
        """(images, objects) to train and to test on, checked and padded, and the names. Raises as `spec` does."""
        *splits, names = self.arrays()
        train, test = (
            self._checked(f"data.name {self.name}, {split}", part, names)
            for split, part in zip(("train", "test"), splits, strict=True)
        )
        if train.images.shape[1:] != test.images.shape[1:]:
            raise UserError(f"data.name {self.name}: images of training and test differ in shape: set --data.resize")
        missing = np.setdiff1d(np.arange(len(names)), train.labels)
        if missing.size and self.limit is None:
            raise UserError(f"data.name {self.name}, train: no example of the class {names[missing[0]]}")
        count = max(int(np.max(np.bincount(part.image, minlength=1))) for part in (train, test))
        padded = lambda part: (part.images, pad_objects(part, max(count, 1)))
        return padded(train), padded(test), names

    def feeds(self) -> Feeds:
        """See `BoxData`."""
        train, test, _ = self.load()
        return feeds(
            train,
            test,
            batch=self.batch,
            evaluation_batch=self.evaluation_batch,
            validation=self.validation,
            seed=self.seed,
            feed=self.feed,
        )

    def _checked(self, what: str, part: Annotated, names: Sequence[str]) -> "Flat":
        """The boxes of at most `limit` images of `part`, cut off at the image's edges.

        Raises UserError where a box or a label is wrong, or an image has none.
        """
        images, boxes, labels = part.images[: self.limit], part.boxes[: self.limit], part.labels[: self.limit]
        check_images(what, images)
        counts = np.array([len(own) for own in boxes])
        odd = np.flatnonzero(counts != [len(own) for own in labels])
        if len(counts) != len(images) or odd.size:
            found = f"image {odd[0]} has not as many labels as boxes" if odd.size else f"there are {len(counts)}"
            raise UserError(f"{what}: expected boxes and labels of {len(images)} images; {found}")
        flat = Flat(
            images,
            np.repeat(np.arange(len(counts)), counts),
            np.concatenate([np.reshape(own, (-1, 4)) for own in boxes]).astype(np.float32),
            np.concatenate(labels).astype(np.int32),
        )
        wrong = np.flatnonzero((flat.labels < 0) | (flat.labels >= len(names)))
        if wrong.size:
            at, label = flat.image[wrong[0]], flat.labels[wrong[0]]
            raise UserError(f"{what}: image {at} has an object of the class {label}, not of 0 ... {len(names) - 1}")
        full = np.all(flat.boxes[:, :2] < flat.boxes[:, 2:], axis=1)
        good = full & np.all((flat.boxes >= -TOLERANCE) & (flat.boxes <= 1 + TOLERANCE), axis=1)
        if self.invalid == "error" and not good.all():
            n = int(np.argmin(good))
            kind, box = "not inside the image" if full[n] else "empty", [round(float(x), 4) for x in flat.boxes[n]]
            raise UserError(
                f"{what}: a box of image {flat.image[n]}, {box} as fractions of the image, is {kind}: mend the data, "
                "or drop such boxes (--data.invalid drop)"
            )
        flat = Flat(images, *(x[good] for x in flat[1:]))
        empty = np.setdiff1d(np.arange(len(images)), flat.image)
        if empty.size and not self.allow_empty:
            raise UserError(f"{what}: image {empty[0]} has no box; --data.allow-empty if that is no mistake")
        return flat._replace(boxes=flat.boxes.clip(0, 1))


class Flat(NamedTuple):
    """The objects of all images, one after another.

    images  u8[examples, height, width, channels]
    image   i[objects], the place of each object's image
    boxes   f32[objects, 4], as fractions of the image's height and width
    labels  i32[objects]
    """

    images: np.ndarray
    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


def pad_objects(flat: Flat, count: int) -> Objects:
    """The objects by image, padded to `count` each: boxes become pixels."""
    examples, height, width, _ = flat.images.shape
    place = np.arange(len(flat.image)) - np.searchsorted(flat.image, flat.image)  # within its image
    boxes, labels = np.zeros((examples, count, 4), np.float32), np.zeros((examples, count), np.int32)
    boxes[flat.image, place] = flat.boxes * np.array([height, width, height, width], np.float32)
    labels[flat.image, place] = flat.labels
    return Objects(boxes, labels, np.arange(count) < np.bincount(flat.image, minlength=examples)[:, None])


@functools.lru_cache(maxsize=2)
@tfds.quiet()
def arrays(
    name: str,
    dir: str | None,
    train_splits: tuple[str, ...],
    test_split: str,
    resize: tuple[int, int] | None,
    limit: int | None,
) -> Arrays:
    """Reads and decodes a data set of TensorFlow Datasets without TensorFlow; those used last stay in memory.

    Crowds, boxes around many objects that COCO marks with `is_crowd`, are left out.

    Raises UserError if the data set is not there or has other features, RunError if it is damaged.
    """
    builder = tfds.builder(name, dir, None)
    features, there = builder.info.features, builder.info.splits
    objects = getattr(features["objects"], "feature", {}) if "objects" in features else {}
    missing = [split for split in (*train_splits, test_split) if split not in there]
    if "image" not in features or not {"bbox", "label"} <= set(objects) or missing:
        expected = f"features image and objects (bbox and label), and splits {', '.join((*train_splits, test_split))}"
        found = f"features {', '.join(sorted(features))}, splits {', '.join(there)}"
        raise UserError(f"data.name {name}: expected {expected}; it has {found}")

    def read(split: str) -> Annotated:
        what = f"data.name {name}, split {split}"
        return decoded(tfds.source(builder, name, split), what, builder.data_path, resize, limit)

    parts = [read(split) for split in train_splits]
    if len({part.images.shape[1:] for part in parts}) > 1:
        raise UserError(f"data.name {name}: images of {' and '.join(train_splits)} differ in shape: set --data.resize")
    train = Annotated(
        np.concatenate([part.images for part in parts]) if len(parts) > 1 else parts[0].images,
        [box for part in parts for box in part.boxes],
        [label for part in parts for label in part.labels],
    )
    return Arrays(train, read(test_split), tuple(objects["label"].names))


def decoded(source: Any, what: str, where: Any, resize: tuple[int, int] | None, limit: int | None) -> Annotated:
    """The images and boxes of a data source, decoded in threads: decoders release Python's lock."""
    import cv2

    count = min(len(source), limit or len(source))

    def one(at: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        try:
            example = source[at]
            image, objects = np.asarray(example["image"]), example["objects"]
            # Without TensorFlow, the fields of a sequence are lists.
            boxes = np.array(objects["bbox"], np.float32).reshape(-1, 4)
            labels, crowd = np.array(objects["label"], np.int32), np.array(objects.get("is_crowd", ()), bool)
        except Exception as error:
            raise tfds.damaged(what, where, error) from error
        if resize is not None:
            image = cv2.resize(image, resize[::-1], interpolation=cv2.INTER_AREA).reshape(*resize, image.shape[-1])
        return (image, boxes[~crowd], labels[~crowd]) if crowd.size else (image, boxes, labels)

    if not count:
        raise UserError(f"{what}: there is no image at all")
    first, boxes, labels = one(0)
    found, rest = np.empty((count, *first.shape), np.uint8), [(boxes, labels)] * count

    def fill(at: int) -> None:
        image, *rest[at] = one(at)  # type: ignore[call-overload]
        if image.shape != first.shape:
            raise UserError(f"{what}: images of {first.shape} and of {image.shape}: set --data.resize HEIGHT WIDTH")
        found[at] = image

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        list(pool.map(fill, range(count)))
    found.flags.writeable = False
    return Annotated(found, [boxes for boxes, _ in rest], [labels for _, labels in rest])


@functools.lru_cache(maxsize=2)
def _spec(data: BoxedImages, dir: str | None) -> ImageSpec:
    """`dir`: the directory of the data, a part of the cache's key."""
    (train, _), _, names = data.load()
    return ImageSpec(train.shape[1:], len(names), names, *images.moments(train[:: max(1, len(train) // 500)]))


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
        drawn = lambda digits, labels, seed: self._feed(digits, labels, seed)
        of_train = lambda places, seed: drawn(data.train_images[places], data.train_labels[places], seed)
        return Feeds(
            train=of_train(rest, self.seed),
            validation=self._fixed(of_train(held_out, -1)),
            test=self._fixed(drawn(data.test_images, data.test_labels, -2)),
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
        kept: list[jax.Array] = []
        for n in range(self.objects):
            covered = [before & (overlap[n, m] > MAX_OVERLAP) for m, before in enumerate(kept)]
            kept.append((n < count) & ~jnp.array(covered, bool).any())
        valid = jnp.stack(kept)

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
    step  distance of neighbouring points, f32[]; above 1 the values are means over it, so that nothing is skipped
    """
    width = jnp.maximum(step, 1)
    return jnp.maximum(0, 1 - jnp.abs(at[:, None] - jnp.arange(size)) / width) / width


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
