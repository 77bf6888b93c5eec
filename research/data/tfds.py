"""Sets of TensorFlow Datasets, read without TensorFlow; what goes wrong is one message that names the mend."""

import contextlib
import difflib
import importlib.util
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from research.core.errors import Failure, Mistake


def directory(dir: str | None) -> str | None:
    """Where prepared sets are: `dir`, else the environment's TFDS_DATA_DIR, else None for the library's default.

    An absolute path: what is cached of a set is kept under it.
    """
    found = dir or os.environ.get("TFDS_DATA_DIR")
    return str(Path(found).expanduser().resolve()) if found else None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of TensorFlow Datasets: what matters of them is in the message raised."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@quiet()
def builder(name: str, dir: str | None, bundled: str | None, files: str = "") -> Any:
    """The builder of a prepared set; where it isn't prepared in `dir` and TensorFlow is installed, prepares it first.

    bundled  the name of a set that needs no preparing, if there is one, for the message
    files    what `name` may also be the path of, for the message

    Raises Mistake where the set isn't there, Failure where it is damaged.
    """
    import tensorflow_datasets as tfds

    root = dir or "~/tensorflow_datasets"  # its own default
    prepare = f"pip install 'samestep[prepare]' && {_build(name, root)}"
    try:
        builder = tfds.builder(name, data_dir=dir)
        if builder.is_prepared():
            return builder
    except tfds.core.DatasetNotFoundError as error:
        # Only the text of the error knows the catalogue without TensorFlow.
        names = [*filter(None, [bundled]), *re.findall(r"^\s*- (\w+)$", str(error), re.MULTILINE)]
        near = "".join(f"; did you mean {n}?" for n in difflib.get_close_matches(name, names, 1))
        paths = f"; for {files}, give its path (./{name})" if files else ""
        # Without TensorFlow it does not know some of its sets, such as glue.
        known = near or importlib.util.find_spec("tensorflow")
        hidden = "" if known else f"; more are known with TensorFlow: {prepare}"
        raise Mistake(
            f"data.name: TensorFlow Datasets has no set {name}, nor has {dir or 'its directory'}{near}{paths}{hidden}"
        ) from None
    except (ValueError, AssertionError) as error:  # no such configuration, no such version
        raise Mistake(f"data.name {name}: {reason(error)}") from error
    except Exception as error:
        raise damaged(f"data.name {name}", dir, error) from error
    trouble = "TensorFlow, which can prepare it, is not installed"
    if importlib.util.find_spec("tensorflow"):
        try:
            builder.download_and_prepare(file_format="array_record")
            return builder
        except Exception as error:
            trouble = f"preparing it failed ({reason(error)})"
    instead = f" --data.name {bundled} needs nothing." if bundled else ""
    raise Mistake(
        f"data.name {name}: not found in {root}, and {trouble}. Either give the directory of TensorFlow Datasets that "
        f"has it (--data.dir DIR or the environment's TFDS_DATA_DIR), or prepare it once, with a network: "
        f"{prepare}.{instead}"
    )


@quiet()
def source(builder: Any, name: str, split: str) -> Any:
    """The examples of a split, to be read by place. Raises Mistake where only TensorFlow can."""
    try:
        return builder.as_data_source(split=split)
    except NotImplementedError as error:
        where, mend = builder.data_path, f"prepare it in another directory: {_build(name, 'OTHER')}"
        raise Mistake(f"data.name {name}: {where} is in a format that only TensorFlow reads; {mend}") from error


@quiet()
def columns(builder: Any, name: str, split: str, features: Sequence[str], limit: int | None = None) -> list[list[Any]]:
    """The values of each of `features`, of all examples of a split in order, or of the first `limit`; text as bytes.

    Raises Mistake where the set has no such split or features, Failure where it is damaged.
    """
    splits, there = builder.info.splits, set(builder.info.features)
    if split not in splits or not there >= set(features):
        expected = f"features {' and '.join(features)}, and a split {split}"
        found = f"features {', '.join(sorted(there))}, splits {', '.join(splits)}"
        raise Mistake(f"data.name {name}: expected {expected}; it has {found}")
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
        raise Mistake(f"data.name {name}: its split {split} is empty")
    return [list(column) for column in zip(*rows, strict=True)]


def damaged(what: str, where: Any, error: Exception) -> Failure:
    """The Failure to raise for data in `where` that can't be read."""
    mend = "where it is damaged, delete that directory and prepare it again"
    return Failure(f"{what}: can't read the data in {where} ({reason(error)}); {mend}")


def reason(error: Exception) -> str:
    """One line for an error, without the arguments that TensorFlow Datasets puts before it."""
    text = re.sub(r'^Failed to construct dataset .*?}": ', "", str(error).strip())
    return text.splitlines()[0].rstrip(".:") if text else type(error).__name__


def _build(name: str, dir: str) -> str:
    return f"tfds build {name} --file_format=array_record --data_dir={dir}"
