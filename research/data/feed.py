"""Feeds: where batches come from. A batch is a pure function of the step, so a feed has no state to save."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from research.core.errors import Mistake
from research.core.experiment import Feed, Feeds
from research.core.state import NO_BATCH, Batch, Tree
from research.data.order import DEVICE_SIZE, carved, indices

FeedName = Literal["resident", "stream"]
"""Where training data lives: all of it on the device, or on the host, a chunk of batches at a time."""


@struct.dataclass
class Resident:
    """Training data on the device, as a pytree to hand to a compiled function; batches are gathered inside the step.

    Made by `resident`.

    examples     (inputs, targets), trees of arrays, each example a row: leaves [size, numbers]. Kept as images, a TPU
                 would copy them at each dispatch, into a layout four times as large
    places       i32[training examples], which of the examples are for training; None: all of them
    shapes       the shape of an example's part of each leaf; static
    batch, seed  the global batch's size, and the seed of the order; static
    """

    examples: tuple[Tree, Tree]
    places: Any
    shapes: tuple[tuple[int, ...], ...] = struct.field(pytree_node=False)
    batch: int = struct.field(pytree_node=False)
    seed: int = struct.field(pytree_node=False)
    resident: bool = struct.field(pytree_node=False, default=True)

    def batch_at(self, step: Any, rows: Any = None) -> Batch:
        """The global batch of a step, leaves [batch, ...], or these rows of it; both arguments may be traced."""
        size = size_of(self.examples if self.places is None else self.places)
        index = indices(step, self.batch, size, self.seed, jnp, rows)
        take = lambda x, at: jnp.asarray(x).at[at].get(mode="promise_in_bounds")
        places = index if self.places is None else take(self.places, index)
        leaves, structure = jax.tree.flatten(self.examples)
        shaped = [take(x, places).reshape(-1, *shape) for x, shape in zip(leaves, self.shapes, strict=True)]
        return Batch(index, jnp.ones(index.shape, jnp.float32), *jax.tree.unflatten(structure, shaped))


def resident(inputs: Tree, targets: Tree, batch: int, seed: int, places: np.ndarray | None = None) -> Resident:
    """The `Resident` feed of trees of arrays, leaves [size, ...], for global batches of `batch`.

    places: i[training examples], which of the examples are for training; None: all of them

    Raises Mistake where there are more examples than a device can index.
    """
    examples = (inputs, targets)
    check_device(size_of(examples), "training examples")
    shapes = tuple(x.shape[1:] for x in jax.tree.leaves(examples))
    flat = jax.tree.map(lambda x: x.reshape(len(x), -1), examples)
    return Resident(flat, None if places is None else places.astype(np.int32), shapes, batch, seed)


@struct.dataclass
class Stream:
    """Training data on the host: the batches of `Resident`, as NumPy arrays. `prefetched` brings them to a device.

    inputs, targets  trees of arrays, leaves [size, ...]
    batch, seed      the global batch's size, and the seed of the order; static
    places           i[training examples], which of the examples are for training; None: all of them

    Of more than 2**31 examples, `Batch.index` has the low 32 bits.
    """

    inputs: Tree
    targets: Tree
    batch: int = struct.field(pytree_node=False)
    seed: int = struct.field(pytree_node=False)
    places: Any = None
    resident: bool = struct.field(pytree_node=False, default=False)

    def batch_at(self, step: Any, rows: Any = None) -> Batch:
        """The global batch of a step, leaves [batch, ...], or these rows of it."""
        size = size_of(self.inputs if self.places is None else self.places)
        index = indices(step, self.batch, size, self.seed, np, rows)
        examples = taken((self.inputs, self.targets), self.places, index)
        return Batch(index.astype(np.int32), np.ones(index.shape, np.float32), *examples)


@struct.dataclass
class Empty:
    """The feed of a learner that makes its own data: a pytree without leaves, and batches of no rows."""

    batch: int = struct.field(pytree_node=False, default=0)
    resident: bool = struct.field(pytree_node=False, default=True)

    def batch_at(self, step: Any, rows: Any = None) -> Batch:
        """The batch without leaves, at any step."""
        return NO_BATCH


@contextmanager
def prefetched(
    feed: Feed, start: int, stop: int, chunk: int, put: Callable[[Batch], Batch]
) -> Iterator[Iterator[Batch]]:
    """The batches of steps `start ... stop-1` of a host feed, `chunk` of them stacked: leaves [chunk, batch, ...].

    A thread gathers a chunk and `put`s it on the device while the one before runs; never more than one is ahead.

        with prefetched(feed, 0, 1000, 100, put) as chunks:
            for batches in chunks: ...

    The last chunk is the shorter for what `stop` cuts off. What goes wrong in the thread is raised where its chunk
    is asked for; the thread has ended when the `with` has, however it is left.
    """

    def load(at: int) -> Batch:
        batches = [feed.batch_at(step) for step in range(at, min(at + chunk, stop))]
        return put(jax.tree.map(lambda *leaves: np.stack(leaves), *batches))

    def chunks() -> Iterator[Batch]:
        ahead: Future[Batch] | None = None
        for at in range(start, stop, chunk):
            now = ahead or pool.submit(load, at)
            ahead = pool.submit(load, at + chunk) if at + chunk < stop else None
            yield now.result()

    pool = ThreadPoolExecutor(1, "prefetch")
    try:
        yield chunks()
    finally:
        pool.shutdown(cancel_futures=True)


class EvalBatches(Sequence[Batch]):
    """Batches to evaluate on, each made anew when it is read, so that no copy of the data is kept.

    make: functions () -> Batch, one for each
    """

    def __init__(self, make: Sequence[Callable[[], Batch]]) -> None:
        self.make = make

    @classmethod
    def of(cls, rows: Callable[[np.ndarray], tuple[Tree, Tree]], count: int, size: int) -> "EvalBatches":
        """All of `count` examples in order, in NumPy batches of `size`; the last is padded, its padding masked.

        rows: places i64[size], each < count -> (inputs, targets) of these examples, leaves [size, ...]

        `Batch.index` is the place.
        """

        def batch(start: int) -> Batch:
            place = np.arange(start, start + size)
            # The padding repeats the last example: numbers like any other, so nothing can overflow on them.
            index = np.minimum(place, count - 1)
            return Batch(index.astype(np.int32), (place < count).astype(np.float32), *rows(index))

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
    """The episodes of the seeds `first ... first+count-1`, in batches of `size`, the last one masked."""
    number = np.arange(-(-count // size) * size, dtype=np.int32).reshape(-1, size)
    return [Batch(first + n, (n < count).astype(np.float32), (), ()) for n in number]


def feeds(
    train: tuple[Tree, Tree],
    test: tuple[Tree, Tree],
    batch: int,
    evaluation_batch: int,
    validation: float,
    seed: int,
    feed: FeedName = "resident",
) -> Feeds:
    """From host arrays, which are not copied, to what a run reads; all that a new source of data has to call.

    train, test       (inputs, targets), trees of arrays with leaves [examples, ...]
    batch             global batch of training
    evaluation_batch  of validation and test
    validation        the fraction of the training examples that is carved out to validate on, at least one
    seed              of that split, and of the order of training; a run's own seed has no part in either

    Raises Mistake where there are too few training examples to carve from.
    """
    if size_of(train[0]) < 2:
        raise Mistake(f"{size_of(train[0])} training examples are too few to carve validation data from")
    rest, part = carved(size_of(train[0]), validation, seed)
    return Feeds(
        train=(resident if feed == "resident" else Stream)(*train, batch=batch, seed=seed, places=rest),
        validation=EvalBatches.of(partial(taken, train, part), len(part), evaluation_batch),
        test=EvalBatches.of(partial(taken, test, None), size_of(test[0]), evaluation_batch),
    )


def check_device(size: int, what: str) -> None:
    """Raises Mistake where there are more examples than a device can index; `what` they are is for the message."""
    if size > DEVICE_SIZE:
        mend = "keep them on the host (--data.feed stream)"
        raise Mistake(f"{size:,} {what} are more than the {DEVICE_SIZE:,} that a device can index; {mend}")


def size_of(tree: Tree) -> int:
    """The number of examples in a tree of arrays [examples, ...]."""
    return jax.tree.leaves(tree)[0].shape[0]


def taken(tree: Tree, places: np.ndarray | None, index: np.ndarray) -> Tree:
    """The rows `index` (i[n]) of the rows `places` of a tree of arrays; None: of all its rows."""
    at = index if places is None else places[index]
    return jax.tree.map(lambda x: np.asarray(x)[at], tree)
