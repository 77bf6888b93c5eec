"""Several processes on this machine: they train as one does, stop together, and go on from what they have saved."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from digits import tiny

from experiments.train import main
from research.core.errors import UserError
from research.training import config
from research.training.processes import ProcessGroup, check, joined

STEPS = ("--steps", "60", "--run.steps-per-dispatch", "5", "--run.save-every", "10", "--run.evaluate-every", "10")
HOST = ("--data.feed", "host")
"""Of the pairs: each process gathers the rows of its own devices. One process alone has all data on its devices."""


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


FAILING = """
import os
import sys
from experiments.console import status
from experiments.train import _train
from research.core.errors import RunError
from research.training.log import Log

line = Log.line

def full(self, step, split, *rest):
    if (sys.argv[-1], step, split) == ("0", 30, "train"):
        raise RunError("the disk is full")
    return line(self, step, split, *rest)

Log.line = full
os._exit(status(lambda: _train(*sys.argv[1:])))
"""
"""Trains as `experiments.train` does, until the first process fails between two checkpoints."""


class Pair:
    """Two processes of two devices each that train `digits_cnn`.

    script: what Python runs
    more: further arguments of each of the processes
    slurm: whether they are told of each other by Slurm's environment
    devices: how many each has
    """

    def __init__(
        self, directory, *arguments, script=("-m", "experiments.train"), more=((), ()), slurm=False, devices=(2, 2)
    ):
        at = f"127.0.0.1:{free_port()}"

        def told(i):
            """The options and the environment. JAX derives the coordinator's port from the number of Slurm's job."""
            environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices[i]), "JAX_PLATFORMS": "cpu"}
            if not slurm:
                return ["--processes", "2", "--coordinator", at, "--process", str(i)], environment
            facts = {"JOB_ID": os.getpid(), "STEP_NODELIST": "localhost", "NTASKS": 2, "PROCID": i, "LOCALID": i}
            return ["--processes", "auto"], environment | {f"SLURM_{name}": str(x) for name, x in facts.items()}

        command = [sys.executable, *script, "digits_cnn", *tiny(), *STEPS, *arguments, *HOST]
        rest = ["--workdir", str(directory)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.each = [
            subprocess.Popen([*command, *more[i], *rest, *options], env=variables, **pipes)
            for i, (options, variables) in enumerate(map(told, range(2)))
        ]

    def ended(self, seconds=120):
        """(exit status, output) of each."""
        try:
            said = [process.communicate(timeout=seconds)[0] for process in self.each]
            return [(process.returncode, output) for process, output in zip(self.each, said, strict=True)]
        finally:
            for process in self.each:
                process.kill()


def lines(directory):
    """The lines of metrics.jsonl without what differs from run to run."""
    found = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "time"} for line in found]


def wait_for(path, seconds=120):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} has not come"
        time.sleep(0.05)


def test_the_parent_of_a_process_imports_no_jax():
    script = """
import subprocess, sys, types
from experiments.train import main
subprocess.Popen = lambda command, **_: types.SimpleNamespace(wait=lambda: print(command[2:]) or 7)
assert main(["digits_cnn", "--processes", "2"]) == 7
print({"jax", "matplotlib", "tyro"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "['experiments.train', 'digits_cnn', '--processes', '2']\nset()\n"


def test_a_pair_trains_as_one_process_and_resumes_to_the_same_bit(tmp_path, without_pictures):
    whole, stopped, alone = tmp_path / "whole", tmp_path / "stopped", tmp_path / "alone"
    assert [status for status, _ in Pair(whole).ended()] == [0, 0]

    pair = Pair(stopped)
    wait_for(stopped / "checkpoints" / "20.json")
    pair.each[1].kill()
    began = time.monotonic()
    (status, output), _ = pair.ended()
    assert time.monotonic() - began < 60
    # A collective of the CPU fails at once, one of a GPU or TPU waits until JAX ends the process.
    why = {
        1: "most likely because another one has exited",
        128 + signal.SIGABRT: "another process of this run has died",
    }
    assert why[status] in output.splitlines()[-1]

    pair = Pair(stopped)
    wait_for(stopped / "checkpoints" / "40.json")
    pair.each[1].terminate()
    for status, output in pair.ended():
        assert status == 128 + signal.SIGTERM and "stopped by SIGTERM and saved" in output

    (status, output), (other, quiet) = Pair(stopped).ended()
    assert (status, other) == (0, 0)
    assert all(text in output for text in ("resumed at step", "test metrics", "A checkpoint has 0."))
    assert "resumed at step" not in quiet and "test metrics" not in quiet, "one process speaks for all"
    assert lines(stopped) == lines(whole)
    summary = json.loads((whole / "summary.json").read_text())
    assert json.loads((stopped / "summary.json").read_text())["test"] == summary["test"]
    assert (whole / "curves.png").exists() and (whole / "confusion.png").exists()

    assert main(["digits_cnn", *tiny(), *STEPS, "--workdir", str(alone)]) == 0  # on eight devices
    for one, two in zip(lines(alone), lines(whole), strict=True):
        assert one.pop("split") == two.pop("split") and two == pytest.approx(one, rel=1e-3, abs=1e-3)

    files = json.loads((whole / "checkpoints" / "60.json").read_text())["manifest"]["files"]
    assert all(any(f"ocdbt.process_{n}/" in name for name in files) for n in range(2)), "each hashed what it wrote"


def test_processes_with_different_configs_are_refused(tmp_path):
    pair = Pair(tmp_path / "run", more=((), ("--run.seed", "1")), slurm=True)
    (status, first), (other, second) = pair.ended()
    assert (status, other) == (2, 2)
    why = "process 1 differs from process 0 (run.seed: 0 there, 1 here)"
    assert f"error: {why}" in second and f"error: process 1 of 2 has failed: {why}" in first
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_processes_with_unequal_devices_are_refused(tmp_path):
    for status, output in Pair(tmp_path / "run", devices=(3, 1)).ended():
        assert status == 2 and "the same number of devices, and there are 3 in process 0, 1 in process 1" in output


def test_a_process_that_fails_after_a_save_ends_the_other(tmp_path):
    """It does not wait until the other one, which waits for it in a collective, has come to the same place."""
    pair = Pair(tmp_path / "run", script=("-c", FAILING))
    wait_for(tmp_path / "run" / "checkpoints" / "20.json")
    (status, first), (other, second) = pair.ended(60)
    assert (status, other) == (1, 1)
    assert first.splitlines()[-1] == "error: the disk is full"
    assert second.splitlines()[-1] == "error: process 0 of 2 has failed: the disk is full"


NO_DEVICES = """
from jax._src import xla_bridge
from research.training import config

for name in config.names():
    config.parse(name, [])
    assert not xla_bridge.backends_are_initialized(), name
"""


def test_no_config_uses_a_device_before_the_processes_are_connected():
    """Afterwards it is too late: JAX refuses to connect them."""
    subprocess.run([sys.executable, "-c", NO_DEVICES], check=True)


def test_a_coordinator_that_can_not_be_reached_is_named():
    at = f"127.0.0.1:{free_port()}"
    with pytest.raises(UserError, match=f"--coordinator {at} can't be reached in 1 s"), joined("2", at, 1, timeout=1):
        pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((None, "host:1", None), "need --processes N"),
        (("auto", None, 1), "need --processes N"),
        (("two", "host:1", 1), "is auto or a number"),
        (("0", "host:1", 0), "is auto or a number"),
        (("2", None, 1), "needs --coordinator HOST:PORT and --process I"),
        (("2", "host:1", None), "needs --coordinator HOST:PORT and --process I"),
        (("2", "host", 1), "is HOST:PORT"),
        (("2", "host:99999", 1), "is HOST:PORT"),
        (("2", "host:1", 2), "is one of 0 to 1, not 2"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(UserError, match=message):
        check(*options)


def test_debug_is_for_one_process():
    with pytest.raises(UserError, match="--debug is for one process"):
        config.Command(config.load("digits_cnn"), debug=True, processes="auto")


def test_one_process_is_a_group_of_its_own():
    with joined(None) as group:
        assert isinstance(group, ProcessGroup) and group.primary and group.size == 1
        assert group.all_gather("topic", None) == {} and group.all_gather("topic", "text") == {0: "text"}
        assert group.broadcast("topic", "text") == "text"
