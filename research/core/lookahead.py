"""Lookahead (Zhang, Lucas, Hinton & Ba 2019, arXiv:1907.08610): parameters are drawn back to their slow average."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from research.core.errors import between
from research.core.types import Tree


@dataclass(frozen=True)
class Lookahead:
    """How the parameters are averaged as they move.

    Attributes:
        every: number of updates after which the average is moved and the parameters are set to it, as they are after
            the last update: a run of fewer updates ends with its first weights; 0: no lookahead
        decay: decay of the average by one update, at the end of the run
        power: the decay rises with this power of the part of the run that is over (Jordan 2024, arXiv:2404.00498: 3);
            0: it is constant, as Zhang et al. have it
    """

    every: int = 0
    decay: float = 0.95
    power: float = 3.0

    def __post_init__(self) -> None:
        between(self, "optimizer.lookahead", 0, math.inf, "every", "power")
        between(self, "optimizer.lookahead", 0, 1, "decay")


class LookaheadState(NamedTuple):
    """count i32[], updates done; the slow average, like the parameters; the optimizer's own state."""

    count: jax.Array  # type: ignore[assignment]  # a field, not tuple's method
    slow: optax.Params
    inner: optax.OptState


def lookahead(tx: optax.GradientTransformation, config: Lookahead, steps: int) -> optax.GradientTransformation:
    """`tx`, with parameters that move to their slow average after every `config.every` updates, of `steps` in all.

    After update t, a multiple of it, the average becomes d * average + (1 - d) * parameters, with
    d = decay ** every * (t / steps) ** power. The average begins at the parameters of the first update,
    which need not be those of `init` (`--init-from`). After the last update the parameters are the average, whether or
    not it is a multiple. `tx` itself where `config.every` is 0.
    """
    if not config.every:
        return tx

    def init(params: Tree) -> LookaheadState:
        # A copy, or donation would meet one buffer twice.
        return LookaheadState(jnp.int32(0), jax.tree.map(jnp.copy, params), tx.init(params))

    def update(gradient: Tree, state: LookaheadState, params: Tree = None) -> tuple[Tree, LookaheadState]:
        updates, inner = tx.update(gradient, state.inner, params)
        count = state.count + 1
        due, last = count % config.every == 0, count == steps
        keep = jnp.where(due, config.decay**config.every * (count / steps) ** config.power, 1)
        fast = optax.apply_updates(params, updates)
        slow = jax.tree.map(lambda s, p: jnp.where(state.count == 0, p, s), state.slow, params)
        slow = jax.tree.map(lambda s, f: s + (1 - keep) * (f - s), slow, fast)
        updates = jax.tree.map(lambda u, s, p: jnp.where(due | last, s - p, u), updates, slow, params)
        return updates, LookaheadState(count, slow, inner)

    return optax.GradientTransformation(init, update)
