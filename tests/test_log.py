import errno
import importlib.util
import io
import json
import math
import os
import shutil
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from research.core import console as people
from research.core.errors import RunError, UserError
from research.core.files import read_json, write_json
from research.evaluation import plots as plot
from research.training import config, log, run


def events(directory):
    """(step, tag, value) of all event files of the directory, read as a whole."""
    found = []
    for path in sorted((directory / "tensorboard").rglob("events.*")):
        for event in log._events(path):
            for value in event.summary.value:
                found.append((event.step, value.tag, value.simple_value if value.HasField("simple_value") else None))
    return found


def write(directory, steps, **values):
    with log.Log(directory) as lines:
        for step in steps:
            lines.line(step, "train", {"loss": 1 / step, **values}, {"steps_per_second": 2.0})
        lines.flush()


def test_lines_are_exact_and_never_nan(tmp_path):
    loss, seeds = np.float32(1 / 3), jnp.array([0.1, jnp.nan, -jnp.inf, 3])
    with log.Log(tmp_path) as lines:
        lines.line(100, "train", {"loss": loss, "each": seeds, "n": 3, "nan": math.nan, "none": None})
        lines.line(100, "validation", {"loss": [0.25, np.float64("inf")]}, {"seconds": 1.5})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert len(text.splitlines()) == 2 and "NaN" not in text and "Infinity" not in text
    first, second = log.read(tmp_path)
    assert list(first) == ["step", "split", "loss", "each", "n", "nan", "none", "time"]
    assert np.float32(first["loss"]).tobytes() == loss.tobytes()
    assert first["each"] == [float(seeds[0]), None, None, 3.0]
    assert first["n"] == 3 and first["nan"] is None and first["none"] is None
    assert second["loss"] == [0.25, None] and second["time"]["seconds"] == 1.5


def test_nothing_written_reads_as_nothing(tmp_path):
    assert log.read(tmp_path) == []
    log.cut(tmp_path, 10)
    assert not list(tmp_path.iterdir())


def test_cut_drops_what_is_later_and_a_torn_line(tmp_path):
    write(tmp_path, range(1, 6))
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    with path.open("a") as file:
        file.write('{"step": 2, "split": "tr')
    assert [line["step"] for line in log.read(tmp_path)] == [1, 2, 3, 4, 5]
    log.cut(tmp_path, 3)
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:3])
    log.cut(tmp_path, 3)
    write(tmp_path, [4, 5])
    assert [line["step"] for line in log.read(tmp_path)] == [1, 2, 3, 4, 5]


def test_a_damaged_line_is_named(tmp_path):
    write(tmp_path, range(1, 4))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b'{"step": 2', b"\0\0\0"))
    for reading in (lambda: log.read(tmp_path), lambda: log.cut(tmp_path, 3)):
        with pytest.raises(UserError, match=f"could not read {path}: line 2 is damaged"):
            reading()


@pytest.mark.parametrize(
    "line",
    [
        *("5", "[]", '{"a": 1}', "[" * 200_000, '{"step": 2, "split": "train", "loss": 1.0}'),
        *(
            f'{{"step": {step}, "split": "train", "loss": {loss}, "time": {time}}}'
            for step, loss, time in (
                *(('"x"', 1, '{"unix": 1}'), (2, 1, "5"), (2, 1, "{}"), (2, '"x"', '{"unix": 1}')),
                *((2, '[1, "x"]', '{"unix": 1}'), (2, "NaN", '{"unix": 1}'), (2, 1, '{"unix": null}')),
                *((2, 1, '{"unix": 1, "seconds": Infinity}'), (2, 1, '{"unix": 1, "seconds": 1e999}')),
            )
        ),
    ],
    ids=lambda line: line[:70],
)
def test_a_line_that_no_run_has_written_is_damaged(tmp_path, line):
    write(tmp_path, [1])
    path = tmp_path / "metrics.jsonl"
    with path.open("a") as file:
        file.write(f"{line}\n")
    for reading in (lambda: log.read(tmp_path), lambda: log.cut(tmp_path, 3)):
        with pytest.raises(UserError, match=f"could not read {path}: line 2 is damaged"):
            reading()


@pytest.mark.parametrize("killed", [False, True])
def test_pictures_outlive_a_damaged_event_and_a_kill(tmp_path, killed):
    """The kill is one after the old directory was deleted, before the new one was renamed."""
    grid, directory = tmp_path / "grid.png", tmp_path / "tensorboard"
    plot.image_grid(np.zeros((1, 4, 6, 3), np.uint8), None, grid)
    with log.Log(tmp_path) as lines:
        for step in (1, 2, 3):
            lines.line(step, "train", {"loss": 1.0})
            lines.picture(step, grid)
    file = next(directory.iterdir())
    data = file.read_bytes()
    at = data.index(b"grid", data.index(b"grid") + 1)  # in the tag of the second
    file.write_bytes(data[:at] + b"\xff" + data[at + 1 :])
    (directory / "events.directory").mkdir()
    (directory / "events.link").symlink_to("nowhere")
    if killed:
        shutil.copytree(directory, tmp_path / ".tensorboard.tmp", symlinks=True)
        file.unlink()
        for path in directory.iterdir():
            path.unlink() if path.is_symlink() else path.rmdir()
    with log.Log(tmp_path):
        pass
    assert [step for step, tag, _ in events(tmp_path) if tag == "grid"] == [1, 3]
    assert not (tmp_path / ".tensorboard.tmp").exists()


def test_tensorboard_has_every_event_once_after_a_resume(tmp_path):
    grid = tmp_path / "grid.png"
    plot.image_grid(np.zeros((1, 4, 6, 3), np.uint8), None, grid)
    lines = log.Log(tmp_path)
    with lines:
        for step in range(1, 6):
            lines.line(step, "train", {"loss": 1 / step}, {"steps_per_second": 2.0})
            lines.picture(step, grid)
    file = next((tmp_path / "tensorboard").iterdir())
    os.truncate(file, file.stat().st_size - 3)  # torn, as by a kill
    log.cut(tmp_path, 3)
    with log.Log(tmp_path) as lines:
        assert len(list((tmp_path / "tensorboard").iterdir())) == 1
        lines.picture(3, grid)  # what comes after a checkpoint comes again
        for step in range(4, 7):
            lines.line(step, "train", {"loss": 1 / step}, {"steps_per_second": 2.0})
            lines.picture(step, grid)
    found = events(tmp_path)
    assert len(set(found)) == len(found)
    for tag, value in (("train/loss", lambda s: np.float32(1 / s)), ("time/steps_per_second", lambda s: 2.0)):
        assert [(s, v) for s, t, v in found if t == tag] == [(s, value(s)) for s in range(1, 7)]
    assert sorted(s for s, t, _ in found if t == "grid") == [1, 2, 3, 4, 5, 6]


def test_tensorboard_has_the_mean_and_spread_of_seeds(tmp_path):
    with log.Log(tmp_path) as lines:
        lines.line(1, "train", {"loss": [1.0, 3.0, None], "gone": [None, None, None], "none": None})
    assert events(tmp_path) == [(1, "train/loss", 2.0), (1, "train/loss/spread", np.float32(2**0.5))]
    assert log.numbers({"split": "train", "loss": [None, 2.0], "time": {}}) == {"train/loss": 2.0}


def test_tensorboard_itself_reads_it(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write(tmp_path, range(1, 4))
    log.cut(tmp_path, 2)
    write(tmp_path, [3, 4])
    found = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in found.Scalars("train/loss")] == [(s, np.float32(1 / s)) for s in range(1, 5)]


def test_write_json_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_json(path, {"a": 1.5})
    assert json.loads(path.read_text()) == {"a": 1.5}
    with pytest.raises(ValueError):
        write_json(path, {"a": math.nan})

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(RunError, match=r"could not write .*summary\.json: the disk is full"):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1.5} and [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_what_is_denied_may_be_reading_or_writing(tmp_path, monkeypatch):
    def fail(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "read_text", fail)
    with pytest.raises(UserError, match=r"could not read .*a\.json: permission is denied, or .* check its permissions"):
        read_json(tmp_path / "a.json")


def test_what_cannot_be_written_is_a_failure(tmp_path):
    (tmp_path / "file").write_text("")
    for directory in (tmp_path / "file", tmp_path / "missing"):
        with pytest.raises(RunError, match=f"could not .* {directory}"), log.Log(directory):
            pass


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_is_a_failure(tmp_path):
    told = r"could not write to .* the disk is full"
    with pytest.raises(RunError, match=told), log.Log(tmp_path) as lines:
        lines._file = open("/dev/full", "a")  # noqa: SIM115
        lines.line(1, "train", {"loss": 1.0})


def console(monkeypatch, terminal):
    file = io.StringIO()
    shown = Console(file=file, force_terminal=terminal, width=150, soft_wrap=True)
    for module in (log, people):
        monkeypatch.setattr(module, "console", shown)
    return file


def test_without_a_terminal_progress_is_a_plain_line_now_and_then(monkeypatch):
    file = console(monkeypatch, False)
    with log.Progress(100, 10, every=1e9) as progress:
        for step in range(11, 51):
            progress.say("train", {"loss": 1 / step, "each": [1.0, 3.0], "gone": None})
            progress.update(step, None if step == 11 else 2.0)
        people.warn("[b]careful[/b]")
    first, last = file.getvalue().splitlines()
    assert first == "warning: [b]careful[/b]"
    assert last.startswith("training 50/100, 2 steps/s, ") and last.endswith("| train loss 0.02, each 2, gone -")
    assert "left" in last and "\x1b" not in file.getvalue()
    with log.Progress(100, 10, every=0) as progress:
        progress.update(20)
    assert file.getvalue().splitlines()[2] == "training 20/100"  # it compiled, and says nothing of the speed


def test_the_time_left_goes_by_what_came_after_compiling(monkeypatch):
    file = console(monkeypatch, False)
    now = [0.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    with log.Progress(10_000, every=100) as progress:
        for step, seconds, speed in ((100, 200.0, None), (200, 2.0, 101.0), (300, 4.0, 99.0), (400, 99.0, 2000.0)):
            now[0] += seconds
            progress.update(step, speed)
    first, second, _ = file.getvalue().splitlines()
    assert first == "training 100/10000"
    assert second == "training 400/10000, 101 steps/s, 0:56:00 left"  # 300 steps in 105 seconds


def test_the_speed_of_a_run_leaves_out_what_compiled():
    train = [
        {"step": step, "split": "train", "time": {"seconds": seconds, "steps_per_second": speed}}
        for step, seconds, speed in ((10, 40, None), (20, 1, 10.0), (30, 2, 5.0), (40, 30, None), (50, 1, 20.0))
    ]
    evaluation = {"step": 10, "split": "validation", "time": {"unix": 1}}
    assert log.steps_per_second([*train, evaluation]) == 10
    assert log.steps_per_second(train[:1]) == 0.25
    assert log.steps_per_second([evaluation]) is None
    still = [{"step": 1, "split": "train", "time": {"seconds": 0, "steps_per_second": None, "data_seconds": 0.0}}]
    assert log.steps_per_second(still) is None and log.timing(still)["data_share"] is None


def test_the_readings_of_a_run():
    readings = (
        {"seconds": 40, "compile_seconds": 30.0, "data_seconds": 4.0, "steps_per_second": None, "peak_memory_bytes": 7},
        {"seconds": 10, "compile_seconds": 0.0, "data_seconds": 1.0, "steps_per_second": 3.0, "peak_memory_bytes": 9},
        {"seconds": 20, "compile_seconds": 5.0, "data_seconds": 0.0, "steps_per_second": None, "peak_memory_bytes": 8},
        {"seconds": 30, "compile_seconds": 0.0, "data_seconds": 0.0, "steps_per_second": 4.0, "flops_per_second": None},
    )
    lines = [{"step": 1, "split": "train", "time": {"unix": 1.0, **reading}} for reading in readings]
    assert log.timing([*lines, {"step": 1, "split": "validation", "time": {"unix": 1}}]) == {
        **{"compile_seconds": 35.0, "steps_per_second": 3.5, "peak_memory_bytes": 9, "flops_per_second": None},
        "data_share": 0.05,
    }


def test_on_a_terminal_progress_is_a_bar(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    file = console(monkeypatch, True)
    with log.Progress(100) as progress:
        progress.say("train", {"loss": 0.5})
        progress.update(25)
        progress.update(50, 1234.5)
        people.warn("careful")
    for text in ("1,234 steps/s", "50/100", "train loss 0.5", "careful"):
        assert text in file.getvalue()


class FakeWandb:
    """The calls that a run makes of the package."""

    Error, Image, Settings = RuntimeError, staticmethod(lambda path: f"image {path}"), staticmethod(dict)
    id = "made"

    def __init__(self):
        self.begun, self.logged, self.finished = [], [], 0

    def init(self, **options):
        self.begun.append(options)
        return self

    def log(self, values, step=None, commit=None):
        self.logged.append((step, values))

    def finish(self):
        self.finished += 1


def test_weights_and_biases_get_the_same_and_go_on_with_one_run(tmp_path, monkeypatch):
    fake, grid = FakeWandb(), tmp_path / "grid.png"
    plot.image_grid(np.zeros((1, 4, 6, 3), np.uint8), None, grid)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    write_json(tmp_path / "config.json", {"name": "digits_cnn"})
    for step in (1, 2):
        with log.Log(tmp_path, wandb=True) as lines:
            lines.line(step, "train", {"loss": [1.0, 3.0, None], "none": None}, {"steps_per_second": 2.0})
            lines.picture(step, grid)
    values = {"train/loss": 2.0, "train/loss/spread": 2**0.5, "time/steps_per_second": 2.0}
    assert (
        fake.logged == [x for step in (1, 2) for x in ((step, values), (None, {"grid": f"image {grid}", "step": step}))]
        and fake.finished == 2
    )
    assert [(x["id"], x["resume"]) for x in fake.begun] == [(None, "allow"), ("made", "allow")]
    assert fake.begun[0]["config"] == {"name": "digits_cnn"}
    fake.init = lambda **_: (_ for _ in ()).throw(RuntimeError("no\nlogin"))
    with pytest.raises(UserError, match=r"can't start \(no login\): run `wandb login`"), log.Log(tmp_path, wandb=True):
        pass


def test_weights_and_biases_are_an_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    options = config.LogOptions(wandb=True)
    with pytest.raises(UserError, match=r"pip install -e \.\[wandb\]"):
        run.train("digits_cnn", config.Command(config.load("digits_cnn"), workdir=tmp_path / "run", log=options))
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="the extra wandb is not installed")
def test_weights_and_biases_offline(tmp_path, monkeypatch):
    assert "wandb" not in sys.modules, "it is not imported unless it is asked for"
    monkeypatch.setenv("WANDB_MODE", "offline")
    with log.Log(tmp_path, wandb=True) as lines:
        lines.line(1, "train", {"loss": 0.28125})
    (path,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    end = time.monotonic() + 60
    while not (b"train/loss" in (content := path.read_bytes()) and b"0.28125" in content):
        assert time.monotonic() < end
        time.sleep(0.1)
