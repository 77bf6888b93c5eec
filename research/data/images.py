"""Sets of labelled images: the bundled digits, and every image classification set of TensorFlow Datasets.

A new source inherits from `Images` and overrides `arrays`.
"""

import functools
import importlib.util
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from research.core.errors import Mistake
from research.core.experiment import Feeds
from research.data import tfds
from research.data.checks import check_fields, check_images, check_labels
from research.data.feed import FeedName, feeds
from research.data.order import held_out


class Arrays(NamedTuple):
    """What a source reads.

    images  u8[examples, height, width, channels]
    labels  i32[examples], each a place in `names`
    names   of the classes
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    names: tuple[str, ...]


class ImageSpec(NamedTuple):
    """What a learner has to know of a set of images.

    shape      (height, width, channels)
    classes    how many
    names      of the classes
    mean, std  of each channel over all pixels for training (validation included), scaled to [0, 1]
    """

    shape: tuple[int, int, int]
    classes: int
    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Images:
    """A set of labelled images, read into memory as uint8; inputs u8[batch, h, w, c], targets i32[batch].

    Attributes:
        name: digits, or any set of TensorFlow Datasets with an image and a label: mnist, cifar10, ...
        dir: of TensorFlow Datasets; else the environment's TFDS_DATA_DIR, else its own default
        batch: global batch of training
        evaluation_batch: of validation and test
        validation: fraction of the training examples to validate on, carved out by a shuffle; at least one
        seed: of that split, and of the order of training
        feed: resident: all training data on the device; stream: on the host, put there chunk by chunk
        limit: images of each split at most
        image_feature: the feature of a set of TensorFlow Datasets that holds the image
        label_feature: the one that holds the label, a class
    """

    name: str = "digits"
    dir: str | None = None
    batch: int = 128
    evaluation_batch: int = 512
    validation: float = 0.1
    seed: int = 0
    feed: FeedName = "resident"
    limit: int | None = None
    image_feature: str = "image"
    label_feature: str = "label"

    def __post_init__(self) -> None:
        check_fields(self)

    def spec(self) -> ImageSpec:
        """What a learner has to know; reads the data. Raises Mistake where it isn't there, Failure where damaged."""
        return _spec(self, tfds.directory(self.dir))

    def arrays(self) -> Arrays:
        """The images and labels, the same at each call: the only method that a new source overrides."""
        return arrays(self.name, tfds.directory(self.dir), self.limit, self.image_feature, self.label_feature)

    def load(self) -> Arrays:
        """`arrays`, checked, and at most `limit` images of each split. Raises as `spec` does."""
        return checked(self.arrays(), f"data.name {self.name}", self.limit)

    def feeds(self) -> Feeds:
        """What a run reads. Raises as `spec` does."""
        data = self.load()
        return feeds(
            (data.train_images, data.train_labels),
            (data.test_images, data.test_labels),
            batch=self.batch,
            evaluation_batch=self.evaluation_batch,
            validation=self.validation,
            seed=self.seed,
            feed=self.feed,
        )


def checked(data: Arrays, what: str, limit: int | None) -> Arrays:
    """`data`, at most `limit` images of each split. Raises Mistake unless they are labelled images of one shape."""
    train_images, train_labels, test_images, test_labels, names = data
    for split, images, labels in (("train", train_images, train_labels), ("test", test_images, test_labels)):
        check_images(f"{what}, split {split}", images)
        check_labels(f"{what}, split {split}", labels, len(images), len(names))
    if train_images.shape[1:] != test_images.shape[1:]:
        shapes = f"{train_images.shape[1:]} for training, {test_images.shape[1:]} to test"
        raise Mistake(f"{what}: images of one shape expected, not {shapes}")
    return Arrays(train_images[:limit], train_labels[:limit], test_images[:limit], test_labels[:limit], names)


def read(name: str, dir: str | None, limit: int | None = None, image: str = "image", label: str = "label") -> Arrays:
    """The set `name`, read and decoded; not to be written to.

    limit         images of each split at most
    image, label  the features that hold them

    Raises Mistake where it isn't there or isn't labelled images of one shape, Failure where it is damaged.
    """
    data = digits(limit) if name == "digits" else prepared(name, dir, limit, image, label)
    for part in data[:4]:
        part.flags.writeable = False
    return data


arrays = functools.lru_cache(maxsize=2)(read)
"""`read`, once a process."""


def digits(limit: int | None) -> Arrays:
    """The 1,797 handwritten digits, 8x8x1, that scikit-learn brings along (Alpaydin & Kaynak 1998).

    Their 17 shades 0 ... 16 become 0 ... 255. A fifth of them is for testing, whatever the seed.
    """
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise Mistake("data.name digits: scikit-learn, which brings them along, is not installed")
    # Its file, not its `load_digits`: importing scikit-learn takes seconds.
    table = np.loadtxt(Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    images = np.round(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    return without_test(images[:limit], table[:limit, -1].astype(np.int32), tuple("0123456789"))


def without_test(images: np.ndarray, labels: np.ndarray, names: tuple[str, ...]) -> Arrays:
    """A set that has no test split: a fifth of it is for testing."""
    train, test = held_out(len(labels))
    return Arrays(images[train], labels[train], images[test], labels[test], names)


@tfds.quiet()
def prepared(name: str, dir: str | None, limit: int | None, image: str, label: str) -> Arrays:
    """A set prepared by TensorFlow Datasets, read without TensorFlow; its features `image` and `label` are read.

    Tests on the split `test`, else `validation`, else on a fifth of `train`. Where it isn't prepared in `dir` and
    TensorFlow is installed, it is downloaded and prepared first.
    """
    builder = tfds.builder(name, dir, "digits")
    features, splits, where = builder.info.features, builder.info.splits, builder.data_path
    labelled = {image, label} <= set(features) and hasattr(features[label], "names")
    if not labelled or "train" not in splits:
        expected = f"features {image} and {label}, a class, and a split train"
        found = f"features {', '.join(sorted(features))}, splits {', '.join(splits)}"
        raise Mistake(f"data.name {name}: expected {expected}; it has {found}")

    def read(split: str) -> tuple[np.ndarray, np.ndarray]:
        what = f"data.name {name}, split {split}"
        return _decoded(tfds.source(builder, name, split), what, where, limit, image, label)

    names = tuple(features[label].names)
    train = read("train")
    test = next((read(split) for split in ("test", "validation") if split in splits), None)
    return without_test(*train, names) if test is None else Arrays(*train, *test, names)


def _decoded(
    source: Any, what: str, where: Any, limit: int | None = None, image: str = "image", label: str = "label"
) -> tuple[np.ndarray, np.ndarray]:
    """The images and labels of a data source; chunk by chunk, in threads, as decoders let go of Python's lock."""
    count = min(len(source), limit or len(source))
    if not count:
        raise Mistake(f"{what}: there is no image at all")

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
            raise Mistake(f"{what}: images of one shape expected, not {first.shape} and {other.shape}")
        images[start:stop] = some

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        list(pool.map(fill, range(0, count, 1000)))
    return images, labels


@functools.lru_cache(maxsize=2)
def _spec(images: Images, dir: str | None) -> ImageSpec:
    """`dir`, where the set is, is there for the cache."""
    data = images.load()
    height, width, channels = data.train_images.shape[1:]
    # How often each of the 256 shades is met, image by image: exact, and in little memory.
    shades = np.zeros((channels, 256))
    for part in np.array_split(data.train_images, max(1, len(data.train_images) // 1000)):
        shades += [np.bincount(part[..., c].ravel(), minlength=256) for c in range(channels)]
    shade, weights = np.arange(256) / 255, shades / shades.sum(1, keepdims=True)
    mean = weights @ shade
    std = np.sqrt((weights * (shade - mean[:, None]) ** 2).sum(1))
    std = np.where(std == 0, 1, std)  # a channel that says nothing is to be divided by 1
    return ImageSpec((height, width, channels), len(data.names), data.names, tuple(mean.tolist()), tuple(std.tolist()))
