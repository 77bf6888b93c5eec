"""Labelled texts, in buckets of equal length."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from research.core.console import warn
from research.core.errors import Mistake
from research.core.experiment import Feeds
from research.core.special_tokens import UNKNOWN
from research.data import tfds
from research.data.buckets import Bucketed, bucketed, check_lengths, judged, padded, sizes
from research.data.checks import check_fields, check_labels
from research.data.labelled_files import read_labelled
from research.data.order import carved, held_out
from research.data.strings import is_path, joined, kept, location, text_features
from research.data.tokenizer import Tokenizer, trained

NO_LABEL = -1
"""The label in TensorFlow Datasets of examples whose labels are kept secret, such as the tests of GLUE."""

Part = tuple[list[str], list[int] | None]
"""The texts of a split and their labels, None where it has none."""


class Texts(NamedTuple):
    """What a source reads: of each split the texts, and their labels i32[texts], each a place in `names`.

    validation  None where it is to be carved from the training texts
    """

    names: tuple[str, ...]
    train: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray] | None
    test: tuple[np.ndarray, np.ndarray]


class SentenceSpec(NamedTuple):
    """What a learner has to know of labelled texts.

    names   of the classes
    length  of the longest bucket, in tokens
    """

    tokenizer: Tokenizer
    classes: int
    names: tuple[str, ...]
    length: int


@dataclass(frozen=True)
class Sentences:
    """Labelled texts in buckets of equal length; inputs i32[batch, length], PAD after the end, targets i32[batch].

    There is no token before or after a text; one without any word is a single UNKNOWN. The tokenizer knows the
    training texts alone. A run is tested on the split test; where there is none, or it has no labels (as that of
    glue/sst2), on the split validation; else on a fifth of the training texts.

    Attributes:
        name: a set of TensorFlow Datasets with texts and a label, such as imdb_reviews or glue/sst2; or the path of a
            folder SPLIT/CLASS/*.txt, such as aclImdb, of a folder of tables SPLIT.tsv or SPLIT.csv, or of one table.
            SPLIT is train, validation (or val, valid, dev) or test. The first row of a table names its columns, or it
            has two: the text and its label
        dir: of TensorFlow Datasets; else the environment's TFDS_DATA_DIR, else its own default
        tokenizer: words, or bpe: byte-level byte pair encoding
        vocabulary: tokens at most, special ones included
        lengths: of the buckets in tokens, increasing; of a longer text the first and the last half of the longest
        batch: global batch of training
        evaluation_batch: of validation and test
        validation: fraction of the training texts to validate on, at least one, where the set doesn't say which
        seed: of that split, and of the order of training
        limit: texts of each split at most
        text_features: the features or columns that hold the text, joined by a newline; None: sentence, text, or title
            and description
        label_feature: the feature or column that holds the label
    """

    name: str = "imdb_reviews"
    dir: str | None = None
    tokenizer: Literal["words", "bpe"] = "words"
    vocabulary: int = 20_000
    lengths: tuple[int, ...] = (128, 256, 400)
    batch: int = 64
    evaluation_batch: int = 256
    validation: float = 0.1
    seed: int = 0
    limit: int | None = None
    text_features: tuple[str, ...] | None = None
    label_feature: str = "label"

    def __post_init__(self) -> None:
        check_fields(self, "vocabulary", "lengths")
        check_lengths(self.lengths)

    def spec(self) -> SentenceSpec:
        """What a learner has to know; reads the data. Raises Mistake where it isn't there, Failure where damaged."""
        return _labelled(self, location(self.name, self.dir))[0]

    def texts(self) -> Texts:
        """The texts and labels, the same at each call: the only method that a new source overrides."""
        return _from_files(self) if is_path(self.name) else _from_tfds(self)

    def load(self) -> Texts:
        """`texts`, checked, and at most `limit` of each split. Raises as `spec` does."""
        data = self.texts()

        def checked(split: str, part: Any) -> Any:
            check_labels(f"data.name {self.name}, split {split}", part[1], len(part[0]), len(data.names))
            return part[0][: self.limit], part[1][: self.limit]

        train = checked("train", data.train)
        validation = None if data.validation is None else checked("validation", data.validation)
        return Texts(data.names, train, validation, checked("test", data.test))

    def feeds(self, chunk: int) -> Feeds:
        """What a run of `chunk` steps a dispatch reads; the tokenizer is kept. Raises as `spec` does."""
        spec, *parts = _labelled(self, location(self.name, self.dir))

        def buckets(part: tuple[list[np.ndarray], np.ndarray]) -> Any:
            texts, labels = part
            rows = lambda index, length: (padded([_ends(texts[i], length) for i in index], length), labels[index])
            return bucketed(sizes(texts), self.lengths, rows)

        train, validation, test = map(buckets, parts)
        return Feeds(
            train=Bucketed(train, self.batch, chunk, self.seed),
            validation=judged(validation, self.evaluation_batch),
            test=judged(test, self.evaluation_batch),
            kept=kept(spec.tokenizer),
        )


@functools.lru_cache(maxsize=2)
def _labelled(config: Sentences, where: str | None) -> tuple[Any, ...]:
    """(spec, train, validation, test): of each part its texts' tokens, a list of i32[tokens], and labels i32[texts].

    `where` the set is, `location`, is there for the cache.
    """
    names, (texts, labels), validation, test = config.load()
    if validation is None:
        if len(texts) < 2:
            raise Mistake(
                f"data.name {config.name}: {len(texts)} training text is too few to carve validation data from"
            )
        rest, part = carved(len(texts), config.validation, config.seed)
        texts, labels, validation = texts[rest], labels[rest], (texts[part], labels[part])
    tokenizer = trained(config.tokenizer, texts, config.vocabulary, specials=True)
    encoded = lambda texts: [x if x.size else np.array([UNKNOWN], np.int32) for x in tokenizer.encoded(list(texts))]
    spec = SentenceSpec(tokenizer, len(names), names, config.lengths[-1])
    return spec, *((encoded(x), y) for x, y in ((texts, labels), validation, test))


def _from_files(config: Sentences) -> Texts:
    """The texts of a folder or a table."""
    path = Path(config.name).expanduser()
    found = read_labelled(path, config.text_features, config.label_feature, config.limit)
    number = lambda name: (int(name), "") if name.isdecimal() else (math.inf, name)
    names = tuple(sorted(set(found["train"].labels or ()), key=number))

    def read(split: str) -> Part:
        texts, labels = found[split]
        unknown = sorted(set(labels or ()) - set(names))
        if unknown:
            some = ", ".join(unknown[:5])
            raise Mistake(f"data.name {config.name}, split {split}: labels that training has not: {some}")
        return texts, None if labels is None else [names.index(label) for label in labels]

    return _splits(config, names, set(found), read)


def _from_tfds(config: Sentences) -> Texts:
    """The texts of a set of TensorFlow Datasets."""
    builder = tfds.builder(config.name, tfds.directory(config.dir), None, "a folder or table of labelled texts")
    features, label = builder.info.features, config.label_feature
    columns = (*text_features(config.text_features, features), label)
    names = tuple(getattr(features[label], "names", ())) if label in set(features) else ()
    if label in set(features) and not names:
        raise Mistake(f"data.name {config.name}: its feature {label} is no class")

    def read(split: str) -> Part:
        *texts, labels = tfds.columns(builder, config.name, split, columns, config.limit)
        found = joined(texts, f"data.name {config.name}, split {split}")
        return found, None if set(labels) == {NO_LABEL} else labels

    return _splits(config, names, set(builder.info.splits), read)


def _splits(config: Sentences, names: tuple[str, ...], has: set[str], read: Callable[[str], Part]) -> Texts:
    """The texts of a source with the splits `has`; see `Sentences` for which of them are validation and test."""
    what = f"data.name {config.name}"

    def labelled(split: str) -> Any:
        """(texts, labels) of a split, or None if it has no labels."""
        texts, labels = read(split)
        clean = np.array([text.replace("<br />", "\n") for text in texts], object)
        return None if labels is None else (clean, np.array(labels, np.int32))

    train = labelled("train")
    validation, test = (labelled(split) if split in has else None for split in ("validation", "test"))
    if train is None:
        raise Mistake(f"{what}: its training texts have no labels")
    if test is not None:
        return Texts(names, train, validation, test)
    if "test" in has:
        instead = "a fifth of its training texts" if validation is None else "its validation split"
        warn(f"{what}: its test split has no labels; {instead} is the test data")
    if validation is not None:
        return Texts(names, train, None, validation)
    texts, labels = train
    if len(texts) < 2:
        raise Mistake(f"{what}: {len(texts)} text is too few to test and train on")
    rest, part = held_out(len(texts))
    return Texts(names, (texts[rest], labels[rest]), None, (texts[part], labels[part]))


def _ends(tokens: np.ndarray, length: int) -> np.ndarray:
    """`length` tokens at most: the first half and the last."""
    if len(tokens) <= length:
        return tokens
    last = length // 2
    return np.concatenate([tokens[: length - last], tokens[len(tokens) - last :]])
