"""Parallel text, in buckets of equal length."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from research.core.errors import Mistake
from research.core.experiment import Feeds
from research.core.special_tokens import BOS, EOS
from research.core.types import Tree
from research.data import tfds
from research.data.buckets import Bucketed, bucketed, check_lengths, judged, padded, sizes
from research.data.checks import check_fields
from research.data.order import carved
from research.data.strings import VALIDATION_SPLITS, is_path, kept, location, read_file, strings
from research.data.tokenizer import Tokenizer, trained


class Texts(NamedTuple):
    """What a source reads: of each split the texts to translate, and their translations.

    validation  None where it is to be carved from the training texts
    """

    train: list[list[str]]
    validation: list[list[str]] | None
    test: list[list[str]]


class PairSpec(NamedTuple):
    """What a learner has to know of parallel text.

    tokenizer  of both languages
    length     of the longest bucket, in tokens
    left_out   training pairs that are longer
    """

    tokenizer: Tokenizer
    length: int
    left_out: int


@dataclass(frozen=True)
class Pairs:
    """Parallel text in buckets of equal length; inputs (source, target), targets, each i32[batch, length].

    The source ends in EOS; the target that the net reads begins with BOS, the one it is to predict ends in EOS; PAD
    comes after. Training pairs too long for the longest bucket are left out, others are cut. One byte pair encoding
    serves both languages; it knows the training pairs alone.

    Attributes:
        name: a set of TensorFlow Datasets whose features are languages; or the path of a folder of text files
            SPLIT.LANGUAGE or SPLIT.LANGUAGE.gz, such as train.en, with a sentence a line. Multi30k is the folder
            data/task1/raw of https://github.com/multi30k/dataset
        dir: of TensorFlow Datasets; else the environment's TFDS_DATA_DIR, else its own default
        source: the language to translate
        target: the language to translate into
        vocabulary: tokens at most, of both languages together, special ones included
        lengths: of the buckets in tokens, EOS included, increasing
        batch: global batch of training
        evaluation_batch: of validation and test
        test: the split to test on
        validation: fraction of the training pairs to validate on, at least one, where there is no split validation
            (or val, valid, dev)
        seed: of that split, and of the order of training
        limit: pairs of each split at most
    """

    name: str = "multi30k"
    dir: str | None = None
    source: str = "en"
    target: str = "de"
    vocabulary: int = 6000
    lengths: tuple[int, ...] = (16, 24, 32, 48)
    batch: int = 128
    evaluation_batch: int = 256
    test: str = "test_2016_flickr"
    validation: float = 0.05
    seed: int = 0
    limit: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, "vocabulary", "lengths")
        check_lengths(self.lengths)
        if self.source == self.target:
            raise Mistake(f"data.source and data.target are both {self.source}: give two languages")

    def spec(self) -> PairSpec:
        """What a learner has to know; reads the data. Raises Mistake where it isn't there, Failure where damaged."""
        return _pairs(self, location(self.name, self.dir)).spec

    def sources(self, split: str = "test") -> list[str]:
        """The original source texts of the split "validation" or "test"; `Batch.index` is an index into them."""
        return _pairs(self, location(self.name, self.dir)).originals[split][0]

    def references(self, split: str = "test") -> list[str]:
        """The original translations of `sources`."""
        return _pairs(self, location(self.name, self.dir)).originals[split][1]

    def texts(self) -> Texts:
        """The texts, the same at each call: the only method that a new source overrides."""
        return _texts(self)

    def load(self) -> Texts:
        """`texts`, checked, and at most `limit` pairs of each split. Raises as `spec` does."""
        data = self.texts()

        def checked(split: str, part: list[list[str]]) -> list[list[str]]:
            sources, targets = part
            if not 0 < len(sources) == len(targets):
                found = f"{len(sources)} texts and {len(targets)} translations"
                raise Mistake(f"data.name {self.name}, split {split}: as many of both expected, not {found}")
            return [side[: self.limit] for side in part]

        train = checked("train", data.train)
        validation = None if data.validation is None else checked("validation", data.validation)
        return Texts(train, validation, checked("test", data.test))

    def feeds(self, chunk: int) -> Feeds:
        """What a run of `chunk` steps a dispatch reads; the tokenizer is kept. Raises as `spec` does."""
        data = _pairs(self, location(self.name, self.dir))

        def buckets(sources: list[np.ndarray], targets: list[np.ndarray]) -> Any:
            def rows(index: np.ndarray, length: int) -> tuple[Tree, Tree]:
                closed = lambda texts: padded([np.append(texts[i][: length - 1], EOS) for i in index], length)
                begun = padded([np.insert(targets[i][: length - 1], 0, BOS) for i in index], length)
                return (closed(sources), begun), closed(targets)

            return bucketed(np.maximum(sizes(sources), sizes(targets)) + 1, self.lengths, rows)

        train, validation, test = (buckets(*part) for part in data.parts)
        return Feeds(
            train=Bucketed(train, self.batch, chunk, self.seed),
            validation=judged(validation, self.evaluation_batch),
            test=judged(test, self.evaluation_batch),
            kept=kept(data.spec.tokenizer),
        )


class _Pairs(NamedTuple):
    """parts: train, validation and test, each (sources, targets), lists of i32[tokens].

    originals: the same of validation and test by name, as texts.
    """

    spec: PairSpec
    parts: tuple[tuple[list[np.ndarray], list[np.ndarray]], ...]
    originals: dict[str, list[list[str]]]


@functools.lru_cache(maxsize=2)
def _pairs(config: Pairs, where: str | None) -> _Pairs:
    """`where` the set is, `location`, is there for the cache."""
    train, validation, test = config.load()
    if validation is None:
        if len(train[0]) < 2:
            raise Mistake(
                f"data.name {config.name}: {len(train[0])} training pair is too few to carve validation data from"
            )
        rest, part = carved(len(train[0]), config.validation, config.seed)
        train, validation = ([[side[i] for i in places] for side in train] for places in (rest, part))
    tokenizer = trained("bpe", [*train[0], *train[1]], config.vocabulary, specials=True)
    (sources, targets), *others = [[tokenizer.encoded(side) for side in part] for part in (train, validation, test)]
    fits = np.flatnonzero(np.maximum(sizes(sources), sizes(targets)) < config.lengths[-1])
    if not fits.size:
        raise Mistake(
            f"data.lengths: no training pair is as short as {config.lengths[-1]} tokens; give a longer bucket"
        )
    fitting = [sources[i] for i in fits], [targets[i] for i in fits]
    spec = PairSpec(tokenizer, config.lengths[-1], len(sources) - len(fits))
    return _Pairs(spec, (fitting, *((x, y) for x, y in others)), {"validation": validation, "test": test})


def _texts(config: Pairs) -> Texts:
    """The texts of a folder, or of a set of TensorFlow Datasets."""
    languages = (config.source, config.target)
    if is_path(config.name):
        folder = Path(config.name).expanduser()
        read = lambda split: [side[: config.limit] for side in _parallel(folder, split, languages)]
        has = {file.name.split(".")[0] for file in folder.glob(f"*.{config.source}*")}
    else:
        builder = tfds.builder(config.name, tfds.directory(config.dir), None, "a folder of files SPLIT.LANGUAGE")
        has = set(builder.info.splits)

        def read(split: str) -> list[list[str]]:
            texts = tfds.columns(builder, config.name, split, languages, config.limit)
            named = zip(texts, languages, strict=True)
            return [strings(x, f"data.name {config.name}, split {split}, {language}") for x, language in named]

    train, test = read("train"), read(config.test)
    validation = next((read(split) for split in VALIDATION_SPLITS if split in has), None)
    return Texts(train, validation, test)


def _parallel(folder: Path, split: str, languages: tuple[str, str]) -> list[list[str]]:
    """The lines of SPLIT.LANGUAGE in both languages, without white space at their ends."""
    files = [folder / f"{split}.{language}" for language in languages]
    texts = [read_file(file).replace("\r\n", "\n").removesuffix("\n") for file in files]
    pairs = [[line.strip() for line in text.split("\n")] if text else [] for text in texts]
    if len(pairs[0]) != len(pairs[1]) or not pairs[0]:
        found = " and ".join(f"{len(lines)} in {file}" for lines, file in zip(pairs, files, strict=True))
        raise Mistake(f"data.name {folder}: expected the same number of sentences, one a line, not {found}")
    return pairs
