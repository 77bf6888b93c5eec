"""Autoregressive decoding, for any net with the methods `start` and `extend`: language models and translators.

    start(source, length) -> carry            before the first token
    extend(tokens, carry) -> (logits, carry)  tokens i32[batch, time], logits [batch, time, vocabulary] of the next ones

Every leaf of a carry is [batch, ...]: a cache of keys and values, or the states of an LSTM.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from research.core.modules import Apply
from research.core.special_tokens import BOS, EOS, PAD
from research.core.state import Weights
from research.core.types import Tree

IMPOSSIBLE = -1e9
"""The log-probability of a token or sequence that is ruled out."""


class Sampling(NamedTuple):
    """How a token is sampled from its distribution.

    temperature  divides the logits; 0 takes the most likely token
    top_k        only the k most likely tokens can be sampled; 0: all
    top_p        only the most likely tokens whose probabilities add up to this can be sampled (nucleus sampling,
                 Holtzman et al. 2020, arXiv:1904.09751)
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


@partial(jax.jit, static_argnames=("apply", "length", "sampling"))
def sample(
    apply: Apply, weights: Weights, prompt: jax.Array, key: jax.Array, length: int, sampling: Sampling
) -> jax.Array:
    """Samples `length` tokens, i32[batch, length], that continue each prompt i32[batch, time]."""
    carry, _ = apply(*weights, prompt, prompt.shape[1] + length, method="start")
    (logits, carry), _ = apply(*weights, prompt, carry, method="extend")

    def step(state: tuple[jax.Array, Tree], key: jax.Array) -> tuple[tuple[jax.Array, Tree], jax.Array]:
        logits, carry = state
        token = sample_token(key, logits, sampling)
        (logits, carry), _ = apply(*weights, token[:, None], carry, method="extend")
        return (logits[:, -1], carry), token

    _, tokens = jax.lax.scan(step, (logits[:, -1], carry), jax.random.split(key, length))
    return tokens.T


def sample_token(key: jax.Array, logits: jax.Array, sampling: Sampling) -> jax.Array:
    """One token for each row of logits [batch, vocabulary]: i32[batch]."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    scaled = logits.astype(jnp.float32) / sampling.temperature
    return jax.random.categorical(key, filter_logits(scaled, sampling.top_k, sampling.top_p))


def filter_logits(logits: jax.Array, top_k: int, top_p: float) -> jax.Array:
    """The logits [batch, vocabulary], -inf where top_k or top_p rules a token out; never for the most likely one."""
    if top_k:
        lowest = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < lowest, -jnp.inf, logits)
    if top_p < 1:
        ranked = jnp.sort(logits, descending=True)
        probabilities = jax.nn.softmax(ranked)
        before = jnp.cumsum(probabilities, -1) - probabilities  # the probability of all more likely tokens
        lowest = jnp.where(before < top_p, ranked, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits < lowest, -jnp.inf, logits)
    return logits


class Beams(NamedTuple):
    """The state of a beam search.

    live             unfinished sequences i32[batch, beams, length]
    live_scores      their log-probabilities f32[batch, beams]
    finished         the best sequences i32[batch, beams, length] that have ended in EOS
    finished_scores  their log-probabilities f32[batch, beams], divided by the length penalty
    carry            the net's carry of the live sequences, leaves [batch * beams, ...]
    time             i32[], tokens done
    """

    live: jax.Array
    live_scores: jax.Array
    finished: jax.Array
    finished_scores: jax.Array
    carry: Tree
    time: jax.Array


@partial(jax.jit, static_argnames=("apply", "length", "beams"))
def beam_search(
    apply: Apply, weights: Weights, source: jax.Array, length: int, beams: int, length_penalty: Any
) -> tuple[jax.Array, jax.Array]:
    """The best translations i32[batch, beams, length] of each source i32[batch, time], and their scores, best first.

    A translation ends in EOS, with PAD after it. The score of y is log p(y) / ((5 + |y|) / 6) ** length_penalty (Wu et
    al. 2016, arXiv:1609.08144, without the coverage penalty).
    """
    batch = source.shape[0]
    carry, _ = apply(*weights, source, length, method="start")
    carry = jax.tree.map(lambda x: jnp.repeat(x, beams, 0), carry)

    def penalize(log_probability: jax.Array, tokens: Any) -> jax.Array:
        return log_probability / ((5 + tokens) / 6) ** length_penalty

    def step(now: Beams) -> Beams:
        last = jnp.where(now.time == 0, BOS, jnp.take(now.live, now.time - 1, axis=2, mode="clip")).reshape(-1, 1)
        (logits, carry), _ = apply(*weights, last, now.carry, method="extend")
        log_probabilities = jax.nn.log_softmax(logits[:, -1].astype(jnp.float32)).reshape(batch, beams, -1)
        log_probabilities = log_probabilities.at[:, :, jnp.array([PAD, BOS])].set(IMPOSSIBLE)
        vocabulary = log_probabilities.shape[-1]
        # Twice as many candidates as beams: at most one per beam ends, so enough of them stay live.
        candidates = (now.live_scores[:, :, None] + log_probabilities).reshape(batch, -1)
        scores, index = jax.lax.top_k(candidates, 2 * beams)
        origin, token = index // vocabulary, index % vocabulary
        sequences = jnp.take_along_axis(now.live, origin[:, :, None], 1).at[:, :, now.time].set(token)
        ends = token == EOS

        ending = jnp.where(ends, penalize(scores, now.time + 1), IMPOSSIBLE)
        finished_scores, best = jax.lax.top_k(jnp.concatenate([now.finished_scores, ending], 1), beams)
        finished = jnp.take_along_axis(jnp.concatenate([now.finished, sequences], 1), best[:, :, None], 1)

        live_scores, best = jax.lax.top_k(jnp.where(ends, IMPOSSIBLE, scores), beams)
        live = jnp.take_along_axis(sequences, best[:, :, None], 1)
        rows = (jnp.arange(batch)[:, None] * beams + jnp.take_along_axis(origin, best, 1)).reshape(-1)
        carry = jax.tree.map(lambda x: x[rows], carry)
        return Beams(live, live_scores, finished, finished_scores, carry, now.time + 1)

    def unfinished(now: Beams) -> jax.Array:
        bound = penalize(now.live_scores[:, 0], length)  # no live sequence can end with a better score
        return (now.time < length) & (bound > now.finished_scores[:, -1]).any()

    empty = jnp.full((batch, beams, length), PAD, jnp.int32)
    # All beams start from the same empty sequence, so only the first one counts.
    live_scores = jnp.broadcast_to(jnp.where(jnp.arange(beams) == 0, 0.0, IMPOSSIBLE), (batch, beams))
    finished_scores = jnp.full((batch, beams), IMPOSSIBLE)
    start = Beams(empty, live_scores, empty, finished_scores, carry, jnp.int32(0))
    end = jax.lax.while_loop(unfinished, step, start)
    # Where no sequence has ended within `length`, the live ones are returned.
    none = end.finished_scores[:, :1] <= IMPOSSIBLE / 2
    sequences = jnp.where(none[:, :, None], end.live, end.finished)
    return sequences, jnp.where(none, penalize(end.live_scores, length), end.finished_scores)
