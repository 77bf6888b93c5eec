"""Several processes that train one run, each on devices of its own: how they meet, agree, and end together.

All of them make the same calls. The first one alone writes the run's directory; all of them write its checkpoints. What
must not differ between them (a signal, what validation gave, whether a checkpoint is damaged) they tell one another
through JAX's coordination service, which does not wait for the devices.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import jax

from research.core.console import console, warn
from research.core.errors import RunError, UserError
from research.training.signals import SIGNALS, Interrupted

CONNECT = 300
"""Seconds that a process waits for the others at the start."""

HEARTBEAT = 30
"""Seconds without a sign of life after which a process is taken for dead."""

_EVER = 2**31 - 1  # milliseconds; that a process is alive is watched by heartbeats
_FAILED = "samestep/failed"
_PARENT = "SAMESTEP_PARENT"


class Group:
    """The processes of a run. Of one process, `Group()`, whose methods return at once.

    index  the number of this process
    size   the number of processes

    Where several threads use a group, their topics differ.
    """

    def __init__(self, index: int = 0, size: int = 1, client: Any = None) -> None:
        self.index, self.size, self._client = index, size, client
        self._turns: dict[str, int] = {}

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes the run's directory."""
        return self.index == 0

    def told(self, topic: str, text: str | None) -> dict[int, str]:
        """What the processes say on a topic, by their numbers, without those that say None.

        All of them must call it, as often as one another; it returns when all have.
        """
        if self.size == 1:
            return {} if text is None else {0: text}
        turn = self._turns[topic] = self._turns.get(topic, -1) + 1
        at = f"samestep/{topic}/{turn}"
        if text is not None:
            self._client.key_value_set(f"{at}/{self.index}", text)
        self._client.wait_at_barrier(at, _EVER)
        said = {int(key.rpartition("/")[2]): value for key, value in self._client.key_value_dir_get(f"{at}/")}
        return dict(sorted(said.items()))

    def of_first(self, topic: str, text: str) -> str:
        """The text of the first process, in all of them."""
        return self.told(topic, text if self.first else None)[0]

    def together(self, topic: str) -> None:
        """Wait until all processes are here."""
        self.told(topic, None)

    def met(self, topic: str, seconds: float) -> bool:
        """Whether all processes come here within so many seconds of the first."""
        try:
            self._client.wait_at_barrier(f"samestep/{topic}", round(seconds * 1000))
        except jax.errors.JaxRuntimeError:
            return False
        return True

    def fail(self, error: BaseException, status: int) -> None:
        """Let the others end, too: each with one line that names this process and its error."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another has failed before
            self._client.key_value_set(_FAILED, f"{status} {self.index} {error}")
            self._client.wait_at_barrier(_FAILED, 10_000)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Within this context, this process ends once another has failed, even where it waits for a device."""
        watcher = threading.Thread(target=self._watch, name="processes", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # one has failed
                self._client.key_value_set(_FAILED, f"0 {self.index} the run has ended")
            watcher.join()

    def _watch(self) -> None:
        try:
            failed = self._client.blocking_key_value_get(_FAILED, _EVER)
        except jax.errors.JaxRuntimeError:  # process 0 has died, and JAX is about to end this one
            return
        status, index, error = failed.split(" ", 2)
        if int(index) == self.index or not int(status):
            return
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.wait_at_barrier(_FAILED, 10_000)
        _end(f"error: process {index} of {self.size} has ended: {error}", int(status))


def check(processes: str | None, coordinator: str | None, process: int | None) -> None:
    """Raises UserError unless the options --processes, --coordinator and --process go together."""
    if processes == "auto" or processes is None:
        if coordinator is not None or process is not None:
            raise UserError("--coordinator and --process need --processes N, the number of processes")
        return
    if not processes.isdecimal() or not int(processes):
        raise UserError(f"--processes is auto or a number of processes, not {processes}")
    if coordinator is None or process is None:
        raise UserError(f"--processes {processes} needs --coordinator HOST:PORT and --process I")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"--coordinator is HOST:PORT, the same for all processes, not {coordinator}")
    if not 0 <= process < int(processes):
        raise UserError(f"--process is one of 0 to {int(processes) - 1}, not {process}")


@contextlib.contextmanager
def joined(
    processes: str | None, coordinator: str | None = None, process: int | None = None, timeout: int = CONNECT
) -> Iterator[Group]:
    """Within this context, the group that this process is in: that of the options, see `check`; without any, itself.

    processes  "auto": as Slurm, Open MPI, Kubernetes or Cloud TPU tell JAX
    timeout    seconds to wait for the others

    An error of one process ends all of them, and so does its death, after `HEARTBEAT` seconds at most. It is to be
    entered before JAX has looked for devices. Raises UserError where the coordinator can't be reached.
    """
    if processes is None:
        yield Group()
        return
    if coordinator is not None and process:
        _reach(coordinator, timeout)
    # JAX's own handler of SIGTERM would take the place of the run's.
    jax.config.update("jax_enable_preemption_service", False)
    size = None if processes == "auto" else int(processes)
    try:
        jax.distributed.initialize(
            coordinator, size, process, initialization_timeout=timeout, heartbeat_timeout_seconds=HEARTBEAT
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"--processes {processes}: JAX can't find the other processes ({' '.join(str(error).split())[:200]}): give "
            "--processes N, --coordinator HOST:PORT and --process I"
        ) from None
    # The service that JAX itself uses; JAX has no public name for it.
    from jax._src.distributed import global_state

    jax.devices()  # waits for those of the other processes
    group = Group(global_state.process_id, global_state.num_processes or 1, global_state.client)
    console.quiet = not group.first
    with group.watching():
        try:
            yield group
            group.together("end")
        except Interrupted as error:
            if not group.met("interrupted", 5):  # one process alone was asked to stop, when the others were past asking
                group.fail(error, 128 + error.number)
            raise
        except BaseException as error:
            found = _lost(group, error) if isinstance(error, jax.errors.JaxRuntimeError) else error
            group.fail(found, 2 if isinstance(found, UserError) else 1)
            raise found from error
        finally:
            console.quiet = False


def _lost(group: Group, error: Exception) -> RunError:
    """The error of a collective: where another process has said why it ends, `Group.watching` ends this one."""
    time.sleep(5)
    return RunError(
        f"process {group.index} of {group.size} can't go on, most likely since another one has ended "
        f"({str(error).splitlines()[0][:200]}): the same commands resume from the newest checkpoint"
    )


def _reach(coordinator: str, timeout: float) -> None:
    """Wait until something listens at HOST:PORT. JAX would end the process where nothing does."""
    host, _, port = coordinator.rpartition(":")
    until = time.monotonic() + timeout
    while True:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), 5):
                return
        except OSError as error:
            if time.monotonic() > until:
                raise UserError(
                    f"--coordinator {coordinator} can't be reached in {timeout:g} s ({error.strerror or error}): it is "
                    "the host of process 0, which must be running, and a port that is open between the hosts"
                ) from None
        time.sleep(0.5)


def _end(line: str, status: int) -> NoReturn:
    os.write(2, f"{line}\n".encode())
    os._exit(status)


def supervised(module: str, arguments: Sequence[str], run: Callable[[], int]) -> int:
    """The exit status of `run`, called in a child process: `python -m module arguments`.

    JAX ends a process by SIGABRT when it has lost another one; this parent then says so. Signals are passed on to the
    child, and the child ends with its parent.
    """
    parent = os.environ.get(_PARENT)
    if parent is not None:
        threading.Thread(target=_orphaned, args=(int(parent),), name="parent", daemon=True).start()
        status = run()
        if status and status < 128:  # JAX would wait for the other processes, which have ended, too
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
            f"another process of this run has died, or has not started within {CONNECT} s, and so this one has ended; "
            "the same commands, in all processes, resume from the newest checkpoint"
        )
    return status if status >= 0 else 128 - status


def _orphaned(descriptor: int) -> None:
    """Ends this process once its parent, which holds the other end of the pipe, has ended."""
    os.read(descriptor, 1)
    _end("error: the parent of this process has ended", 1)
