"""Parallel text, in buckets of equal length."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from research.core.errors import UserError
from research.core.experiment import Feeds
from research.core.special_tokens import BOS, EOS
from research.core.types import Tree
from research.data import tfds
from research.data.buckets import BucketFeed, check_lengths, eval_batches, into_buckets, padded, sizes
from research.data.checks import check_fields, expanded
from research.data.order import split, split_test
from research.data.strings import VALIDATION_SPLITS, is_path, kept, location, read_file, strings
from research.data.tokenizer import Tokenizer, make_tokenizer

TEST_SPLITS = ("test", "test_2016_flickr")
"""The usual names of a test split; the second one is Multi30k's."""


class Texts(NamedTuple):
    """What a source returns: for each split the texts to translate, and their translations.

    validation  None: it is split off the training pairs
    """

    train: list[list[str]]
    validation: list[list[str]] | None
    test: list[list[str]]


class PairSpec(NamedTuple):
    """The properties of parallel text that a learner needs.

    tokenizer  the tokenizer of both languages
    length     length of the longest bucket, in tokens
    """

    tokenizer: Tokenizer
    length: int


@dataclass(frozen=True)
class Pairs:
    """Parallel text in buckets of equal length; inputs (source, target) and targets, each i32[batch, length].

    The source ends with EOS. The target that the net reads begins with BOS, and the one that it predicts ends with EOS.
    PAD follows. Training pairs that are too long for the longest bucket are left out; validation and test pairs are
    cut. Both languages share one byte pair encoding, trained on the training pairs.

    Attributes:
        name: a data set of TensorFlow Datasets that has a feature for each language; or the path of a folder of text
            files SPLIT.LANGUAGE or SPLIT.LANGUAGE.gz, such as train.en, with one sentence on each line. Multi30k is the
            folder data/task1/raw of https://github.com/multi30k/dataset
        dir: directory of TensorFlow Datasets; None: the environment variable TFDS_DATA_DIR, else the default directory
            of the library
        source: language to translate from, such as en
        target: language to translate into, such as de
        vocabulary: largest number of tokens, for both languages together and including special tokens
        tokenizer_from: directory of a run whose tokenizer is used, as one that starts from its weights (--init-from)
            needs it; `vocabulary` is not used then. None: the tokenizer is trained on the training texts
        lengths: increasing lengths of the buckets in tokens, including EOS
        batch: size of the global training batch
        evaluation_batch: size of validation and test batches
        test: name of the test split; None: test, else test_2016_flickr, else a fifth of the training pairs
        validation: fraction of the training pairs that is held out for validation, at least one pair; used if there is
            no split called validation, val, valid or dev
        seed: seed of that split and of the order of training
        limit: largest number of pairs to use from each split; None: all
    """

    name: str = "multi30k"
    dir: str | None = None
    source: str = "en"
    target: str = "de"
    vocabulary: int = 6000
    tokenizer_from: str | None = None
    lengths: tuple[int, ...] = (16, 24, 32, 48)
    batch: int = 128
    evaluation_batch: int = 256
    test: str | None = None
    validation: float = 0.05
    seed: int = 0
    limit: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, "vocabulary", "lengths")
        check_lengths(self.lengths)
        if self.source == self.target:
            raise UserError(f"data.source and data.target are both {self.source}: give two languages")

    def spec(self) -> PairSpec:
        """The properties that a learner needs. Raises UserError if the data is not there, RunError if it is damaged."""
        return self._tokens().spec

    def sources(self, split: str = "test") -> list[str]:
        """The original source texts of the split "validation" or "test"; `Batch.index` is an index into them."""
        return self._tokens().originals[split][0]

    def references(self, split: str = "test") -> list[str]:
        """The original translations of `sources`."""
        return self._tokens().originals[split][1]

    def texts(self) -> Texts:
        """The texts, the same at each call: the only method that a new source overrides."""
        return _texts(self)

    def load(self) -> Texts:
        """`texts`, checked, with at most `limit` pairs of each split. Raises as `spec` does."""
        data = self.texts()

        def checked(split: str, part: list[list[str]]) -> list[list[str]]:
            sources, targets = part
            if not 0 < len(sources) == len(targets):
                found = f"{len(sources)} texts and {len(targets)} translations"
                raise UserError(f"data.name {self.name}, split {split}: expected as many of both, not {found}")
            return [side[: self.limit] for side in part]

        train = checked("train", data.train)
        validation = None if data.validation is None else checked("validation", data.validation)
        return Texts(train, validation, checked("test", data.test))

    def feeds(self, steps_per_dispatch: int) -> Feeds:
        """The feeds of a run with so many steps per dispatch; the run keeps the tokenizer. Raises as `spec` does."""
        data = self._tokens()

        def buckets(sources: list[np.ndarray], targets: list[np.ndarray], block: int = 0) -> Any:
            def pad(index: np.ndarray, length: int) -> tuple[Tree, Tree]:
                with_eos = lambda texts: padded([np.append(texts[i][: length - 1], EOS) for i in index], length)
                with_bos = padded([np.insert(targets[i][: length - 1], 0, BOS) for i in index], length)
                return (with_eos(sources), with_bos), with_eos(targets)

            return into_buckets(np.maximum(sizes(sources), sizes(targets)) + 1, self.lengths, pad, block)

        train, validation, test = data.parts
        block = self.batch * steps_per_dispatch
        return Feeds(
            train=BucketFeed(buckets(*train, block=block), self.batch, steps_per_dispatch, self.seed),
            validation=eval_batches(buckets(*validation), self.evaluation_batch),
            test=eval_batches(buckets(*test), self.evaluation_batch),
            kept=kept(data.spec.tokenizer),
        )

    def _tokens(self) -> "_Tokens":
        return _tokens(self, location(self.name, self.dir))


class _Tokens(NamedTuple):
    """The texts of a config, as tokens.

    parts      train, validation and test, each (sources, targets), lists of i32[tokens]
    originals  validation and test by name, as texts
    """

    spec: PairSpec
    parts: tuple[tuple[list[np.ndarray], list[np.ndarray]], ...]
    originals: dict[str, list[list[str]]]


@functools.lru_cache(maxsize=2)
def _tokens(config: Pairs, where: str | None) -> _Tokens:
    """`where`: the `location` of the data, a part of the cache's key."""
    train, validation, test = config.load()
    if validation is None:
        rest, part = split(len(train[0]), config.validation, config.seed)
        train, validation = ([[side[i] for i in places] for side in train] for places in (rest, part))
    tokenizer = make_tokenizer("bpe", [*train[0], *train[1]], config.vocabulary, True, config.tokenizer_from)
    parts = (train, validation, test)
    (sources, targets), *others = [[tokenizer.encode_batch(side) for side in part] for part in parts]
    fits = np.flatnonzero(np.maximum(sizes(sources), sizes(targets)) < config.lengths[-1])
    if not fits.size:
        raise UserError(
            f"data.lengths: no training pair is as short as {config.lengths[-1]} tokens; give a longer bucket"
        )
    fitting = [sources[i] for i in fits], [targets[i] for i in fits]
    spec = PairSpec(tokenizer, config.lengths[-1])
    return _Tokens(spec, (fitting, *((x, y) for x, y in others)), {"validation": validation, "test": test})


def _texts(config: Pairs) -> Texts:
    """The texts of a folder, or of a data set of TensorFlow Datasets."""
    languages = (config.source, config.target)
    if is_path(config.name):
        folder = expanded(config.name)
        read = lambda split: [side[: config.limit] for side in _parallel(folder, split, languages)]
        files = {file.name.removesuffix(".gz") for file in folder.glob("*")}
        splits = {name.removesuffix(f".{config.source}") for name in files if name.endswith(f".{config.source}")}
    else:
        builder = tfds.builder(config.name, tfds.directory(config.dir), None, "a folder of files SPLIT.LANGUAGE")
        splits = set(builder.info.splits)

        def read(split: str) -> list[list[str]]:
            texts = tfds.columns(builder, config.name, split, languages, config.limit)
            named = zip(texts, languages, strict=True)
            return [strings(x, f"data.name {config.name}, split {split}, {language}") for x, language in named]

    train, named = read("train"), config.test or next((name for name in TEST_SPLITS if name in splits), None)
    validation = next((read(name) for name in VALIDATION_SPLITS if name in splits), None)
    if named is not None:
        return Texts(train, validation, read(named))
    rest, test = ([[side[i] for i in places] for side in train] for places in split_test(len(train[0])))
    return Texts(rest, validation, test)


def _parallel(folder: Path, split: str, languages: tuple[str, str]) -> list[list[str]]:
    """The lines of SPLIT.LANGUAGE in both languages, without white space at their ends."""
    files = [folder / f"{split}.{language}" for language in languages]
    texts = [read_file(file).replace("\r\n", "\n").removesuffix("\n") for file in files]
    pairs = [[line.strip() for line in text.split("\n")] if text else [] for text in texts]
    if len(pairs[0]) != len(pairs[1]) or not pairs[0]:
        found = " and ".join(f"{len(lines)} in {file}" for lines, file in zip(pairs, files, strict=True))
        raise UserError(f"data.name {folder}: expected the same number of sentences, one a line, not {found}")
    return pairs
