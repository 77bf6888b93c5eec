"""Labelled images: the digits of scikit-learn, and the image classification data sets of TensorFlow Datasets.

A new source inherits from `Images` and overrides `arrays`.
"""

import functools
import importlib.util
import os
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from research.core.errors import UserError
from research.core.experiment import Feeds
from research.data import tfds
from research.data.checks import check_fields, check_images, check_labels
from research.data.feed import FeedName, feeds
from research.data.order import split_test


class Arrays(NamedTuple):
    """What a source returns.

    images  u8[examples, height, width, channels]
    labels  i32[examples], indices into `names`
    names   names of the classes
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    names: tuple[str, ...]


class ImageSpec(NamedTuple):
    """The properties of labelled images that a learner needs.

    shape      (height, width, channels)
    classes    number of classes
    names      names of the classes
    mean, std  of each channel, over all pixels of the training split (with validation), scaled to 0 ... 1; of images
               with boxes, over about 500 evenly spaced ones, of canvases, over 64, and of `LargeImages`, as configured
    """

    shape: tuple[int, int, int]
    classes: int
    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


class LabelledImages(ABC):
    """Labelled images, in memory or not; inputs u8[batch, height, width, channels], targets i32[batch].

    batch, evaluation_batch  sizes of the global training batch, and of validation and test batches
    """

    batch: int
    evaluation_batch: int

    @abstractmethod
    def spec(self) -> ImageSpec:
        """The properties that a learner needs. Raises UserError if the data is not there, RunError if it is damaged."""

    @abstractmethod
    def feeds(self) -> Feeds:
        """The feeds of a run. Raises as `spec` does."""

    def patch_moments(self, side: int) -> tuple[float, ...]:
        """The second moments of patches of side x side pixels, for a net that whitens them. Raises UserError where the
        images are not in memory."""
        raise UserError(
            f"a net that whitens patches of {side} pixels needs images in memory: choose another net or data"
        )


@dataclass(frozen=True)
class Images(LabelledImages):
    """Labelled images in memory; inputs u8[batch, height, width, channels], targets i32[batch].

    Test data is the split test, else the split validation, else a fifth of the training images.

    Attributes:
        name: digits, or a data set of TensorFlow Datasets that has an image and a label, such as mnist or cifar10
        dir: directory of TensorFlow Datasets; None: the environment variable TFDS_DATA_DIR, else the default directory
            of the library
        batch: size of the global training batch
        evaluation_batch: size of validation and test batches
        validation: fraction of the training images that is held out for validation, at least one image
        seed: seed of that split and of the order of training
        feed: where the training images are kept: on the device, or on the host, from where each dispatch's batches are
            sent to the device
        limit: largest number of images to use from each split; None: all
        classes: the classes to use, by number, which are then numbered in this order; none: all
        image_feature: feature of a data set of TensorFlow Datasets that has the image
        label_feature: feature of a data set of TensorFlow Datasets that has the label
    """

    name: str = "digits"
    dir: str | None = None
    batch: int = 128
    evaluation_batch: int = 512
    validation: float = 0.1
    seed: int = 0
    feed: FeedName = "device"
    limit: int | None = None
    classes: tuple[int, ...] = ()
    image_feature: str = "image"
    label_feature: str = "label"

    def __post_init__(self) -> None:
        check_fields(self)

    def spec(self) -> ImageSpec:
        """The properties that a learner needs. Raises UserError if the data is not there, RunError if it is damaged."""
        return _spec(self, tfds.directory(self.dir))

    def patch_moments(self, side: int) -> tuple[float, ...]:
        """`second_moments` of the patches of the first 5,000 training images, standardised. Raises as `spec` does."""
        return _patch_moments(self, tfds.directory(self.dir), side)

    def arrays(self) -> Arrays:
        """The images and labels, the same at each call: the only method that a new source overrides."""
        limit = None if self.classes else self.limit
        return arrays(self.name, tfds.directory(self.dir), limit, self.image_feature, self.label_feature)

    def load(self) -> Arrays:
        """`arrays`, of the classes asked for, checked, with at most `limit` images of each split. Raises as `spec`."""
        what = f"data.name {self.name}"
        data = checked(self.arrays(), what, None if self.classes else self.limit)
        return checked(of_classes(data, self.classes), what, self.limit) if self.classes else data

    def feeds(self) -> Feeds:
        """The feeds of a run. Raises as `spec` does."""
        data = self.load()
        train, test = (data.train_images, data.train_labels), (data.test_images, data.test_labels)
        return feeds(train, test, self.batch, self.evaluation_batch, self.validation, self.seed, self.feed)


def checked(data: Arrays, what: str, limit: int | None) -> Arrays:
    """At most `limit` images of each split of `data`. Raises UserError unless they are labelled images of one shape."""
    if len(data) != len(Arrays._fields):
        raise UserError(f"{what}: `arrays` is to return Arrays({', '.join(Arrays._fields)}), not {len(data)} values")
    train_images, train_labels, test_images, test_labels, names = data
    for split, images, labels in (("train", train_images, train_labels), ("test", test_images, test_labels)):
        check_images(f"{what}, split {split}", images)
        check_labels(f"{what}, split {split}", labels, len(images), len(names))
    if train_images.shape[1:] != test_images.shape[1:]:
        shapes = f"{train_images.shape[1:]} for training, {test_images.shape[1:]} to test"
        raise UserError(f"{what}: images of one shape expected, not {shapes}")
    return Arrays(train_images[:limit], train_labels[:limit], test_images[:limit], test_labels[:limit], names)


def of_classes(data: Arrays, classes: tuple[int, ...]) -> Arrays:
    """The images of some classes, whose numbers become their places in `classes`.

    Raises UserError for a class that is not there, and for one that is named twice.
    """
    count = len(data.names)
    if wrong := [number for number in classes if not 0 <= number < count]:
        raise UserError(f"data.classes: there is no class {wrong[0]}, only 0 to {count - 1}")
    if len(set(classes)) < len(classes):
        raise UserError(f"data.classes names a class twice: {' '.join(map(str, classes))}")
    place = np.full(count, -1, np.int32)
    place[list(classes)] = np.arange(len(classes))

    def part(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        chosen = place[labels] >= 0
        return images[chosen], place[labels[chosen]]

    train, test = part(data.train_images, data.train_labels), part(data.test_images, data.test_labels)
    return Arrays(*train, *test, tuple(data.names[number] for number in classes))


def read(name: str, dir: str | None, limit: int | None = None, image: str = "image", label: str = "label") -> Arrays:
    """Reads and decodes the data set `name`; the arrays can't be written to.

    limit         largest number of images to read from each split; None: all
    image, label  the features that have them

    Raises UserError if the data set is not there or has no labelled images of one shape, RunError if it is damaged.
    """
    data = digits(limit) if name == "digits" else prepared(name, dir, limit, image, label)
    for part in data[:4]:
        part.flags.writeable = False
    return data


arrays = functools.lru_cache(maxsize=2)(read)
"""`read`, with the arrays that were used last kept in memory."""


def digits(limit: int | None) -> Arrays:
    """The 1,797 handwritten digits, 8x8x1, that are part of scikit-learn (Alpaydin & Kaynak 1998).

    Their 17 shades 0 ... 16 are scaled to 0 ... 255.
    """
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise UserError("data.name digits: scikit-learn, which they are a part of, is not installed")
    # Its file, not its `load_digits`: importing scikit-learn takes seconds.
    table = np.loadtxt(Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    images = np.round(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    return without_test(images[:limit], table[:limit, -1].astype(np.int32), tuple("0123456789"))


def without_test(images: np.ndarray, labels: np.ndarray, names: tuple[str, ...]) -> Arrays:
    """The arrays of a data set without a test split: a fifth of the images is for testing."""
    train, test = split_test(len(labels))
    return Arrays(images[train], labels[train], images[test], labels[test], names)


@tfds.quiet()
def prepared(name: str, dir: str | None, limit: int | None, image: str, label: str) -> Arrays:
    """A data set of TensorFlow Datasets, read without TensorFlow.

    If it is not prepared in `dir` and TensorFlow is installed, it is downloaded and prepared first.
    """
    builder = tfds.builder(name, dir, "digits")
    features, splits, where = builder.info.features, builder.info.splits, builder.data_path
    labelled = {image, label} <= set(features) and hasattr(features[label], "names")
    if not labelled or "train" not in splits:
        raise tfds.unexpected(name, builder, f"features {image} and {label}, a class, and a split train")

    def read(split: str) -> tuple[np.ndarray, np.ndarray]:
        what = f"data.name {name}, split {split}"
        return decoded(tfds.source(builder, name, split), what, where, limit, image, label)

    names = tuple(features[label].names)
    train = read("train")
    test = next((read(split) for split in ("test", "validation") if split in splits), None)
    return without_test(*train, names) if test is None else Arrays(*train, *test, names)


def decoded(
    source: Any, what: str, where: Any, limit: int | None = None, image: str = "image", label: str = "label"
) -> tuple[np.ndarray, np.ndarray]:
    """The images and labels of a data source, decoded in threads: decoders release Python's lock."""
    count = min(len(source), limit or len(source))
    if not count:
        raise UserError(f"{what}: there is no image at all")

    def examples(start: int, stop: int) -> tuple[list[np.ndarray], list[int]]:
        try:
            found = source.__getitems__(list(range(start, stop)))
            return [np.asarray(example[image]) for example in found], [example[label] for example in found]
        except Exception as error:
            raise tfds.damaged(what, where, error) from error

    (first,), _ = examples(0, 1)
    images, labels = np.empty((count, *first.shape), first.dtype), np.empty(count, np.int32)

    def fill(start: int) -> None:
        stop = min(start + 1000, count)
        some, labels[start:stop] = examples(start, stop)
        other = next((x for x in some if x.shape != first.shape), None)
        if other is not None:
            raise UserError(f"{what}: images of one shape expected, not {first.shape} and {other.shape}")
        images[start:stop] = some

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        list(pool.map(fill, range(0, count, 1000)))
    return images, labels


@functools.lru_cache(maxsize=2)
def _spec(images: Images, dir: str | None) -> ImageSpec:
    """`dir`: the directory of the data, a part of the cache's key."""
    data = images.load()
    height, width, channels = data.train_images.shape[1:]
    return ImageSpec((height, width, channels), len(data.names), data.names, *moments(data.train_images))


@functools.lru_cache(maxsize=2)
def _patch_moments(images: Images, dir: str | None, side: int) -> tuple[float, ...]:
    """`dir`: as for `_spec`."""
    spec, some = images.spec(), images.load().train_images[:5000]
    standardised = (some / np.float32(255) - np.array(spec.mean, np.float32)) / np.array(spec.std, np.float32)
    return tuple(second_moments(standardised, side).ravel().tolist())


def second_moments(images: np.ndarray, side: int) -> np.ndarray:
    """The means of all products of two numbers of a square patch, over all patches: f64[size, size].

    images  f32[examples, height, width, channels]
    size    side * side * channels, in this order, as in the kernel of a convolution

    Raises UserError where a patch is larger than the images.
    """
    height, width = images.shape[1:3]
    if side > min(height, width):
        raise UserError(f"net.patch: patches of {side}x{side} do not fit in images of {height}x{width}")
    windows = np.lib.stride_tricks.sliding_window_view(images, (side, side), (1, 2))
    patches = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, side * side * images.shape[-1])
    return (patches.T @ patches).astype(np.float64) / len(patches)


def moments(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and the standard deviation of each channel of u8[examples, height, width, channels], scaled to 0 ... 1.

    The deviation of a constant channel is given as 1.
    """
    # From the number of pixels of each of the 256 shades: exact, and in little memory.
    channels = images.shape[-1]
    shades = np.zeros((channels, 256))
    for part in np.array_split(images, min(len(images), 1 + images.size // 2**22)):
        shades += [np.bincount(part[..., c].ravel(), minlength=256) for c in range(channels)]
    shade, weights = np.arange(256) / 255, shades / shades.sum(1, keepdims=True)
    mean = weights @ shade
    std = np.sqrt((weights * (shade - mean[:, None]) ** 2).sum(1))
    return tuple(mean.tolist()), tuple(np.where(std == 0, 1, std).tolist())
