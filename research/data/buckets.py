"""Examples of unequal length in buckets of equal length: few shapes to compile, little padding."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from flax import struct

from research.core.errors import UserError
from research.core.special_tokens import PAD
from research.core.state import Batch
from research.core.types import Tree
from research.data.feed import EvalBatches, take
from research.data.order import indices, permute

MAX_EPOCHS = 100
"""Epochs in a cycle over the buckets at most. A bucket too small to fill half a block in so many is merged with another
one: a block of its own would repeat its examples many times more often than the others."""


class Bucket(NamedTuple):
    """Examples of one shape.

    index            i32[examples], their places in the split
    inputs, targets  trees of arrays, leaves [examples, ...]
    """

    index: np.ndarray  # type: ignore[assignment]  # a field, not tuple's method
    inputs: Tree
    targets: Tree


def into_buckets(
    sizes: np.ndarray, lengths: Sequence[int], pad: Callable[[np.ndarray, int], tuple[Tree, Tree]], block: int = 0
) -> tuple[Bucket, ...]:
    """Puts each example into the shortest bucket that is long enough for it; empty buckets are left out.

    Of training data, a bucket that would not fill half a block in MAX_EPOCHS is merged into the next longer one, and
    the longest one takes in the one before it.

    sizes    i[examples], the length of each example
    lengths  lengths of the buckets, increasing; longer examples go into the last one
    pad      (places i32[n], length) -> (inputs, targets) of these examples, padded or cut to this length
    block    of training data, the number of examples that one dispatch reads; 0: no bucket is merged
    """
    which = np.minimum(np.searchsorted(lengths, sizes), len(lengths) - 1)
    small = lambda k: 2 * MAX_EPOCHS * np.sum(which == k) < block
    used = np.unique(which)
    for k, longer in itertools.pairwise(used):
        if small(k):
            which[which == k] = longer
    if used.size and small(used[-1]):
        which[which == max(which[which < used[-1]], default=used[-1])] = used[-1]
    places = [(np.flatnonzero(which == k).astype(np.int32), length) for k, length in enumerate(lengths)]
    return tuple(Bucket(index, *pad(index, length)) for index, length in places if index.size)


@struct.dataclass
class BucketFeed:
    """Training data on the host, in buckets. All steps of one dispatch (a block) read the same bucket.

    The order of the blocks is shuffled in each cycle. A cycle has as many epochs as the smallest bucket needs to fill
    one block (at most MAX_EPOCHS), and gives each bucket a number of blocks in proportion to its examples, rounded.
    Within a bucket, every epoch contains each example once, see `order.indices`. The fewer steps per dispatch, the
    better the buckets are mixed.

    batch, seed         the size of the global batch, and the seed of the order; static
    steps_per_dispatch  as in the config of the run; static
    """

    buckets: tuple[Bucket, ...]
    batch: int = struct.field(pytree_node=False)
    steps_per_dispatch: int = struct.field(pytree_node=False)
    seed: int = struct.field(pytree_node=False)
    resident: bool = struct.field(pytree_node=False, default=False)

    @property
    def size(self) -> int:
        """The number of training examples."""
        return sum(len(bucket.index) for bucket in self.buckets)

    def batch_at(self, step: Any, rows: Any = None) -> Batch:
        """The global batch of a step, leaves [batch, ...], or the given rows of it."""
        block, at = divmod(int(step), self.steps_per_dispatch)
        which, before = _bucket_of(block, self.blocks(), self.seed)
        bucket, step = self.buckets[which], before * self.steps_per_dispatch + at
        index = indices(step, self.batch, len(bucket.index), self.seed, np, rows)
        return Batch(bucket.index[index], np.ones(index.shape, np.float32), *take(bucket[1:], None, index))

    def blocks(self) -> tuple[int, ...]:
        """The number of blocks that each bucket gets in a cycle."""
        sizes, block = [len(bucket.index) for bucket in self.buckets], self.batch * self.steps_per_dispatch
        epochs = min(MAX_EPOCHS, math.ceil(block / min(sizes)))
        return tuple(max(1, round(epochs * size / block)) for size in sizes)


def eval_batches(buckets: Sequence[Bucket], size: int) -> EvalBatches:
    """All examples, bucket after bucket, in batches of `size`; the last batch of each is padded, its padding masked."""

    def in_split(bucket: Bucket, make: Callable[[], Batch]) -> Batch:
        batch = make()
        return batch._replace(index=bucket.index[batch.index])

    of = lambda bucket: EvalBatches.of(partial(take, bucket[1:], None), len(bucket.index), size).make
    return EvalBatches([partial(in_split, bucket, make) for bucket in buckets for make in of(bucket)])


def _bucket_of(block: int, blocks: tuple[int, ...], seed: int) -> tuple[int, int]:
    """(the bucket that a block of the run reads, the number of earlier blocks that read that bucket)."""
    cycle, place = divmod(block, sum(blocks))
    order = _order(cycle, blocks, seed)
    which = int(order[place])
    return which, cycle * blocks[which] + int((order[:place] == which).sum())


@functools.lru_cache(maxsize=2)
def _order(cycle: int, blocks: tuple[int, ...], seed: int) -> np.ndarray:
    """The bucket that each block of a cycle reads, i64[blocks]."""
    buckets, total = np.repeat(np.arange(len(blocks)), blocks), sum(blocks)
    return buckets[permute(np.arange(total, dtype=np.uint32), np.uint32(cycle % 2**32), total, seed, np)]


def padded(rows: list[np.ndarray], length: int) -> np.ndarray:
    """i32[rows, length], with PAD after the end of each row."""
    table = np.full((len(rows), length), PAD, np.int32)
    for n, row in enumerate(rows):
        table[n, : len(row)] = row
    return table


def sizes(texts: list[np.ndarray]) -> np.ndarray:
    """The number of tokens of each text, i64[texts]."""
    return np.array([len(text) for text in texts])


def check_lengths(lengths: tuple[int, ...]) -> None:
    """Raises UserError unless the lengths of the buckets increase."""
    if not lengths or list(lengths) != sorted(set(lengths)):
        raise UserError(f"data.lengths must increase, each the length of a bucket, not {lengths}")
