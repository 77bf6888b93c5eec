"""A text for language modelling, in windows."""

import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any, Literal, NamedTuple
from zipfile import BadZipFile

import jax.numpy as jnp
import numpy as np
from flax import struct

from research.core.console import warn
from research.core.errors import UserError
from research.core.experiment import Feeds
from research.core.state import Batch
from research.data import tfds
from research.data.checks import check_fields, expanded
from research.data.feed import EvalBatches, FeedName, check_device_size
from research.data.order import indices, split
from research.data.strings import SUFFIXES, is_path, joined, kept, location, read_file, text_features
from research.data.tokenizer import Tokenizer, make_tokenizer, most_frequent

END = "\x03"
"""The separator of documents: ASCII's END OF TEXT, which is an ordinary character to every tokenizer."""

IGNORED = -1
"""The target of positions that do not count: the padding of the last evaluation window."""

NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "pydoc_data"}
"""Folders in the folder of Python's standard library that `stdlib` leaves out."""

BUILT = ("config-", "_sysconfigdata")
"""Prefixes of files that the build of Python writes there: their text differs from machine to machine."""


class TextSpec(NamedTuple):
    """The properties of a text that a learner needs.

    tokenizer  None: the data are tokens already
    classes    number of different tokens
    """

    tokenizer: Tokenizer | None
    classes: int


@dataclass(frozen=True)
class Text:
    """A text for language modelling; inputs and targets i32[batch, context], the targets one token further on.

    Documents are joined by the character END. A data set that has a test split is tested on it; the other texts are
    tested on their last tenth, and validated on the fraction `validation` before it; of stdlib, files are held out at
    random. tiny_shakespeare is tested on its validation and test splits together, which is the validation data of
    nanoGPT. The tokenizer is trained on the training text. Characters of the validation and test text that do not occur
    there are replaced by its most frequent one.

    Attributes:
        name: stdlib (the sources of Python's standard library), tiny_shakespeare, or another data set of TensorFlow
            Datasets that has text; or the path of a text file, of a folder of text files, or of a .npy file of tokens
        dir: directory of TensorFlow Datasets; None: the environment variable TFDS_DATA_DIR, else the default directory
            of the library
        tokenizer: kind of tokenizer, characters or byte pairs; a .npy file needs none
        vocabulary: number of tokens of byte pair encoding, or of a .npy file; not used with characters
        tokenizer_from: directory of a run whose tokenizer is used, as one that starts from its weights (--init-from)
            needs it; `vocabulary` is not used then. None: the tokenizer is trained on the training texts
        context: tokens in a training window
        evaluation_context: tokens in a validation or test window; None: as in training. An LSTM can use longer ones
        batch: size of the global training batch, in windows; an epoch has one window for each position of the text
        evaluation_batch: size of validation and test batches, in windows; these do not overlap
        validation: fraction of the training text that is held out for validation
        seed: seed of the order of training, and of the split of stdlib
        feed: where the training text is kept: on the device, or on the host, from where each dispatch's windows are
            sent to the device
        limit: largest number of characters (tokens of a .npy file) to train on, and a tenth as many to validate and
            to test on; None: all
        text_features: features of a data set of TensorFlow Datasets that have its text, joined by a newline; None:
            sentence, text, or title and description
    """

    name: str = "stdlib"
    dir: str | None = None
    tokenizer: Literal["characters", "bpe"] = "characters"
    vocabulary: int = 1024
    tokenizer_from: str | None = None
    context: int = 64
    evaluation_context: int | None = None
    batch: int = 64
    evaluation_batch: int = 64
    validation: float = 0.05
    seed: int = 0
    feed: FeedName = "device"
    limit: int | None = None
    text_features: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_fields(self, "vocabulary", "context", "evaluation_context")
        if self.tokenizer_from is not None and self.name.endswith(".npy"):
            raise UserError(f"data.name {self.name} has tokens already: leave out data.tokenizer_from")

    def spec(self) -> TextSpec:
        """The properties that a learner needs. Raises UserError if the data is not there, RunError if it is damaged."""
        return _tokens(self, location(self.name, self.dir))[0]

    def feeds(self) -> Feeds:
        """The feeds of a run, which keeps the tokenizer. Raises as `spec` does."""
        spec, train, validation, test = _tokens(self, location(self.name, self.dir))
        if len(train) <= self.context:
            remedy = "give a smaller --data.context, or a longer text"
            raise UserError(
                f"data.name {self.name}: {len(train)} tokens to train on fill no window of {self.context}; {remedy}"
            )
        if self.feed == "device":
            check_device_size(len(train), f"tokens of data.name {self.name}")
        context = self.evaluation_context or self.context
        eval_batches = lambda tokens: EvalBatches.of(
            functools.partial(windows, tokens, context), -(-(len(tokens) - 1) // context), self.evaluation_batch
        )
        return Feeds(
            train=Windows(train, self.context, self.batch, self.seed, resident=self.feed == "device"),
            validation=eval_batches(validation),
            test=eval_batches(test),
            kept=kept(spec.tokenizer),
        )


@struct.dataclass
class Windows:
    """The feed of a text: all of its windows, which may overlap, in the order of `order.indices`.

    tokens       i[tokens], more than `context`
    context      tokens in a window; static
    batch, seed  the size of the global batch, and the seed of the order; static
    resident     whether the tokens are on the device, so that the compiled step gathers the windows; static
    """

    tokens: Any
    context: int = struct.field(pytree_node=False)
    batch: int = struct.field(pytree_node=False)
    seed: int = struct.field(pytree_node=False)
    resident: bool = struct.field(pytree_node=False, default=True)

    @property
    def size(self) -> int:
        """The number of training examples."""
        return len(self.tokens) - self.context

    def batch_at(self, step: Any, rows: Any = None) -> Batch:
        """The global batch of a step, i32[batch, context], or the given rows of it.

        `Batch.index` is the position of a window's first token; with more than 2**31 tokens, its low 32 bits.
        """
        xp = jnp if self.resident else np
        index = indices(step, self.batch, self.size, self.seed, xp, rows)
        # On the host, where there may be more than 2**31 tokens, the sum has 64 bits.
        places = index[:, None] + xp.arange(self.context + 1)
        tokens: Any = xp.asarray(self.tokens)
        window = tokens.at[places].get(mode="promise_in_bounds") if self.resident else tokens[places]
        window = window.astype(xp.int32)
        return Batch(index.astype(xp.int32), xp.ones(index.shape, xp.float32), window[:, :-1], window[:, 1:])


def windows(tokens: np.ndarray, context: int, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(inputs, targets) i32[windows, context] of evaluation windows, which do not overlap.

    which: i64[windows], 0 being the first window of the text

    After the end of the text, inputs are 0 and targets are IGNORED.
    """
    places = which[:, None] * context + np.arange(context)
    last = len(tokens) - 1
    inside, places = places < last, np.minimum(places, last - 1)
    return (
        np.where(inside, tokens[places], 0).astype(np.int32),
        np.where(inside, tokens[places + 1].astype(np.int32), IGNORED),
    )


@functools.lru_cache(maxsize=2)
def _tokens(text: Text, where: str | None) -> tuple[TextSpec, np.ndarray, np.ndarray, np.ndarray]:
    """(spec, train, validation, test): the tokens i[tokens] of the three parts.

    where: the `location` of the data, a part of the cache's key
    """
    if text.name.endswith(".npy"):
        tokens = _numbers(text)
        rest, test = _cut(tokens, 0.1)
        parts = _limited((*_cut(rest, text.validation), test), text.limit)
        spec = TextSpec(None, text.vocabulary)
    else:
        train, *others = _limited(_parts(text, where), text.limit)
        if not train:
            raise UserError(f"data.name {text.name}: there is no text to train on")
        tokenizer = make_tokenizer(text.tokenizer, _documents(train), text.vocabulary, run=text.tokenizer_from)
        if text.tokenizer == "characters":
            known, substitute = set(tokenizer.library.get_vocab()), most_frequent(train)
            others = [other.translate({ord(c): substitute for c in set(other) - known}) for other in others]
        parts = tuple(np.concatenate(tokenizer.encode_batch(_documents(part))) for part in (train, *others))
        spec = TextSpec(tokenizer, tokenizer.size)
    for what, part in zip(("train", "validate", "test"), parts, strict=True):
        if len(part) < 2:
            raise UserError(f"data.name {text.name}: {len(part)} tokens to {what} on are too few; give a longer text")
    return spec, *parts


def _documents(text: str) -> list[str]:
    """The documents of a text, and the END between them: no token contains parts of both."""
    return re.split(f"({END})", text)


def _parts(text: Text, dir: str | None) -> tuple[str, str, str]:
    """The training, validation and test text."""
    if text.name == "stdlib":
        return _stdlib(text)
    if is_path(text.name):
        rest, test = _cut(END.join(_files(text.name)), 0.1)
        return *_cut(rest, text.validation), test
    builder = tfds.builder(text.name, dir, "stdlib", "a text or a folder of texts")

    def read(split: str) -> str:
        columns = tfds.columns(builder, text.name, split, text_features(text.text_features, builder.info.features))
        return END.join(joined(columns, f"data.name {text.name}, split {split}"))

    train, splits = read("train"), set(builder.info.splits)
    if text.name == "tiny_shakespeare":
        return *_cut(train, text.validation), read("validation") + read("test")
    train, test = (train, read("test")) if "test" in splits else _cut(train, 0.1)
    return (train, read("validation"), test) if "validation" in splits else (*_cut(train, text.validation), test)


def _stdlib(text: Text) -> tuple[str, str, str]:
    """Python's standard library: a tenth of its files is for testing, a fraction of the others for validation."""
    root = Path(os.__file__).parent
    own = lambda parts: not (NOT_LIBRARY & {*parts} or parts[0].startswith(BUILT))
    files = [path for path in sorted(root.rglob("*.py")) if own(path.relative_to(root).parts)]
    distinct = dict.fromkeys(map(read_file, files))
    documents = np.array([document for document in distinct if document], object)
    if len(documents) < 3:
        raise UserError(f"data.name stdlib: Python's sources are not in {root}; give the path of a text")
    rest, test = split(len(documents), 0.1, text.seed)
    train, validation = split(len(rest), text.validation, text.seed)
    return END.join(documents[rest[train]]), END.join(documents[rest[validation]]), END.join(documents[test])


def _files(name: str) -> list[str]:
    """The text of a file, or of all files of a folder in the order of their names.

    Those that are not UTF-8 are left out, with a warning. Raises UserError if there is none.
    """
    path = expanded(name)
    if not path.is_dir():
        return [read_file(path)]
    visible = lambda p: not any(part.startswith(".") for part in p.relative_to(path).parts)
    found, unread = [], []
    for file in sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file() and visible(p)):
        try:
            found.append(file.read_bytes().decode("utf-8-sig"))
        except (OSError, UnicodeDecodeError):
            unread.append(file)
    if found and unread:
        count = f"{len(unread)} of {len(unread) + len(found)} files"
        warn(f"data.name {name}: {count} can't be read as UTF-8 and are left out, such as {unread[0]}")
    if not found:
        raise UserError(f"data.name {name}: no readable text there; expected UTF-8 files {', '.join(SUFFIXES)}")
    return found


def _numbers(text: Text) -> np.ndarray:
    """The tokens of a .npy file, checked. They stay on the disk: only what is read comes into memory."""
    what, expected = f"data.name {text.name}", "expected a .npy file of one row of whole numbers"
    try:
        tokens = np.load(expanded(text.name), mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise UserError(f"{what}: can't read it ({error.strerror or error}); {expected}") from error
    except (ValueError, TypeError, OverflowError, EOFError, BadZipFile, TokenError) as error:
        raise UserError(f"{what}: it is damaged or no such file ({str(error).splitlines()[0]}); {expected}") from error
    if not isinstance(tokens, np.ndarray):
        raise UserError(f"{what}: it holds several arrays; {expected}")
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer) or not tokens.size:
        raise UserError(f"{what}: {expected}, not {tokens.dtype} {list(tokens.shape)}")
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= text.vocabulary:
        least = f"--data.vocabulary {high + 1} or more" if low >= 0 else "another file"
        raise UserError(f"{what}: tokens {low} ... {high} are not in 0 ... {text.vocabulary - 1}; give {least}")
    return tokens


def _cut(text: Any, fraction: float) -> tuple[Any, Any]:
    """A text or array in two parts: the rest, and its last `fraction`."""
    at = len(text) - round(len(text) * fraction)
    return text[:at], text[at:]


def _limited(parts: tuple[Any, ...], limit: int | None) -> tuple[Any, ...]:
    """The start of each part: `limit` of the first, a tenth as many of the others."""
    if limit is None:
        return parts
    train, *others = parts
    return train[:limit], *(other[: max(2, limit // 10)] for other in others)
