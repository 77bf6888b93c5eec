"""Feeds: where training batches come from, and the batches of an evaluation.

A training batch is a pure function of the step, so a feed has no state to save.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from research.core.errors import UserError
from research.core.experiment import Feed, Feeds
from research.core.state import NO_BATCH, Batch
from research.core.types import Tree
from research.data.order import MAX_DEVICE_SIZE, indices, split

FeedName = Literal["device", "host"]
"""Where training data is kept: all of it on the device, or on the host, from where each dispatch's batches are sent."""


@struct.dataclass
class DeviceFeed:
    """Training data on the device: a pytree that is passed to the compiled step, which gathers its batches.

    Made by `device_feed`.

    examples     (inputs, targets), trees of arrays with one row an example: leaves [size, numbers]. A TPU would copy
                 images of their own shape at each dispatch, into a layout four times as large
    places       i32[training examples], the rows to train on; None: all of them
    shapes       the shape of one example in each leaf; static
    batch, seed  the size of the global batch, and the seed of the order; static
    """

    examples: tuple[Tree, Tree]
    places: Any
    shapes: tuple[tuple[int, ...], ...] = struct.field(pytree_node=False)
    batch: int = struct.field(pytree_node=False)
    seed: int = struct.field(pytree_node=False)
    resident: bool = struct.field(pytree_node=False, default=True)

    @property
    def size(self) -> int:
        """The number of training examples."""
        return size_of(self.examples if self.places is None else self.places)

    def batch_at(self, step: Any, rows: Any = None) -> Batch:
        """The global batch of a step, leaves [batch, ...], or the given rows of it; both arguments may be traced."""
        index = indices(step, self.batch, self.size, self.seed, jnp, rows)
        gather = lambda x, at: jnp.asarray(x).at[at].get(mode="promise_in_bounds")
        places = index if self.places is None else gather(self.places, index)
        leaves, structure = jax.tree.flatten(self.examples)
        shaped = [gather(x, places).reshape(-1, *shape) for x, shape in zip(leaves, self.shapes, strict=True)]
        return Batch(index, jnp.ones(index.shape, jnp.float32), *jax.tree.unflatten(structure, shaped))


def device_feed(inputs: Tree, targets: Tree, batch: int, seed: int, places: np.ndarray | None = None) -> DeviceFeed:
    """The `DeviceFeed` of trees of arrays, leaves [size, ...], in global batches of `batch`.

    places: i[training examples], the examples to train on; None: all of them

    Raises UserError if there are more examples than a device can index.
    """
    examples = (inputs, targets)
    check_device_size(size_of(examples), "training examples")
    shapes = tuple(x.shape[1:] for x in jax.tree.leaves(examples))
    flat = jax.tree.map(lambda x: x.reshape(len(x), -1), examples)
    return DeviceFeed(flat, None if places is None else places.astype(np.int32), shapes, batch, seed)


@struct.dataclass
class HostFeed:
    """Training data on the host: the batches of `DeviceFeed`, as NumPy arrays. `prefetched` sends them to a device.

    inputs, targets  trees of arrays, leaves [size, ...]
    batch, seed      the size of the global batch, and the seed of the order; static
    places           i[training examples], the examples to train on; None: all of them

    With more than 2**31 examples, `Batch.index` has the low 32 bits.
    """

    inputs: Tree
    targets: Tree
    batch: int = struct.field(pytree_node=False)
    seed: int = struct.field(pytree_node=False)
    places: Any = None
    resident: bool = struct.field(pytree_node=False, default=False)

    @property
    def size(self) -> int:
        """The number of training examples."""
        return size_of(self.inputs if self.places is None else self.places)

    def batch_at(self, step: Any, rows: Any = None) -> Batch:
        """The global batch of a step, leaves [batch, ...], or the given rows of it."""
        index = indices(step, self.batch, self.size, self.seed, np, rows)
        examples = take((self.inputs, self.targets), self.places, index)
        return Batch(index.astype(np.int32), np.ones(index.shape, np.float32), *examples)


@struct.dataclass
class Empty:
    """The feed of a learner that makes its own data: a pytree without leaves. Its batches have no rows."""

    batch: int = struct.field(pytree_node=False, default=0)
    resident: bool = struct.field(pytree_node=False, default=True)

    @property
    def size(self) -> int:
        """0: there are none."""
        return 0

    def batch_at(self, step: Any, rows: Any = None) -> Batch:
        """`NO_BATCH`, at every step."""
        return NO_BATCH


@contextmanager
def prefetched(
    feed: Feed, start: int, stop: int, steps: int, put: Callable[[Callable[[Any], Batch], int], Batch]
) -> Iterator[Iterator[Batch]]:
    """The batches of the steps `start ... stop-1` of a host feed, stacked for dispatches of `steps` steps each.

    While the current dispatch runs, a thread calls `put` for the next one, see `Place.put_rows`: it sends batches, of
    which it asks for some rows, leaves [steps, rows, ...]. It is never more than one dispatch ahead.

        with prefetched(feed, 0, 1000, 100, put) as dispatches:
            for batches in dispatches: ...

    The last dispatch is shorter if `steps` does not divide the number of steps. An exception in the thread is raised
    where the batches are read. The thread has ended when the `with` block is left, by whatever way.
    """

    def load(at: int) -> Batch:
        def batches(rows: Any) -> Batch:
            each = [feed.batch_at(step, rows) for step in range(at, min(at + steps, stop))]
            return jax.tree.map(lambda *leaves: np.stack(leaves), *each)

        return put(batches, feed.batch)

    def dispatches() -> Iterator[Batch]:
        ahead: Future[Batch] | None = None
        for at in range(start, stop, steps):
            now = ahead or pool.submit(load, at)
            ahead = pool.submit(load, at + steps) if at + steps < stop else None
            yield now.result()

    pool = ThreadPoolExecutor(1, "prefetch")
    try:
        yield dispatches()
    finally:
        pool.shutdown(cancel_futures=True)


class EvalBatches(Sequence[Batch]):
    """Batches to evaluate on. Each is made when it is read, so no copy of the data is kept.

    make: one function () -> Batch for each batch
    """

    def __init__(self, make: Sequence[Callable[[], Batch]]) -> None:
        self.make = make

    @classmethod
    def of(cls, examples: Callable[[np.ndarray], tuple[Tree, Tree]], count: int, size: int) -> "EvalBatches":
        """All of `count` examples in order, in NumPy batches of `size`; the last one is padded, and its padding masked.

        examples: places i64[size], each less than `count` -> (inputs, targets) of these examples, leaves [size, ...]

        `Batch.index` is the place of the example.
        """

        def batch(start: int) -> Batch:
            place = np.arange(start, start + size)
            # The padding repeats the last example: ordinary numbers, with which nothing can overflow.
            index = np.minimum(place, count - 1)
            return Batch(index.astype(np.int32), (place < count).astype(np.float32), *examples(index))

        return cls([partial(batch, start) for start in range(0, count, size)])

    def __len__(self) -> int:
        return len(self.make)

    @overload
    def __getitem__(self, at: int) -> Batch: ...

    @overload
    def __getitem__(self, at: slice) -> list[Batch]: ...

    def __getitem__(self, at: int | slice) -> Batch | list[Batch]:
        return [make() for make in self.make[at]] if isinstance(at, slice) else self.make[at]()


def episodes(first: int, count: int, size: int) -> list[Batch]:
    """The episodes of the seeds `first ... first+count-1`, in batches of `size`; the padding of the last is masked."""
    number = np.arange(-(-count // size) * size, dtype=np.int32).reshape(-1, size)
    return [Batch(first + n, (n < count).astype(np.float32), (), ()) for n in number]


def feeds(
    train: tuple[Tree, Tree],
    test: tuple[Tree, Tree],
    batch: int,
    evaluation_batch: int,
    validation: float,
    seed: int,
    feed: FeedName = "device",
    given: tuple[Tree, Tree] | None = None,
) -> Feeds:
    """The feeds of arrays on the host: the only function that a new source of arrays has to call. It copies nothing.

    train, test       (inputs, targets), trees of arrays with leaves [examples, ...]
    batch             size of the global training batch
    evaluation_batch  size of validation and test batches
    validation        fraction of the training examples that is held out for validation, at least one
    seed              seed of that split and of the order of training; it does not depend on the seed of the run
    feed              where the training examples are kept
    given             (inputs, targets) to validate on, where the data set has them: nothing is held out

    Raises UserError if there are fewer than two training examples to hold out validation data from.
    """
    if given is None:
        rest, held_out = split(size_of(train[0]), validation, seed)
        validated = EvalBatches.of(partial(take, train, held_out), len(held_out), evaluation_batch)
    else:
        rest, validated = None, EvalBatches.of(partial(take, given, None), size_of(given[0]), evaluation_batch)
    return Feeds(
        train=(device_feed if feed == "device" else HostFeed)(*train, batch=batch, seed=seed, places=rest),
        validation=validated,
        test=EvalBatches.of(partial(take, test, None), size_of(test[0]), evaluation_batch),
    )


def check_device_size(size: int, what: str) -> None:
    """Raises UserError if there are more examples than a device can index; `what` names them in the message."""
    if size > MAX_DEVICE_SIZE:
        remedy = "keep them on the host (--data.feed host)"
        raise UserError(f"{size:,} {what} are more than the {MAX_DEVICE_SIZE:,} that a device can index; {remedy}")


def size_of(tree: Tree) -> int:
    """The number of examples in a tree of arrays [examples, ...]."""
    return jax.tree.leaves(tree)[0].shape[0]


def take(tree: Tree, places: np.ndarray | None, index: np.ndarray) -> Tree:
    """The rows `places[index]` of a tree of arrays, or the rows `index` if `places` is None; index i[n]."""
    at = index if places is None else places[index]
    return jax.tree.map(lambda x: np.asarray(x)[at], tree)
