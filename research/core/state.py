"""The contract: a run is a `State`, a step is a scan body, an algorithm is a `Learner`.

    step:     (State, Batch) -> (State, {name: Mean})     the body that `jax.lax.scan` takes
    evaluate: (State, Batch) -> {name: Mean}
    init:     key -> State

Everything people do to a run (many steps a dispatch, many seeds, many devices, resume, export) is an
ordinary function on these, see `lift.py` and `place.py`.
"""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Tree = Any
"""A pytree of arrays."""


class State(NamedTuple):
    """The whole run. Its fields say how it is replicated: all of it on every device, save `world`.

    step         i32[], updates done; the one clock of the run
    key          the run's root PRNG key (`jax.random.key`); it never changes
    params       what gradient descent moves; several nets are a dict {"generator": ..., "discriminator": ...}
    opt_state    the optimizers' states, with the same top-level keys as params where there are several nets
    collections  what moves but is not differentiated, a dict: batch statistics, target network, averaged weights
    world        what each device owns a part of, leading axis = environments: their states, the replay; else ()
    """

    step: jax.Array
    key: jax.Array
    params: Tree
    opt_state: Tree
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


class Mean(NamedTuple):
    """A weighted mean that can still be merged: over microbatches, devices, steps (add both fields).

    total  f32[], the weighted sum
    count  f32[], the sum of the weights
    """

    total: jax.Array
    count: jax.Array  # type: ignore[assignment]  # a field, not tuple's method

    @property
    def value(self) -> jax.Array:
        """total / count, and 0 where nothing was counted."""
        return self.total / jnp.where(self.count == 0, 1, self.count)


Metrics = dict[str, Mean]


class Learner(NamedTuple):
    """An algorithm: three pure functions. `step` keeps the State's structure, shapes and dtypes."""

    init: Callable[[jax.Array], State]
    step: Callable[[State, Batch], tuple[State, Metrics]]
    evaluate: Callable[[State, Batch], Metrics]


def mean(values: jax.Array, mask: jax.Array | None = None) -> Mean:
    """The Mean of `values` over all axes; `mask` ([batch], weights) spreads over the trailing ones."""
    values = jnp.asarray(values, jnp.float32)
    if mask is None:
        return Mean(values.sum(), jnp.float32(values.size))
    weights = jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim)), values.shape)
    # where, not a product alone: what is masked out may be NaN.
    return Mean(jnp.where(weights == 0, 0, values * weights).sum(), weights.sum().astype(jnp.float32))


def stream(state: State, name: str) -> jax.Array:
    """The key of the stream `name` at this step, fold_in(key, step, name): nobody threads or stores keys."""
    return jax.random.fold_in(jax.random.fold_in(state.key, zlib.crc32(name.encode())), state.step)


def each(key: jax.Array, index: jax.Array) -> jax.Array:
    """One key for each example or environment, [batch], by its global index i32[batch]."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, index)
