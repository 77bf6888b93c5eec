"""Transformations: they take a step or a learner and give one back."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from research.core.devices import axis_if_bound, devices, position, shard_batch
from research.core.metrics import Metrics
from research.core.state import Learner, State, Step


def scan_steps(step: Step, n: int) -> Callable[[State, Any], tuple[State, Metrics]]:
    """n steps a dispatch. Takes batches stacked as leaves [n, batch, ...]; gives metrics stacked as [n]."""

    def steps(state: State, batches: Any) -> tuple[State, Metrics]:
        return jax.lax.scan(step, state, batches, length=n)

    return steps


def with_feed(step: Step, feed: Any) -> Step:
    """The batch comes from a device-resident `feed`, computed inside the step; the step's own input is ignored.

    Each device computes its own part of the batch.
    """

    def step_on_feed(state: State, _: Any) -> tuple[State, Metrics]:
        rows = None if axis_if_bound() is None else position(feed.batch // devices())
        return step(state, shard_batch(feed.batch_at(state.step, rows)))

    return step_on_feed


SEED_AXES = State(step=None, key=0, params=0, opt_state=0, collections=0, world=0)  # type: ignore[arg-type]
"""Where `per_seed` puts the axis of the seeds. The clock is shared: what hangs on `step` stays unbatched."""


def per_seed(learner: Learner) -> Learner:
    """Many seeds at once: `init` takes keys [n]; State (save its `step`) and metrics gain a leading axis [n].

    All seeds see the same batches. Seed i is the run of key i alone.
    """

    def init(keys: jax.Array) -> State:
        # One after another: the QR of an orthogonal initialiser under vmap can deadlock on a CPU with two cores, where
        # two calls of LAPACK wait for each other's threads.
        states = jax.lax.map(learner.init, keys)
        return states._replace(step=states.step[0])

    return Learner(
        init=init,
        step=jax.vmap(learner.step, in_axes=(SEED_AXES, None), out_axes=(SEED_AXES, 0)),
        evaluate=jax.vmap(learner.evaluate, in_axes=(SEED_AXES, None)),
    )


def per_setting(build: Callable[[Any], Learner], settings: Any) -> Learner:
    """Many settings at once, as `per_seed`: run i is that of key i by the learner that `build` makes of setting i.

    settings  numbers, leaves [n]; `build` gets one of them at a time, traced
    """

    def init(keys: jax.Array) -> State:
        states = jax.lax.map(lambda one: build(one[0]).init(one[1]), (settings, keys))
        return states._replace(step=states.step[0])

    step = lambda setting, state, batch: build(setting).step(state, batch)
    evaluate = lambda setting, state, batch: build(setting).evaluate(state, batch)
    return Learner(
        init=init,
        step=partial(jax.vmap(step, in_axes=(0, SEED_AXES, None), out_axes=(SEED_AXES, 0)), settings),
        evaluate=partial(jax.vmap(evaluate, in_axes=(0, SEED_AXES, None)), settings),
    )


def first_seed(state: State) -> State:
    """The first of `each_seed`."""
    return next(each_seed(state))


def each_seed(state: State) -> Iterator[State]:
    """The State of one seed after another, on one device: what evaluation reads, without optimizer states and world.

    The weights of a single seed that are split over devices stay where they are, since one device may not hold them.
    """
    split = lambda x: isinstance(x, jax.Array) and not x.is_fully_replicated
    if not state.key.ndim and any(map(split, jax.tree.leaves(state.params))):
        yield state._replace(opt_state={}, world=())
        return
    bits = jax.random.key_data(state.key)
    step, bits, params, collections = jax.device_get((state.step, bits, state.params, state.collections))
    keys = jax.random.wrap_key_data(bits, impl=jax.random.key_impl(state.key))
    for n, key in enumerate(keys if keys.ndim else keys[None]):
        one = jax.tree.map(lambda x, n=n: x[n], (params, collections)) if keys.ndim else (params, collections)
        params_of_one, collections_of_one = jax.device_put(one)
        yield State(jnp.asarray(step), key, params_of_one, {}, collections_of_one, ())
