"""SIGTERM and SIGINT during a run: handled in Python, or by a thread where the main thread is stuck in a call."""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from research.core.console import console

GRACE = 60.0
"""Seconds that a call has to return in after a signal."""

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(BaseException):
    """A signal stopped the run, and it has been saved. It is no `Exception`, so that no report's handler catches it.

    left  what is left, where that is not a run that has been saved
    """

    def __init__(self, number: int, left: str = " and saved; the same command resumes") -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}{left}")
        self.number = number


@contextmanager
def on_signal(answer: Callable[[int], None], doing: Callable[[], str], grace: float | None = None) -> Iterator[None]:
    """Within this context, SIGTERM and SIGINT call `answer` with their number. Enter it from the main thread.

    Python runs signal handlers in the main thread between two instructions, hence not while that thread waits for a
    compiled call. A second thread is woken by the signal too. If the handler has not run after `grace` seconds
    (default: `GRACE`), it prints one line that names `doing()` and ends the process with status 128 + number. If it
    has run, the thread sends the signal again every `grace` seconds until the context is left, so that calls made
    later are ended as well.

    What `answer` raises is raised at the end of the context, if it is lost before: Python drops what is raised within a
    finalizer or the callback of a weak reference.
    """
    seconds = GRACE if grace is None else grace
    main = threading.get_ident()
    handled, left = threading.Event(), threading.Event()
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    raised: list[BaseException] = []

    def handle(number: int, _: object) -> None:
        handled.set()
        try:
            answer(number)
        except BaseException as error:
            raised.append(error)
            raise

    def watch() -> None:
        number = reader.recv(1)[0]
        while number not in (0, *SIGNALS):
            number = reader.recv(1)[0]
        if number == 0:
            return
        while handled.wait(seconds):
            handled.clear()
            if left.wait(seconds):
                return
            signal.pthread_kill(main, number)
        _end(number, doing, seconds)

    def stop() -> None:
        left.set()
        handled.set()
        writer.send(b"\0")
        watcher.join()

    with reader, writer, ExitStack() as stack:
        for number in SIGNALS:
            stack.callback(signal.signal, number, signal.signal(number, handle))
        stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False))
        watcher = threading.Thread(target=watch, name="signals", daemon=True)
        watcher.start()
        stack.callback(stop)
        yield
    if raised:
        raise raised[0]


def _end(number: int, doing: Callable[[], str], seconds: float) -> None:
    """Ends the process at once: nothing that needs the main thread can be done."""
    try:
        console.show_cursor()  # the progress bar hides it
        line = f"ended by {signal.Signals(number).name}: {doing()} did not return within {seconds:g} s"
        os.write(2, f"{line}; the same command resumes from the newest checkpoint\n".encode())
    finally:
        os._exit(128 + number)
