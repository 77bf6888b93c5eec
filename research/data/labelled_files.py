"""Labelled texts in files: a folder for each class, or tables."""

import csv
import io
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from research.core.errors import UserError
from research.data.order import permute
from research.data.strings import TABLES, VALIDATION_SPLITS, read_file, text_features

SPLITS = {"train": ("train",), "validation": VALIDATION_SPLITS, "test": ("test",)}
"""The names that the files or folders of each split may have."""

UNLABELLED = "unsup"
"""The folder of aclImdb with texts that have no labels; it is left out."""


class Labelled(NamedTuple):
    """The texts of one split, and their labels; None: the table has no column of labels."""

    texts: list[str]
    labels: list[str] | None


def read_labelled(path: Path, text: Sequence[str] | None, label: str, limit: int | None) -> dict[str, Labelled]:
    """Reads labelled texts; returns those of the splits "train", "validation" and "test" that exist.

    path   a folder SPLIT/CLASS/*.txt with one text in each file, such as aclImdb; or a folder with SPLIT.tsv or
           SPLIT.csv; or one such table, which is the training split. SPLIT is train, validation (or val, valid, dev) or
           test. The first row of a table has the names of its columns; a table without such a row has two columns, the
           text and its label
    text   columns of a table that have the text, joined by a newline; None: sentence, text, or title and description
    label  column of a table that has the label
    limit  largest number of texts to read from each split; None: all. The texts of folders are shuffled, always in the
           same way

    Raises UserError if there are no such files.
    """
    if path.suffix.lower() in TABLES:
        return {"train": _table(path, "train", text, label, limit)}
    found = {}
    for split, names in SPLITS.items():
        for name in names:
            if split in found:
                break
            tables = [file for suffix in TABLES if (file := path / f"{name}{suffix}").is_file()]
            if tables:
                found[split] = _table(tables[0], split, text, label, limit)
            elif (path / name).is_dir():
                found[split] = _folder(path / name, limit)
    if "train" not in found:
        expected = "train/CLASS/*.txt, train.tsv or train.csv"
        raise UserError(f"data.name {path}: no labelled texts there; expected a folder with {expected}")
    return found


def table_columns(path: Path) -> tuple[str, ...]:
    """The first row of a table, or of that of the test or training split in a folder; () where there is none."""
    names = [f"{name}{suffix}" for split in ("test", "train") for name in SPLITS[split] for suffix in TABLES]
    files = [path] if path.suffix.lower() in TABLES else [path / name for name in names if (path / name).is_file()]
    return tuple(next(_rows(files[0]), [])) if files else ()


def _folder(folder: Path, limit: int | None) -> Labelled:
    """The texts of CLASS/*.txt."""
    found = (file for file in folder.glob("*/*") if file.suffix.lower() == ".txt")
    files = sorted(file for file in found if file.parent.name != UNLABELLED)
    if not files:
        raise UserError(f"data.name {folder}: no texts there; expected files CLASS/*.txt")
    places = np.arange(len(files), dtype=np.uint32)
    some = [files[n] for n in permute(places, np.uint32(0), len(files), 0, np)[:limit]]
    return Labelled([read_file(file) for file in some], [file.parent.name for file in some])


def _table(path: Path, split: str, text: Sequence[str] | None, label: str, limit: int | None) -> Labelled:
    """The rows of the table of a split."""
    rows = list(_rows(path))
    first = rows[0] if rows else []
    columns = text_features(text, first)
    if set(columns) <= set(first):
        names, rows = first, rows[1:]
    elif text is None and label not in first and len(first) == 2:
        names, columns = ["text", label], ("text",)
        if split == "train" and len(rows) > 2 and first[1] not in (row[-1] for row in rows[1:]):
            options = f"--data.text-features {shlex.quote(first[0][:60])} --data.label-feature {shlex.quote(first[1])}"
            remedy = f"say {options}; or if it is an example, put a row with the names text and {label} before it"
            raise UserError(f"data.name {path}: the first row looks like the names of the columns: {remedy}")
    else:
        expected = f"expected columns {' and '.join(columns)} and {label}, named in the first row"
        there = f"which is {', '.join(first[:5]) or 'not there'}"
        raise UserError(f"data.name {path}: {expected}, {there}: say --data.text-features and --data.label-feature")
    wrong = next((row for row in rows if len(row) != len(names)), None)
    if wrong is not None:
        shown = f"{' | '.join(wrong)[:60]!r} has {len(wrong)}"
        raise UserError(f"data.name {path}: expected {len(names)} columns in each row; {shown}")
    rows = rows[:limit]
    texts = ["\n".join(row[names.index(column)] for column in columns) for row in rows]
    return Labelled(texts, [row[names.index(label)] for row in rows] if label in names else None)


def _rows(path: Path) -> Iterator[list[str]]:
    """The rows of a table that are not empty. Raises UserError where it can't be read."""
    content = read_file(path)
    if path.suffix.lower() != ".csv":
        yield from filter(any, _tab_separated(content))
        return
    csv.field_size_limit(max(len(content), csv.field_size_limit()))  # else 131,072 characters
    lines = csv.reader(io.StringIO(content, ""), strict=True)
    try:
        yield from filter(any, lines)
    except csv.Error as error:
        what, remedy = f"data.name {path}, line {lines.line_num}", "quotes within a quoted text are to be doubled"
        raise UserError(f"{what}: not comma-separated ({error}); {remedy}") from error


def _tab_separated(content: str) -> list[list[str]]:
    return [line.split("\t") for line in content.replace("\r\n", "\n").split("\n")]
