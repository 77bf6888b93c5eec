"""Labelled images of any sizes, decoded as batches are asked for: folders of JPEGs, and sets of TensorFlow Datasets.

Only the batches that are read next are in memory. What is random about an image is drawn by the seed, the epoch and the
image's index, so that a batch is a pure function of the step, whichever process or thread decodes it.
"""

import functools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from research.core.console import warn
from research.core.errors import RunError, UserError, positive
from research.core.experiment import Feeds
from research.core.state import Batch
from research.data import encoded, tfds
from research.data.checks import check_fields, expanded
from research.data.crops import DRAWS, evaluation_image, training_image, uniforms
from research.data.encoded import Encoded, Source, Sources
from research.data.feed import EvalBatches
from research.data.images import ImageSpec, LabelledImages
from research.data.order import permute, positions, split, split_test

MOST_UNREADABLE = 100
"""How many images in a row may be unreadable before the data is given up."""


@dataclass(frozen=True)
class LargeImages(LabelledImages):
    """Labelled images, decoded in threads as batches are read; inputs u8[batch, size, size, 3], targets i32[batch].

    A training image is a random part of the image, resized; one to evaluate on is the middle square of the resized
    image. Test data is the split test if it has labels, else the split validation, else a fifth of the training images;
    validation data is the split validation where it is not tested on, else it is held out of the training images.

    Attributes:
        name: path of a folder with train/CLASS/*.jpg (or .jpeg, .png), and perhaps validation (or val) and test
            likewise; or a data set of TensorFlow Datasets with images and labels, such as imagenet2012
        dir: directory of TensorFlow Datasets; None: the environment variable TFDS_DATA_DIR, else the default directory
            of the library
        batch: size of the global training batch
        evaluation_batch: size of validation and test batches
        validation: fraction of the training images that is held out for validation, at least one image; used if the
            data has no validation split, or it is tested on
        test_split: split to test on; None: test, else validation, else a fifth of the training images
        seed: seed of that split, of the order of training, and of the random parts and flips
        limit: largest number of images to use from each split; None: all. The images of a folder are shuffled, always
            in the same way
        size: height and width of the images that the net reads, in pixels
        scale: smallest and largest area of a random part, as fractions of the image's
        ratio: smallest and largest ratio of a random part's width to its height
        flip: flip half of the training images from left to right
        resize: length of the shorter side of an image to evaluate on, before its middle is cropped, in pixels
        workers: number of threads that decode; None: one for each core
        unreadable: what happens with an image that can't be decoded: it is an error, or the next readable image takes
            its place in training, and it is left out in evaluation; each of them is named
        mean: mean of each channel, for pixels in 0 ... 1; the default is ImageNet's
        std: standard deviation of each channel, likewise
        image_feature: feature of a data set of TensorFlow Datasets that has the image
        label_feature: feature of a data set of TensorFlow Datasets that has the label
    """

    name: str = "imagenet2012"
    dir: str | None = None
    batch: int = 256
    evaluation_batch: int = 256
    validation: float = 0.01
    test_split: str | None = None
    seed: int = 0
    limit: int | None = None
    size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    resize: int = 256
    workers: int | None = None
    unreadable: Literal["error", "replace"] = "error"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    image_feature: str = "image"
    label_feature: str = "label"

    def __post_init__(self) -> None:
        check_fields(self, "size")
        positive(self, "data", "workers")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UserError(f"data.scale is a smallest and a largest fraction above 0, not {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise UserError(f"data.ratio is a smallest and a largest ratio above 0, not {self.ratio}")
        if min(self.std) <= 0:
            raise UserError(f"data.std must be above 0, not {self.std}")
        if self.resize < self.size:
            raise UserError(f"data.resize={self.resize} is less than data.size={self.size}, which is cropped from it")

    def spec(self) -> ImageSpec:
        """See `LabelledImages`."""
        names = self.sources().names
        return ImageSpec((self.size, self.size, 3), len(names), names, self.mean, self.std)

    def sources(self) -> Sources:
        """The encoded images, the same at each call: the only method that a new source overrides."""
        return _sources(self.name, tfds.directory(self.dir), self.test_split, self.image_feature, self.label_feature)

    def feeds(self) -> Feeds:
        """See `LabelledImages`."""
        train, given, tested, names = self.sources()
        places = np.arange(len(train))
        if tested is None:
            places, test_places = split_test(len(places))
        else:
            test_places = np.arange(len(tested))
        places = places[: self.limit]
        if given is None:
            rest, held_out = (places[part] for part in split(len(places), self.validation, self.seed))
        else:
            rest, held_out = places, np.arange(len(given))
        # Its threads begin with the first batch.
        pool = ThreadPoolExecutor(self.threads, "decode")
        reader = lambda source, places: Reader(self, source, places[: self.limit], len(names), pool)
        return Feeds(
            train=LargeFeed(reader(train, rest)),
            validation=reader(given or train, held_out).batches(),
            test=reader(tested or train, test_places).batches(),
        )

    @property
    def threads(self) -> int:
        """The number of threads that decode."""
        return self.workers or os.cpu_count() or 1


@dataclass(frozen=True)
class Reader:
    """Decodes the images of one split in threads.

    config   what becomes of an image
    source   the encoded images
    places   i64[examples], those of them that are used
    classes  number of classes
    pool     the threads
    """

    config: LargeImages
    source: Source
    places: np.ndarray
    classes: int
    pool: ThreadPoolExecutor
    told: set[int] = field(default_factory=set)
    lock: Any = field(default_factory=threading.Lock)

    def read(self, index: np.ndarray, draws: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Images u8[n, size, size, 3], their labels i32[n], and bool[n], whether each could be read.

        index  i[n], into `places`
        draws  f64[n, DRAWS], for training images, where the next readable one takes the place of an unreadable one;
               None: images to evaluate on, where it is black

        Raises RunError where an image is unreadable and none may be, and where a label is none of the classes.
        """
        size = self.config.size
        images, labels = np.zeros((len(index), size, size, 3), np.uint8), np.zeros(len(index), np.int32)
        readable = np.ones(len(index), bool)

        def fill(start: int) -> None:
            rows = range(start, min(start + chunk, len(index)))
            for row, one in zip(rows, self.source.read(self.places[index[rows]].tolist()), strict=True):
                own = None if draws is None else draws[row]
                readable[row] = self._decode(int(index[row]), one, own, images[row : row + 1], labels[row : row + 1])

        # Small enough that the threads finish together, large enough that records are read together.
        chunk = max(1, min(32, len(index) // (4 * self.config.threads)))
        list(self.pool.map(fill, range(0, len(index), chunk)))
        return images, labels, readable

    def _decode(self, index: int, one: Encoded, draws: np.ndarray | None, image: np.ndarray, label: np.ndarray) -> bool:
        """Puts the image and its label, or those of the next readable one, in their places; whether it could."""
        config = self.config
        for tried in range(MOST_UNREADABLE):
            at = (index + tried) % len(self.places)
            if not 0 <= one.label < self.classes:
                name, classes = self.source.name(int(self.places[at])), f"0 ... {self.classes - 1}"
                raise RunError(
                    f"{name}: its label {one.label} is none of the classes {classes}: mend it or leave it out"
                )
            try:
                if draws is None:
                    image[0] = evaluation_image(one.data, config.resize, config.size)
                else:
                    image[0] = training_image(one.data, draws, config.size, config.scale, config.ratio, config.flip)
                label[0] = one.label
                return True
            except Exception as error:  # each decoder has its own
                self._tell(at, error)
            if draws is None:
                return False
            (one,) = self.source.read([int(self.places[(index + tried + 1) % len(self.places)])])
        raise RunError(f"data.name {config.name}: {MOST_UNREADABLE} images in a row can't be read")

    def _tell(self, index: int, error: Exception) -> None:
        """Names an unreadable image, once. Raises RunError where there may be none."""
        place = int(self.places[index])
        what = f"{self.source.name(place)}: this image can't be read ({tfds.reason(error)})"
        if self.config.unreadable == "error":
            raise RunError(f"{what}; --data.unreadable replace goes on without such images") from error
        with self.lock:
            if place in self.told:
                return
            self.told.add(place)
        warn(f"{what}; it is left out")

    def batches(self) -> EvalBatches:
        """All images in order, to evaluate on; see `EvalBatches`."""
        count, size = len(self.places), self.config.evaluation_batch

        def batch(start: int) -> Batch:
            index = np.arange(start, start + size)
            there = index[: count - start]
            images, labels, readable = self.read(there, None)
            row = np.minimum(np.arange(size), len(there) - 1)  # the padding repeats the last image
            mask = (index < count) & readable[row]
            return Batch(there[row].astype(np.int32), mask.astype(np.float32), images[row], labels[row])

        return EvalBatches([functools.partial(batch, start) for start in range(0, count, size)])


class LargeFeed:
    """Training images on the host, of which a batch is decoded when it is asked for. See `HostFeed`."""

    resident: bool = False

    def __init__(self, reader: Reader) -> None:
        self.reader, self.batch = reader, reader.config.batch

    @property
    def size(self) -> int:
        """The number of training images."""
        return len(self.reader.places)

    def batch_at(self, step: Any, rows: Any = None) -> Batch:
        """The global batch of a step, leaves [batch, ...], or the given rows of it, which alone are decoded."""
        seed = self.reader.config.seed
        epoch, place = positions(step, self.batch, self.size, np, rows)
        index = permute(place, epoch, self.size, seed, np).astype(np.int64)
        images, labels, _ = self.reader.read(index, uniforms(seed, epoch, index, DRAWS))
        return Batch(index.astype(np.int32), np.ones(len(index), np.float32), images, labels)


@functools.lru_cache(maxsize=2)
def _sources(name: str, dir: str | None, test_split: str | None, image: str, label: str) -> Sources:
    path = expanded(name)
    if path.is_dir():
        return encoded.folder_sources(path, test_split)
    if os.sep in name and name.startswith((".", "~", os.sep)):
        raise UserError(f"data.name {name}: there is no such folder")
    return encoded.record_sources(name, dir, test_split, image, label)
