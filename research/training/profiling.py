"""A trace of a few dispatches, for TensorBoard and Perfetto."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import jax

from research.core.console import say, warn
from research.core.files import reason
from research.core.state import State

TRACED = 3
"""Dispatches in a trace."""

Result = TypeVar("Result")
Advance = Callable[[State], tuple[State, Result]]


@contextmanager
def profiled(advance: Advance, directory: Path) -> Iterator[Advance]:
    """`advance`, some of whose calls JAX's profiler traces: the second, and the `TRACED` - 1 after it.

    The first call, which compiles, is left out. The trace is written to `directory` before the call that follows, once
    the device has done what was asked of it, or when the context is left; where it can't be, a warning says so.
    """
    calls, dispatches = itertools.count(1), list[int]()

    def stop() -> None:
        try:
            jax.profiler.stop_trace()
        except (OSError, RuntimeError, ValueError) as error:  # a trace that can't be written must not cost the run
            warn(f"could not write the trace to {directory}: {reason(error)}")
            return
        count = len(dispatches)
        say(
            f"{directory} has a trace of {count} dispatch{'es' if count > 1 else ''}: open its perfetto_trace.json.gz "
            f"at https://ui.perfetto.dev, or run tensorboard --logdir {directory} (pip install tensorboard xprof)"
        )

    with ExitStack() as stack:

        def traced(state: State) -> tuple[State, Result]:
            call = next(calls)
            if call == 2:
                jax.profiler.start_trace(directory, create_perfetto_trace=True)
                stack.callback(stop)
            elif call == 2 + TRACED:
                jax.block_until_ready(state)
                stack.close()
            if 2 <= call < 2 + TRACED:
                dispatches.append(call)
            with jax.profiler.StepTraceAnnotation("dispatch", step_num=call):
                return advance(state)

        yield traced
    if not dispatches:
        warn("--profile has traced nothing: it leaves out the first dispatch, and there was no other")
