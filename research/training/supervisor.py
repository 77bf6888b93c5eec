"""The parent of a process that trains together with others. It says why the child was aborted, and imports no JAX."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import NoReturn

from research.core.console import warn
from research.training.signals import SIGNALS

CONNECT = 300
"""Seconds that a process waits for the others at the start."""

_PARENT = "SAMESTEP_PARENT"


def supervised(module: str, arguments: Sequence[str], run: Callable[[], int]) -> int:
    """Call `run` in a child process, `python -m module arguments`, and return its exit status.

    JAX aborts a process (SIGABRT) when another one of the run has died; the parent then prints one clear line. Signals
    are passed on to the child, and the child exits with its parent.
    """
    parent = os.environ.get(_PARENT)
    if parent is not None:
        threading.Thread(target=_exit_with_parent, args=(int(parent),), name="parent", daemon=True).start()
        status = run()
        if status and status < 128:  # a normal exit would wait for the other processes
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        return status
    reader, writer = os.pipe()
    command, environment = [sys.executable, "-m", module, *arguments], {**os.environ, _PARENT: str(reader)}
    child = subprocess.Popen(command, env=environment, pass_fds=[reader])
    for number in SIGNALS:
        signal.signal(number, lambda number, _: child.send_signal(number))
    status = child.wait()
    os.close(writer)
    if status == -signal.SIGABRT:
        warn(
            f"another process of this run has died, or did not start within {CONNECT} s, so this one has exited: "
            "the same command in all processes resumes from the newest checkpoint"
        )
    return status if status >= 0 else 128 - status


def _exit_with_parent(descriptor: int) -> None:
    """Exit once the parent, which holds the other end of the pipe, has exited."""
    os.read(descriptor, 1)
    exit_at_once("error: the parent process has exited", 1)


def exit_at_once(line: str, status: int) -> NoReturn:
    """End this process from any of its threads, with one line on standard error."""
    os.write(2, f"{line}\n".encode())
    os._exit(status)
