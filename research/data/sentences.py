"""Labelled texts, in buckets of equal length."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from research.core.console import warn
from research.core.errors import UserError
from research.core.experiment import Feeds
from research.core.special_tokens import UNKNOWN
from research.data import tfds
from research.data.buckets import BucketFeed, check_lengths, eval_batches, into_buckets, padded, sizes
from research.data.checks import check_fields, check_labels, expanded
from research.data.labelled_files import read_labelled
from research.data.order import split, split_test
from research.data.strings import is_path, joined, kept, location, text_features
from research.data.tokenizer import Tokenizer, make_tokenizer

Part = tuple[list[str], list[int] | None]
"""The texts of a split, and their labels; None: the split has no labels."""


class Texts(NamedTuple):
    """What a source returns: the names of the classes, and for each split the texts and their labels.

    names       the names of the classes
    train       (object[texts] of str, i32[texts]), labels being indices into `names`; `test` likewise
    validation  likewise; None: it is split off the training texts
    """

    names: tuple[str, ...]
    train: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray] | None
    test: tuple[np.ndarray, np.ndarray]


class SentenceSpec(NamedTuple):
    """The properties of labelled texts that a learner needs.

    classes  number of classes
    names    names of the classes
    length   length of the longest bucket, in tokens
    """

    tokenizer: Tokenizer
    classes: int
    names: tuple[str, ...]
    length: int


@dataclass(frozen=True)
class Sentences:
    """Labelled texts in buckets of equal length; inputs i32[batch, length], padded with PAD, and targets i32[batch].

    No token is added before or after a text; a text without any word is one UNKNOWN. The tokenizer is trained on the
    training texts. Test data is the split test. If there is none, or it has no labels (as in glue/sst2), it is the
    split validation, or else a fifth of the training texts.

    Attributes:
        name: a data set of TensorFlow Datasets with texts and labels, such as imdb_reviews or glue/sst2; or the path of
            a folder SPLIT/CLASS/*.txt, such as aclImdb, of a folder of tables SPLIT.tsv or SPLIT.csv, or of one table.
            SPLIT is train, validation (or val, valid, dev) or test. The first row of a table has the names of its
            columns; a table without such a row has two columns, the text and its label
        dir: directory of TensorFlow Datasets; None: the environment variable TFDS_DATA_DIR, else the default directory
            of the library
        tokenizer: kind of tokenizer, words or byte pairs
        vocabulary: largest number of tokens, including special tokens
        tokenizer_from: directory of a run whose tokenizer is used, as one that starts from its weights (--init-from)
            needs it; `vocabulary` is not used then. None: the tokenizer is trained on the training texts
        lengths: increasing lengths of the buckets in tokens; the middle of a text that is longer than all of them is
            left out
        batch: size of the global training batch
        evaluation_batch: size of validation and test batches
        validation: fraction of the training texts that is held out for validation, at least one text; used if the data
            set has no validation split, or tests on it
        seed: seed of that split and of the order of training
        limit: largest number of texts to use from each split; None: all
        text_features: features or columns that have the text, joined by a newline; None: sentence, text, or title and
            description
        label_feature: feature or column that has the label
    """

    name: str = "imdb_reviews"
    dir: str | None = None
    tokenizer: Literal["words", "bpe"] = "words"
    vocabulary: int = 20_000
    tokenizer_from: str | None = None
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
        """The properties that a learner needs. Raises UserError if the data is not there, RunError if it is damaged."""
        return _tokens(self, location(self.name, self.dir))[0]

    def texts(self) -> Texts:
        """The texts and labels, the same at each call: the only method that a new source overrides."""
        return _from_files(self) if is_path(self.name) else _from_tfds(self)

    def load(self) -> Texts:
        """`texts`, checked, with at most `limit` texts of each split. Raises as `spec` does."""
        data = self.texts()

        def checked(split: str, part: Any) -> Any:
            check_labels(f"data.name {self.name}, split {split}", part[1], len(part[0]), len(data.names))
            return part[0][: self.limit], part[1][: self.limit]

        train = checked("train", data.train)
        validation = None if data.validation is None else checked("validation", data.validation)
        return Texts(data.names, train, validation, checked("test", data.test))

    def feeds(self, steps_per_dispatch: int) -> Feeds:
        """The feeds of a run with so many steps per dispatch; the run keeps the tokenizer. Raises as `spec` does."""
        spec, *parts = _tokens(self, location(self.name, self.dir))

        def buckets(part: tuple[list[np.ndarray], np.ndarray], block: int = 0) -> Any:
            texts, labels = part
            pad = lambda index, length: (padded([_ends(texts[i], length) for i in index], length), labels[index])
            return into_buckets(sizes(texts), self.lengths, pad, block)

        train, validation, test = parts
        block = self.batch * steps_per_dispatch
        return Feeds(
            train=BucketFeed(buckets(train, block=block), self.batch, steps_per_dispatch, self.seed),
            validation=eval_batches(buckets(validation), self.evaluation_batch),
            test=eval_batches(buckets(test), self.evaluation_batch),
            kept=kept(spec.tokenizer),
        )


@functools.lru_cache(maxsize=2)
def _tokens(config: Sentences, where: str | None) -> tuple[Any, ...]:
    """(spec, train, validation, test); a part is the tokens of its texts, a list of i32[tokens], and labels i32[texts].

    where: the `location` of the data, a part of the cache's key
    """
    names, (texts, labels), validation, test = config.load()
    if validation is None:
        rest, part = split(len(texts), config.validation, config.seed)
        texts, labels, validation = texts[rest], labels[rest], (texts[part], labels[part])
    tokenizer = make_tokenizer(config.tokenizer, texts, config.vocabulary, True, config.tokenizer_from)
    empty = np.array([UNKNOWN], np.int32)
    encode = lambda texts: [tokens if tokens.size else empty for tokens in tokenizer.encode_batch(list(texts))]
    spec = SentenceSpec(tokenizer, len(names), names, config.lengths[-1])
    return spec, *((encode(x), y) for x, y in ((texts, labels), validation, test))


def _from_files(config: Sentences) -> Texts:
    """The texts of a folder or a table."""
    path = expanded(config.name)
    found = read_labelled(path, config.text_features, config.label_feature, config.limit)
    by_number = lambda name: (int(name) if name.isdecimal() else math.inf, name)
    names = tuple(sorted(set(found["train"].labels or ()), key=by_number))
    number = {name: n for n, name in enumerate(names)}

    def read(split: str) -> Part:
        texts, labels = found[split]
        unknown = sorted(set(labels or ()) - set(names))
        if unknown:
            some = ", ".join(unknown[:5])
            raise UserError(f"data.name {config.name}, split {split}: labels that the training texts lack: {some}")
        return texts, None if labels is None else [number[label] for label in labels]

    return _splits(config, names, set(found), read)


def _from_tfds(config: Sentences) -> Texts:
    """The texts of a data set of TensorFlow Datasets."""
    builder = tfds.builder(config.name, tfds.directory(config.dir), None, "a folder or table of labelled texts")
    features, label = builder.info.features, config.label_feature
    columns = (*text_features(config.text_features, features), label)
    names = tuple(getattr(features[label], "names", ())) if label in set(features) else ()
    if label in set(features) and not names:
        raise UserError(f"data.name {config.name}: its feature {label} is not a class")

    def read(split: str) -> Part:
        *texts, labels = tfds.columns(builder, config.name, split, columns, config.limit)
        found = joined(texts, f"data.name {config.name}, split {split}")
        return found, None if set(labels) == {tfds.NO_LABEL} else labels

    return _splits(config, names, set(builder.info.splits), read)


def _splits(config: Sentences, names: tuple[str, ...], splits: set[str], read: Callable[[str], Part]) -> Texts:
    """The texts of a source that has these splits; see `Sentences` for which become validation and test data."""
    what = f"data.name {config.name}"

    def labelled(split: str) -> Any:
        """(texts, labels) of a split; None if it has no labels."""
        texts, labels = read(split)
        clean = np.array([text.replace("<br />", "\n") for text in texts], object)
        return None if labels is None else (clean, np.array(labels, np.int32))

    train = labelled("train")
    validation, test = (labelled(name) if name in splits else None for name in ("validation", "test"))
    if train is None:
        raise UserError(f"{what}: its training texts have no labels")
    if test is not None:
        return Texts(names, train, validation, test)
    if "test" in splits:
        instead = "a fifth of its training texts" if validation is None else "its validation split"
        warn(f"{what}: its test split has no labels; {instead} is the test data")
    if validation is not None:
        return Texts(names, train, None, validation)
    texts, labels = train
    rest, part = split_test(len(texts))
    return Texts(names, (texts[rest], labels[rest]), None, (texts[part], labels[part]))


def _ends(tokens: np.ndarray, length: int) -> np.ndarray:
    """At most `length` tokens: the first and the last ones."""
    if len(tokens) <= length:
        return tokens
    last = length // 2
    return np.concatenate([tokens[: length - last], tokens[len(tokens) - last :]])
