"""What the sources of text share: strings of what is on the disk, and what is wrong with it."""

import gzip
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from research.core.errors import Mistake
from research.data import tfds
from research.data.tokenizer import Tokenizer

SUFFIXES = (".txt", ".md", ".rst", ".tex", ".py", ".c", ".h", ".cpp", ".rs", ".go", ".js", ".ts", ".java")
"""Of the files of a folder that are read."""


TEXT_FEATURES = (("sentence",), ("text",), ("title", "description"))
"""What the features of a set that hold its text are usually called."""

VALIDATION_SPLITS = ("validation", "val", "valid", "dev")
"""What the validation split of a set is called."""


def is_path(name: str) -> bool:
    """Whether the name of a data set is meant as a path."""
    files = (*SUFFIXES, ".tsv", ".csv")
    return name.startswith(("/", ".", "~")) or name.endswith(files) or ("/" in name and Path(name).exists())


def text_features(given: Sequence[str] | None, there: Iterable[str]) -> tuple[str, ...]:
    """The features that hold the text: those that are given, else the first of the usual ones that are there."""
    if given is not None:
        return tuple(given)
    has = set(there)
    return next((names for names in TEXT_FEATURES if has >= set(names)), ("text",))


def location(name: str, dir: str | None) -> str | None:
    """Where a set is, as an absolute path: `name` itself, if it is a path, else the directory of TensorFlow Datasets.

    What is cached of a set is kept under it.
    """
    return str(Path(name).expanduser().resolve()) if is_path(name) else tfds.directory(dir)


def read_file(path: Path) -> str:
    """The text of a file, or of `path`.gz if that is there instead. Raises Mistake where neither is, or no UTF-8."""
    packed = path.with_name(f"{path.name}.gz")
    try:
        if packed.exists() and not path.exists():
            return string(gzip.decompress(packed.read_bytes()), str(packed))
        return string(path.read_bytes(), str(path))
    except (OSError, EOFError, zlib.error) as error:
        found = getattr(error, "strerror", None) or error
        raise Mistake(f"data.name: can't read {path} ({found}); give the path of a file or a folder") from error


def joined(columns: Sequence[Sequence[bytes]], what: str) -> list[str]:
    """The texts of columns of bytes, those of one example joined by a newline. Raises as `strings` does."""
    return ["\n".join(parts) for parts in zip(*(strings(column, what) for column in columns), strict=True)]


def strings(texts: Sequence[bytes], what: str) -> list[str]:
    """The texts of bytes; `what` they are is for the message. Raises Mistake where one is not UTF-8."""
    return [string(text, f"{what}, example {n}") for n, text in enumerate(texts)]


def string(text: bytes, what: str) -> str:
    """The text of bytes. Raises Mistake where they are not UTF-8, saying where."""
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        mend = "convert it to UTF-8"
        raise Mistake(f"{what}: not UTF-8 at byte {error.start} (0x{text[error.start]:02x}); {mend}") from error


def kept(tokenizer: Tokenizer | None) -> dict[str, str]:
    """`Feeds.kept` of data that have a tokenizer."""
    return {} if tokenizer is None else {"tokenizer.json": tokenizer.text()}
