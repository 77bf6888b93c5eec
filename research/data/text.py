"""A text to model, in windows."""

import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import struct

from research.core.errors import Mistake
from research.core.experiment import Feeds
from research.core.state import Batch
from research.data import tfds
from research.data.checks import check_fields
from research.data.feed import EvalBatches, FeedName, check_device
from research.data.order import carved, indices
from research.data.strings import SUFFIXES, is_path, joined, kept, location, read_file, text_features
from research.data.tokenizer import Tokenizer, commonest, trained

END = "\x03"
"""Stands between documents: ASCII's END OF TEXT, a character like any other to every tokenizer."""

IGNORED = -1
"""The target of what is no prediction: the padding of the last window of a text."""

NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "pydoc_data"}
"""Folders beside Python's standard library, or of it, that `stdlib` leaves out."""

BUILT = ("config-", "_sysconfigdata")
"""What a build of Python wrote there begins with: it is another text on the next machine."""


class TextSpec(NamedTuple):
    """What a learner has to know of a text.

    tokenizer  None where the data are numbers already
    classes    how many tokens there are
    context    tokens in a window
    replaced   characters of validation and test that the vocabulary of characters lacked; 0 for bpe
    """

    tokenizer: Tokenizer | None
    classes: int
    context: int
    replaced: int


@dataclass(frozen=True)
class Text:
    """A text to model token by token; inputs and targets i32[batch, context], the targets one token further on.

    Documents are joined by the character END. Where the set doesn't say what to test on, the last tenth of the text
    is, and the fraction `validation` of the rest before it is validation; of `stdlib`, files drawn by a keyed shuffle.
    tiny_shakespeare tests on its validation and test splits joined, which is nanoGPT's validation data. The tokenizer
    knows the training part alone: of characters, those that it lacks become its commonest one (`TextSpec.replaced`
    counts them).

    Attributes:
        name: stdlib (the sources of Python's standard library), tiny_shakespeare or any set of TensorFlow Datasets with
            text; or the path of a text file, of a folder of them, or of a .npy file of tokens
        dir: of TensorFlow Datasets; else the environment's TFDS_DATA_DIR, else its own default
        tokenizer: characters, or bpe: byte-level byte pair encoding
        vocabulary: tokens of bpe, or of a .npy file; characters count themselves
        context: tokens in a window
        evaluation_context: in one of validation and test; None: as many. An LSTM may be judged on longer ones
        batch: global batch of training, in windows; an epoch is a window at every place of the text
        evaluation_batch: of validation and test, in windows, which don't overlap
        validation: fraction of the training text to validate on
        seed: of the order of training, and of the split of stdlib
        feed: resident: the text on the device; stream: on the host, its windows put there chunk by chunk
        limit: characters (of a .npy file: tokens) to train on at most, and a tenth as many to validate and to test on
        text_features: the features of a set of TensorFlow Datasets that hold its text, joined by a newline; None:
            sentence, text, or title and description
    """

    name: str = "stdlib"
    dir: str | None = None
    tokenizer: Literal["characters", "bpe"] = "characters"
    vocabulary: int = 1024
    context: int = 64
    evaluation_context: int | None = None
    batch: int = 64
    evaluation_batch: int = 64
    validation: float = 0.05
    seed: int = 0
    feed: FeedName = "resident"
    limit: int | None = None
    text_features: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_fields(self, "vocabulary", "context", "evaluation_context")

    def spec(self) -> TextSpec:
        """What a learner has to know; reads the data. Raises Mistake where it isn't there, Failure where damaged."""
        return _tokens(self, location(self.name, self.dir))[0]

    def feeds(self) -> Feeds:
        """What a run reads; the tokenizer is kept. Raises as `spec` does."""
        spec, train, validation, test = _tokens(self, location(self.name, self.dir))
        if len(train) <= self.context:
            mend = "give a smaller --data.context, or a longer text"
            raise Mistake(
                f"data.name {self.name}: {len(train)} tokens to train on fill no window of {self.context}; {mend}"
            )
        if self.feed == "resident":
            check_device(len(train), f"tokens of data.name {self.name}")
        context = self.evaluation_context or self.context
        judge = lambda tokens: EvalBatches.of(
            functools.partial(windows, tokens, context), -(-(len(tokens) - 1) // context), self.evaluation_batch
        )
        return Feeds(
            train=Windows(train, self.context, self.batch, self.seed, resident=self.feed == "resident"),
            validation=judge(validation),
            test=judge(test),
            kept=kept(spec.tokenizer),
        )


@struct.dataclass
class Windows:
    """Training data of a text: every window of `context` tokens, drawn in the order of `order.indices`.

    tokens       i[tokens], more than `context`
    context, batch, seed  of the windows, of the global batch, of the order; static
    resident     whether the tokens live on the device, where windows are gathered inside the step; static
    """

    tokens: Any
    context: int = struct.field(pytree_node=False)
    batch: int = struct.field(pytree_node=False)
    seed: int = struct.field(pytree_node=False)
    resident: bool = struct.field(pytree_node=False, default=True)

    def batch_at(self, step: Any, rows: Any = None) -> Batch:
        """The global batch of a step, i32[batch, context], or these rows of it.

        `index` is where a window begins; of more than 2**31 tokens, its low 32 bits.
        """
        xp = jnp if self.resident else np
        index = indices(step, self.batch, len(self.tokens) - self.context, self.seed, xp, rows)
        # On the host, where there may be more tokens than 32 bits count, NumPy adds in 64.
        places = index[:, None] + xp.arange(self.context + 1)
        tokens: Any = xp.asarray(self.tokens)
        window = tokens.at[places].get(mode="promise_in_bounds") if self.resident else tokens[places]
        window = window.astype(xp.int32)
        return Batch(index.astype(xp.int32), xp.ones(index.shape, xp.float32), window[:, :-1], window[:, 1:])


def windows(tokens: np.ndarray, context: int, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(inputs, targets) i32[windows, context] of some of the windows that predict each token but the first once.

    which: i64[windows], 0 for the first window of the text

    After the end of the text inputs are token 0, and targets IGNORED.
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
    """(spec, train, validation, test): the tokens i[tokens] of the three parts."""
    if text.name.endswith(".npy"):
        tokens = _numbers(text)
        rest, test = _cut(tokens, 0.1)
        parts = _limited((*_cut(rest, text.validation), test), text.limit)
        spec = TextSpec(None, text.vocabulary, text.context, 0)
    else:
        train, *others = _limited(_parts(text, where), text.limit)
        if not train:
            raise Mistake(f"data.name {text.name}: there is no text to train on")
        tokenizer = trained(text.tokenizer, _documents(train), text.vocabulary)
        replaced = 0
        if text.tokenizer == "characters":
            there, instead = set(train), commonest(train)
            replaced = sum(other.count(c) for other in others for c in set(other) - there)
            others = [other.translate({ord(c): instead for c in set(other) - there}) for other in others]
        parts = tuple(np.concatenate(tokenizer.encoded(_documents(part))) for part in (train, *others))
        spec = TextSpec(tokenizer, tokenizer.size, text.context, replaced)
    for what, part in zip(("train", "validate", "test"), parts, strict=True):
        if len(part) < 2:
            raise Mistake(f"data.name {text.name}: {len(part)} tokens to {what} on are too few; give a longer text")
    return spec, *parts


def _documents(text: str) -> list[str]:
    """The documents of a text, and the END after each but the last: tokens straddle neither."""
    return re.split(f"({END})", text)


def _parts(text: Text, dir: str | None) -> tuple[str, str, str]:
    """The text to train, to validate and to test on."""
    if text.name == "stdlib":
        return _stdlib(text)
    if is_path(text.name):
        rest, test = _cut(END.join(_files(text.name)), 0.1)
        return *_cut(rest, text.validation), test
    builder = tfds.builder(text.name, dir, "stdlib")

    def read(split: str) -> str:
        columns = tfds.columns(builder, text.name, split, text_features(text.text_features, builder.info.features))
        return END.join(joined(columns, f"data.name {text.name}, split {split}"))

    train, has = read("train"), set(builder.info.splits)
    if text.name == "tiny_shakespeare":
        return *_cut(train, text.validation), read("validation") + read("test")
    train, test = (train, read("test")) if "test" in has else _cut(train, 0.1)
    return (train, read("validation"), test) if "validation" in has else (*_cut(train, text.validation), test)


def _stdlib(text: Text) -> tuple[str, str, str]:
    """Python's standard library: a tenth of its files to test on, a fraction of the others to validate on."""
    root = Path(os.__file__).parent
    own = lambda parts: not (NOT_LIBRARY & {*parts} or parts[0].startswith(BUILT))
    files = [path for path in sorted(root.rglob("*.py")) if own(path.relative_to(root).parts)]
    distinct = dict.fromkeys(map(read_file, files))
    documents = np.array([document for document in distinct if document], object)
    if len(documents) < 3:
        raise Mistake(f"data.name stdlib: Python's sources are not in {root}; give the path of a text")
    rest, test = carved(len(documents), 0.1, text.seed)
    train, validation = carved(len(rest), text.validation, text.seed)
    return END.join(documents[rest[train]]), END.join(documents[rest[validation]]), END.join(documents[test])


def _files(name: str) -> list[str]:
    """A text file, or all of a folder in the order of their names; those of a folder that don't decode are left out."""
    path = Path(name).expanduser()
    if not path.is_dir():
        return [read_file(path)]
    shown = lambda p: not any(part.startswith(".") for part in p.relative_to(path).parts)
    found = []
    for file in sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file() and shown(p)):
        try:
            found.append(file.read_bytes().decode())
        except (OSError, UnicodeDecodeError):
            continue
    if not found:
        raise Mistake(f"data.name {name}: no readable text there; expected UTF-8 files {', '.join(SUFFIXES)}")
    return found


def _numbers(text: Text) -> np.ndarray:
    """The tokens of a .npy file, checked and left on the disk: what is read of it is in memory."""
    what, expected = f"data.name {text.name}", "expected a .npy file of one row of whole numbers"
    try:
        tokens = np.load(Path(text.name).expanduser(), mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise Mistake(f"{what}: can't read it ({error.strerror or error}); {expected}") from error
    except (ValueError, EOFError) as error:
        raise Mistake(f"{what}: it is damaged or no such file ({str(error).splitlines()[0]}); {expected}") from error
    if not isinstance(tokens, np.ndarray):
        raise Mistake(f"{what}: it holds several arrays; {expected}")
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer) or not tokens.size:
        raise Mistake(f"{what}: {expected}, not {tokens.dtype} {list(tokens.shape)}")
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= text.vocabulary:
        least = f"--data.vocabulary {high + 1} or more" if low >= 0 else "another file"
        raise Mistake(f"{what}: tokens {low} ... {high} are not in 0 ... {text.vocabulary - 1}; give {least}")
    return tokens


def _cut(text: Any, fraction: float) -> tuple[Any, Any]:
    """A text or array in two: the rest, and the last `fraction` of it."""
    at = len(text) - round(len(text) * fraction)
    return text[:at], text[at:]


def _limited(parts: tuple[Any, ...], limit: int | None) -> tuple[Any, ...]:
    if limit is None:
        return parts
    train, *others = parts
    return train[:limit], *(other[: max(2, limit // 10)] for other in others)
