"""Where encoded images are: records of TensorFlow Datasets, or folders of files. They are read by place, as needed."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from research.core.console import warn
from research.core.errors import UserError
from research.data import tfds
from research.data.order import permute

SUFFIXES = (".jpg", ".jpeg", ".png")
"""The endings of image files, in lower case."""

VALIDATION_FOLDERS = ("validation", "val")
"""The names that a folder of validation images may have."""


class Encoded(NamedTuple):
    """An image that is not decoded yet.

    data   the path of a file, the bytes of one, or pixels u8[height, width, channels] of 1, 3 or 4 channels
    label  index of its class
    """

    data: str | bytes | np.ndarray
    label: int


class Source(Protocol):
    """The encoded images of one split. Threads may read at the same time."""

    def __len__(self) -> int: ...

    def read(self, places: Sequence[int]) -> list[Encoded]:
        """The images at these places. Raises RunError where records are damaged."""
        ...

    def name(self, place: int) -> str:
        """What to call an image in a message."""
        ...


class Sources(NamedTuple):
    """The splits of a data set, and the names of its classes; None: there is no such split."""

    train: Source
    validation: Source | None
    test: Source | None
    names: tuple[str, ...]


class Folder:
    """The images SPLIT/CLASS/*.jpg of one split (or .jpeg, .png), shuffled, always in the same way.

    Only their names are in memory.

    Raises UserError where there are none, or where a folder is none of the `names` of the classes.
    """

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.path, self.names = path, names
        wrong = next((found for found in folders(path) if found not in names), None)
        if wrong is not None:
            raise UserError(f"data.name {path}: {wrong} is no class of the training images")
        each = [sorted(entry.name for entry in os.scandir(path / name) if image_file(entry)) for name in folders(path)]
        labels = np.repeat([names.index(name) for name in folders(path)], [len(files) for files in each])
        if not len(labels):
            raise UserError(f"data.name {path}: no images there; expected files CLASS/*.jpg, .jpeg or .png")
        # By class the first images, to which data.limit and scripts keep, would be of few classes.
        order = permute(np.arange(len(labels), dtype=np.uint32), np.uint32(0), len(labels), 0, np)
        self.labels = labels[order]
        # As bytes in one array: a million Python strings would be a hundred megabytes.
        self.files = np.array([os.fsencode(file) for files in each for file in files])[order]

    def __len__(self) -> int:
        return len(self.files)

    def read(self, places: Sequence[int]) -> list[Encoded]:
        """See `Source`; the files are opened where they are decoded."""
        return [Encoded(self.name(place), int(self.labels[place])) for place in places]

    def name(self, place: int) -> str:
        """The path of a file."""
        return os.path.join(self.path, self.names[self.labels[place]], os.fsdecode(bytes(self.files[place])))


class Records:
    """The records of one split of a data set of TensorFlow Datasets, read without TensorFlow.

    image, label  the features that have them
    """

    def __init__(self, builder: Any, name: str, split: str, image: str, label: str) -> None:
        from tensorflow_datasets.proto import tf_example_pb2

        self.what, self.where, self.image, self.label = (
            f"data.name {name}, split {split}",
            builder.data_path,
            image,
            label,
        )
        # Its records, not its examples: those would be decoded, by slower means.
        self.records, self.parse = tfds.source(builder, name, split).data_source, tf_example_pb2.Example.FromString

    def __len__(self) -> int:
        return len(self.records)

    def read(self, places: Sequence[int]) -> list[Encoded]:
        """See `Source`."""
        try:
            features = [self.parse(record).features.feature for record in self.records.__getitems__(list(places))]
            return [Encoded(f[self.image].bytes_list.value[0], f[self.label].int64_list.value[0]) for f in features]
        except Exception as error:
            raise tfds.damaged(self.what, self.where, error) from error

    def name(self, place: int) -> str:
        """The record's number."""
        return f"{self.what}, record {place}"


def folder_sources(path: Path, test_split: str | None) -> Sources:
    """The images of a folder with train/CLASS/*.jpg and perhaps validation/CLASS/*.jpg and test/CLASS/*.jpg.

    test_split  the folder to test on; None: test, else that of validation. The one of validation may be called val too

    Raises UserError where there are no such images.
    """
    if not (path / "train").is_dir():
        raise UserError(f"data.name {path}: no such images; expected a folder with train/CLASS/*.jpg")
    names = tuple(folders(path / "train"))
    validation = next((name for name in VALIDATION_FOLDERS if (path / name).is_dir()), None)
    there = [name for name in ("train", validation, "test") if name and (path / name).is_dir()]
    validation, test = splits(f"data.name {path}", there, validation, test_split)
    made = lambda split: split and Folder(path / split, names)
    return Sources(Folder(path / "train", names), made(validation), made(test), names)


@tfds.quiet()
def record_sources(name: str, dir: str | None, test_split: str | None, image: str, label: str) -> Sources:
    """The images of a data set of TensorFlow Datasets with the features `image` and `label`, see `folder_sources`.

    A test split without labels is left out, unless `test_split` names it.

    Raises UserError if the data set is not there, has other features or no labels, RunError if it is damaged.
    """
    what, builder = f"data.name {name}", tfds.builder(name, dir, None, "a folder of images")
    features, there = builder.info.features, list(builder.info.splits)
    if not {image, label} <= set(features) or not hasattr(features[label], "names") or "train" not in there:
        raise tfds.unexpected(name, builder, f"features {image} and {label}, a class, and a split train")
    made = lambda split: split and Records(builder, name, split, image, label)
    if test_split is None and "test" in there and _unlabelled(made("test")):
        there.remove("test")
        instead = "its validation split" if "validation" in there else "a fifth of its training images"
        warn(f"{what}: its test split has no labels; {instead} is the test data")
    validation, test = splits(what, there, "validation", test_split)
    for split in filter(None, ("train", validation, test)):
        if _unlabelled(made(split)):
            raise UserError(f"{what}: its split {split} has no labels: give data that has them")
    return Sources(made("train"), made(validation), made(test), tuple(features[label].names))


def _unlabelled(records: Records) -> bool:
    """Whether a split has no labels, by its first record."""
    return len(records) > 0 and records.read([0])[0].label == tfds.NO_LABEL


def splits(what: str, there: Sequence[str], validation: str | None, test: str | None) -> tuple[str | None, str | None]:
    """The splits to validate and to test on, of those that are there; None: they are split off the training images."""
    if test is not None and test not in there:
        raise UserError(
            f"{what}: no split {test} to test on; it has {', '.join(there)}: give --data.test-split None or one of them"
        )
    test = test or next((split for split in ("test", validation) if split in there), None)
    return validation if validation in there and validation != test else None, test


def folders(path: Path) -> list[str]:
    """The names of the folders in a folder, sorted."""
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))


def image_file(entry: os.DirEntry) -> bool:
    """Whether an entry of a folder is an image file by its name."""
    return entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(".")
