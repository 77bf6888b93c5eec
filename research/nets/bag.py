"""A bag of words and bigrams: Joulin, Grave, Bojanowski & Mikolov 2017 (arXiv:1607.01759), "fastText"."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core.modules import Dropout, FromData
from research.core.special_tokens import PAD
from research.nets.dense import Dense


class Bag(nn.Module):
    """A linear classifier of the sum of a text's embeddings, divided by the square root of their number.

    Attributes:
        bigram_buckets: rows of the table of bigram embeddings; bigrams are hashed to rows, so several may share one
        embedding: features of a word's embedding, and of a bigram's, which is added to that of its first word
        word_dropout: fraction of words, with their bigrams, that are left out in training (Iyyer et al. 2015)
    """

    bigram_buckets: int = 2**18
    embedding: int = 32
    word_dropout: float = 0.0
    vocabulary: FromData[int] = 0
    outputs: FromData[int] = 0

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        """i32[batch, time], padded with PAD -> logits [batch, outputs]."""
        words = nn.Embed(self.vocabulary, self.embedding, embedding_init=nn.initializers.normal(0.1), name="words")
        bigrams = nn.Embed(self.bigram_buckets, self.embedding, embedding_init=nn.initializers.zeros, name="bigrams")
        mask = (tokens != PAD)[:, :, None]
        features = words(tokens) + bigrams(bigram_rows(tokens, self.bigram_buckets))
        features = Dropout(self.word_dropout, shared=(2,))(features, train)
        total = jnp.where(mask, features, 0).sum(1)
        return Dense(self.outputs, name="head")(total / jnp.sqrt(jnp.maximum(mask.sum(1), 1)).astype(total.dtype))


def bigram_rows(tokens: jax.Array, buckets: int) -> jax.Array:
    """The row i32[batch, time] below `buckets` of the bigram that begins at each token; PAD follows the last one."""
    following = jnp.pad(tokens[:, 1:], ((0, 0), (0, 1)), constant_values=PAD).astype(jnp.uint32)
    hashed = (tokens.astype(jnp.uint32) * jnp.uint32(0x9E3779B1) + following * jnp.uint32(0x85EBCA77)) >> 7
    return (hashed % jnp.uint32(buckets)).astype(jnp.int32)
