"""Small made-up data: what tests and tiny settings of learners train on."""

from dataclasses import dataclass

import numpy as np

from research.data import boxes, pairs, sentences
from research.data.boxes import Annotated, BoxedImages
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
class ToyBoxes(BoxedImages):
    """Images of 32x32 with one to three bright rectangles: red ones are high, green ones wide."""

    name: str = "toy"
    batch: int = 32
    evaluation_batch: int = 40

    def arrays(self) -> boxes.Arrays:
        """100 images to train on, 40 to test on."""
        rng = np.random.default_rng(0)

        def part(count: int) -> Annotated:
            images = rng.integers(0, 60, (count, 32, 32, 3), np.uint8)
            found: list[tuple[list, list]] = [([], []) for _ in range(count)]
            for image, (own, labels) in zip(images, found, strict=True):
                for _ in range(rng.integers(1, 4)):
                    label, (short, long) = int(rng.integers(2)), rng.integers((5, 9), (8, 15))
                    height, width = (long, short) if label == 0 else (short, long)
                    top, left = rng.integers(0, (32 - height, 32 - width))
                    image[top : top + height, left : left + width, label] = 220
                    own.append(np.array([top, left, top + height, left + width], np.float32) / 32)
                    labels.append(label)
            return Annotated(images, [np.array(own) for own, _ in found], [np.array(labels) for _, labels in found])

        return boxes.Arrays(part(100), part(40), ("high", "wide"))
