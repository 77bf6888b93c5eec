"""Images with boxes: the object detection data sets of TensorFlow Datasets.

A box is (ymin, xmin, ymax, xmax). The pixel in row r and column c covers r ... r + 1 and c ... c + 1.
"""

import functools
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from research.core.errors import UserError
from research.core.experiment import Feeds
from research.data import images, tfds
from research.data.checks import check_fields, check_images
from research.data.feed import FeedName, feeds
from research.data.images import ImageSpec

TOLERANCE = 1e-4
"""How far, as a fraction of the image, a box may reach over its edge, as rounding makes it; it is cut off there."""


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
            self._checked(f"data.name {self.name}, {split}", part, names, parts)
            for split, part, parts in zip(("train", "test"), splits, (len(self.train_splits), 1), strict=True)
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
        return feeds(train, test, self.batch, self.evaluation_batch, self.validation, self.seed, self.feed)

    def _checked(self, what: str, part: Annotated, names: Sequence[str], splits: int) -> "Flat":
        """The boxes of `part`, of at most `limit` images for each of its `splits`, cut off at the image's edges.

        Raises UserError where a box or a label is wrong, or an image has none.
        """
        most = None if self.limit is None else splits * self.limit
        images, boxes, labels = part.images[:most], part.boxes[:most], part.labels[:most]
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
        splits = ", ".join((*train_splits, test_split))
        raise tfds.unexpected(name, builder, f"features image and objects (bbox and label), and splits {splits}")

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
