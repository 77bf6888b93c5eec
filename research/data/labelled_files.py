"""Labelled texts in files: a folder for each class, or tables of tab- or comma-separated columns."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from research.core.errors import Mistake
from research.data.order import permuted
from research.data.strings import VALIDATION_SPLITS, read_file, text_features

SPLITS = {"train": ("train",), "validation": VALIDATION_SPLITS, "test": ("test",)}
"""The names that files and folders have, by split."""

TABLES = (".tsv", ".csv")
"""Tab-separated without quotes, and comma-separated with quotes where needed (RFC 4180)."""

UNLABELLED = "unsup"
"""The folder of texts without labels in aclImdb, which is left out."""


class Labelled(NamedTuple):
    """The texts of one split, and their labels; None where the file has no column of labels."""

    texts: list[str]
    labels: list[str] | None


def read_labelled(path: Path, text: Sequence[str] | None, label: str, limit: int | None) -> dict[str, Labelled]:
    """The splits "train", "validation" and "test" at `path`, as far as they are there.

    path  a folder with SPLIT/CLASS/*.txt, one text a file (such as aclImdb); or a folder with SPLIT.tsv or SPLIT.csv;
          or one such table, which is all for training. SPLIT is train, validation (or val, valid, dev) or test. The
          first row of a table names its columns; without such a row it has two columns, the text and its label
    text  the columns of a table that hold the text, joined by a newline; None: sentence, text, or title and description
    label the column of a table that holds the label
    limit texts of each split at most; the texts of folders come in a random order that is always the same

    Raises Mistake where nothing of the kind is there.
    """
    if path.suffix in TABLES:
        return {"train": _table(path, text, label, limit)}
    found = {}
    for split, names in SPLITS.items():
        for name in names:
            tables = [file for suffix in TABLES if (file := path / f"{name}{suffix}").is_file()]
            if tables:
                found[split] = _table(tables[0], text, label, limit)
            elif (path / name).is_dir():
                found[split] = _folder(path / name, limit)
    if "train" not in found:
        expected = "train/CLASS/*.txt, train.tsv or train.csv"
        raise Mistake(f"data.name {path}: no labelled texts there; expected a folder with {expected}")
    return found


def _folder(folder: Path, limit: int | None) -> Labelled:
    """The texts of CLASS/*.txt."""
    files = sorted(file for file in folder.glob("*/*.txt") if file.parent.name != UNLABELLED)
    if not files:
        raise Mistake(f"data.name {folder}: no texts there; expected files CLASS/*.txt")
    places = np.arange(len(files), dtype=np.uint32)
    some = [files[n] for n in permuted(places, np.uint32(0), len(files), 0, np)[:limit]]
    return Labelled([read_file(file) for file in some], [file.parent.name for file in some])


def _table(path: Path, text: Sequence[str] | None, label: str, limit: int | None) -> Labelled:
    """The rows of a table."""
    content = read_file(path).removeprefix("\ufeff")
    try:
        lines = csv.reader(io.StringIO(content, "")) if path.suffix == ".csv" else _tab_separated(content)
        rows = [row for row in lines if any(row)]
    except csv.Error as error:
        raise Mistake(f"data.name {path}: not comma-separated ({error})") from error
    first = rows[0] if rows else []
    columns = text_features(text, first)
    if set(columns) <= set(first):
        head, rows = first, rows[1:]
    elif text is None and label not in first and len(first) == 2:
        head, columns = ["text", label], ("text",)
    else:
        expected = f"expected columns {' and '.join(columns)} and {label}, named in the first row"
        raise Mistake(f"data.name {path}: {expected}, which is {', '.join(first[:5]) or 'not there'}")
    wrong = next((row for row in rows if len(row) != len(head)), None)
    if wrong is not None:
        shown = f"{' | '.join(wrong)[:60]!r} has {len(wrong)}"
        raise Mistake(f"data.name {path}: {len(head)} columns expected in each row; {shown}")
    rows = rows[:limit]
    texts = ["\n".join(row[head.index(column)] for column in columns) for row in rows]
    return Labelled(texts, [row[head.index(label)] for row in rows] if label in head else None)


def _tab_separated(content: str) -> list[list[str]]:
    return [line.split("\t") for line in content.replace("\r\n", "\n").split("\n")]
