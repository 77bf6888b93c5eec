"""The contract: a run is a `State`, a step is a scan body, an algorithm is a `Learner`.

    init:     key -> State
    step:     (State, Batch) -> (State, {name: Metric})     the body that `jax.lax.scan` takes
    evaluate: (State, Batch) -> {name: Metric}

Everything people do to a run (many steps a dispatch, many seeds, many devices, resume, export) is an
ordinary function on these, see `transformations.py` and `placement.py`.
"""

import zlib
from collections.abc import Callable
from typing import NamedTuple

import jax

from research.core.errors import RunError
from research.core.metrics import Metrics
from research.core.types import Tree


class State(NamedTuple):
    """The whole run. Its fields say how it is replicated: all of it on every device, save `world`.

    step         i32[], steps done; the one clock of the run
    key          the run's root PRNG key (`jax.random.key`); it never changes
    params       {name: parameters}; a name is what one optimizer moves, one net or several. One that has none, such as
                 a teacher, stays as it began
    opt_state    {name: the count of its updates and its optimizer's state}
    collections  {name: what moves but is not differentiated, by collection, as {"batch_stats": ...}}; target nets and
                 averaged weights stand under names of their own
    world        what each device owns a part of, leading axis = environments: their states, the replay; else ()
    """

    step: jax.Array
    key: jax.Array
    params: dict[str, Tree]
    opt_state: dict[str, Tree]
    collections: dict[str, Tree]
    world: Tree


class Batch(NamedTuple):
    """One global batch: of examples, or, to evaluate reinforcement learning, of episodes.

    index    i32[batch], each example's global index (an episode's seed): what is random about an example
             is drawn with a key folded by it, so that it does not depend on where the example is computed
    mask     f32[batch], 1 for an example, 0 for the padding of the last evaluation batch
    inputs   what the net reads, leaves [batch, ...]; () for episodes
    targets  what the loss reads, leaves [batch, ...]; () for episodes

    A learner that makes its own data is fed `NO_BATCH`, which has no leaves.
    """

    index: Tree
    mask: Tree
    inputs: Tree
    targets: Tree


NO_BATCH = Batch((), (), (), ())

Step = Callable[[State, Batch], tuple[State, Metrics]]


class Learner(NamedTuple):
    """An algorithm: three pure functions, made by `learner`. `step` keeps the State's structure, shapes and dtypes."""

    init: Callable[[jax.Array], State]
    step: Step
    evaluate: Callable[[State, Batch], Metrics]


def learner(init: Callable[[jax.Array], State], step: Step, evaluate: Callable[[State, Batch], Metrics]) -> Learner:
    """A Learner whose `step` also advances the clock, `State.step`, which `step` itself leaves alone."""

    def clocked(state: State, batch: Batch) -> tuple[State, Metrics]:
        found = step(state, batch)
        if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], State)):
            raise RunError(f"a learner's step is to return (State, metrics), not {type(found).__name__}")
        after, metrics = found
        return after._replace(step=state.step + 1), metrics

    return Learner(init, clocked, evaluate)


def rng(state: State, name: str) -> jax.Array:
    """The key of the rng stream `name` at this step, fold_in(key, name, step): nobody threads or stores keys."""
    return jax.random.fold_in(fold_name(state.key, name), state.step)


def fold_name(key: jax.Array, name: str) -> jax.Array:
    """A key folded by a name; of keys [batch], each one."""
    number = zlib.crc32(name.encode())
    return jax.vmap(jax.random.fold_in, (0, None))(key, number) if key.ndim else jax.random.fold_in(key, number)


def example_keys(key: jax.Array, index: jax.Array) -> jax.Array:
    """One key for each example or environment, [batch], by its global index i32[batch]."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def owned(state: State, name: str) -> dict[str, Tree]:
    """The collections of `name`, such as its batch statistics."""
    return state.collections.get(name, {})


def evaluated(state: State, name: str) -> Tree:
    """The parameters of `name` that are evaluated: their moving average where one is kept, else the last ones."""
    return state.collections.get("average", {}).get(name, state.params[name])


Weights = tuple[Tree, dict[str, Tree]]
"""A net's parameters and its collections, as `Network.apply` takes them."""


def weights(state: State, name: str) -> Weights:
    """What a net called `name` is evaluated with: its parameters (`evaluated`) and its collections (`owned`)."""
    return evaluated(state, name), owned(state, name)
