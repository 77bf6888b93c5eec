"""LSTMs: a language model, a classifier, and a translator with attention.

Hochreiter & Schmidhuber 1997, "Long short-term memory", with the forget gates of Gers, Schmidhuber & Cummins 2000.
"""

from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core.devices import replicated, shard_batch
from research.core.errors import UserError, positive
from research.core.modules import Dropout, FromData
from research.core.special_tokens import PAD
from research.nets.bag import Bag
from research.nets.dense import Dense, product
from research.nets.recurrence import recur
from research.nets.sequence import Memory, pool


class Carry(NamedTuple):
    """The state of an LSTM after a token: hidden and cell states, each [batch, layers, width]."""

    hidden: jax.Array
    cell: jax.Array


class Layer(nn.Module):
    """One layer in one direction. The inputs' contribution to the gates is one matrix product for all times."""

    width: int
    reverse: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array | None, carry: tuple[jax.Array, jax.Array] | None = None
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """x [time, batch, features], mask [time, batch, 1] -> hidden states [time, batch, width], the last states."""
        uniform = lambda key, shape, dtype=jnp.float32: jax.random.uniform(
            key, shape, dtype, -(self.width**-0.5), self.width**-0.5
        )
        kernel = self.param("kernel", uniform, (x.shape[-1], 4 * self.width))
        recurrent = self.param("recurrent_kernel", nn.initializers.orthogonal(), (self.width, 4 * self.width))
        bias = self.param("bias", _gate_bias, (4 * self.width,))
        zeros = jnp.zeros((x.shape[1], self.width), x.dtype)
        flip = (lambda x: x[::-1]) if self.reverse else (lambda x: x)
        gates = flip(shard_batch(product(x, kernel, 1), 1) + bias)
        mask = None if mask is None else flip(mask)
        hiddens, hidden, cell = recur(gates, replicated(recurrent), *(carry or (zeros, zeros)), mask)
        return flip(hiddens), (hidden, cell)


def _gate_bias(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """Biases of 0, and of 1 for the forget gate: Jozefowicz, Zaremba & Sutskever 2015."""
    width = shape[0] // 4
    return jnp.zeros(shape, dtype).at[width : 2 * width].set(1)


class LSTM(nn.Module):
    """Stacked LSTM layers.

    Attributes:
        bidirectional: whether each layer reads in both directions; each direction gives half of the width
        dropout: dropout rate between layers
    """

    layers: int
    width: int
    bidirectional: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        positive(self, "net", "layers", "width")
        if self.bidirectional and self.width % 2:
            raise UserError(f"net.width must be even, half of it for each direction, not {self.width}")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array | None = None, carry: Carry | None = None, train: bool = False
    ) -> tuple[jax.Array, Carry]:
        """x [batch, time, features] -> [batch, time, width], and the carry after it.

        mask   bool[batch, time], True for tokens, False for the padding after them
        carry  the initial states, None for zeros; bidirectional LSTMs take none
        """
        x = x.swapaxes(0, 1)
        mask = None if mask is None else mask.T[:, :, None].astype(x.dtype)
        last = []
        for n in range(self.layers):
            if n:
                x = Dropout(self.dropout, batch_axis=1)(x, train)
            if self.bidirectional:
                half = self.width // 2
                forward, forward_last = Layer(half)(x, mask)
                backward, backward_last = Layer(half, reverse=True)(x, mask)
                x = jnp.concatenate([forward, backward], -1)
                both = zip(forward_last, backward_last, strict=True)
                last.append(tuple(jnp.concatenate(pair, -1) for pair in both))
            else:
                initial = None if carry is None else (carry.hidden[:, n], carry.cell[:, n])
                x, state = Layer(self.width)(x, mask, initial)
                last.append(state)
        return x.swapaxes(0, 1), Carry(*(jnp.stack(states, 1) for states in zip(*last, strict=True)))


EMBEDDING_INIT = nn.initializers.normal(0.1)


class LanguageModel(nn.Module):
    """An autoregressive language model (Graves 2013, arXiv:1308.0850; Karpathy's char-rnn, 2015).

    Attributes:
        layers: number of LSTM layers
        width: width of each layer
        embedding: features of a token's embedding; None: as many as the width
        dropout: dropout rate of embeddings, between layers and before the last layer
    """

    layers: int = 2
    width: int = 128
    embedding: int | None = None
    dropout: float = 0.0
    outputs: FromData[int] = 0

    def setup(self) -> None:
        self.embed = nn.Embed(self.outputs, self.embedding or self.width, embedding_init=nn.initializers.normal(1.0))
        self.lstm = LSTM(self.layers, self.width, dropout=self.dropout)
        self.drop = Dropout(self.dropout)
        self.head = Dense(self.outputs)

    def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        """i32[batch, time] -> logits [batch, time, outputs] of the tokens that follow."""
        return self.logits(self.features(tokens, train))

    def features(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        """i32[batch, time] -> the features [batch, time, width] that the last layer reads."""
        return self._run(tokens, None, train)[0]

    def logits(self, x: jax.Array) -> jax.Array:
        """Features [..., width] -> logits [..., outputs], the last layer."""
        return self.head(x)

    def start(self, source: jax.Array, length: int) -> Carry:
        """The carry before the first token, for as many sequences as `source` ([batch, ...]) has."""
        dtype = self.embed(jnp.zeros(1, jnp.int32)).dtype
        zeros = jnp.zeros((source.shape[0], self.layers, self.width), dtype)
        return Carry(zeros, zeros)

    def extend(self, tokens: jax.Array, carry: Carry) -> tuple[jax.Array, Carry]:
        """The logits [batch, time, outputs] of tokens i32[batch, time] after the carry, and the carry after them."""
        x, carry = self._run(tokens, carry, False)
        return self.logits(x), carry

    def _run(self, tokens: jax.Array, carry: Carry | None, train: bool) -> tuple[jax.Array, Carry]:
        x = self.drop(self.embed(tokens), train)
        x, carry = self.lstm(x, carry=carry, train=train)
        return self.drop(x, train), carry


class Encoder(nn.Module):
    """A bidirectional LSTM: features of each token that depend on all tokens of its text.

    Its fields are those of `Classifier`.
    """

    vocabulary: int
    layers: int
    width: int
    embedding: int
    word_dropout: float = 0.0
    dropout: float = 0.0

    def setup(self) -> None:
        self.words = nn.Embed(self.vocabulary, self.embedding, embedding_init=EMBEDDING_INIT)
        self.drop = Dropout(self.word_dropout, shared=(2,))
        self.lstm = LSTM(self.layers, self.width, bidirectional=True, dropout=self.dropout)

    def __call__(self, tokens: jax.Array, train: bool) -> Memory:
        """i32[batch, time], padded with PAD -> their features and mask."""
        mask = tokens != PAD
        x, _ = self.lstm(self.drop(self.words(tokens), train), mask, train=train)
        return Memory(x, mask)

    def logits(self, x: jax.Array, count: int) -> jax.Array:
        """[..., embedding] -> [..., count], the logits of the first `count` words, by their embeddings."""
        return shard_batch(product(x, self.words.embedding[:count].T.astype(x.dtype)))


class Classifier(nn.Module):
    """An encoder, and a dense layer on the mean and the maximum of its features.

    With `bigram_buckets` there is a `Bag` beside it. Each of the two has a loss of its own in training, and the mean of
    their logits predicts: their errors differ (Mesnil, Mikolov, Ranzato & Bengio 2015, arXiv:1412.5335).

    Attributes:
        layers: number of LSTM layers
        width: width of each layer, both directions together
        embedding: features of a token's embedding
        word_dropout: fraction of tokens whose whole embedding is set to 0 in training (Iyyer et al. 2015)
        dropout: dropout rate between layers and before the last layer
        bigram_buckets: rows of the bag's table of bigram embeddings; 0 for no bag
        bag_dropout: fraction of words, with their bigrams, that the bag leaves out in training
    """

    layers: int = 1
    width: int = 256
    embedding: int = 128
    word_dropout: float = 0.0
    dropout: float = 0.0
    bigram_buckets: int = 0
    bag_dropout: float = 0.0
    vocabulary: FromData[int] = 0
    outputs: FromData[int] = 0

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        """i32[batch, time], padded with PAD -> logits [batch, outputs]; in training with a bag [batch, 2, outputs]."""
        sizes = self.vocabulary, self.layers, self.width, self.embedding
        features, mask = Encoder(*sizes, self.word_dropout, self.dropout, name="encoder")(tokens, train)
        logits = Dense(self.outputs, name="head")(Dropout(self.dropout)(pool(features, mask), train))
        if not self.bigram_buckets:
            return logits
        bag = Bag(
            bigram_buckets=self.bigram_buckets,
            word_dropout=self.bag_dropout,
            vocabulary=self.vocabulary,
            outputs=self.outputs,
            name="bag",
        )
        both = jnp.stack([logits, bag(tokens, train)], 1)
        return both if train else both.mean(1)


class MaskedModel(nn.Module):
    """A masked language model to pre-train the encoder of a `Classifier`, whose parameters have the same names.

    Devlin et al. 2019, "BERT" (arXiv:1810.04805), with a bidirectional LSTM.

    Attributes:
        layers: number of LSTM layers
        width: width of each layer, both directions together
        embedding: features of a token's embedding
        dropout: dropout rate between layers, and of the features that tokens are predicted from
    """

    layers: int = 1
    width: int = 256
    embedding: int = 128
    dropout: float = 0.0
    vocabulary: FromData[int] = 0
    outputs: FromData[int] = 0

    @nn.compact
    def __call__(self, inputs: tuple[jax.Array, jax.Array], train: bool = False) -> jax.Array:
        """(tokens i32[batch, time], positions i32[batch, n]) -> logits [batch, n, outputs] of the tokens there."""
        tokens, positions = inputs
        sizes = self.vocabulary, self.layers, self.width, self.embedding
        encoder = Encoder(*sizes, dropout=self.dropout, name="encoder")
        features = jnp.take_along_axis(encoder(tokens, train).tokens, positions[:, :, None], 1)
        x = nn.gelu(Dense(self.embedding)(Dropout(self.dropout)(features, train)))
        logits = encoder.logits(nn.LayerNorm(epsilon=1e-5)(x), self.outputs)
        return logits + self.param("bias", nn.initializers.zeros, (self.outputs,))


class Translation(NamedTuple):
    """The state of a translation: the carry of the decoder, and the encoded source."""

    carry: Carry
    memory: Memory


class Translator(nn.Module):
    """An encoder, and a decoder that attends to the source at every token.

    Attributes:
        layers: number of layers of the bidirectional encoder, and of the decoder
        width: width of each layer, and features of a token's embedding
        attention: luong: multiplicative, after the decoder's layers (Luong, Pham & Manning 2015, arXiv:1508.04025);
            bahdanau: additive, before them (Bahdanau, Cho & Bengio 2015, arXiv:1409.0473)
        dropout: dropout rate of embeddings, between layers and before the last layer
    """

    layers: int = 1
    width: int = 256
    attention: Literal["luong", "bahdanau"] = "luong"
    dropout: float = 0.0
    outputs: FromData[int] = 0

    def setup(self) -> None:
        self.embed = nn.Embed(self.outputs, self.width, embedding_init=EMBEDDING_INIT)
        self.encoder = LSTM(self.layers, self.width, bidirectional=True, dropout=self.dropout)
        decoder = LuongDecoder if self.attention == "luong" else BahdanauDecoder
        self.decoder = decoder(self.layers, self.width, self.dropout)
        self.drop = Dropout(self.dropout)

    def __call__(self, inputs: tuple[jax.Array, jax.Array], train: bool = False) -> jax.Array:
        """(source i32[batch, time], target i32[batch, time']) -> logits [batch, time', outputs] of what follows."""
        return self.logits(self.features(inputs, train))

    def features(self, inputs: tuple[jax.Array, jax.Array], train: bool = False) -> jax.Array:
        """The inputs of `__call__` -> the features [batch, time', width] that the last layer reads."""
        source, target = inputs
        return self._decode(target, self._encode(source, train), train)[0]

    def logits(self, x: jax.Array) -> jax.Array:
        """Features [..., width] -> logits [..., outputs], by the table of embeddings."""
        return shard_batch(product(x, self.embed.embedding.T.astype(x.dtype)))

    def start(self, source: jax.Array, length: int) -> Translation:
        """The state before the first token of a translation of the source i32[batch, time]."""
        return self._encode(source, False)

    def extend(self, tokens: jax.Array, state: Translation) -> tuple[jax.Array, Translation]:
        """The logits [batch, time, outputs] of tokens i32[batch, time] after the state, and the state after them."""
        x, state = self._decode(tokens, state, False)
        return self.logits(x), state

    def _encode(self, source: jax.Array, train: bool) -> Translation:
        mask = source != PAD
        x = self.drop(self.embed(source), train)
        features, carry = self.encoder(x, mask, train=train)
        return Translation(carry, Memory(features, mask))

    def _decode(self, tokens: jax.Array, state: Translation, train: bool) -> tuple[jax.Array, Translation]:
        x = self.drop(self.embed(tokens), train)
        x, carry = self.decoder(x, state, train)
        return self.drop(x, train), Translation(carry, state.memory)


class LuongDecoder(nn.Module):
    """An LSTM whose hidden states h attend to the encoder's features e with weights softmax(h W e), "general".

    The output is tanh(W [c, h]), c being the weighted mean of e. It is not fed back to the LSTM ("input feeding"), so
    all tokens attend at once.
    """

    layers: int
    width: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, state: Translation, train: bool) -> tuple[jax.Array, Carry]:
        """x [batch, time, width] -> outputs [batch, time, width], and the carry after them."""
        memory = state.memory
        h, carry = LSTM(self.layers, self.width, dropout=self.dropout)(x, carry=state.carry, train=train)
        queries = Dense(self.width, use_bias=False)(h)
        scores = jnp.einsum("bqw,bkw->bqk", queries, memory.tokens, preferred_element_type=jnp.float32)
        weights = nn.softmax(jnp.where(memory.mask[:, None], scores, -1e9))
        self.sow("intermediates", "attention", weights)
        c = weights.astype(x.dtype) @ memory.tokens
        return jnp.tanh(Dense(self.width, use_bias=False)(jnp.concatenate([c, h], -1))), carry


class BahdanauDecoder(nn.Module):
    """An LSTM whose last state s attends to the encoder's features e with weights softmax(v . tanh(W s + U e)).

    The weighted mean c of e and the token itself are the inputs of the first layer. The output is tanh(W [c, s]), s
    being the state of the last layer.
    """

    layers: int
    width: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, state: Translation, train: bool) -> tuple[jax.Array, Carry]:
        """x [batch, time, width] -> outputs [batch, time, width], and the carry after them."""
        width, memory = self.width, state.memory
        uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        query = self.param("query_kernel", uniform, (width, width))
        v = self.param("score_kernel", uniform, (width, 1))[:, 0]
        keys = Dense(width, name="keys")(memory.tokens)
        kernel = self.param("context_kernel", uniform, (width, 4 * width))
        recurrent = self.param("recurrent_kernel", nn.initializers.orthogonal(), (width, 4 * width))
        gates = Dense(4 * width, bias_init=_gate_bias, name="gates")(x)

        def step(states: tuple, gates: jax.Array) -> tuple[tuple, tuple]:
            s, cell = states
            scores = jnp.matmul(jnp.tanh((s @ query)[:, None] + keys), v, preferred_element_type=jnp.float32)
            weights = nn.softmax(jnp.where(memory.mask, scores, -1e9))
            c = jnp.einsum("bk,bkw->bw", weights.astype(s.dtype), memory.tokens)
            i, f, g, o = jnp.split(gates + c @ kernel + s @ recurrent, 4, -1)
            cell = nn.sigmoid(f) * cell + nn.sigmoid(i) * jnp.tanh(g)
            s = nn.sigmoid(o) * jnp.tanh(cell)
            return (s, cell), (s, c, weights)

        carry = state.carry
        first = (carry.hidden[:, 0], carry.cell[:, 0])
        first, stacked = jax.lax.scan(step, first, gates.swapaxes(0, 1))
        s, c, weights = (y.swapaxes(0, 1) for y in stacked)
        self.sow("intermediates", "attention", weights)
        upper = Carry(carry.hidden[:, 1:], carry.cell[:, 1:])
        if self.layers > 1:
            s = Dropout(self.dropout)(s, train)
            s, upper = LSTM(self.layers - 1, width, dropout=self.dropout)(s, carry=upper, train=train)
        joined = (jnp.concatenate([state[:, None], rest], 1) for state, rest in zip(first, upper, strict=True))
        return jnp.tanh(Dense(width, use_bias=False)(jnp.concatenate([c, s], -1))), Carry(*joined)
