"""Examples of unequal length in buckets of equal length: few shapes to compile, little padding."""

import functools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import struct

from research.core.errors import Mistake
from research.core.special_tokens import PAD
from research.core.state import Batch
from research.core.types import Tree
from research.data.feed import EvalBatches, taken
from research.data.order import indices, permuted

PASSES = 100
"""Epochs that a cycle over the buckets takes at most; a bucket too rare for a block in so many gets one anyway."""


class Bucket(NamedTuple):
    """Examples of one shape.

    index            i32[examples], their places in the split
    inputs, targets  trees of arrays, leaves [examples, ...]
    """

    index: np.ndarray  # type: ignore[assignment]  # a field, not tuple's method
    inputs: Tree
    targets: Tree


def bucketed(
    sizes: np.ndarray, lengths: Sequence[int], rows: Callable[[np.ndarray, int], tuple[Tree, Tree]]
) -> tuple[Bucket, ...]:
    """The examples of `sizes` (i[examples]), each in the first of the buckets that holds it; empty ones are left out.

    lengths  of the buckets, increasing; what is longer than the last goes there too
    rows     (places i32[n], length) -> (inputs, targets) of these examples at this length
    """
    which = np.minimum(np.searchsorted(lengths, sizes), len(lengths) - 1)
    places = [(np.flatnonzero(which == k).astype(np.int32), length) for k, length in enumerate(lengths)]
    return tuple(Bucket(index, *rows(index, length)) for index, length in places if index.size)


@struct.dataclass
class Bucketed:
    """Training data on the host, in buckets; a block of `chunk` steps, which a run dispatches at once, reads one.

    Blocks are shuffled cycle by cycle. A cycle is as many epochs as give the rarest bucket a block (but see `PASSES`),
    and gives each bucket blocks in proportion to its examples, to rounding. Within a bucket order is that of
    `order.indices`: all of its examples before one is met again. So the smaller the chunk, the better mixed.

    batch, chunk, seed  the global batch's size, the run's chunk, the seed of the order; static
    """

    buckets: tuple[Bucket, ...]
    batch: int = struct.field(pytree_node=False)
    chunk: int = struct.field(pytree_node=False)
    seed: int = struct.field(pytree_node=False)
    resident: bool = struct.field(pytree_node=False, default=False)

    def batch_at(self, step: Any, rows: Any = None) -> Batch:
        """The global batch of a step, leaves [batch, ...], or these rows of it."""
        block, at = divmod(int(step), self.chunk)
        which, turn = _turn(block, self.blocks(), self.seed)
        return self._batch(self.buckets[which], turn * self.chunk + at, rows)

    def blocks(self) -> tuple[int, ...]:
        """How many blocks of a cycle each bucket gets."""
        sizes, block = [len(bucket.index) for bucket in self.buckets], self.batch * self.chunk
        epochs = min(PASSES, math.ceil(block / min(sizes)))
        return tuple(max(1, round(epochs * size / block)) for size in sizes)

    def samples(self) -> list[Batch]:
        """One batch of each bucket: all the shapes there are, to compile for."""
        return [self._batch(bucket, 0, None) for bucket in self.buckets]

    def _batch(self, bucket: Bucket, step: int, rows: Any) -> Batch:
        index = indices(step, self.batch, len(bucket.index), self.seed, np, rows)
        _, inputs, targets = jax.tree.map(lambda x: x[index], tuple(bucket))
        return Batch(bucket.index[index], np.ones(index.shape, np.float32), inputs, targets)


def judged(buckets: Sequence[Bucket], size: int) -> EvalBatches:
    """All examples, bucket by bucket, in batches of `size` to evaluate on; each bucket's last is padded and masked."""

    def placed(bucket: Bucket, make: Callable[[], Batch]) -> Batch:
        batch = make()
        return batch._replace(index=bucket.index[batch.index])

    each = lambda bucket: EvalBatches.of(partial(taken, bucket[1:], None), len(bucket.index), size).make
    return EvalBatches([partial(placed, bucket, make) for bucket in buckets for make in each(bucket)])


def _turn(block: int, blocks: tuple[int, ...], seed: int) -> tuple[int, int]:
    """(which bucket a block of the run reads, how many blocks have read that bucket before)."""
    cycle, offset = divmod(block, sum(blocks))
    order = _order(cycle, blocks, seed)
    which = int(order[offset])
    return which, cycle * blocks[which] + int((order[:offset] == which).sum())


@functools.lru_cache(maxsize=2)
def _order(cycle: int, blocks: tuple[int, ...], seed: int) -> np.ndarray:
    """The buckets that the blocks of a cycle read, i64[blocks]."""
    owners, total = np.repeat(np.arange(len(blocks)), blocks), sum(blocks)
    return owners[permuted(np.arange(total, dtype=np.uint32), np.uint32(cycle % 2**32), total, seed, np)]


def padded(rows: list[np.ndarray], length: int) -> np.ndarray:
    """i32[rows, length], PAD after the end of each."""
    table = np.full((len(rows), length), PAD, np.int32)
    for n, row in enumerate(rows):
        table[n, : len(row)] = row
    return table


def sizes(texts: list[np.ndarray]) -> np.ndarray:
    """How many tokens each text has, i64[texts]."""
    return np.array([len(text) for text in texts])


def check_lengths(lengths: tuple[int, ...]) -> None:
    """Raises Mistake unless the lengths of buckets increase."""
    if not lengths or list(lengths) != sorted(set(lengths)):
        raise Mistake(f"data.lengths are to increase, each the length of a bucket, not {lengths}")
