"""What the host reads of a dispatch once it has run: metrics that are checked and logged, and how long it took."""

import time
from collections.abc import Callable, Mapping

import jax

from research.core.experiment import Experiment
from research.core.metrics import merged
from research.training.checks import check_finite, check_moving
from research.training.dispatch import Dispatched
from research.training.log import Log, Progress


class MetricsReader:
    """Reads the dispatches of a run in order, each of them after the next one was started: checks, logs and shows them.

    So the device has a dispatch to go on with while the host is at work. Call `flush` before the State is evaluated or
    saved.

    step     the last step that was read; at first the step that the run starts from
    units_per_step  what a step trains on, by unit, see `Experiment.units_per_step`
    peak     FLOP/s of the devices at most, see `training.flops`, or None
    saved    says which checkpoints there are, for messages

    `add` and `flush` raise RunError where `check_finite` or `check_moving` does.
    """

    def __init__(
        self,
        experiment: Experiment,
        step: int,
        units_per_step: Mapping[str, int],
        peak: float | None,
        lines: Log,
        progress: Progress,
        saved: Callable[[], str],
    ) -> None:
        self.step = step
        self._experiment, self._units_per_step, self._peak = experiment, units_per_step, peak
        self._lines, self._progress, self._saved = lines, progress, saved
        self._pending: Dispatched | None = None
        self._at = time.monotonic()

    def add(self, dispatched: Dispatched) -> None:
        """Read the dispatch before this one, which has been started."""
        self._read(compiled=dispatched.compile_seconds > 0)
        self._pending = dispatched

    def flush(self) -> None:
        """Read the last dispatch that was added; it waits until it has run."""
        self._read()

    def _read(self, compiled: bool = False) -> None:
        """Read the pending dispatch, if there is one. `compiled`: the host has compiled another since it was added."""
        if self._pending is None:
            return
        dispatched, self._pending = self._pending, None
        metrics = jax.device_get(dispatched.metrics)
        before, self._at = self._at, time.monotonic()
        check_finite(metrics, self.step, self._saved)
        check_moving(metrics, self._experiment.adversaries, self.step, self._saved)
        steps = self._experiment.run.steps_per_dispatch
        # It began when it was called, or when the one before had ended.
        seconds = self._at - max(before, dispatched.called)
        speed = None if compiled or dispatched.compile_seconds else steps / seconds
        self.step += steps
        values = merged(metrics)
        units_per_step = {"steps": 1, **self._units_per_step, "flops": dispatched.flops / steps}
        timing = {
            "seconds": self._at - before,
            "compile_seconds": dispatched.compile_seconds,
            "data_seconds": dispatched.data_seconds,
            **speeds(units_per_step, speed, self._peak),
            **memory(),
        }
        self._lines.line(self.step, "train", values, timing)
        self._progress.update(self.step, speed)
        self._progress.say("train", values)


def speeds(units_per_step: Mapping[str, float], speed: float | None, peak: float | None) -> dict[str, float | None]:
    """{"steps_per_second": ..., "examples_per_second": ..., ...}: all None where the speed is not known.

    units_per_step  of each step, by unit; one of them is "flops"
    speed    steps per second
    peak     FLOP/s of the devices at most, see `training.flops`. Where it is known, "utilisation" is the share of it
    """
    found = {f"{unit}_per_second": None if speed is None else n * speed for unit, n in units_per_step.items()}
    used = found["flops_per_second"]
    return found if peak is None else {**found, "utilisation": None if used is None else used / peak}


def memory() -> dict[str, int]:
    """{"peak_memory_bytes": the most that a device of this process has held at once}; {} where devices don't say."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [x["peak_bytes_in_use"] for x in stats if "peak_bytes_in_use" in x]
    return {"peak_memory_bytes": max(peaks)} if peaks else {}
