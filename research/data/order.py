"""The order of training examples: a stateless shuffle, a pure function of the step.

The run reads a sequence of positions 0, 1, 2, ...; position p is the place p % size of epoch p // size, and each epoch
is its own keyed permutation of the examples. Nothing has to be saved, no epoch is computed in advance, and the numbers
are the same on the host (NumPy) as inside a compiled step.
"""

import math
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.core.errors import UserError

MAX_DEVICE_SIZE = 2**31
"""The most examples that a data set on a device may have: indices have 32 bits there, and 64 on the host."""

ROUNDS = 8
"""Rounds of the Feistel network. Four suffice for large sizes (Luby & Rackoff 1988); small sizes need more."""

TEST_FRACTION, TEST_SEED = 0.2, 0x7E57
"""How a data set without a test split is split: the same for every run."""


def indices(step: Any, batch: int, size: int, seed: int, xp: ModuleType = jnp, rows: Any = None) -> Any:
    """Which of `size` examples make up the global batch of `step`: i32[batch], or i32[rows] for some of its rows.

    The result is i64 if `size` is larger than MAX_DEVICE_SIZE. Every epoch contains each example once. Batches do not
    stop at the end of an epoch: one may contain examples of two epochs.

    step   below 2**31, a Python int or a traced scalar
    seed   seed of the order; its low 32 bits are used
    xp     `numpy` or `jax.numpy`: the same numbers on the host and inside a compiled step
    rows   i32[rows], positions within the global batch, may be traced; None: all of them

    Raises ValueError if `size` or `batch` is less than 1, or `size` is too large for `jax.numpy`.
    """
    epoch, place = positions(step, batch, size, xp, rows)
    return permute(place, epoch, size, seed, xp).astype(xp.int32 if size <= MAX_DEVICE_SIZE else xp.int64)


def positions(step: Any, batch: int, size: int, xp: ModuleType = jnp, rows: Any = None) -> tuple[Any, Any]:
    """(epoch modulo 2**32, place within it), each u32[rows], of the examples of a batch; see `indices`.

    The place is u64 if `size` is larger than MAX_DEVICE_SIZE.
    """
    if size < 1 or batch < 1:
        raise ValueError(f"batches of {batch} from {size} examples: both must be at least 1")
    if size > MAX_DEVICE_SIZE and xp is not np:
        raise ValueError(f"{size} examples are more than a device can index, {MAX_DEVICE_SIZE}")
    word = xp.uint32 if size <= MAX_DEVICE_SIZE else xp.uint64
    base = word(size)  # not a Python int: JAX would make an int32 of it, which can't hold 2**31
    # Arrays of one element, not scalars: NumPy warns of overflow in scalars, and the epoch may wrap around.
    step = xp.reshape(xp.asarray(step), (1,)).astype(word)
    rows = xp.arange(batch, dtype=word) if rows is None else xp.asarray(rows).astype(word)

    def add(a: tuple[Any, Any], b: tuple[Any, Any]) -> tuple[Any, Any]:
        """a + b of numbers in base `size`, as (high, low digit); 32 bits hold low + low if size <= 2**31."""
        low = a[1] + b[1]
        carry = (low >= base).astype(word)
        return a[0] + b[0] + carry, low - carry * base

    # step * batch in base `size`, by doubling and adding: the product itself may need more than 32 bits.
    digits = (step // base, step % base)
    start = (xp.zeros_like(step), xp.zeros_like(step))
    for bit in f"{batch:b}":
        start = add(start, start)
        start = add(start, digits) if bit == "1" else start
    epoch, place = add(start, (rows // base, rows % base))
    return epoch.astype(xp.uint32), place


def permute(place: Any, epoch: Any, size: int, seed: int, xp: ModuleType = jnp) -> Any:
    """Where the permutation of 0 ... size-1 with the key (seed, epoch) sends `place`.

    place  u32[...] or u64[...], each less than `size`; the result has its dtype
    epoch  u32[...]

    A Feistel network on pairs (left < a, right < b) with a * b just above `size`, applied again to each result that is
    not below `size` (cycle walking; Black & Rogaway 2002, "Ciphers with arbitrary finite domains"). With a and b near
    the square root of `size`, this is rare.
    """
    a = math.isqrt(size - 1) + 1
    b = -(-size // a)
    bound = place.dtype.type(size)
    key = hash32(hash32(xp.asarray([seed & 0xFFFFFFFF], dtype=xp.uint32)) ^ xp.asarray(epoch).astype(xp.uint32))
    keys = [hash32(key + np.uint32((n + 1) * 0x9E3779B9 % 2**32)) for n in range(ROUNDS)]

    def network(x: Any) -> Any:
        left, right = x // b, x % b
        for n, key in enumerate(keys):
            if n % 2:
                right = (right + hash32(left.astype(xp.uint32) ^ key) % b) % b
            else:
                left = (left + hash32(right.astype(xp.uint32) ^ key) % a) % a
        return left * b + right

    outside = lambda x: (x >= bound).any()
    walk = lambda x: xp.where(x >= bound, network(x), x)
    x = network(place)
    if xp is not np:
        return jax.lax.while_loop(outside, walk, x)
    while outside(x):
        x = walk(x)
    return x


def hash32(x: Any) -> Any:
    """A bijective hash of u32 arrays: `lowbias32` by Chris Wellons (public domain)."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def split(size: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """0 ... size-1 in two parts by a keyed shuffle: (rest, part), i64 and sorted.

    `part` has `fraction` of them, and each of the two has at least one. Raises UserError if `size` is less than 2.
    """
    if size < 2:
        raise UserError(f"data: {size} training examples are too few to hold some out: give more")
    order = permute(np.arange(size, dtype=np.uint32), np.uint32(0xFFFFFFFF), size, seed, np).astype(np.int64)
    count = min(max(1, round(size * fraction)), size - 1)
    return np.sort(order[count:]), np.sort(order[:count])


def split_test(size: int) -> tuple[np.ndarray, np.ndarray]:
    """`split` of a data set without a test split: (training, test); the test part is the same fifth for every run."""
    return split(size, TEST_FRACTION, TEST_SEED)
