"""A bag of words and pairs of words: Joulin, Grave, Bojanowski & Mikolov 2017 (arXiv:1607.01759), "fastText"."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core.dropout import Dropout
from research.core.modules import Filled
from research.core.special_tokens import PAD
from research.nets.dense import Dense


class Bag(nn.Module):
    """A linear classifier of the sum of a text's embeddings, over the root of their number.

    Attributes:
        pairs: rows of the table of pairs of neighbours, which find theirs by hashing; several may share one
        embedding: features of a word, to which those of the pair that it begins are added
        word_dropout: the share of them that are left out (Iyyer et al. 2015)
    """

    pairs: int = 2**18
    embedding: int = 32
    word_dropout: float = 0.0
    vocabulary: Filled[int] = 0
    outputs: Filled[int] = 0

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        """i32[batch, time], padded with PAD -> logits [batch, outputs]."""
        words = nn.Embed(self.vocabulary, self.embedding, embedding_init=nn.initializers.normal(0.1), name="words")
        pairs = nn.Embed(self.pairs, self.embedding, embedding_init=nn.initializers.zeros, name="pairs")
        there = (tokens != PAD)[:, :, None]
        x = Dropout(self.word_dropout, shared=(2,))(words(tokens) + pairs(rows(tokens, self.pairs)), train)
        total = jnp.where(there, x, 0).sum(1)
        return Dense(self.outputs, name="head")(total / jnp.sqrt(jnp.maximum(there.sum(1), 1)).astype(total.dtype))


def rows(tokens: jax.Array, count: int) -> jax.Array:
    """Of each token and the next one, after the last of which there is PAD, a row of `count`: i32[batch, time]."""
    after = jnp.pad(tokens[:, 1:], ((0, 0), (0, 1)), constant_values=PAD).astype(jnp.uint32)
    mixed = (tokens.astype(jnp.uint32) * jnp.uint32(0x9E3779B1) + after * jnp.uint32(0x85EBCA77)) >> 7
    return (mixed % jnp.uint32(count)).astype(jnp.int32)
