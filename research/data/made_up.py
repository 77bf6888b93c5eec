"""Data that is made up, of the shapes and sizes of a set that isn't here: to compile for, not to train on."""

import dataclasses
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from research.core.errors import UserError
from research.core.experiment import Experiment
from research.data import boxes, images, masks, pairs, sentences, unpaired
from research.data.boxes import BoxedImages
from research.data.canvases import Canvases
from research.data.checks import expanded
from research.data.encoded import Encoded, Sources
from research.data.images import Images
from research.data.large_images import LargeImages
from research.data.masks import Masks
from research.data.pairs import Pairs
from research.data.sentences import Sentences
from research.data.text import Text
from research.data.unpaired import Unpaired

SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "mnist": ((60_000, 10_000), (28, 28, 1)),
    "cifar10": ((50_000, 10_000), (32, 32, 3)),
    "imagenet2012": ((1_281_167, 50_000), (375, 500, 3)),
    "camvid_small": ((367, 101, 233), (180, 240, 3)),
    "bccd": ((292, 72), (480, 640, 3)),
    "coco/2017": ((118_287, 5000), (480, 640, 3)),
    "cycle_gan/horse2zebra": ((1067, 1334, 120, 140), (256, 256, 3)),
    "imdb_reviews": ((25_000, 25_000), ()),
    "sst2": ((67_349, 1821), ()),
    "multi30k": ((29_000, 1014, 1000), ()),
    "tiny_shakespeare": ((1_115_394,), ()),
}
"""By the name of a set that can be made up: how many examples its splits have, and the shape of one."""

OBJECTS = {"bccd": (3, 30), "coco/2017": (80, 93)}
"""By the name of a set with boxes: its classes, and the most objects of an image."""

SYMBOLS = 65
"""The characters of tiny_shakespeare that differ."""

TOKENS = 10_000_000
"""The length of a made-up file of tokens."""


class MadeImages(Images):
    """Black images in ten classes."""

    def arrays(self) -> images.Arrays:
        """See `Images`."""
        return _images(self.name)


class MadeLargeImages(LargeImages):
    """Black images in a thousand classes."""

    def sources(self) -> Sources:
        """See `LargeImages`."""
        (train, test), shape = SIZES[self.name]
        return Sources(Black(range(train), shape), None, Black(range(test), shape), tuple(map(str, range(1000))))


@dataclasses.dataclass(frozen=True)
class Black:
    """A source of black images of one shape, which take turns in a thousand classes."""

    examples: range
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.examples)

    def read(self, places: Sequence[int]) -> list[Encoded]:
        """See `Source`."""
        return [Encoded(np.zeros(self.shape, np.uint8), place % 1000) for place in places]

    def name(self, place: int) -> str:
        """See `Source`."""
        return f"image {place}"


class MadeCanvases(Canvases):
    """Canvases without ink."""

    def arrays(self) -> images.Arrays:
        """See `Canvases`."""
        return _images(self.name)


class MadeBoxes(BoxedImages):
    """Black images with boxes of all classes: in the first one as many as an image has at most, else one."""

    def arrays(self) -> boxes.Arrays:
        """See `BoxedImages`."""
        (train, test), shape = SIZES[self.name]
        classes, most = OBJECTS[self.name]
        shape = (*(self.resize or shape[:2]), shape[2])
        box = np.array([[0.25, 0.25, 0.75, 0.75]], np.float32)

        def part(count: int) -> boxes.Annotated:
            labels = [
                np.arange(most, dtype=np.int32) % classes,
                *np.arange(count - 1, dtype=np.int32)[:, None] % classes,
            ]
            black = np.broadcast_to(np.zeros((1, *shape), np.uint8), (count, *shape))
            return boxes.Annotated(black, [np.repeat(box, len(own), 0) for own in labels], labels)

        return boxes.Arrays(part(train), part(test), tuple(map(str, range(classes))))


class MadeMasks(Masks):
    """Black images in eleven classes."""

    def arrays(self) -> masks.Arrays:
        """See `Masks`."""
        counts, shape = SIZES[self.name]
        of = lambda count: (np.zeros((count, *shape), np.uint8), np.full((count, *shape[:2]), count % 11, np.uint8))
        train, validation, test = map(of, counts)
        return masks.Arrays(train, validation, test, tuple(map(str, range(11))))


class MadeUnpaired(Unpaired):
    """Black images."""

    def arrays(self) -> unpaired.Domains:
        """See `Unpaired`."""
        counts, shape = SIZES[self.name]
        if len(counts) == 2:  # two of ten classes
            counts = tuple(count // 10 for count in counts for _ in range(2))
        return unpaired.Domains(*(np.zeros((count, *shape), np.uint8) for count in counts))


class MadeSentences(Sentences):
    """Texts of as many different words as the vocabulary has, as long as the longest bucket."""

    def texts(self) -> sentences.Texts:
        """See `Sentences`."""

        def part(count: int) -> tuple[np.ndarray, np.ndarray]:
            each = _texts(count, self.lengths[-1], self.vocabulary)
            return np.array(each, object), np.arange(count, dtype=np.int32) % 2

        train, test = SIZES[self.name][0]
        return sentences.Texts(("no", "yes"), part(train), part(872) if self.name == "sst2" else None, part(test))


class MadePairs(Pairs):
    """Texts and the same texts."""

    def texts(self) -> pairs.Texts:
        """See `Pairs`."""
        train, validation, test = ([each := _texts(n, 8, self.vocabulary), each] for n in SIZES[self.name][0])
        return pairs.Texts(train, validation, test)


def _images(name: str) -> images.Arrays:
    """Black images in ten classes."""
    (train, test), shape = SIZES[name]
    of = lambda count: (np.zeros((count, *shape), np.uint8), np.arange(count, dtype=np.int32) % 10)
    return images.Arrays(*of(train), *of(test), tuple("0123456789"))


def _texts(count: int, length: int, vocabulary: int) -> list[str]:
    """Texts of so many words, which take turns."""
    words = [f"{np.base_repr(n, 26)}q" for n in range(vocabulary)]
    return [" ".join(words[(start * length + n) % vocabulary] for n in range(length)) for start in range(count)]


def available(experiment: Experiment, directory: Path) -> tuple[Experiment, bool]:
    """The experiment, and whether its data had to be made up because it isn't here; files of it are in `directory`.

    Raises UserError where it isn't here and its shapes aren't known.
    """
    data = getattr(experiment, "data", None)
    if data is None:
        return experiment, False
    try:
        data.spec() if hasattr(data, "spec") else data.load()
        return experiment, False
    except UserError:
        made = _made(data, directory)
        if made is None:
            raise
        return dataclasses.replace(experiment, data=made), True  # type: ignore[call-arg]


def _made(data: Any, directory: Path) -> Any:
    """Data in place of `data`; None where it isn't known how."""
    if isinstance(data, Text) and data.name.endswith(".npy") and not expanded(data.name).exists():
        path = directory / "tokens.npy"
        np.save(path, (np.arange(TOKENS) % data.vocabulary).astype(np.uint32))
        return dataclasses.replace(data, name=str(path))
    if data.name not in SIZES:
        return None
    if isinstance(data, Text):
        path = directory / "text.txt"
        (length,), symbols = SIZES[data.name][0], "".join(map(chr, range(ord("0"), ord("0") + SYMBOLS)))
        path.write_text((symbols * (length // SYMBOLS + 1))[:length])
        return dataclasses.replace(data, name=str(path))
    kinds: dict[type, type] = {
        Images: MadeImages,
        LargeImages: MadeLargeImages,
        Masks: MadeMasks,
        BoxedImages: MadeBoxes,
        Canvases: MadeCanvases,
        Unpaired: MadeUnpaired,
        Sentences: MadeSentences,
        Pairs: MadePairs,
    }
    base = next((base for base in kinds if isinstance(data, base)), None)
    if base is None:
        return None
    kind: Any = _in_place_of(data.__class__, kinds[base])
    return kind(**{field.name: getattr(data, field.name) for field in dataclasses.fields(data)})


@cache
def _in_place_of(kind: type, made: type) -> type:
    """What is `made` in its examples, and in all else `kind`; one class, since caches go by it."""
    return made if issubclass(made, kind) else type(made.__name__, (made, kind), {})
