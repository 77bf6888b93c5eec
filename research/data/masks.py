"""Images with a mask each, the class of every pixel: data sets of TensorFlow Datasets, and made-up ones.

A new source inherits from `Masks` and overrides `arrays`.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from research.core.errors import UserError
from research.core.experiment import Feeds
from research.data import images, tfds
from research.data.checks import check_fields, check_images
from research.data.feed import FeedName, feeds
from research.data.images import ImageSpec
from research.data.order import split_test

VOID = 255
"""The value of a pixel that has no class: it is neither trained on nor scored."""

Part = tuple[np.ndarray, np.ndarray]
"""Images u8[examples, height, width, channels]; masks u8[examples, height, width], indices into the names or VOID."""


class Arrays(NamedTuple):
    """What a source returns.

    train, test  images and masks
    validation   likewise; None: it is split off the training images
    names        names of the classes
    """

    train: Part
    validation: Part | None
    test: Part
    names: tuple[str, ...]


class MaskSpec(NamedTuple):
    """The properties of images with masks that a learner needs.

    images  those of the images, with the classes of their pixels
    shares  of each class among the pixels of the training split that have one
    """

    images: ImageSpec
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Masks:
    """Images with masks in memory; inputs u8[batch, height, width, channels], targets u8[batch, height, width].

    A target is the index of the pixel's class, or 255 (`VOID`) where it has none. Validation data is the split
    validation where there is a split test too, else it is held out of the training images. Test data is the split test,
    else the split validation, else a fifth of the training images.

    Attributes:
        name: digits, which is made up, or a data set of TensorFlow Datasets that has images with masks
        dir: directory of TensorFlow Datasets; None: the environment variable TFDS_DATA_DIR, else the default directory
            of the library
        void: name of the class that stands for no class; without effect where there is none of that name
        batch: size of the global training batch
        evaluation_batch: size of validation and test batches
        validation: fraction of the training images that is held out for validation, at least one image; used if the
            data set has no validation split, or tests on it
        seed: seed of that split and of the order of training
        feed: where the training images are kept: on the device, or on the host, from where each dispatch's batches are
            sent to the device
        limit: largest number of images to use from each split; None: all
        image_feature: feature of a data set of TensorFlow Datasets that has the image
        mask_feature: feature of a data set of TensorFlow Datasets that has the mask
    """

    name: str = "digits"
    dir: str | None = None
    void: str = "void"
    batch: int = 8
    evaluation_batch: int = 16
    validation: float = 0.1
    seed: int = 0
    feed: FeedName = "device"
    limit: int | None = None
    image_feature: str = "image"
    mask_feature: str = "segmentation_mask"

    def __post_init__(self) -> None:
        check_fields(self)

    def spec(self) -> MaskSpec:
        """The properties that a learner needs. Raises UserError if the data is not there, RunError if it is damaged."""
        return _spec(self, tfds.directory(self.dir))

    def arrays(self) -> Arrays:
        """The images and masks, the same at each call: the only method that a new source overrides."""
        if self.name == "digits":
            return made_up(self.limit)
        return prepared(
            self.name, tfds.directory(self.dir), self.void, self.limit, self.image_feature, self.mask_feature
        )

    def load(self) -> Arrays:
        """`arrays`, checked, with at most `limit` images of each split. Raises as `spec` does."""
        data, what = self.arrays(), f"data.name {self.name}"
        parts = {"train": data.train, "validation": data.validation, "test": data.test}
        for split, part in parts.items():
            if part is not None:
                check_masks(f"{what}, split {split}", *part, len(data.names))
                if part[0].shape[1:] != data.train[0].shape[1:]:
                    shapes = f"{data.train[0].shape[1:]} for training, {part[0].shape[1:]} in the split {split}"
                    raise UserError(f"{what}: images of one shape expected, not {shapes}")
        few = lambda part: (part[0][: self.limit], part[1][: self.limit])
        return Arrays(few(data.train), data.validation and few(data.validation), few(data.test), data.names)

    def feeds(self) -> Feeds:
        """The feeds of a run. Raises as `spec` does."""
        data = self.load()
        sizes = self.batch, self.evaluation_batch
        return feeds(data.train, data.test, *sizes, self.validation, self.seed, self.feed, data.validation)


def check_masks(what: str, images: np.ndarray, masks: np.ndarray, classes: int) -> None:
    """Raises UserError unless `masks` are u8 of the images' height and width, one for each, of so many classes."""
    check_images(what, images)
    if masks.dtype != np.uint8 or masks.shape != images.shape[:3]:
        found, expected = ("x".join(map(str, x.shape[1:3])) for x in (masks, images))
        several = f"{len(masks)} masks {masks.dtype} of {found} for {len(images)} images of {expected}"
        raise UserError(f"{what}: expected a mask uint8 of the size of its image for each one, not {several}")
    wrong = np.unique(masks[(masks >= classes) & (masks != VOID)])
    if wrong.size:
        raise UserError(f"{what}: expected classes 0 ... {classes - 1} and {VOID} for none; {wrong[0]} is out of range")


@functools.lru_cache(maxsize=2)
def made_up(limit: int | None) -> Arrays:
    """The digits of scikit-learn: the class of a bright pixel is the digit, that of any other the background.

    Pixels at the edge of a stroke, of medium brightness, have no class.
    """
    data = images.digits(limit)

    def part(pixels: np.ndarray, labels: np.ndarray) -> Part:
        ink = pixels[..., 0]
        masks = np.where(ink >= 128, labels[:, None, None] + 1, np.where(ink >= 96, VOID, 0))
        return pixels, masks.astype(np.uint8)

    train, test = part(data.train_images, data.train_labels), part(data.test_images, data.test_labels)
    return Arrays(train, None, test, ("background", *data.names))


@functools.lru_cache(maxsize=2)
@tfds.quiet()
def prepared(name: str, dir: str | None, void: str, limit: int | None, image: str, mask: str) -> Arrays:
    """A data set of TensorFlow Datasets, read without TensorFlow; see `Masks`. Raises as `Masks.spec` does."""
    builder = tfds.builder(name, dir, "digits")
    features, splits = builder.info.features, builder.info.splits
    if not {image, mask} <= set(features) or "train" not in splits:
        raise tfds.unexpected(name, builder, f"features {image} and {mask}, and a split train")
    # TensorFlow Datasets names the classes 0, 1, ... where nobody has.
    names = getattr(features[mask], "names", None)
    if not names:
        raise UserError(f"data.name {name}: its feature {mask} does not say which classes there are")
    kept = tuple(n for n in names if n != void)
    if len(kept) > VOID:
        raise UserError(
            f"data.name {name}: masks of uint8 can hold {VOID} classes, and its feature {mask} has {len(kept)}"
        )
    numbers = np.full(256, len(kept), np.uint8)  # out of range, unless it is a class
    numbers[VOID] = VOID
    numbers[: len(names)] = [VOID if n == void else kept.index(n) for n in names]

    def part(split: str) -> Part:
        pixels, masks = tfds.columns(builder, name, split, (image, mask), limit)
        for index, (x, y) in enumerate(zip(pixels, masks, strict=True)):
            if x.shape != pixels[0].shape or y.shape[:2] != x.shape[:2]:
                raise UserError(
                    f"data.name {name}, split {split}: images of one shape and masks of their size expected; example "
                    f"{index} has an image of {_size(x)} and a mask of {_size(y)}, the first image {_size(pixels[0])}"
                )
        return np.stack(pixels), numbers[np.stack(masks)[..., 0]]

    train = part("train")
    if "test" in splits:
        return Arrays(train, part("validation") if "validation" in splits else None, part("test"), kept)
    if "validation" in splits:
        return Arrays(train, None, part("validation"), kept)
    rest, test = split_test(len(train[0]))
    return Arrays((train[0][rest], train[1][rest]), None, (train[0][test], train[1][test]), kept)


def _size(x: np.ndarray) -> str:
    return "x".join(map(str, x.shape[:2]))


@functools.lru_cache(maxsize=2)
def _spec(config: Masks, dir: str | None) -> MaskSpec:
    """`dir`: the directory of the data, a part of the cache's key."""
    data = config.load()
    pixels, masks = data.train
    counts = np.bincount(masks.ravel(), minlength=256)[: len(data.names)]
    shares = counts / max(int(counts.sum()), 1)
    spec = ImageSpec(pixels.shape[1:], len(data.names), data.names, *images.moments(pixels))
    return MaskSpec(spec, tuple(shares.tolist()))
