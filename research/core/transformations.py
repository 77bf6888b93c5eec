"""Lifts: they take a step or a learner and give one back."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from research.core.state import Batch, Learner, Metrics, State, Tree

Step = Callable[[State, Any], tuple[State, Metrics]]


def many(step: Step, n: int) -> Step:
    """n steps a dispatch. Takes batches stacked as leaves [n, batch, ...]; gives metrics stacked as [n]."""

    def steps(state: State, batches: Any) -> tuple[State, Metrics]:
        return jax.lax.scan(step, state, batches, length=n)

    return steps


def closed(step: Step, feed: Any, axis: str | None = None) -> Step:
    """The batch comes from a device-resident `feed`, computed inside the step; the step's own input is ignored.

    axis: each device of this axis computes its own share of the batch.
    """

    def step_on_feed(state: State, _: Any) -> tuple[State, Metrics]:
        rows = None
        if axis is not None:
            n = feed.batch // jax.lax.axis_size(axis)
            rows = jax.lax.axis_index(axis) * n + jnp.arange(n)
        return step(state, feed.batch_at(state.step, rows))

    return step_on_feed


SEED_AXES = State(step=None, key=0, params=0, opt_state=0, collections=0, world=0)  # type: ignore[arg-type]
"""Where `seeds` puts the axis of the seeds. The clock is shared: what hangs on `step` stays unbatched."""


def seeds(learner: Learner) -> Learner:
    """Many seeds at once: `init` takes keys [n]; State (save its `step`) and metrics gain a leading axis [n].

    All seeds see the same batches. Seed i is the run of key i alone.
    """
    return Learner(
        init=jax.vmap(learner.init, out_axes=SEED_AXES),
        step=jax.vmap(learner.step, in_axes=(SEED_AXES, None), out_axes=(SEED_AXES, 0)),
        evaluate=jax.vmap(learner.evaluate, in_axes=(SEED_AXES, None)),
    )


def first(state: State, tree: Tree) -> Tree:
    """`tree`, of `state`, on one device; where the State has the axis of `seeds`, the first seed's."""
    return next(members(state, tree))


def members(state: State, tree: Tree) -> Iterator[Tree]:
    """`tree`, of `state`, of one seed after another, on one device; alone, where the State is of one."""
    tree = jax.device_get(tree)
    for n in range(len(state.key) if state.key.ndim else 1):
        yield jax.device_put(jax.tree.map(lambda x, n=n: x[n] if state.key.ndim else x, tree))


def followed(average: Tree, params: Tree, decay: float, step: jax.Array) -> Tree:
    """The exponential moving average of the parameters, after update number `step` has made them `params`.

    Its decay at update t is min(decay, (1 + t) / (10 + t)), so that the start is forgotten soon
    (Polyak & Juditsky 1992; the warm-up as in TensorFlow's ExponentialMovingAverage).
    """
    t = step.astype(jnp.float32)
    keep = jnp.minimum(decay, (1 + t) / (10 + t))
    return jax.tree.map(lambda a, p: keep * a + (1 - keep) * p, average, params)


def averaged(learner: Learner, decay: float) -> Learner:
    """Evaluate an exponential moving average of the weights (`followed`), kept in collections["average"]."""

    def init(key: jax.Array) -> State:
        state = learner.init(key)
        average = jax.tree.map(jnp.copy, state.params)  # a copy, or donation would meet one buffer twice
        return state._replace(collections={**state.collections, "average": average})

    def split(state: State) -> tuple[State, Tree]:
        rest = {name: value for name, value in state.collections.items() if name != "average"}
        return state._replace(collections=rest), state.collections["average"]

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        state, average = split(state)
        state, metrics = learner.step(state, batch)
        average = followed(average, state.params, decay, state.step)
        return state._replace(collections={**state.collections, "average": average}), metrics

    def evaluate(state: State, batch: Batch) -> Metrics:
        state, average = split(state)
        return learner.evaluate(state._replace(params=average), batch)

    return Learner(init, step, evaluate)
