"""What the host reads of a dispatch once it has run: metrics that are checked and logged, and how long it took."""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax

from research.core.experiment import Experiment
from research.core.metrics import Metrics, merged
from research.training.checks import check_finite, check_moving
from research.training.log import Log, Progress


class Dispatched(NamedTuple):
    """A dispatch that has been started.

    metrics  those of its steps, leaves [steps, ...]; on the device, which may still be computing them
    called   when it was called, in seconds of `time.monotonic`
    """

    metrics: Metrics
    called: float


class Reader:
    """Reads the dispatches of a run in order, each of them after the next one was started: checks, logs and shows them.

    So the device has a dispatch to go on with while the host is at work. Call `flush` before the State is evaluated or
    saved.

    step   the last step that was read; at first the step that the run starts from
    saved  says which checkpoints there are, for messages

    `add` and `flush` raise RunError where `check_finite` or `check_moving` does.
    """

    def __init__(
        self, experiment: Experiment, step: int, lines: Log, progress: Progress, saved: Callable[[], str]
    ) -> None:
        self.step, self._first = step, step
        self._experiment, self._lines, self._progress, self._saved = experiment, lines, progress, saved
        self._pending: Dispatched | None = None
        self._at = time.monotonic()

    def add(self, dispatched: Dispatched) -> None:
        """Read the dispatch before this one, which has been started."""
        self.flush()
        self._pending = dispatched

    def flush(self) -> None:
        """Read the last dispatch that was added; it waits until it has run."""
        pending, self._pending = self._pending, None
        if pending is not None:
            self._read(pending)

    def _read(self, dispatched: Dispatched) -> None:
        metrics = jax.device_get(dispatched.metrics)
        before, self._at = self._at, time.monotonic()
        check_finite(metrics, self.step, self._saved)
        check_moving(metrics, self._experiment.adversaries, self.step, self._saved)
        steps = self._experiment.run.steps_per_dispatch
        # It began once the one before had ended, or when it was called; the first one compiles.
        seconds = self._at - max(before, dispatched.called)
        speed = None if self.step == self._first else steps / seconds
        self.step += steps
        values = merged(metrics)
        self._lines.line(self.step, "train", values, {"seconds": self._at - before, "steps_per_second": speed})
        self._progress.update(self.step, speed)
        self._progress.say("train", values)
