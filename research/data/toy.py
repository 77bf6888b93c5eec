"""Small made-up data: what tests and tiny settings of learners train on."""

from dataclasses import dataclass

import numpy as np

from research.data import pairs, sentences
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
