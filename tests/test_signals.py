"""A signal ends a process whose main thread is stuck in a compiled call; elsewhere Python's handler runs."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from digits import tiny

from research.training.signals import Interrupted, on_signal

TINY = tiny(6)

SPIN = """
import sys, threading, time
import jax
from research.training.signals import on_signal

def spin(x):
    # Later, and from another thread: the callback may run in the main thread, which then goes on to wait in the call.
    jax.debug.callback(lambda: threading.Timer(0.5, lambda: print("spinning", flush=True)).start())
    return jax.lax.while_loop(lambda x: x >= 0, lambda x: (x + 1) % 7, x)

with on_signal(lambda number: print("handled", number, flush=True), lambda: "the call after step 7", grace=1.0):
    if sys.argv[1] == "later":
        print("spinning", flush=True)
        while not time.sleep(0.1):
            if sys.stdin.readline():
                break
    jax.jit(spin)(0).block_until_ready()
"""

TRAIN = """
import sys
import jax
from experiments.train import main
from research.learners.classify import Classify
from research.training import signals

signals.GRACE = 1.0
build = Classify.build

def stuck(step):
    jax.debug.callback(lambda step: print("spinning", flush=True) if step == 2 else None, step)
    return jax.lax.while_loop(lambda x: x >= 2, lambda x: x % 7 + 2, step)

def built(*arguments):
    learner = build(*arguments)
    return learner._replace(step=lambda state, batch: learner.step(state._replace(step=stuck(state.step)), batch))

Classify.build = built
main(sys.argv[1:])
"""


def start(*arguments: str) -> subprocess.Popen:
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", *arguments], stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    for line in process.stdout:
        if line == "spinning\n":
            return process
    raise AssertionError(process.communicate()[1])


def end(process: subprocess.Popen) -> tuple[int, str, str]:
    """The status, standard output and standard error of a process that ends by itself."""
    try:
        output, errors = process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return process.returncode, output, errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stuck_call_is_ended_after_the_grace(number):
    process = start(SPIN, "now")
    process.send_signal(number)
    began = time.monotonic()
    status, output, errors = end(process)
    assert status == 128 + number and output == "" and 0.5 < time.monotonic() - began < 10
    said = "did not return within 1 s; the same command resumes from the newest checkpoint\n"
    assert errors == f"ended by {number.name}: the call after step 7 {said}"


def test_a_call_made_after_the_signal_was_handled_is_ended_too():
    process = start(SPIN, "later")
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "handled 15\n"
    process.stdin.write("go\n")
    process.stdin.flush()
    status, _, errors = end(process)
    assert status == 128 + signal.SIGTERM and "ended by SIGTERM: the call after step 7" in errors


def test_a_run_stuck_in_its_step_names_it_and_is_ended(tmp_path):
    saved = tmp_path / "run" / "checkpoints" / "2.json"
    process = start(TRAIN, "digits_cnn", *TINY, "--workdir", str(tmp_path / "run"))
    until = time.monotonic() + 30
    while not saved.exists() and time.monotonic() < until:  # it is written while the next step runs
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    status, _, errors = end(process)
    assert status == 128 + signal.SIGTERM
    (line,) = [line for line in errors.splitlines() if line.startswith("ended by")]
    assert "SIGTERM: the compiled call after step 2 did not return within 1 s" in line
    assert saved.exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_python_handles_what_it_can_and_everything_is_put_back():
    before = signal.getsignal(signal.SIGTERM)
    numbers = []
    with on_signal(numbers.append, lambda: "nothing", grace=60):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert numbers == [signal.SIGTERM, signal.SIGINT]
    assert signal.getsignal(signal.SIGTERM) is before and signal.set_wakeup_fd(-1) == -1

    def stop(number):
        raise Interrupted(number)

    began = time.monotonic()
    with pytest.raises(Interrupted, match="stopped by SIGTERM"), on_signal(stop, lambda: "a long sleep", grace=60):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    assert time.monotonic() - began < 5 and signal.getsignal(signal.SIGTERM) is before

    class Lost:
        """Python drops what is raised while one is deleted."""

        def __del__(self):
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0)

    with pytest.raises(Interrupted, match="stopped by SIGTERM"), on_signal(stop, lambda: "a report", grace=60):
        Lost()
        numbers.append("went on")
    assert numbers[-1] == "went on" and signal.getsignal(signal.SIGTERM) is before
    assert "signals" not in [thread.name for thread in threading.enumerate()]
