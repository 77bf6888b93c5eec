"""Two sets of images without pairs, to translate between: two classes of a labelled set, or a set of CycleGAN's."""

import difflib
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from flax import struct

from research.core.errors import Mistake
from research.core.experiment import Feed, Feeds
from research.core.state import Batch
from research.data import images, tfds
from research.data.checks import check_fields, check_images
from research.data.feed import EvalBatches, FeedName, feeds

CYCLE_GAN = "cycle_gan/"
"""How the names of TensorFlow Datasets' sets start that have the splits trainA, trainB, testA and testB."""


class Domains(NamedTuple):
    """The images of the two sets X and Y, u8[examples, height, width, channels]."""

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


@dataclass(frozen=True)
class Unpaired:
    """Images of two sets, X and Y; inputs (u8[batch, h, w, c] of X, the same of Y), targets (f32[batch], f32[batch]).

    The targets are each set's own mask: where one has run out, in evaluation, the other goes on.

    Attributes:
        name: a set of labelled images, see `Images`; or one of TensorFlow Datasets' cycle_gan, as cycle_gan/horse2zebra
        classes: which of its classes are X and Y, by name; A and B of cycle_gan
        dir: of TensorFlow Datasets; else the environment's TFDS_DATA_DIR, else its own default
        batch: global batch of training, of each set
        evaluation_batch: of validation and test
        validation: fraction of the training examples to validate on, carved out by a shuffle; at least one of each
        seed: of that split, and of the order of training
        feed: resident: all training data on the device; stream: on the host, put there chunk by chunk
        limit: images of each split at most; of a labelled set, of all its classes together
        image_feature: the feature of a labelled set that holds the image
        label_feature: the one that holds the label
    """

    name: str = "cifar10"
    classes: tuple[str, str] = ("automobile", "truck")
    dir: str | None = None
    batch: int = 1
    evaluation_batch: int = 64
    validation: float = 0.05
    seed: int = 0
    feed: FeedName = "resident"
    limit: int | None = None
    image_feature: str = "image"
    label_feature: str = "label"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.classes[0] == self.classes[1]:
            raise Mistake(f"data.classes must be two, not {self.classes[0]} twice")

    def arrays(self) -> Domains:
        """The images, the same at each call: the only method that a new source overrides.

        Raises Mistake where they aren't there, Failure where damaged.
        """
        dir = tfds.directory(self.dir)
        if self.name.startswith(CYCLE_GAN):
            return splits(self.name, dir)
        return labelled(self.name, self.classes, dir, self.limit, self.image_feature, self.label_feature)

    def load(self) -> Domains:
        """`arrays`, checked, and at most `limit` images of each part. Raises as `arrays` does."""
        data = self.arrays()
        for part, found in zip(Domains._fields, data, strict=True):
            check_images(f"data.name {self.name}, {part}", found)
        shapes = sorted({part.shape[1:] for part in data})
        if len(shapes) > 1:
            raise Mistake(f"data.name {self.name}: images of one shape expected, not {shapes[0]} and {shapes[1]}")
        return Domains(*(part[: self.limit] for part in data))

    def feeds(self) -> Feeds:
        """What a run reads. Raises as `arrays` does."""
        data = self.load()
        x, y = (
            feeds(
                (train, ()), (test, ()), self.batch, self.evaluation_batch, self.validation, self.seed + at, self.feed
            )
            for at, (train, test) in enumerate(((data.train_x, data.test_x), (data.train_y, data.test_y)))
        )
        train = Both(x.train, y.train, self.batch, self.feed == "resident")
        return Feeds(train, beside(x.validation, y.validation), beside(x.test, y.test))


@struct.dataclass
class Both:
    """Training data of two feeds, whose orders have nothing to do with one another; see `Unpaired`."""

    x: Feed
    y: Feed
    batch: int = struct.field(pytree_node=False)
    resident: bool = struct.field(pytree_node=False)

    def batch_at(self, step: Any, rows: Any = None) -> Batch:
        """The global batch of a step, or these rows of it; `index` is that of X."""
        return both(self.x.batch_at(step, rows), self.y.batch_at(step, rows))


def both(x: Batch, y: Batch) -> Batch:
    """One batch of two, side by side."""
    return Batch(x.index, x.mask, (x.inputs, y.inputs), (x.mask, y.mask))


def beside(x: Sequence[Batch], y: Sequence[Batch]) -> EvalBatches:
    """Evaluation batches side by side; where one set has no more, its last batch stands there, masked."""

    def batch(of: Sequence[Batch], n: int) -> Batch:
        return of[n] if n < len(of) else of[-1]._replace(mask=np.zeros_like(of[-1].mask))

    one = lambda n: both(batch(x, n), batch(y, n))
    return EvalBatches([functools.partial(one, n) for n in range(max(len(x), len(y)))])


@functools.lru_cache(maxsize=1)
def labelled(
    name: str, classes: tuple[str, str], dir: str | None, limit: int | None, image: str, label: str
) -> Domains:
    """Two classes of a labelled set, decoded once a process; the other classes are not kept.

    Raises Mistake where it has no such class.
    """
    data = images.checked(images.read(name, dir, limit, image, label), f"data.name {name}", limit)
    for wanted in classes:
        if wanted not in data.names:
            near = difflib.get_close_matches(wanted, data.names, 1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(data.names)}"
            raise Mistake(f"data.classes: {name} has no class {wanted}: {hint}")
    x, y = (data.names.index(wanted) for wanted in classes)
    train = [data.train_images[data.train_labels == label] for label in (x, y)]
    found = Domains(*train, *(data.test_images[data.test_labels == label] for label in (x, y)))
    if not all(map(len, found)):
        raise Mistake(f"data.limit={limit} leaves a class, to train or to test on, without images: give more")
    return found


@functools.lru_cache(maxsize=1)
@tfds.quiet()
def splits(name: str, dir: str | None) -> Domains:
    """The splits trainA, trainB, testA and testB of a set prepared by TensorFlow Datasets, decoded once a process."""
    builder = tfds.builder(name, dir, None)
    read = lambda split: images._decoded(
        tfds.source(builder, name, split), f"data.name {name}, split {split}", builder.data_path
    )[0]
    found = Domains(*(read(split) for split in ("trainA", "trainB", "testA", "testB")))
    for part in found:
        part.flags.writeable = False
    return found
