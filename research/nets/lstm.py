"""LSTMs: a language model, a classifier, and a translator with attention.

Hochreiter & Schmidhuber 1997, "Long short-term memory", with forget gates (Gers, Schmidhuber & Cummins 2000).
"""

from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core.dropout import Dropout
from research.core.modules import Filled
from research.core.special_tokens import PAD
from research.nets.bag import Bag
from research.nets.dense import Dense, product
from research.nets.sequence import Memory, pool


class Carry(NamedTuple):
    """What an LSTM remembers: hidden and cell states, each [batch, layers, width]."""

    hidden: jax.Array
    cell: jax.Array


@jax.custom_vjp
def recur(
    gates: jax.Array, kernel: jax.Array, hidden: jax.Array, cell: jax.Array, there: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The recurrence of one layer, given the inputs' share of its gates.

    gates         [time, batch, 4 * width]: input, forget, candidate, output, before their nonlinearities
    kernel        [width, 4 * width], from the hidden state to the gates
    hidden, cell  [batch, width] at the start
    there         [time, batch, 1], 1 for a token and 0 for padding, which changes nothing; None: all are there

    Returns the hidden states [time, batch, width], and the last hidden and cell states. The gradient of the kernel is
    one matrix product at the end, not one a step.
    """
    outputs, last, _ = _run(gates, kernel, hidden, cell, there)
    return outputs, *last


def _halves(width: int, dtype: jnp.dtype) -> jax.Array:
    """What a gate's input is multiplied by, [4 * width]: as sigmoid(z) = (1 + tanh(z / 2)) / 2, one tanh serves all."""
    return jnp.repeat(jnp.array([0.5, 0.5, 1.0, 0.5], dtype), width)


def _split(squashed: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The gates i, f, o and the candidate g, of the tanh of all."""
    i, f, g, o = jnp.split(squashed, 4, -1)
    return 0.5 + 0.5 * i, 0.5 + 0.5 * f, g, 0.5 + 0.5 * o


def _run(gates, kernel, hidden, cell, there):  # type: ignore[no-untyped-def]
    halves = _halves(hidden.shape[-1], hidden.dtype)

    def step(carry, now):  # type: ignore[no-untyped-def]
        (hidden, cell), (gates, there) = carry, now
        squashed = jnp.tanh((gates + hidden @ kernel) * halves)
        i, f, g, o = _split(squashed)
        new_cell = f * cell + i * g
        new_hidden = o * jnp.tanh(new_cell)
        if there is not None:
            new_hidden, new_cell = (jnp.where(there > 0, n, c) for n, c in ((new_hidden, hidden), (new_cell, cell)))
        return (new_hidden, new_cell), (new_hidden, new_cell, squashed)

    last, (hiddens, cells, squashed) = jax.lax.scan(step, (hidden, cell), (gates, there), unroll=2)
    return hiddens, last, (cells, squashed)


def _forward(gates, kernel, hidden, cell, there):  # type: ignore[no-untyped-def]
    hiddens, last, (cells, squashed) = _run(gates, kernel, hidden, cell, there)
    return (hiddens, *last), (hiddens, cells, squashed, kernel, hidden, cell, there)


def _backward(saved, gradients):  # type: ignore[no-untyped-def]
    hiddens, cells, squashed, kernel, hidden, cell, there = saved
    before = lambda first, states: jnp.concatenate([first[None], states[:-1]])
    # What does not hang on later gradients, for all times at once: of the gates by the cell (of o, by the hidden
    # state), and of the cell by the hidden state.
    i, f, g, o = _split(squashed)
    bent = jnp.tanh(cells)
    each = [g * i * (1 - i), before(cell, cells) * f * (1 - f), i * (1 - g**2), bent * o * (1 - o)]
    by, through = jnp.concatenate(each, -1), o * (1 - bent**2)
    if there is not None:
        by, through = by * there, through * there
    transposed = jax.lax.optimization_barrier(kernel.T)  # laid out once, not at each step

    def step(carry, now):  # type: ignore[no-untyped-def]
        (dh, dc), (dy, by, through, f, there) = carry, now
        dh = dh + dy
        dcell = dc + dh * through
        dgates = jnp.concatenate([dcell, dcell, dcell, dh], -1) * by
        if there is None:
            return (dgates @ transposed, dcell * f), dgates
        return (dgates @ transposed + dh * (1 - there), jnp.where(there > 0, dcell * f, dc)), dgates

    dy, *last = gradients
    now = (dy, by, through, f, there)
    (dhidden, dcell), dgates = jax.lax.scan(step, tuple(last), now, reverse=True, unroll=2)
    dkernel = jnp.einsum("tbh,tbg->hg", before(hidden, hiddens), dgates)
    return dgates, dkernel, dhidden, dcell, None if there is None else jnp.zeros_like(there)


recur.defvjp(_forward, _backward)


class Layer(nn.Module):
    """One layer in one direction. The inputs' share of the gates is one matrix product for all times."""

    width: int
    reverse: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, there: jax.Array | None, carry: tuple[jax.Array, jax.Array] | None = None
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """x [time, batch, features], there [time, batch, 1] -> hidden states [time, batch, width], the last states."""
        bound = lambda key, shape, dtype=jnp.float32: jax.random.uniform(
            key, shape, dtype, -(self.width**-0.5), self.width**-0.5
        )
        kernel = self.param("kernel", bound, (x.shape[-1], 4 * self.width))
        recurrent = self.param("recurrent_kernel", nn.initializers.orthogonal(), (self.width, 4 * self.width))
        bias = self.param("bias", _remember, (4 * self.width,))
        zeros = jnp.zeros((x.shape[1], self.width), x.dtype)
        turn = (lambda x: x[::-1]) if self.reverse else (lambda x: x)
        gates = turn(product(x, kernel, 1) + bias)
        there = None if there is None else turn(there)
        hiddens, hidden, cell = recur(gates, recurrent, *(carry or (zeros, zeros)), there)
        return turn(hiddens), (hidden, cell)


def _remember(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """Biases of 0, of the forget gate 1: Jozefowicz, Zaremba & Sutskever 2015."""
    width = shape[0] // 4
    return jnp.zeros(shape, dtype).at[width : 2 * width].set(1)


class LSTM(nn.Module):
    """Layers on top of each other.

    Attributes:
        bidirectional: each layer reads both ways, and gives both halves of its width
        dropout: between the layers
    """

    layers: int
    width: int
    bidirectional: bool = False
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array | None = None, carry: Carry | None = None, train: bool = False
    ) -> tuple[jax.Array, Carry]:
        """x [batch, time, features] -> [batch, time, width], and the carry after it.

        mask   bool[batch, time], True for tokens, False for the padding after them
        carry  where it goes on from; none for bidirectional ones
        """
        x = x.swapaxes(0, 1)
        there = None if mask is None else mask.T[:, :, None].astype(x.dtype)
        last = []
        for n in range(self.layers):
            if n:
                x = Dropout(self.dropout, batch_axis=1)(x, train)
            if self.bidirectional:
                half = self.width // 2
                ahead, a = Layer(half)(x, there)
                back, b = Layer(half, reverse=True)(x, there)
                x = jnp.concatenate([ahead, back], -1)
                last.append(tuple(jnp.concatenate(pair, -1) for pair in zip(a, b, strict=True)))
            else:
                before = None if carry is None else (carry.hidden[:, n], carry.cell[:, n])
                x, state = Layer(self.width)(x, there, before)
                last.append(state)
        return x.swapaxes(0, 1), Carry(*(jnp.stack(states, 1) for states in zip(*last, strict=True)))


EMBEDDING = nn.initializers.normal(0.1)


class LanguageModel(nn.Module):
    """Each token's logits for the next one (Graves 2013, arXiv:1308.0850; Karpathy's char-rnn, 2015).

    Attributes:
        layers: of LSTM
        width: of each
        embedding: features of a token; None: the width
        dropout: of embeddings, between layers and before the output
    """

    layers: int = 2
    width: int = 128
    embedding: int | None = None
    dropout: float = 0.0
    outputs: Filled[int] = 0

    def setup(self) -> None:
        self.embed = nn.Embed(self.outputs, self.embedding or self.width, embedding_init=nn.initializers.normal(1.0))
        self.lstm = LSTM(self.layers, self.width, dropout=self.dropout)
        self.drop = Dropout(self.dropout)
        self.head = Dense(self.outputs)

    def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        """i32[batch, time] -> logits [batch, time, outputs]."""
        return self._run(tokens, None, train)[0]

    def start(self, source: jax.Array, length: int) -> Carry:
        """The carry before the first token, for as many sequences as `source` ([batch, ...]) has."""
        dtype = self.embed(jnp.zeros(1, jnp.int32)).dtype
        zeros = jnp.zeros((source.shape[0], self.layers, self.width), dtype)
        return Carry(zeros, zeros)

    def extend(self, tokens: jax.Array, carry: Carry) -> tuple[jax.Array, Carry]:
        """The logits [batch, time, outputs] of tokens i32[batch, time] that follow what the carry remembers."""
        return self._run(tokens, carry, False)

    def _run(self, tokens: jax.Array, carry: Carry | None, train: bool) -> tuple[jax.Array, Carry]:
        x = self.drop(self.embed(tokens), train)
        x, carry = self.lstm(x, carry=carry, train=train)
        return self.head(self.drop(x, train)), carry


class Encoder(nn.Module):
    """Each token's features, from all tokens of its text, by a bidirectional LSTM.

    The fields are those of `Classifier`.
    """

    vocabulary: int
    layers: int
    width: int
    embedding: int
    word_dropout: float = 0.0
    dropout: float = 0.0

    def setup(self) -> None:
        self.words = nn.Embed(self.vocabulary, self.embedding, embedding_init=EMBEDDING)
        self.drop = Dropout(self.word_dropout, shared=(2,))
        self.lstm = LSTM(self.layers, self.width, bidirectional=True, dropout=self.dropout)

    def __call__(self, tokens: jax.Array, train: bool) -> Memory:
        """i32[batch, time], padded with PAD."""
        mask = tokens != PAD
        x, _ = self.lstm(self.drop(self.words(tokens), train), mask, train=train)
        return Memory(x, mask)

    def logits(self, x: jax.Array, count: int) -> jax.Array:
        """[..., embedding] -> [..., count], of the first so many words."""
        return product(x, self.words.embedding[:count].T.astype(x.dtype))


class Classifier(nn.Module):
    """An encoder, and a dense layer on the mean and the maximum of its features.

    Beside it there may be a `Bag`: then two read the text, each with a loss of its own, and their mean logits tell.
    They err on other texts (Mesnil, Mikolov, Ranzato & Bengio 2015, arXiv:1412.5335).

    Attributes:
        layers: of LSTM
        width: of each, both directions together
        embedding: features of a token before them
        word_dropout: the share of tokens whose embeddings are zeroed, whole (Iyyer et al. 2015)
        dropout: between layers, and before the output
        pairs: rows of the bag's table of pairs of words, or 0 for no bag
        bag_dropout: the share of words and pairs that the bag leaves out
    """

    layers: int = 1
    width: int = 256
    embedding: int = 128
    word_dropout: float = 0.0
    dropout: float = 0.0
    pairs: int = 0
    bag_dropout: float = 0.0
    vocabulary: Filled[int] = 0
    outputs: Filled[int] = 0

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        """i32[batch, time], padded with PAD -> logits [batch, outputs]; in training [batch, 2, outputs] with a bag."""
        sizes = self.vocabulary, self.layers, self.width, self.embedding
        features, mask = Encoder(*sizes, self.word_dropout, self.dropout, name="encoder")(tokens, train)
        logits = Dense(self.outputs, name="head")(Dropout(self.dropout)(pool(features, mask), train))
        if not self.pairs:
            return logits
        bag = Bag(
            pairs=self.pairs,
            word_dropout=self.bag_dropout,
            vocabulary=self.vocabulary,
            outputs=self.outputs,
            name="bag",
        )
        both = jnp.stack([logits, bag(tokens, train)], 1)
        return both if train else both.mean(1)


class MaskedModel(nn.Module):
    """An encoder that guesses tokens hidden from it, to pre-train a `Classifier`: their encoders' parameters are alike.

    Devlin et al. 2019, "BERT" (arXiv:1810.04805), with a bidirectional LSTM.

    Attributes:
        layers: of LSTM
        width: of each, both directions together
        embedding: features of a token before them
        dropout: between layers, and of the features that are guessed from
    """

    layers: int = 1
    width: int = 256
    embedding: int = 128
    dropout: float = 0.0
    vocabulary: Filled[int] = 0
    outputs: Filled[int] = 0

    @nn.compact
    def __call__(self, inputs: tuple[jax.Array, jax.Array], train: bool = False) -> jax.Array:
        """(tokens i32[batch, time], places i32[batch, n]) -> logits [batch, n, outputs] at those places."""
        tokens, places = inputs
        sizes = self.vocabulary, self.layers, self.width, self.embedding
        encoder = Encoder(*sizes, dropout=self.dropout, name="encoder")
        features = jnp.take_along_axis(encoder(tokens, train).tokens, places[:, :, None], 1)
        x = nn.gelu(Dense(self.embedding)(Dropout(self.dropout)(features, train)))
        logits = encoder.logits(nn.LayerNorm(epsilon=1e-5)(x), self.outputs)
        return logits + self.param("bias", nn.initializers.zeros, (self.outputs,))


class Translation(NamedTuple):
    """What a translator's decoder remembers, and what it translates."""

    carry: Carry
    memory: Memory


class Translator(nn.Module):
    """An encoder, and a decoder that attends to it at every word.

    Attributes:
        layers: of the encoder, which reads both ways, and of the decoder
        width: of each, and of a token's features
        attention: luong: after the decoder's layers, by products (Luong, Pham & Manning 2015, arXiv:1508.04025);
            bahdanau: before them, by a small net (Bahdanau, Cho & Bengio 2015, arXiv:1409.0473)
        dropout: of embeddings, between layers, and of the output
    """

    layers: int = 1
    width: int = 256
    attention: Literal["luong", "bahdanau"] = "luong"
    dropout: float = 0.0
    outputs: Filled[int] = 0

    def setup(self) -> None:
        self.embed = nn.Embed(self.outputs, self.width, embedding_init=EMBEDDING)
        self.encoder = LSTM(self.layers, self.width, bidirectional=True, dropout=self.dropout)
        decoder = LuongDecoder if self.attention == "luong" else BahdanauDecoder
        self.decoder = decoder(self.layers, self.width, self.dropout)
        self.drop = Dropout(self.dropout)

    def __call__(self, inputs: tuple[jax.Array, jax.Array], train: bool = False) -> jax.Array:
        """(source i32[batch, time], target so far i32[batch, time']) -> logits [batch, time', outputs]."""
        source, target = inputs
        return self._decode(target, self._encode(source, train), train)[0]

    def start(self, source: jax.Array, length: int) -> Translation:
        """The encoded source i32[batch, time], before the first word of its translation."""
        return self._encode(source, False)

    def extend(self, tokens: jax.Array, state: Translation) -> tuple[jax.Array, Translation]:
        """The logits [batch, time, outputs] of tokens i32[batch, time] that follow those before."""
        return self._decode(tokens, state, False)

    def _encode(self, source: jax.Array, train: bool) -> Translation:
        mask = source != PAD
        x = self.drop(self.embed(source), train)
        features, carry = self.encoder(x, mask, train=train)
        return Translation(carry, Memory(features, mask))

    def _decode(self, tokens: jax.Array, state: Translation, train: bool) -> tuple[jax.Array, Translation]:
        x = self.drop(self.embed(tokens), train)
        x, carry = self.decoder(x, state, train)
        logits = product(self.drop(x, train), self.embed.embedding.T.astype(x.dtype))
        return logits, Translation(carry, state.memory)


class LuongDecoder(nn.Module):
    """The states h of an LSTM look up c, the mean of the encoder's features e weighted by softmax(h W e), "general".

    The output is tanh(W [c, h]). Nothing of it goes back into the LSTM, so that all words are looked up at once.
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
    """The state s before a word looks up c, the mean of the features e weighted by softmax(v . tanh(W s + U e)).

    With c and the word itself, the first layer makes the next state; the output is tanh(W [c, s]), s of the last layer.
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
        gates = Dense(4 * width, bias_init=_remember, name="gates")(x)

        def step(before: tuple, gates: jax.Array) -> tuple[tuple, tuple]:
            s, cell = before
            scores = jnp.matmul(jnp.tanh((s @ query)[:, None] + keys), v, preferred_element_type=jnp.float32)
            weights = nn.softmax(jnp.where(memory.mask, scores, -1e9))
            c = jnp.einsum("bk,bkw->bw", weights.astype(s.dtype), memory.tokens)
            i, f, g, o = jnp.split(gates + c @ kernel + s @ recurrent, 4, -1)
            cell = nn.sigmoid(f) * cell + nn.sigmoid(i) * jnp.tanh(g)
            s = nn.sigmoid(o) * jnp.tanh(cell)
            return (s, cell), (s, c, weights)

        carry = state.carry
        start = (carry.hidden[:, 0], carry.cell[:, 0])
        last, told = jax.lax.scan(step, start, gates.swapaxes(0, 1))
        s, c, weights = (y.swapaxes(0, 1) for y in told)
        self.sow("intermediates", "attention", weights)
        above = Carry(carry.hidden[:, 1:], carry.cell[:, 1:])
        if self.layers > 1:
            s = Dropout(self.dropout)(s, train)
            s, above = LSTM(self.layers - 1, width, dropout=self.dropout)(s, carry=above, train=train)
        joined = (jnp.concatenate([first[:, None], rest], 1) for first, rest in zip(last, above, strict=True))
        return jnp.tanh(Dense(width, use_bias=False)(jnp.concatenate([c, s], -1))), Carry(*joined)
