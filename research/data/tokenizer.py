"""Tokenizers: text -> whole numbers and back, by the library `tokenizers`; what they know is one JSON text.

Byte-level byte pair encoding: Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units"
(arXiv:1508.07909), on bytes as in Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from research.core.errors import Mistake
from research.core.special_tokens import SPECIALS, UNKNOWN

Kind = Literal["characters", "words", "bpe"]
"""Each character a token; each word or punctuation mark; byte pairs, merged as often as the vocabulary allows."""

_SPLITS = {
    "characters": pre_tokenizers.Split,
    "words": pre_tokenizers.BertPreTokenizer,
    "bpe": pre_tokenizers.ByteLevel,
}


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """Made by `trained` or `tokenizer_from`.

    kind     what its tokens are
    library  the library's tokenizer, not to be changed
    lengths  i32[size], characters of each token, special tokens 0. A token of byte pairs counts the characters that
             begin in it, so that those of a text that it spells add up to the text's own
    """

    kind: Kind
    library: tokenizers.Tokenizer
    lengths: np.ndarray

    @property
    def size(self) -> int:
        """How many tokens there are, special ones included."""
        return len(self.lengths)

    def encode(self, text: str) -> np.ndarray:
        """The tokens i32[tokens] of a text. Raises Mistake for a character that a vocabulary of characters lacks."""
        return self.encoded([text])[0]

    def encoded(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` for many texts at once, in threads."""
        if self.kind == "characters":
            vocabulary = self.library.get_vocab()
            missing = sorted(set().union(*texts) - vocabulary.keys())
            if missing:
                found, there = ("".join(x[:100]) for x in (missing, sorted(vocabulary)))
                raise Mistake(f"the vocabulary of characters lacks {found!r}; it has {len(vocabulary)}: {there!r}")
        return [np.array(x.ids, np.int32) for x in self.library.encode_batch_fast(texts)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of tokens, without the special ones; words are joined by spaces."""
        return self.library.decode([int(i) for i in ids])

    def text(self) -> str:
        """All of it as JSON, in the library's own format."""
        return self.library.to_str()


def trained(kind: Kind, texts: Iterable[str], vocabulary: int = 1024, specials: bool = False) -> Tokenizer:
    """The tokenizer of `texts`; the same texts give the same one.

    kind        characters: those of the texts, sorted, and no special tokens.
                words: in lower case, split at white space and punctuation, the most frequent ones; special tokens.
                bpe: all 256 bytes and the most frequent merges; loses nothing, decode(encode(text)) == text
    vocabulary  tokens of `words` or `bpe` at most, special ones included
    specials    whether `bpe` begins with the special tokens

    Raises Mistake where there is no text, or the vocabulary can't hold what it must.
    """
    texts = list(texts)
    if not any(texts):
        raise Mistake("there is no text to make a tokenizer of")
    specials = specials if kind == "bpe" else kind == "words"
    names = list(SPECIALS) if specials else []
    least = len(names) + {"characters": 0, "words": 1, "bpe": 256}[kind]
    if kind != "characters" and vocabulary < least:
        raise Mistake(f"a vocabulary of {kind} needs at least {least} tokens, not {vocabulary}")
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


def tokenizer_from(text: str) -> Tokenizer:
    """The tokenizer that `Tokenizer.text` wrote as `text`. Raises Mistake where it is damaged, or another's."""
    try:
        library = tokenizers.Tokenizer.from_str(text)
        model, split = library.model, library.pre_tokenizer
        if isinstance(model, models.BPE):
            kind: Kind = "bpe"
        elif isinstance(model, models.WordLevel):
            kind = "characters" if library.decoder else "words"
        else:
            raise ValueError(f"a model {type(model).__name__}")
        if not isinstance(split, _SPLITS[kind]):
            raise ValueError(f"{kind} split by {type(split).__name__}")
        tokenizer = _tokenizer(kind, library)
        _try(tokenizer)
        return tokenizer
    except Exception as error:  # the library's own are bare Exceptions
        found = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        mend = "copy it anew from the run that wrote it, or train that run again"
        raise Mistake(f"this tokenizer.json is damaged or not one of samestep's ({found}); {mend}") from error


def _model(kind: Kind, texts: list[str]) -> Any:
    if kind == "characters":
        # No name for the unknown: `encode` refuses it.
        return models.WordLevel({c: n for n, c in enumerate(sorted(set().union(*texts)))}, unk_token="")
    return models.WordLevel(unk_token=SPECIALS[UNKNOWN]) if kind == "words" else models.BPE()


def _tokenizer(kind: Kind, library: tokenizers.Tokenizer) -> Tokenizer:
    """With its lengths. Raises ValueError where the vocabulary is not what its kind must have."""
    vocabulary = library.get_vocab()
    if sorted(vocabulary.values()) != list(range(len(vocabulary))) or not vocabulary:
        raise ValueError(f"the {len(vocabulary)} tokens are not numbered 0, 1, ...")
    names = {token.content for token in library.get_added_tokens_decoder().values()}
    special = [vocabulary[name] for name in SPECIALS if name in names]
    if special != list(range(len(SPECIALS) if kind == "words" or names else 0)) or len(names) != len(special):
        raise ValueError("its special tokens are not the first five")
    lengths = np.zeros(len(vocabulary), np.int32)
    begins = _beginnings()
    if kind == "bpe" and not vocabulary.keys() >= begins.keys():
        raise ValueError("it lacks some of the 256 bytes")
    for token, n in vocabulary.items():
        if token not in names:
            lengths[n] = sum(begins[c] for c in token) if kind == "bpe" else len(token)
    lengths.flags.writeable = False
    library.encode_special_tokens = True  # "<pad>" in a text is text; JSON does not keep this
    return Tokenizer(kind, library, lengths)


def _try(tokenizer: Tokenizer) -> None:
    """Raises ValueError where it does not do what one of its kind does."""
    if tokenizer.kind == "words":
        if tokenizer.library.model.unk_token != SPECIALS[UNKNOWN]:
            raise ValueError("it has no token for the unknown")
        return
    vocabulary = tokenizer.library.get_vocab()
    sample = "".join(sorted(vocabulary)) if tokenizer.kind == "characters" else "Ää  <pad>\r\n\0😀"
    if tokenizer.decode(tokenizer.encode(sample)) != sample:
        raise ValueError("it does not give back what it is given")


def _beginnings() -> dict[str, bool]:
    """By the character that stands for a byte in byte-level tokens: whether that byte begins a character of UTF-8.

    A printable byte stands for itself; the others are the characters from 256 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = sorted(set(range(256)) - set(printable))
    standing = {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(hidden)}
    return {c: not 0x80 <= b < 0xC0 for c, b in standing.items()}


def commonest(text: str) -> str:
    """The most frequent character of a text, the smallest of them where several are."""
    return min(Counter(text).items(), key=lambda item: (-item[1], item[0]))[0]
