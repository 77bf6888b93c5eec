"""Data sets of TensorFlow Datasets, read without TensorFlow. Each failure is one message that says what to do."""

import contextlib
import difflib
import importlib.util
import io
import logging
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from research.core.errors import RunError, UserError
from research.data.checks import expanded

NO_LABEL = -1
"""The label of every example of a split whose labels are secret, as in the test splits of GLUE and of ImageNet."""


def directory(dir: str | None) -> str | None:
    """The absolute path of the directory of prepared data sets: `dir`, else the environment variable TFDS_DATA_DIR.

    None: the default directory of the library.
    """
    found = dir or os.environ.get("TFDS_DATA_DIR")
    return str(expanded(found).resolve()) if found else None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides the warnings of TensorFlow Datasets: the messages of exceptions have what matters of them."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@quiet()
def builder(name: str, dir: str | None, bundled: str | None, files: str = "") -> Any:
    """The builder of a data set; one that is not prepared in `dir` is prepared first, if TensorFlow is installed.

    bundled  the name of a data set that needs no preparation, for the message; None: there is none
    files    what `name` may also be the path of, for the message

    Raises UserError if the data set is not there, RunError if it is damaged.
    """
    import tensorflow_datasets as tfds

    if name.startswith(("/", ".", "~")):
        raise UserError(
            f"data.name {name}: a data set of TensorFlow Datasets is expected, not a path; docs/data.md has the "
            "configs that read files"
        )
    root = dir or "~/tensorflow_datasets"  # its own default
    prepare = f"pip install 'samestep[prepare]' && {_build(name, root)}"
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # where it misses TensorFlow, it prints a banner
            builder = tfds.builder(name, data_dir=dir)
        if builder.is_prepared():
            return builder
    except tfds.core.DatasetNotFoundError as error:
        # Without TensorFlow, the text of the error is the only catalogue.
        names = [*filter(None, [bundled]), *re.findall(r"^\s*- (\w+)$", str(error), re.MULTILINE)]
        near = "".join(f"; did you mean {n}?" for n in difflib.get_close_matches(name, names, 1))
        paths = f"; for {files}, give its path (./{name})" if files else ""
        # Without TensorFlow the library does not know some of its data sets, such as glue.
        known = near or importlib.util.find_spec("tensorflow")
        hidden = "" if known else f"; more are known with TensorFlow: {prepare}"
        raise UserError(
            f"data.name: TensorFlow Datasets has no set {name}, nor has {dir or 'its directory'}{near}{paths}{hidden}"
        ) from None
    except (ValueError, AssertionError) as error:  # no such configuration, no such version
        raise UserError(f"data.name {name}: {reason(error)}") from error
    except Exception as error:
        # Of some sets not even the description can be made without TensorFlow.
        if not isinstance(error, ImportError) or importlib.util.find_spec("tensorflow"):
            raise damaged(f"data.name {name}", dir, error) from error
    trouble = "TensorFlow, which can prepare it, is not installed"
    if importlib.util.find_spec("tensorflow"):
        try:
            builder.download_and_prepare(file_format="array_record")
            return builder
        except Exception as error:
            trouble = f"preparing it failed ({reason(error)})"
    instead = f" --data.name {bundled} needs nothing." if bundled else ""
    raise UserError(
        f"data.name {name}: not found in {root}, and {trouble}. Either give the directory of TensorFlow Datasets that "
        f"has it (--data.dir DIR or the environment's TFDS_DATA_DIR), or prepare it once, with a network: "
        f"{prepare}.{instead}"
    )


@quiet()
def source(builder: Any, name: str, split: str) -> Any:
    """The examples of a split, a sequence. Raises UserError if only TensorFlow can read them."""
    try:
        return builder.as_data_source(split=split)
    except NotImplementedError as error:
        where, remedy = builder.data_path, f"prepare it in another directory: {_build(name, 'OTHER')}"
        raise UserError(f"data.name {name}: {where} is in a format that only TensorFlow reads; {remedy}") from error


def unexpected(name: str, builder: Any, expected: str) -> UserError:
    """The error of a data set that lacks what is expected of it."""
    there, splits = sorted(builder.info.features), builder.info.splits
    found = f"features {', '.join(there)}, splits {', '.join(splits)}"
    return UserError(f"data.name {name}: expected {expected}; it has {found}")


@quiet()
def columns(builder: Any, name: str, split: str, features: Sequence[str], limit: int | None = None) -> list[list[Any]]:
    """The values of each of `features`, for all examples of a split in order or for the first `limit`; text is bytes.

    Raises UserError if the data set has no such split or features, RunError if it is damaged.
    """
    if split not in builder.info.splits or not set(builder.info.features) >= set(features):
        raise unexpected(name, builder, f"features {' and '.join(features)}, and a split {split}")
    examples = source(builder, name, split)
    rows: list[list[Any]] = []
    try:
        count = min(len(examples), limit or len(examples))
        for start in range(0, count, 1000):
            some = examples.__getitems__(list(range(start, min(start + 1000, count))))
            rows += [[example[feature] for feature in features] for example in some]
    except Exception as error:
        raise damaged(f"data.name {name}, split {split}", builder.data_path, error) from error
    if not rows:
        raise UserError(f"data.name {name}: its split {split} is empty")
    return [list(column) for column in zip(*rows, strict=True)]


def damaged(what: str, where: Any, error: Exception) -> RunError:
    """The RunError to raise if the data in `where` can't be read."""
    remedy = "where it is damaged, delete that directory and prepare it again"
    return RunError(f"{what}: can't read the data in {where} ({reason(error)}); {remedy}")


def reason(error: Exception) -> str:
    """The first line of an error, without the arguments that TensorFlow Datasets puts before it."""
    text = re.sub(r'^Failed to construct dataset .*?}": ', "", str(error).strip())
    return text.splitlines()[0].rstrip(".:") if text else type(error).__name__


def _build(name: str, dir: str) -> str:
    return f"tfds build {name} --file_format=array_record --data_dir={dir}"
