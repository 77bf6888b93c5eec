"""Small made-up data: what tests and tiny settings of learners train on."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from research.data import encoded, images, pairs, sentences
from research.data.large_images import LargeImages
from research.data.pairs import Pairs
from research.data.sentences import Sentences
from research.data.text import Text


def toy_sentences() -> list[str]:
    """80 sentences of 2 to 8 words, of six different words."""
    rng, words = np.random.default_rng(0), ["red", "blue", "sun", "moon", "is", "not"]
    return [" ".join(rng.choice(words, n)) for n in rng.integers(2, 9, 80)]


@dataclass(frozen=True)
class ToySentences(Sentences):
    """Sentences with the label "yes" where they have the word "moon"."""

    name: str = "toy"
    vocabulary: int = 40
    lengths: tuple[int, ...] = (4, 8)
    batch: int = 32
    evaluation_batch: int = 40

    def texts(self) -> sentences.Texts:
        """60 sentences to train on, 20 to test on."""
        part = lambda some: (np.array(some, object), np.array(["moon" in text for text in some], np.int32))
        some = toy_sentences()
        return sentences.Texts(("no", "yes"), part(some[:60]), None, part(some[60:]))


@dataclass(frozen=True)
class ToyPairs(Pairs):
    """Sentences whose translation has their words in the opposite order."""

    name: str = "toy"
    vocabulary: int = 290
    lengths: tuple[int, ...] = (16, 32)
    batch: int = 32
    evaluation_batch: int = 40

    def texts(self) -> pairs.Texts:
        """60 pairs to train on, 20 to test on."""
        part = lambda some: [some, [" ".join(reversed(text.split())) for text in some]]
        some = toy_sentences()
        return pairs.Texts(part(some[:60]), None, part(some[60:]))


def toy_text() -> Text:
    """The text of this file, in windows of 8 characters."""
    return Text(name=__file__, context=8, batch=32, evaluation_batch=40)


@dataclass(frozen=True)
class ToyLargeImages(LargeImages):
    """The digits of scikit-learn as PNG files, in colours."""

    name: str = "toy"
    size: int = 16
    resize: int = 18
    scale: tuple[float, float] = (0.5, 1.0)

    def sources(self) -> encoded.Sources:
        """As many as are needed, none of them in a file."""
        data = images.digits(None)
        train, test = (
            EncodedDigits(pixels.repeat(3, -1) // np.array([1, 2, 3], np.uint8), labels)
            for pixels, labels in ((data.train_images, data.train_labels), (data.test_images, data.test_labels))
        )
        return encoded.Sources(train, None, test, data.names)


@dataclass(frozen=True)
class EncodedDigits:
    """A source of images u8[examples, height, width, 3] with their labels i32[examples], encoded as they are read."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, places: Sequence[int]) -> list[encoded.Encoded]:
        """See `Source`."""
        png = lambda pixels: cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()
        return [encoded.Encoded(png(self.images[place]), int(self.labels[place])) for place in places]

    def name(self, place: int) -> str:
        """See `Source`."""
        return f"digit {place}"
