"""Magnitude pruning as a gradient transformation: weights of the least magnitude become 0 while a net trains."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from research.core.errors import UserError, positive
from research.core.patterns import matching
from research.core.types import Tree


@dataclass(frozen=True)
class Pruning:
    """Magnitude pruning by a schedule (Zhu & Gupta 2017, arXiv:1710.01878).

    Attributes:
        sparsity: fraction of the weights that are 0 at the end of the schedule; None: nothing is pruned
        initial: fraction of the weights that are 0 at its begin, from which it rises as a cubic that flattens
        begin: fraction of the training at which pruning begins
        end: fraction of the training at which the sparsity is reached; from then on, the same weights are 0
        every: number of updates between two choices of the weights that are 0
        scope: whether the fraction is that of each parameter (layer), or of all of them together (global)
        paths: patterns of the paths of the parameters that are pruned; frozen ones are not
        regrow: whether a weight that is 0 may come back at the next choice, by the size of the step that its gradient
            asks for then; otherwise it stays 0
    """

    sparsity: float | None = None
    initial: float = 0.0
    begin: float = 0.0
    end: float = 0.5
    every: int = 100
    scope: Literal["layer", "global"] = "layer"
    paths: tuple[str, ...] = ("*kernel",)
    regrow: bool = False

    def __post_init__(self) -> None:
        positive(self, "update.pruning", "every")
        if self.sparsity is not None and not 0 <= self.initial <= self.sparsity < 1:
            raise UserError(
                "update.pruning: 0 <= initial <= sparsity < 1 must hold, and initial is "
                f"{self.initial}, sparsity {self.sparsity}"
            )
        if not 0 <= self.begin <= self.end <= 1:
            raise UserError(
                f"update.pruning: 0 <= begin <= end <= 1 must hold, and begin is {self.begin}, end {self.end}"
            )

    def sparsity_at(self, count: Any, updates: int) -> jax.Array:
        """The fraction f32[] of weights that are 0 after update number `count`, counted from 1, of `updates` in all."""
        begin, end = self._bounds(updates)
        left = 1 - jnp.clip((count - begin) / jnp.maximum(end - begin, 1), 0, 1)
        final = jnp.float32(0 if self.sparsity is None else self.sparsity)
        return jnp.where(count >= end, final, final + (self.initial - final) * left**3)

    def chooses_at(self, count: Any, updates: int) -> jax.Array:
        """Whether the weights that are 0 are chosen anew after update number `count`, bool[]."""
        begin, end = self._bounds(updates)
        return (count == end) | ((count >= begin) & (count < end) & ((count - begin) % self.every == 0))

    def _bounds(self, updates: int) -> tuple[jax.Array, jax.Array]:
        """The first and the last update after which weights are chosen, i32[] each, counted from 1."""
        first = lambda fraction: jnp.maximum(jnp.round(fraction * updates), 1).astype(jnp.int32)
        return first(self.begin), first(self.end)

    def pruned(self, params: Tree, frozen: Sequence[str] = ()) -> Tree:
        """Whether each parameter is pruned: a tree of bools."""
        out = lambda hit, stays: hit and not stays
        return jax.tree.map(out, matching(params, self.paths), matching(params, frozen))


class Kept(NamedTuple):
    """The state of `pruning`.

    count    i32[], updates done
    weights  bool, shaped like each parameter that is pruned: whether a weight is kept, or else 0
    """

    count: jax.Array  # type: ignore[assignment]  # a field, not tuple's method
    weights: Tree


def pruning(config: Pruning, updates: int, frozen: Sequence[str] = ()) -> optax.GradientTransformation:
    """The last transformation of a chain: its steps make the weights that are pruned exactly 0.

    updates  their number in the whole run
    frozen   patterns of the paths of parameters that stay as they are
    """

    def init(params: Tree) -> Kept:
        return Kept(jnp.int32(0), jax.tree.map(lambda x: jnp.ones(x.shape, bool), params))

    def update(steps: Tree, state: Kept, params: Tree = None) -> tuple[Tree, Kept]:
        count, kept = state.count + 1, state.weights

        def chosen() -> Tree:
            moved = jax.tree.map(lambda p, step: jnp.abs(p + step), params, steps)
            if not config.regrow:
                moved = jax.tree.map(lambda x, stays: jnp.where(stays, x, 0), moved, kept)
            found = largest(moved, config.sparsity_at(count, updates), config.scope)
            return found if config.regrow else jax.tree.map(jnp.logical_and, found, kept)

        kept = lax.cond(config.chooses_at(count, updates), chosen, lambda: kept)
        return jax.tree.map(lambda stays, step, p: jnp.where(stays, step, -p), kept, steps, params), Kept(count, kept)

    transformation = optax.GradientTransformation(init, update)  # type: ignore[arg-type]
    return optax.masked(transformation, lambda params: config.pruned(params, frozen))


def largest(magnitudes: Tree, sparsity: Any, scope: Literal["layer", "global"]) -> Tree:
    """Which numbers are kept when the fraction `sparsity` of them, the smallest ones, is left out: a tree of bools.

    Of numbers that are equal, either all are kept or none: where they would be divided, all are.
    """
    leaves = jax.tree.leaves(magnitudes)
    if scope == "layer" or not leaves:
        return jax.tree.map(lambda x: x >= _smallest_kept([x], sparsity), magnitudes)
    bound = _smallest_kept(leaves, sparsity)
    return jax.tree.map(lambda x: x >= bound, magnitudes)


def _smallest_kept(arrays: list[jax.Array], sparsity: Any) -> jax.Array:
    """The least number, of f32 arrays of numbers of at least 0, that is kept.

    It is found bit by bit, by counting how many numbers are below a candidate: their bits are ordered as they are.
    Nothing is sorted, so that devices which have parts of the arrays exchange nothing but counts.
    """
    size = sum(x.size for x in arrays)
    dropped = jnp.clip(jnp.round(sparsity * size), 0, size - 1).astype(jnp.int32)
    bits = [lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32) for x in arrays]

    def with_bit(place: int, found: jax.Array) -> jax.Array:
        candidate = found | jnp.left_shift(jnp.int32(1), 30 - place)
        below = sum(jnp.sum(x < candidate, dtype=jnp.int32) for x in bits)
        return jnp.where(below <= dropped, candidate, found)

    return lax.bitcast_convert_type(lax.fori_loop(0, 31, with_bit, jnp.int32(0)), jnp.float32)


def sparsity_of(params: Tree, pruned: Tree) -> jax.Array:
    """The fraction f32[] of 0 among the weights of the parameters that `pruned` marks; 0 where it marks none."""
    marked = [x for x, hit in zip(jax.tree.leaves(params), jax.tree.leaves(pruned), strict=True) if hit]
    zeros = sum((jnp.sum(x == 0, dtype=jnp.float32) for x in marked), jnp.float32(0))
    return zeros / max(sum(x.size for x in marked), 1)
