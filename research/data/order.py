"""The order of the data: a stateless shuffle, a pure function of the step.

Position p of the run is offset p % size of epoch p // size, and each epoch is its own keyed permutation: no
generator to save, no epoch to draw up in advance, and the same on the host (NumPy) as inside a compiled step.
"""

import math
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

DEVICE_SIZE = 2**31
"""The most examples that data on a device may have: indices have 32 bits there, and 64 on the host."""

ROUNDS = 8
"""Of the Feistel network. Four do for large sizes (Luby & Rackoff 1988); more serve the evenness of tiny ones."""


def indices(step: Any, batch: int, size: int, seed: int, xp: ModuleType = jnp, rows: Any = None) -> Any:
    """Which of `size` examples make the global batch of `step`: i32[batch], or i32[rows] of some of its rows.

    They are i64 where `size` is more than DEVICE_SIZE. Batches run on through the epochs: each epoch meets every
    example once, and a batch may straddle two.

    step   below 2**31, a Python int or a traced scalar
    seed   of the order; its low 32 bits count
    xp     `numpy` or `jax.numpy`: the same numbers on the host or inside a compiled step
    rows   i32[rows], positions within the global batch, possibly traced; None: all of them

    Raises ValueError where there is nothing to draw from, and for a `size` too large for `jax.numpy`.
    """
    epoch, offset = positions(step, batch, size, xp, rows)
    return permuted(offset, epoch, size, seed, xp).astype(xp.int32 if size <= DEVICE_SIZE else xp.int64)


def positions(step: Any, batch: int, size: int, xp: ModuleType = jnp, rows: Any = None) -> tuple[Any, Any]:
    """(epoch modulo 2**32, offset within it), u32[rows], of the examples of a batch; see `indices`.

    The offset is u64 where `size` is more than DEVICE_SIZE.
    """
    if size < 1 or batch < 1:
        raise ValueError(f"batches of {batch} from {size} examples: both must be at least 1")
    if size > DEVICE_SIZE and xp is not np:
        raise ValueError(f"{size} examples are more than a device can index, {DEVICE_SIZE}")
    word = xp.uint32 if size <= DEVICE_SIZE else xp.uint64
    base = word(size)  # 2**31 is no int32, which is what JAX makes of a Python int
    # Arrays of one element, not scalars: NumPy warns of overflow in scalars, where these sums may wrap (the epoch).
    step = xp.reshape(xp.asarray(step), (1,)).astype(word)
    rows = xp.arange(batch, dtype=word) if rows is None else xp.asarray(rows).astype(word)

    def added(a: tuple[Any, Any], b: tuple[Any, Any]) -> tuple[Any, Any]:
        """a + b of numbers in that base, given as (high, low digit); 32 bits hold low + low where size <= 2**31."""
        low = a[1] + b[1]
        carry = (low >= base).astype(word)
        return a[0] + b[0] + carry, low - carry * base

    # step * batch in base `size`, by doubling and adding: the product itself need not fit in 32 bits.
    digits = (step // base, step % base)
    start = (xp.zeros_like(step), xp.zeros_like(step))
    for bit in f"{batch:b}":
        start = added(start, start)
        start = added(start, digits) if bit == "1" else start
    epoch, offset = added(start, (rows // base, rows % base))
    return epoch.astype(xp.uint32), offset


def permuted(offset: Any, epoch: Any, size: int, seed: int, xp: ModuleType = jnp) -> Any:
    """The image of `offset` under the permutation of 0 ... size-1 of (seed, epoch).

    offset  u32[...] or u64[...], each < size; the image has its dtype

    A Feistel network on pairs (left < a, right < b) with a * b just above `size`, walked on along its cycle until it
    is back below `size`: Black & Rogaway 2002, "Ciphers with arbitrary finite domains". With a and b near the
    square root of `size`, few elements walk at all.
    """
    a = math.isqrt(size - 1) + 1
    b = -(-size // a)
    bound = offset.dtype.type(size)
    key = mixed(mixed(xp.asarray([seed & 0xFFFFFFFF], dtype=xp.uint32)) ^ xp.asarray(epoch).astype(xp.uint32))
    keys = [mixed(key + np.uint32((n + 1) * 0x9E3779B9 % 2**32)) for n in range(ROUNDS)]

    def once(x: Any) -> Any:
        left, right = x // b, x % b
        for n, key in enumerate(keys):
            if n % 2:
                right = (right + mixed(left.astype(xp.uint32) ^ key) % b) % b
            else:
                left = (left + mixed(right.astype(xp.uint32) ^ key) % a) % a
        return left * b + right

    outside = lambda x: (x >= bound).any()
    walk = lambda x: xp.where(x >= bound, once(x), x)
    x = once(offset)
    if xp is not np:
        return jax.lax.while_loop(outside, walk, x)
    while outside(x):
        x = walk(x)
    return x


def mixed(x: Any) -> Any:
    """A bijective hash of u32 arrays: Chris Wellons's `lowbias32` (public domain)."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def held_out(size: int) -> tuple[np.ndarray, np.ndarray]:
    """0 ... size-1 in two parts, (rest, test), of a set without a test split: a fifth, always the same, is for testing.

    Raises ValueError where there are not two.
    """
    return carved(size, 0.2, seed=0x7E57)


def carved(size: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """0 ... size-1 in two parts by a keyed shuffle: (rest, part), i64 and sorted.

    `part` holds `fraction` of them, at least one; so does `rest`. Raises ValueError where there are not two.
    """
    if size < 2:
        raise ValueError(f"{size} examples can't be split in two")
    order = permuted(np.arange(size, dtype=np.uint32), np.uint32(0xFFFFFFFF), size, seed, np).astype(np.int64)
    count = min(max(1, round(size * fraction)), size - 1)
    return np.sort(order[count:]), np.sort(order[:count])
