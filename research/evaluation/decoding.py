"""Generation, by any net that has `start` and `extend` (see nets/transformer.py and nets/lstm.py).

    start(source, length) -> carry            before the first token
    extend(tokens, carry) -> (logits, carry)  tokens i32[batch, time], logits of what follows each

Every leaf of a carry is [batch, ...]: a cache of keys and values, or an LSTM's states.
"""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core.special_tokens import BOS, EOS, PAD
from research.core.types import Tree

NEVER = -1e9
"""The log-probability of what can't be."""


class Sampling(NamedTuple):
    """How a token is drawn.

    temperature  divides the logits; 0 takes the likeliest
    top_k        only the k likeliest may be drawn; 0: all
    top_p        only the likeliest that together have this probability may be (Holtzman et al. 2020, arXiv:1904.09751)
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


@partial(jax.jit, static_argnames=("net", "length", "how"))
def sample(net: nn.Module, params: Tree, prompt: jax.Array, key: jax.Array, length: int, how: Sampling) -> jax.Array:
    """`length` tokens i32[batch, length] that go on from each prompt i32[batch, time], drawn one after the other."""
    variables = {"params": params}
    carry = net.apply(variables, prompt, prompt.shape[1] + length, method="start")
    logits, carry = net.apply(variables, prompt, carry, method="extend")

    def step(state: tuple[jax.Array, Tree], key: jax.Array) -> tuple[tuple[jax.Array, Tree], jax.Array]:
        logits, carry = state
        token = draw(key, logits, how)
        logits, carry = net.apply(variables, token[:, None], carry, method="extend")
        return (logits[:, -1], carry), token

    _, drawn = jax.lax.scan(step, (logits[:, -1], carry), jax.random.split(key, length))
    return drawn.T


def draw(key: jax.Array, logits: jax.Array, how: Sampling) -> jax.Array:
    """One token of each row of logits [batch, vocabulary]: i32[batch]."""
    if how.temperature == 0:
        return logits.argmax(-1)
    return jax.random.categorical(key, allowed(logits.astype(jnp.float32) / how.temperature, how.top_k, how.top_p))


def allowed(logits: jax.Array, top_k: int, top_p: float) -> jax.Array:
    """The logits [batch, vocabulary], -inf where a token may not be drawn. The likeliest always may."""
    if top_k:
        lowest = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < lowest, -jnp.inf, logits)
    if top_p < 1:
        ranked = jnp.sort(logits, descending=True)
        shares = jax.nn.softmax(ranked)
        before = jnp.cumsum(shares, -1) - shares  # the probability of the likelier ones
        lowest = jnp.where(before < top_p, ranked, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits < lowest, -jnp.inf, logits)
    return logits


class Beams(NamedTuple):
    """A search under way; [batch, beams] of what is alive, and of what has ended.

    alive, scores    tokens so far i32[batch, beams, length], and their log-probabilities
    ended, worths    the same of what has ended, its scores penalised for being short
    carry            of what is alive, leaves [batch * beams, ...]
    time             tokens done
    """

    alive: jax.Array
    scores: jax.Array
    ended: jax.Array
    worths: jax.Array
    carry: Tree
    time: jax.Array


@partial(jax.jit, static_argnames=("net", "length", "beams"))
def beam_search(
    net: nn.Module, params: Tree, source: jax.Array, length: int, beams: int, penalty: Any
) -> tuple[jax.Array, jax.Array]:
    """The best translations of each source i32[batch, time]: i32[batch, beams, length] and their worth, best first.

    They end in EOS, and PAD after it. The worth of a translation y is log p(y) / ((5 + |y|) / 6) ** penalty (Wu et al.
    2016, arXiv:1609.08144, without the penalty of coverage).
    """
    variables = {"params": params}
    batch = source.shape[0]
    several = lambda tree: jax.tree.map(lambda x: jnp.repeat(x, beams, 0), tree)
    carry = several(net.apply(variables, source, length, method="start"))

    def worth(score: jax.Array, tokens: Any) -> jax.Array:
        return score / ((5 + tokens) / 6) ** penalty

    def step(now: Beams) -> Beams:
        last = jnp.where(now.time == 0, BOS, jnp.take(now.alive, now.time - 1, axis=2, mode="clip")).reshape(-1, 1)
        logits, carry = net.apply(variables, last, now.carry, method="extend")
        steps = jax.nn.log_softmax(logits[:, -1].astype(jnp.float32)).reshape(batch, beams, -1)
        vocabulary = steps.shape[-1]
        steps = steps.at[:, :, jnp.array([PAD, BOS])].set(NEVER)
        # Twice as many as there are beams: however many of them end, as many are left alive.
        scores, which = jax.lax.top_k((now.scores[:, :, None] + steps).reshape(batch, -1), 2 * beams)
        origin, token = which // vocabulary, which % vocabulary
        tokens = jnp.take_along_axis(now.alive, origin[:, :, None], 1).at[:, :, now.time].set(token)
        ends = token == EOS

        worths = jnp.concatenate([now.worths, jnp.where(ends, worth(scores, now.time + 1), NEVER)], 1)
        worths, best = jax.lax.top_k(worths, beams)
        ended = jnp.take_along_axis(jnp.concatenate([now.ended, tokens], 1), best[:, :, None], 1)

        scores, best = jax.lax.top_k(jnp.where(ends, NEVER, scores), beams)
        alive = jnp.take_along_axis(tokens, best[:, :, None], 1)
        rows = (jnp.arange(batch)[:, None] * beams + jnp.take_along_axis(origin, best, 1)).reshape(-1)
        return Beams(alive, scores, ended, worths, jax.tree.map(lambda x: x[rows], carry), now.time + 1)

    def goes_on(now: Beams) -> jax.Array:
        hope = worth(now.scores[:, 0], length)  # the best that what is alive can become
        return (now.time < length) & (hope > now.worths[:, -1]).any()

    nothing = jnp.full((batch, beams, length), PAD, jnp.int32)
    first = jnp.where(jnp.arange(beams) == 0, 0.0, NEVER)  # all beams start alike: one of them counts
    scores = jnp.broadcast_to(first, (batch, beams))
    worths = jnp.full((batch, beams), NEVER)
    found = jax.lax.while_loop(goes_on, step, Beams(nothing, scores, nothing, worths, carry, jnp.int32(0)))
    # Where nothing has ended, what is alive must do.
    none = found.worths[:, :1] <= NEVER / 2
    ended = jnp.where(none[:, :, None], found.alive, found.ended)
    return ended, jnp.where(none, worth(found.scores, length), found.worths)
