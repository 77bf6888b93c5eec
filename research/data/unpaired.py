"""Two unpaired sets of images to translate between: two classes of labelled images, or a data set of CycleGAN's."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from flax import struct

from research.core.errors import UserError, nearest
from research.core.experiment import Feed, Feeds
from research.core.state import Batch
from research.data import images, tfds
from research.data.checks import check_fields, check_images
from research.data.feed import EvalBatches, FeedName, feeds

CYCLE_GAN = "cycle_gan/"
"""The prefix of the data sets of TensorFlow Datasets that have the splits trainA, trainB, testA and testB."""


class Domains(NamedTuple):
    """The images of the two domains X and Y, u8[examples, height, width, channels]."""

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


@dataclass(frozen=True)
class Unpaired:
    """Images of two domains; inputs (X, Y), each u8[batch, height, width, channels], targets (f32[batch], f32[batch]).

    The targets are the masks of X and Y: in evaluation, one of the two may have more images than the other.

    Attributes:
        name: digits or a data set of TensorFlow Datasets that has labelled images, such as cifar10; or one of its data
            sets of CycleGAN's images, such as cycle_gan/horse2zebra
        classes: names of the two classes of labelled images that are X and Y; of CycleGAN's images, read by
            nothing but classifier_dir
        dir: directory of TensorFlow Datasets; None: the environment variable TFDS_DATA_DIR, else the default directory
            of the library
        batch: size of the global training batch, in images of each domain
        evaluation_batch: size of validation and test batches, in images of each domain
        validation: fraction of the training images that is held out for validation, at least one of each domain
        seed: seed of that split and of the order of training
        feed: where the training images are kept: on the device, or on the host, from where each dispatch's batches are
            sent to the device
        limit: largest number of images to use from each split, of labelled images counting all classes; None: all
        image_feature: feature of labelled images that has the image
        label_feature: feature of labelled images that has the label
    """

    name: str = "cifar10"
    classes: tuple[str, str] = ("automobile", "truck")
    dir: str | None = None
    batch: int = 1
    evaluation_batch: int = 64
    validation: float = 0.05
    seed: int = 0
    feed: FeedName = "device"
    limit: int | None = None
    image_feature: str = "image"
    label_feature: str = "label"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.classes[0] == self.classes[1]:
            raise UserError(f"data.classes must be two different ones, not {self.classes[0]} twice")

    def arrays(self) -> Domains:
        """The images, the same at each call: the only method that a new source overrides.

        Raises UserError if they are not there, RunError if they are damaged.
        """
        dir = tfds.directory(self.dir)
        if self.name.startswith(CYCLE_GAN):
            return splits(self.name, dir)
        return labelled(self.name, self.classes, dir, self.limit, self.image_feature, self.label_feature)

    def load(self) -> Domains:
        """`arrays`, checked, with at most `limit` images of each split. Raises as `arrays` does."""
        data = self.arrays()
        for part, found in zip(Domains._fields, data, strict=True):
            check_images(f"data.name {self.name}, {part}", found)
        shapes = sorted({part.shape[1:] for part in data})
        if len(shapes) > 1:
            raise UserError(f"data.name {self.name}: images of one shape expected, not {shapes[0]} and {shapes[1]}")
        return Domains(*(part[: self.limit] for part in data))

    def feeds(self) -> Feeds:
        """The feeds of a run. Raises as `arrays` does."""
        data = self.load()
        x, y = (
            feeds(
                (train, ()), (test, ()), self.batch, self.evaluation_batch, self.validation, self.seed + at, self.feed
            )
            for at, (train, test) in enumerate(((data.train_x, data.test_x), (data.train_y, data.test_y)))
        )
        train = UnpairedFeed(x.train, y.train, self.batch, self.feed == "device")
        return Feeds(train, eval_side_by_side(x.validation, y.validation), eval_side_by_side(x.test, y.test))


@struct.dataclass
class UnpairedFeed:
    """Training data of two feeds, each in an order of its own; see `Unpaired`."""

    x: Feed
    y: Feed
    batch: int = struct.field(pytree_node=False)
    resident: bool = struct.field(pytree_node=False)

    @property
    def size(self) -> int:
        """The number of training examples of the smaller set."""
        return min(self.x.size, self.y.size)

    def batch_at(self, step: Any, rows: Any = None) -> Batch:
        """The global batch of a step, or the given rows of it; `Batch.index` is that of X."""
        return side_by_side(self.x.batch_at(step, rows), self.y.batch_at(step, rows))


def side_by_side(x: Batch, y: Batch) -> Batch:
    """One batch with the examples of both."""
    return Batch(x.index, x.mask, (x.inputs, y.inputs), (x.mask, y.mask))


def eval_side_by_side(x: Sequence[Batch], y: Sequence[Batch]) -> EvalBatches:
    """Evaluation batches with the examples of both; after the end of the shorter one, its last batch is masked."""

    def batch(of: Sequence[Batch], n: int) -> Batch:
        return of[n] if n < len(of) else of[-1]._replace(mask=np.zeros_like(of[-1].mask))

    one = lambda n: side_by_side(batch(x, n), batch(y, n))
    return EvalBatches([functools.partial(one, n) for n in range(max(len(x), len(y)))])


@functools.lru_cache(maxsize=1)
def labelled(
    name: str, classes: tuple[str, str], dir: str | None, limit: int | None, image: str, label: str
) -> Domains:
    """The images of two classes of a data set of labelled images; those of the other classes are not kept in memory.

    Raises UserError if it has no such class.
    """
    data = images.checked(images.read(name, dir, limit, image, label), f"data.name {name}", limit)
    for wanted in classes:
        if wanted not in data.names:
            raise UserError(f"data.classes: {name} has no class {wanted}: {nearest(wanted, data.names)}")
    x, y = (data.names.index(wanted) for wanted in classes)
    train = [data.train_images[data.train_labels == label] for label in (x, y)]
    found = Domains(*train, *(data.test_images[data.test_labels == label] for label in (x, y)))
    if not all(map(len, found)):
        raise UserError(f"data.limit={limit} leaves no training or test images of a class: give more")
    return found


@functools.lru_cache(maxsize=1)
@tfds.quiet()
def splits(name: str, dir: str | None) -> Domains:
    """The splits trainA, trainB, testA and testB of a data set of TensorFlow Datasets."""
    builder = tfds.builder(name, dir, None)
    read = lambda split: images.decoded(
        tfds.source(builder, name, split), f"data.name {name}, split {split}", builder.data_path
    )[0]
    found = Domains(*(read(split) for split in ("trainA", "trainB", "testA", "testB")))
    for part in found:
        part.flags.writeable = False
    return found
