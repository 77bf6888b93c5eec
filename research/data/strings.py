"""What the sources of text have in common: paths, the text of files, and the names of features and splits."""

import gzip
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from research.core.errors import UserError
from research.data import tfds
from research.data.checks import expanded
from research.data.tokenizer import Tokenizer

SUFFIXES = (".txt", ".md", ".rst", ".tex", ".py", ".c", ".h", ".cpp", ".rs", ".go", ".js", ".ts", ".java")
"""Suffixes of the files that are read from a folder of texts."""

TABLES = (".tsv", ".csv")
"""Suffixes of tables: tab-separated without quotes, and comma-separated with quotes where needed (RFC 4180)."""

TEXT_FEATURES = (("sentence",), ("text",), ("title", "description"))
"""The usual names of the features of a data set that have its text."""

VALIDATION_SPLITS = ("validation", "val", "valid", "dev")
"""The usual names of a validation split."""


def is_path(name: str) -> bool:
    """Whether the name of a data set is a path."""
    file = name.lower().endswith((*SUFFIXES, *TABLES))
    return file or name.startswith(("/", ".", "~")) or ("/" in name and Path(name).exists())


def location(name: str, dir: str | None) -> str | None:
    """The absolute path of a data set: `name` if it is a path, else the directory of TensorFlow Datasets.

    It is a part of the key of every cache of data. None: the default directory of the library.
    """
    return str(expanded(name).resolve()) if is_path(name) else tfds.directory(dir)


def text_features(names: Sequence[str] | None, existing: Iterable[str]) -> tuple[str, ...]:
    """The features that have the text: `names`, or if None the first of the usual names that exist."""
    if names is not None:
        return tuple(names)
    features = set(existing)
    return next((usual for usual in TEXT_FEATURES if features >= set(usual)), ("text",))


def read_file(path: Path) -> str:
    """The text of a file, or of `path`.gz if only that exists, without a byte order mark before it.

    Raises UserError if neither exists or is UTF-8.
    """
    packed = path.with_name(f"{path.name}.gz")
    try:
        if packed.exists() and not path.exists():
            return string(gzip.decompress(packed.read_bytes()), str(packed)).removeprefix("\ufeff")
        return string(path.read_bytes(), str(path)).removeprefix("\ufeff")
    except (OSError, EOFError, zlib.error) as error:
        found = getattr(error, "strerror", None) or error
        raise UserError(f"data.name: can't read {path} ({found}); give the path of a file or a folder") from error


def joined(columns: Sequence[Sequence[bytes]], what: str) -> list[str]:
    """The texts of columns of bytes, those of each example joined by a newline. Raises as `strings` does."""
    return ["\n".join(parts) for parts in zip(*(strings(column, what) for column in columns), strict=True)]


def strings(texts: Sequence[bytes], what: str) -> list[str]:
    """Decodes texts. Raises UserError if one is not UTF-8; `what` names them in the message."""
    return [string(text, f"{what}, example {n}") for n, text in enumerate(texts)]


def string(text: bytes, what: str) -> str:
    """Decodes a text. Raises UserError if it is not UTF-8; `what` names it in the message."""
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        remedy = "convert it to UTF-8"
        raise UserError(f"{what}: not UTF-8 at byte {error.start} (0x{text[error.start]:02x}); {remedy}") from error


def kept(tokenizer: Tokenizer | None) -> dict[str, str]:
    """`Feeds.kept` of data with this tokenizer, if it has one."""
    return {} if tokenizer is None else {"tokenizer.json": tokenizer.to_json()}
