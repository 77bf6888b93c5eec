"""The compiled call of the host loop: several steps a dispatch, and the data that it takes."""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax

from research.core.experiment import Feed
from research.core.metrics import Metrics
from research.core.placement import Place
from research.core.state import Learner, State
from research.core.transformations import scan_steps, with_feed
from research.data.feed import prefetched
from research.training.flops import flops


class Dispatched(NamedTuple):
    """A dispatch that has been started.

    metrics          those of its steps, leaves [steps, ...]; on the device, which may still be computing them
    called           when it was called, in seconds of `time.monotonic`
    data_seconds     how long its data was waited for
    compile_seconds  how long it was traced and compiled; 0 where it was compiled before
    flops            its floating-point operations, see `training.flops`; NaN where they are not known
    """

    metrics: Metrics
    called: float
    data_seconds: float
    compile_seconds: float
    flops: float


def dispatch(learner: Learner, where: Place, feed: Feed, steps: int) -> jax.stages.Wrapped:
    """(state, data) -> (state, metrics) of so many steps, compiled at its place when first called.

    data: the resident feed itself; of another feed, the batches of these steps, stacked.
    """
    if feed.resident:
        run = lambda state, feed: scan_steps(with_feed(learner.step, feed), steps)(state, None)
        return where.train(run, None)
    return where.train(scan_steps(learner.step, steps), 1)


@contextlib.contextmanager
def dispatches(
    learner: Learner, where: Place, feed: Feed, each: int, start: int, stop: int
) -> Iterator[Callable[[State], tuple[State, Dispatched]]]:
    """A function that trains `each` steps at a call, from step `start` to `stop`; it does not wait for the device.

    While it runs, nothing moves to the device but what was put there before.
    """
    steps = dispatch(learner, where, feed, each)
    if feed.resident:
        same = itertools.repeat(where.put_data(feed, None))
        batches: AbstractContextManager[Iterator[Any]] = contextlib.nullcontext(same)
    else:
        batches = prefetched(feed, start, stop, each, where.put_rows)
    programs: dict[Any, tuple[jax.stages.Compiled, float]] = {}  # by the shapes of the data: buckets have several

    def compiled(state: State, batch: Any) -> tuple[jax.stages.Compiled, float, float]:
        """The program, its FLOPs, and the seconds it took to compile now."""
        shapes = tuple((x.shape, x.dtype) for x in jax.tree.leaves(batch))
        began = time.monotonic()
        if shapes in programs:
            return *programs[shapes], 0.0
        traced = steps.trace(state, batch)
        programs[shapes] = traced.lower().compile(), flops(traced.jaxpr)
        return *programs[shapes], time.monotonic() - began

    with batches as data:

        def advance(state: State) -> tuple[State, Dispatched]:
            called = time.monotonic()
            batch = next(data)
            waited = time.monotonic() - called
            if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
                state, metrics = steps(state, batch)
                return state, Dispatched(metrics, called, waited, 0.0, math.nan)
            # Compiling may move what a program has as constants, such as the tables of a physics engine.
            program, operations, seconds = compiled(state, batch)
            with jax.transfer_guard("disallow"):
                state, metrics = program(state, batch)
            return state, Dispatched(metrics, called, waited, seconds, operations)

        yield advance
