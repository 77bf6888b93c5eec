"""Training one run in several processes, each with its own devices: connecting, agreeing and stopping together.

All processes make the same calls. Only the primary one writes the run's directory; all of them write checkpoints. What
must be the same in all of them (a signal, the validation metrics, whether a checkpoint is damaged) is exchanged through
JAX's coordination service, which does not wait for the devices.
"""

import contextlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from research.core.console import console
from research.core.errors import RunError, UserError
from research.training.signals import Interrupted
from research.training.supervisor import CONNECT, exit_at_once

HEARTBEAT = 30
"""Seconds without a heartbeat after which a process is considered dead."""

_EVER = 2**31 - 1  # milliseconds; dead processes are found by heartbeats
_FAILED = "samestep/failed"


class ProcessGroup:
    """The processes of a run. `ProcessGroup()` is a run of one process, whose methods return at once.

    index  the number of this process
    size   the number of processes

    All processes must make the same calls in the same order, for each topic. Threads must use different topics.
    """

    def __init__(self, index: int = 0, size: int = 1, client: Any = None) -> None:
        self.index, self.size, self._client = index, size, client
        self._turns: dict[str, int] = {}

    @property
    def primary(self) -> bool:
        """Whether this process is the one that writes the run's directory."""
        return self.index == 0

    def all_gather(self, topic: str, text: str | None) -> dict[int, str]:
        """The texts of all processes, by process number; processes that pass None are left out."""
        if self.size == 1:
            return {} if text is None else {0: text}
        turn = self._turns[topic] = self._turns.get(topic, -1) + 1
        at = f"samestep/{topic}/{turn}"
        if text is not None:
            self._client.key_value_set(f"{at}/{self.index}", text)
        self._client.wait_at_barrier(at, _EVER)
        texts = {int(key.rpartition("/")[2]): value for key, value in self._client.key_value_dir_get(f"{at}/")}
        return dict(sorted(texts.items()))

    def broadcast(self, topic: str, text: str) -> str:
        """The text of the primary process, in all of them."""
        return self.all_gather(topic, text if self.primary else None)[0]

    def barrier(self, topic: str) -> None:
        """Wait until all processes are here."""
        self.all_gather(topic, None)

    def all_arrive(self, topic: str, seconds: float) -> bool:
        """Whether all processes make this call within so many seconds."""
        try:
            self._client.wait_at_barrier(f"samestep/{topic}", round(seconds * 1000))
        except jax.errors.JaxRuntimeError:
            return False
        return True

    def fail(self, error: BaseException, status: int) -> None:
        """Make the other processes exit, each with one line that names this process and its error."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another process has failed before
            self._client.key_value_set(_FAILED, f"{status} {self.index} {error}")
            self._before_exit()

    def _before_exit(self) -> None:
        """Wait until all processes know of the failure. The primary one exits last: JAX aborts the others then."""
        self._client.wait_at_barrier(_FAILED, 10_000)
        if self.primary:
            time.sleep(5)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Within this context, this process exits once another one calls `fail`, even while it waits for a device."""
        watcher = threading.Thread(target=self._watch, name="processes", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # a process has failed
                self._client.key_value_set(_FAILED, f"0 {self.index} the run has ended")
            watcher.join()

    def _watch(self) -> None:
        try:
            failed = self._client.blocking_key_value_get(_FAILED, _EVER)
        except jax.errors.JaxRuntimeError:  # process 0 has died, and JAX is about to abort this one
            return
        status, index, error = failed.split(" ", 2)
        if int(index) == self.index or not int(status):
            return
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._before_exit()
        exit_at_once(f"error: process {index} of {self.size} has failed: {error}", int(status))


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
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(
            f"--coordinator is HOST:PORT, the same for all processes, a port from 1 to 65535, not {coordinator}"
        )
    if not 0 <= process < int(processes):
        raise UserError(f"--process is one of 0 to {int(processes) - 1}, not {process}")


@contextlib.contextmanager
def joined(
    processes: str | None, coordinator: str | None = None, process: int | None = None, timeout: int = CONNECT
) -> Iterator[ProcessGroup]:
    """A context in which this process is connected to the others of its run; yields their group.

    processes, coordinator, process  the options, see `check`. None: one process. "auto": read from the environment of
                                     Slurm, Open MPI, Kubernetes or Cloud TPU, as JAX detects them
    timeout                          seconds to wait for the other processes

    If one process fails, all of them exit; if one dies, the others exit about `HEARTBEAT` seconds later. Enter it
    before JAX initialises its devices. Raises UserError where the coordinator can't be reached, or one process has more
    devices than another.
    """
    if processes is None:
        yield ProcessGroup()
        return
    if coordinator is not None and process:
        _wait_for(coordinator, timeout)
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
    # JAX has no public name for its coordination service.
    from jax._src.distributed import global_state

    owners = [device.process_index for device in jax.devices()]  # waits for those of the other processes
    group = ProcessGroup(global_state.process_id, global_state.num_processes or 1, global_state.client)
    console.quiet = not group.primary
    with group.watching():
        try:
            check_devices(owners)
            yield group
            group.barrier("end")
        except Interrupted as error:
            if not group.all_arrive("interrupted", 5):  # this process alone was interrupted, after the last step
                group.fail(error, 128 + error.number)
            raise
        except BaseException as error:
            found = _lost(group, error) if isinstance(error, jax.errors.JaxRuntimeError) else error
            group.fail(found, 2 if isinstance(found, UserError) else 1)
            raise found from error
        finally:
            console.quiet = False


def check_devices(owners: Sequence[int]) -> None:
    """Raises UserError unless each process has as many devices; `owners` has the process of each device."""
    counts = Counter(owners)
    if len(set(counts.values())) > 1:
        each = ", ".join(f"{count} in process {process}" for process, count in sorted(counts.items()))
        raise UserError(f"each process must have the same number of devices, and there are {each}")


def _lost(group: ProcessGroup, error: Exception) -> RunError:
    """The RunError for a failed collective."""
    time.sleep(5)  # if another process has called `fail`, `watching` exits with its message in this time
    return RunError(
        f"process {group.index} of {group.size} can't go on, most likely because another one has exited "
        f"({str(error).splitlines()[0][:200]}): the same commands resume from the newest checkpoint"
    )


def _wait_for(coordinator: str, timeout: float) -> None:
    """Wait until HOST:PORT accepts connections; where it never does, JAX would abort the process."""
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
