"""Further columns of labelled data: what the test examples have beside their input and their label."""

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from research.core.errors import UserError
from research.data import tfds
from research.data.checks import expanded
from research.data.images import Images
from research.data.labelled_files import read_labelled, table_columns
from research.data.order import split_test
from research.data.sentences import Sentences
from research.data.strings import is_path, string


class Column(NamedTuple):
    """A column of the test examples, in the order of `Batch.index`.

    labels  their labels, as they are stored, by which the order can be checked
    values  texts or numbers; those of a table are numbers where each of them is one
    """

    labels: list[Any]
    values: list[Any]


def column_names(data: Any) -> tuple[str, ...]:
    """The columns, text or one number an example, of a data set of TensorFlow Datasets or of a table; () of others."""
    if not _stored(data):
        return ()
    if isinstance(data, Sentences) and is_path(data.name):
        names = table_columns(expanded(data.name))
        return names if data.label_feature in names else ()  # else the first row is an example
    features = _builder(data).info.features
    return tuple(sorted(name for name in features if getattr(features[name], "shape", None) == ()))


def test_column(data: Any, name: str) -> Column:
    """The column `name` of the test examples of `data`, see `Column`.

    They are those of `data.classes` where it names any, whose numbers become their places in it.

    Raises UserError if there is none of that name, RunError if the data is damaged.
    """
    if name not in column_names(data):
        raise UserError(f"the data has no column {name}")
    if isinstance(data, Sentences) and is_path(data.name):
        return _from_table(data, name)
    builder, classes = _builder(data), getattr(data, "classes", ())
    limit = None if classes else data.limit
    read = lambda split: tfds.columns(builder, data.name, split, (data.label_feature, name), limit)
    there = [split for split in ("test", "validation") if split in builder.info.splits]
    found = next((pair for pair in map(read, there) if set(pair[0]) != {tfds.NO_LABEL}), None)
    labels, values = _fifth(*read("train")) if found is None else found
    if classes:
        rows = [(classes.index(label), value) for label, value in zip(labels, values, strict=True) if label in classes]
        labels, values = ([row[at] for row in rows[: data.limit]] for at in (0, 1))
    names = getattr(builder.info.features[name], "names", None)
    if names:
        return Column(labels, [names[value] for value in values])
    what = f"data.name {data.name}, feature {name}"
    return Column(labels, [string(value, what) if isinstance(value, bytes) else value for value in values])


def _stored(data: Any) -> bool:
    """Whether the examples are those of a table or of a data set of TensorFlow Datasets."""
    if isinstance(data, Images):
        return type(data).arrays is Images.arrays and data.name != "digits"
    return isinstance(data, Sentences) and type(data).texts is Sentences.texts


def _builder(data: Any) -> Any:
    return tfds.builder(data.name, tfds.directory(data.dir), None)


def _from_table(data: Sentences, name: str) -> Column:
    """The column of a table, as `Sentences` splits it."""
    path = expanded(data.name)
    columns = [read_labelled(path, data.text_features, each, data.limit) for each in (data.label_feature, name)]
    splits = [split for split in ("test", "validation") if split in columns[0] and columns[0][split].labels is not None]
    split = splits[0] if splits else "train"
    labels, values = ([*(column[split].labels or ())] for column in columns)
    values = values if name == data.label_feature else _numbers(values)
    return Column(*(_fifth(labels, values) if split == "train" else (labels, values)))


def _numbers(texts: list[Any]) -> list[Any]:
    """The numbers that texts are; the texts themselves where one of them is none."""
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return [number(text) for text in texts]
    return texts


def _fifth(labels: Sequence[Any], values: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Of a data set without a test split, the part of the training examples that is for testing."""
    _, places = split_test(len(labels))
    return [labels[n] for n in places], [values[n] for n in places]
