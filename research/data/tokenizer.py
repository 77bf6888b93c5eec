"""Tokenizers: text -> whole numbers and back, by the library `tokenizers`; each can be saved as one JSON text.

Byte-level byte pair encoding: Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units"
(arXiv:1508.07909), on bytes as in Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".
"""

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from research.core.bucket import errors, located
from research.core.errors import UserError
from research.core.files import reason
from research.core.special_tokens import SPECIALS, UNKNOWN
from research.data.checks import expanded

Kind = Literal["characters", "words", "bpe"]
"""Each character is a token; each word or punctuation mark is one; or frequent sequences of bytes are (BPE)."""

SLICE = 1000
"""How many texts the library encodes at once."""


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """Made by `train_tokenizer`.

    kind     what its tokens are
    library  the library's tokenizer, which must not be changed
    lengths  i32[size], the number of characters of each token, 0 for special tokens. A token of byte pairs counts the
             characters that begin in it, so that the lengths of a text's tokens add up to the length of the text
    """

    kind: Kind
    library: tokenizers.Tokenizer
    lengths: np.ndarray

    @property
    def size(self) -> int:
        """The number of different tokens, including special tokens."""
        return len(self.lengths)

    def encode(self, text: str) -> np.ndarray:
        """The tokens i32[tokens] of a text. Raises UserError if a vocabulary of characters lacks one of them."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` for many texts at once, in threads."""
        if self.kind == "characters":
            return self._characters(texts)
        # In slices: the library's own encodings take some hundred bytes a token.
        slices = (texts[start : start + SLICE] for start in range(0, len(texts), SLICE))
        return [np.array(x.ids, np.int32) for some in slices for x in self.library.encode_batch_fast(some)]

    def _characters(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode_batch` by a table that has the token of each code point, -1 where there is none."""
        vocabulary = self.library.get_vocab()
        table = np.full(sys.maxunicode + 1, -1, np.int32)
        table[[ord(character) for character in vocabulary]] = list(vocabulary.values())
        codes = [np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32) for text in texts]
        tokens = [table[code] for code in codes]
        missing = {chr(c) for code, own in zip(codes, tokens, strict=True) for c in np.unique(code[own < 0])}
        if missing:
            found, known = ("".join(sorted(x)[:100]) for x in (missing, vocabulary))
            raise UserError(f"the vocabulary of characters lacks {found!r}; it has {len(vocabulary)}: {known!r}")
        return tokens

    def decode(self, ids: Iterable[int]) -> str:
        """The text of tokens, without special tokens; words are joined by spaces."""
        return self.library.decode([int(i) for i in ids])

    def to_json(self) -> str:
        """The tokenizer as JSON, in the format of the library."""
        return self.library.to_str()


KINDS: dict[str, Kind] = {"Split": "characters", "BertPreTokenizer": "words", "ByteLevel": "bpe"}
"""Kinds by how the library splits a text before it looks for tokens."""


def make_tokenizer(
    kind: Kind, texts: Iterable[str], vocabulary: int, specials: bool = False, run: str | None = None
) -> Tokenizer:
    """`train_tokenizer`, or the tokenizer that a run has kept. Raises as `train_tokenizer` and `read_tokenizer` do.

    run  the directory of that run; None: a tokenizer is trained
    """
    if run is None:
        return train_tokenizer(kind, texts, vocabulary, specials)
    return read_tokenizer(run, kind, specials)


def read_tokenizer(run: str, kind: Kind, specials: bool = False) -> Tokenizer:
    """The tokenizer that the run in the directory `run` has kept.

    Raises UserError if it can't be read, is of another kind than `kind`, or has no special tokens where a vocabulary of
    `bpe` should (`specials`).
    """
    what = f"data.tokenizer_from {run}"
    path = located(expanded(run)) / "tokenizer.json"
    try:
        text = path.read_text()
    except errors(path, UnicodeDecodeError) as error:
        raise UserError(f"{what}: no tokenizer there ({reason(error, path)}): give the directory of a run") from error
    try:
        library = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises no narrower one
        raise UserError(f"{what}: {path} is damaged, or no tokenizer ({error})") from error
    found = KINDS.get(type(library.pre_tokenizer).__name__)
    if found != kind:
        raise UserError(f"{what}: its tokens are {found or 'of an unknown kind'}, and those of this data {kind}")
    tokenizer = _tokenizer(found, library)
    if specials and (tokenizer.lengths[: len(SPECIALS)] > 0).any():
        raise UserError(f"{what}: its vocabulary has no special tokens: give a run of labelled texts or of pairs")
    return tokenizer


def train_tokenizer(kind: Kind, texts: Iterable[str], vocabulary: int = 1024, specials: bool = False) -> Tokenizer:
    """A tokenizer trained on `texts`; equal texts give equal tokenizers.

    kind        characters: the sorted characters of the texts, and no special tokens.
                words: the special tokens, and the most frequent words in lower case, split at white space and
                punctuation.
                bpe: all 256 bytes, and the most frequent merges; lossless: decode(encode(text)) == text
    vocabulary  largest number of tokens of `words` or `bpe`, including special tokens
    specials    whether a vocabulary of `bpe` begins with the special tokens

    Raises UserError if there is no text, or the vocabulary is too small.
    """
    texts = list(texts)
    if not any(texts):
        raise UserError("there is no text to make a tokenizer of")
    specials = specials if kind == "bpe" else kind == "words"
    names = list(SPECIALS) if specials else []
    least = len(names) + {"characters": 0, "words": 1, "bpe": 256}[kind]
    if kind != "characters" and vocabulary < least:
        raise UserError(f"a vocabulary of {kind} needs at least {least} tokens, not {vocabulary}")
    library = tokenizers.Tokenizer(_model(kind, texts))
    if kind == "characters":
        library.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
        library.decoder = decoders.Fuse()
    elif kind == "words":
        library.normalizer = normalizers.Lowercase()
        library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        library.train_from_iterator(
            texts, trainers.WordLevelTrainer(vocab_size=vocabulary, special_tokens=names, show_progress=False)
        )
    else:
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        library.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        library.train_from_iterator(
            texts,
            trainers.BpeTrainer(
                vocab_size=vocabulary, special_tokens=names, initial_alphabet=alphabet, show_progress=False
            ),
        )
    return _tokenizer(kind, library)


def _model(kind: Kind, texts: list[str]) -> Any:
    if kind == "characters":
        # There is no unknown token: `encode` raises an error.
        return models.WordLevel({c: n for n, c in enumerate(sorted(set().union(*texts)))}, unk_token="")
    return models.WordLevel(unk_token=SPECIALS[UNKNOWN]) if kind == "words" else models.BPE()


def _tokenizer(kind: Kind, library: tokenizers.Tokenizer) -> Tokenizer:
    """Adds the lengths of the tokens."""
    vocabulary, begins = library.get_vocab(), _begins_character()
    special = {token.content for token in library.get_added_tokens_decoder().values()}
    lengths = np.zeros(len(vocabulary), np.int32)
    for token, n in vocabulary.items():
        if token not in special:
            lengths[n] = sum(begins[c] for c in token) if kind == "bpe" else len(token)
    lengths.flags.writeable = False
    library.encode_special_tokens = True  # "<pad>" in a text is text; JSON does not keep this
    return Tokenizer(kind, library, lengths)


def _begins_character() -> dict[str, bool]:
    """For each character that represents a byte in byte-level tokens, whether that byte begins a character of UTF-8.

    A printable byte is represented by itself, the others by the characters from 256 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    represented = {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}
    return {c: not 0x80 <= b < 0xC0 for c, b in represented.items()}


def most_frequent(text: str) -> str:
    """The most frequent character of a text; the smallest, if there are several."""
    return min(Counter(text).items(), key=lambda item: (-item[1], item[0]))[0]
