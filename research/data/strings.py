"""What the sources of text share: strings of what is on the disk, and what is wrong with it."""

from collections.abc import Sequence
from pathlib import Path

from research.core.errors import Mistake
from research.data import tfds
from research.data.tokenizer import Tokenizer

SUFFIXES = (".txt", ".md", ".rst", ".tex", ".py", ".c", ".h", ".cpp", ".rs", ".go", ".js", ".ts", ".java")
"""Of the files of a folder that are read."""


def is_path(name: str) -> bool:
    """Whether the name of a data set is meant as a path."""
    return name.startswith(("/", ".", "~")) or name.endswith(SUFFIXES) or ("/" in name and Path(name).exists())


def location(name: str, dir: str | None) -> str | None:
    """Where a set is, as an absolute path: `name` itself, if it is a path, else the directory of TensorFlow Datasets.

    What is cached of a set is kept under it.
    """
    return str(Path(name).expanduser().resolve()) if is_path(name) else tfds.directory(dir)


def read_file(path: Path) -> str:
    """The text of a file. Raises Mistake where it is not there, or not UTF-8."""
    try:
        return string(path.read_bytes(), str(path))
    except OSError as error:
        raise Mistake(
            f"data.name: can't read {path} ({error.strerror}); give the path of a file or a folder"
        ) from error


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
