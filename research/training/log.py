"""The metrics of a run: metrics.jsonl, the same numbers for TensorBoard and others, and a progress bar."""

import json
import os
import shutil
import statistics
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from google.protobuf.message import DecodeError
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Column

from research.core.bucket import located
from research.core.console import console
from research.core.errors import UserError
from research.core.files import failing, replacing
from research.core.metrics import Numbers, plain
from research.training.evaluate import over_seeds
from research.training.weights_and_biases import WeightsAndBiases

# tensorboardX imports PyTorch and the client of a bucket where they are installed: slow, and not needed here.
hidden = {"torch", "google.cloud.storage"} - sys.modules.keys()
for name in hidden:
    sys.modules[name] = None  # type: ignore[assignment]  # its import fails
try:
    from tensorboardX import summary as tensorboard
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter
finally:
    for name in hidden:
        del sys.modules[name]

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"


def read(directory: Path | str) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without the last one where a killed run left it incomplete.

    Raises UserError where another one is damaged.
    """
    path = located(directory) / METRICS
    with failing("read", path):
        try:
            return [line for _, line in _whole(path)]
        except FileNotFoundError:
            return []


def steps_per_second(lines: Iterable[dict[str, Any]]) -> float | None:
    """The median speed of training over the dispatches that did not compile, from the lines of metrics.jsonl.

    Where all of them did, since the run had but one dispatch, it includes compiling. None where no line tells.
    """
    train = [line for line in lines if line["split"] == "train"]
    speeds = [line["time"]["steps_per_second"] for line in train]
    known = [speed for speed in speeds if speed is not None]
    seconds = sum(line["time"]["seconds"] for line in train)
    return statistics.median(known) if known else train[-1]["step"] / seconds if seconds else None


def timing(lines: Iterable[dict[str, Any]]) -> dict[str, float | None]:
    """What the readings under "time" of all lines of training come to.

    compile_seconds    in all; a run that was resumed has compiled more than once
    data_share         the share of the time in which the host has waited for data
    peak_memory_bytes  the largest
    all others         speeds, and the share of the devices' peak: medians over the dispatches that did not compile
    """
    train = [line["time"] for line in lines if line["split"] == "train"]
    names = {name: None for line in train for name in line if name not in ("unix", "seconds")}
    readings = {name: [line[name] for line in train if line.get(name) is not None] for name in names}
    waited = readings.pop("data_seconds", [])
    seconds = sum(line["seconds"] for line in train)
    share = sum(waited) / seconds if waited and seconds else None
    merge: dict[str, Callable[[list], float]] = {"compile_seconds": sum, "peak_memory_bytes": max}
    found = {name: merge.get(name, statistics.median)(x) if x else None for name, x in readings.items()}
    return {**found, "data_share": share}


def cut(directory: Path | str, step: int) -> None:
    """Delete the lines after `step`, from which a run resumes, and an incomplete last line."""
    path = located(directory) / METRICS
    with failing("write", path):
        if not path.exists():
            return
        lines = [text for text, line in _whole(path) if line["step"] <= step]
        with replacing(path) as temporary:
            temporary.write_bytes(b"".join(lines))


def _whole(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The complete lines, as text and as what it says. Raises UserError where one is damaged."""
    for number, text in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if text.endswith(b"\n"):
            try:
                yield text, _line(text)
            except (ValueError, RecursionError):
                raise UserError(
                    f"could not read {path}: line {number} is damaged: restore the file, or delete the line"
                ) from None


def _line(text: bytes) -> dict[str, Any]:
    """What a line says. Raises ValueError, or RecursionError, where `Log.line` has not written it."""
    line = json.loads(text)
    match line:
        case {"step": int(), "split": str(), "time": {"unix": float() | int()} as time, **values}:
            found = [*time.values(), *values.values()]
            each = [x for value in found for x in (value if isinstance(value, list) else [value])]
            if all(x is None or (isinstance(x, int | float) and abs(x) <= sys.float_info.max) for x in each):
                return line
    raise ValueError("it is no line of metrics")


class Log:
    """A context manager that appends to metrics.jsonl in `directory` and writes the same for TensorBoard.

    wandb  whether Weights & Biases gets it too, see `weights_and_biases`

    Call `cut` before, where a run resumes. TensorBoard's events are rebuilt from metrics.jsonl on entering, so that
    none is there twice. Call `flush` before each checkpoint, so that the lines of all its steps are on the disk.
    """

    def __init__(self, directory: Path | str, wandb: bool = False) -> None:
        self._directory, self._wandb = Path(directory), wandb

    def __enter__(self) -> Self:
        lines = read(self._directory)
        last = max((line["step"] for line in lines), default=0)
        with failing("write to", self._directory):
            self._file = (self._directory / METRICS).open("a")
            self._sinks: list[_Events | WeightsAndBiases] = [_Events(self._directory / TENSORBOARD, lines, last)]
            if self._wandb:
                self._sinks.append(WeightsAndBiases(self._directory))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self.flush()
        except Exception:
            if error is None:
                raise
        finally:
            for file in (self._file, *self._sinks):
                try:
                    file.close()
                except OSError:  # flush has raised it
                    continue

    def line(self, step: int, split: str, values: Numbers, timing: Numbers | None = None) -> None:
        """Write one line: the values of a split after `step` steps, and `timing`, which differs from run to run."""
        line = plain({"step": step, "split": split, **values, "time": {"unix": time.time(), **(timing or {})}})
        with failing("write to", self._directory):
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()
            for sink in self._sinks:
                sink.numbers(step, line["time"]["unix"], numbers(line))

    def picture(self, step: int, path: Path) -> None:
        """Write a PNG, under the name of its file."""
        with failing("write to", self._directory):
            for sink in self._sinks:
                sink.picture(step, path.stem, path)

    def flush(self) -> None:
        """Write all lines through to the disk."""
        with failing("write to", self._directory):
            self._file.flush()
            os.fsync(self._file.fileno())
            for sink in self._sinks:
                sink.flush()


def numbers(line: dict[str, Any]) -> dict[str, float]:
    """All numbers of a line of metrics.jsonl by name, "train/loss"; with several seeds, their mean and spread
    (see `over_seeds`)."""
    named = {f"{line['split']}/{name}": x for name, x in line.items() if name not in ("step", "split", "time")}
    named |= {f"time/{name}": value for name, value in line["time"].items() if name != "unix"}
    found: dict[str, float] = {}
    for name, number in named.items():
        if isinstance(number, list):
            each = over_seeds(number)
            both = {name: each["mean"], f"{name}/spread": each["spread"]}
            found |= {key: x for key, x in both.items() if x is not None}
        elif isinstance(number, int | float):
            found[name] = number
    return found


class _Events:
    """TensorBoard's event file. With several seeds, it has their mean and spread.

    It is written at once: tensorboardX's own writer uses a thread that can't be waited for and hides its errors.
    """

    def __init__(self, directory: Path, lines: Iterable[dict[str, Any]], last: int) -> None:
        # The new directory is written beside the old one, then replaces it: of a run that was killed in between, there
        # is the new one alone.
        new = directory.with_name(f".{directory.name}.tmp")
        if new.exists() and not any(directory.glob("events.*")):
            shutil.rmtree(directory, ignore_errors=True)
            new.rename(directory)
        pictures = {
            (event.step, event.summary.value[0].tag): event.SerializeToString()
            for path in sorted(directory.glob("events.*"))
            if path.is_file()
            for event in _events(path)
            if event.step <= last and event.summary.value and event.summary.value[0].HasField("image")
        }
        self._pictured = set(pictures)
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        name = f"events.out.tfevents.{int(time.time()):010d}.samestep"
        self._writer = RecordWriter(str(new / name))
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        for line in lines:
            self.numbers(line["step"], line["time"]["unix"], numbers(line))
        for picture in pictures.values():
            self._writer.write(picture)
        self.flush()
        shutil.rmtree(directory, ignore_errors=True)
        new.rename(directory)  # the file stays open

    def numbers(self, step: int, unix: float, values: Mapping[str, float]) -> None:
        """Write the values of a step, by name."""
        found = [value for name, x in values.items() for value in tensorboard.scalar(name, x).value]
        if found:
            self._write(Event(wall_time=unix, step=step, summary=tensorboard.Summary(value=found)))

    def picture(self, step: int, tag: str, path: Path) -> None:
        """Write a PNG, unless it was written before the run resumed."""
        if (step, tag) in self._pictured:
            return
        png = path.read_bytes()
        width, height = struct.unpack(">II", png[16:24])
        image = tensorboard.Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=png)
        summary = tensorboard.Summary(value=[tensorboard.Summary.Value(tag=tag, image=image)])
        self._write(Event(wall_time=time.time(), step=step, summary=summary))
        self._pictured.add((step, tag))

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _write(self, event: Event) -> None:
        self._writer.write(event.SerializeToString())


def _events(path: Path) -> Iterator[Event]:
    """The intact events of a file. The last one is left out too where a killed run left it incomplete."""
    data, at = path.read_bytes(), 0
    while at + 16 <= len(data):
        (size,) = struct.unpack_from("<Q", data, at)  # then its checksum, the event, and that one's
        if at + size + 16 > len(data):
            return
        with suppress(DecodeError):
            yield Event.FromString(data[at + 12 : at + 12 + size])
        at += size + 16


class Progress:
    """A context manager that shows a progress bar on standard error, or prints a line from time to time if it is no
    terminal.

    steps  number of steps of the whole run
    start  number of steps done before
    every  seconds between lines where there is no terminal
    """

    def __init__(self, steps: int, start: int = 0, every: float = 30.0) -> None:
        self._steps, self._start, self._step, self._every = steps, start, start, every
        self._texts: dict[str, str] = {}
        self._speeds = deque[float](maxlen=20)
        self._said = time.monotonic()
        self._compiled: tuple[float, int] | None = None  # when the first dispatch had ended, and at which step
        self._bar = None
        if console.is_terminal and not console.is_dumb_terminal:
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TextColumn("{task.fields[speed]}"),
                TimeRemainingColumn(),
                TextColumn(
                    "{task.fields[text]}",
                    markup=False,
                    table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
                ),
                console=console,
                expand=True,
            )
            self._task = self._bar.add_task("training", total=steps, completed=start, text="", speed="")

    def __enter__(self) -> Self:
        self._said = time.monotonic()
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()
        elif self._step > self._start:
            self._say()

    def update(self, step: int, speed: float | None = None) -> None:
        """Show that `step` steps are done.

        speed  steps a second of the last dispatch, or None where it included compiling
        """
        self._step = step
        if speed is not None:
            self._speeds.append(speed)
        if self._compiled is None:
            self._compiled = (time.monotonic(), step)
        if self._bar:
            self._bar.update(self._task, completed=step, speed=self._speed())
        elif time.monotonic() - self._said > self._every:
            self._say()
            self._said = time.monotonic()

    def say(self, split: str, values: Numbers) -> None:
        """Show the latest values of a split."""
        self._texts[split] = f"{split} {brief(values)}"
        if self._bar:
            self._bar.update(self._task, text=" | ".join(self._texts.values()))

    def _speed(self) -> str:
        if not self._speeds:
            return ""
        speed = statistics.median(self._speeds)
        return f"{speed:,.0f} steps/s" if speed >= 100 else f"{speed:.3g} steps/s"

    def _say(self) -> None:
        parts = [f"training {self._step}/{self._steps}"]
        if self._speeds:
            parts.append(self._speed())
        if self._compiled is not None and self._step > self._compiled[1]:
            seconds, steps = time.monotonic() - self._compiled[0], self._step - self._compiled[1]
            parts.append(f"{timedelta(seconds=round((self._steps - self._step) * seconds / steps))} left")
        console.print(", ".join(parts) + "".join(f" | {text}" for text in self._texts.values()), markup=False)


def brief(values: Numbers) -> str:
    """The values as a short text; with several seeds, their means."""
    words = []
    for name, value in values.items():
        mean = over_seeds(value)["mean"]
        words.append(f"{name} -" if mean is None else f"{name} {mean:.4g}")
    return ", ".join(words)
