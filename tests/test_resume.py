"""Real processes, killed at random moments, whose runs another process goes on with, end as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import research
from experiments.train import main
from research.training.log import read

RUNS = {
    "digits_cnn": "--net.widths 4 8 --net.depth 1 --steps 60 --run.steps-per-dispatch 5 --run.evaluate-every 10 "
    "--run.save-every 10",
    "cartpole_dqn": "--buffer-size 2048 --learning-starts 512 --episodes 8 --test-episodes 8 --steps 60 "
    "--run.steps-per-dispatch 5 --run.evaluate-every 20 --run.save-every 10",
}


SIGNALS = {"digits_cnn": signal.SIGKILL, "cartpole_dqn": signal.SIGTERM}
"""What each is killed by: what comes before a signal and after it is of all learners."""


def arguments(name: str, workdir: Path) -> list[str]:
    return [name, "--workdir", str(workdir), *RUNS[name].split()]


def start(name: str, workdir: Path) -> subprocess.Popen:
    """The run in a process of its own, which compiles what this one does."""
    command = [sys.executable, "-m", "experiments.train", *arguments(name, workdir)]
    alike = {"JAX_NUM_CPU_DEVICES": "8", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env={**os.environ, **alike}, **pipes)


def lines(workdir: Path) -> list[dict]:
    """The lines of metrics.jsonl, readings under `time` aside."""
    return [{k: v for k, v in line.items() if k != "time"} for line in read(workdir)]


def state(workdir: Path) -> list[np.ndarray]:
    import jax

    tree = research.load(workdir)[2]
    return [np.asarray(x) for x in jax.tree.leaves(tree._replace(key=jax.random.key_data(tree.key)))]


@pytest.fixture(scope="module", params=RUNS)
def whole(request, tmp_path_factory, without_pictures):
    workdir = tmp_path_factory.mktemp("whole") / request.param
    assert main(arguments(request.param, workdir)) == 0
    return request.param, workdir


def test_killed_and_resumed_is_the_run_never_stopped(whole, tmp_path):
    """A torn last line, of one killed while it wrote, is dropped."""
    name, reference = whole
    number, process = SIGNALS[name], start(name, tmp_path / "run")
    metrics, summary = tmp_path / "run" / "metrics.jsonl", tmp_path / "run" / "summary.json"
    saved = lambda: number == signal.SIGTERM or list((tmp_path / "run" / "checkpoints").glob("*.json"))
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size and saved()):
        time.sleep(0.02)
    time.sleep(random.uniform(0, 0.5))
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode in (-number, 128 + number, 0), output
    if number == signal.SIGTERM and process.returncode:
        assert "the same command resumes" in output
        assert list((tmp_path / "run" / "checkpoints").glob("*.json"))
    if number == signal.SIGKILL and not summary.exists():
        with metrics.open("a") as file:
            file.write('{"step": 55, "split": "tr')
    assert main(arguments(name, tmp_path / "run")) == 0

    assert lines(tmp_path / "run") == lines(reference)
    for a, b in zip(state(tmp_path / "run"), state(reference), strict=True):
        np.testing.assert_array_equal(a, b)
    test = lambda workdir: json.loads((workdir / "summary.json").read_text())["test"]
    assert test(tmp_path / "run") == test(reference)


def test_a_finished_run_prints_its_summary(whole, capsys):
    name, workdir = whole
    before = (workdir / "summary.json").stat().st_mtime_ns
    began = time.monotonic()
    assert main(arguments(name, workdir)) == 0 and "test" in capsys.readouterr().out
    assert (workdir / "summary.json").stat().st_mtime_ns == before
    assert time.monotonic() - began < 60
