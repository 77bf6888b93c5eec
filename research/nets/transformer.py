"""Transformers: a language model, an encoder and a translator, of the same blocks.

Vaswani et al. 2017, "Attention is all you need" (arXiv:1706.03762). The layers' parameters are stacked, leaves
[layers, ...], whether the layers are compiled one by one or as a loop.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core.dropout import Dropout
from research.core.errors import Mistake
from research.core.experiment import positive
from research.core.modules import Filled
from research.core.special_tokens import PAD
from research.nets.dense import Dense, product
from research.nets.sequence import Memory, pool

SMALL = nn.initializers.normal(0.02)
"""How kernels and embeddings start: Radford et al. 2019, "Language models are unsupervised multitask learners"."""


@dataclass(frozen=True)
class Stack:
    """A stack of blocks.

    Attributes:
        layers: how many
        width: features of a token
        heads: of attention; they divide the width
        groups: heads of keys and values, which divide `heads`; None: as many (Ainslie et al. 2023, arXiv:2305.13245)
        hidden: features inside the feed-forward layers; None: 4 times the width
        activation: inside them; swiglu is a product of two layers (Shazeer 2020, arXiv:2002.05202)
        norm: before each layer (pre) or after it (post; Xiong et al. 2020, arXiv:2002.04745)
        positions: learned, sinusoidal, or rotary (Su et al. 2021, arXiv:2104.09864)
        dropout: of embeddings and of what each layer adds
        bias: whether layers have biases
        remat: whether the backward pass computes a block anew, to save memory
        unroll: layers compiled one by one; of deeper stacks, so many a turn of a loop
        attention: flash is cuDNN's, in programs for NVIDIA's GPUs that compute in bfloat16, and xla's elsewhere
    """

    layers: int = 4
    width: int = 128
    heads: int = 4
    groups: int | None = None
    hidden: int | None = None
    activation: Literal["gelu", "relu", "swiglu"] = "gelu"
    norm: Literal["pre", "post"] = "pre"
    positions: Literal["learned", "sinusoidal", "rotary"] = "learned"
    dropout: float = 0.0
    bias: bool = True
    remat: bool = False
    unroll: int = 8
    attention: Literal["flash", "xla"] = "flash"

    def __post_init__(self) -> None:
        positive(self, "net.stack", "layers", "width", "heads", "unroll")
        if self.width % self.heads or self.heads % (self.groups or self.heads):
            raise Mistake(
                f"net.stack: heads={self.heads} must divide width={self.width}, and groups={self.groups} the heads"
            )
        if self.positions == "rotary" and self.width // self.heads % 2:
            raise Mistake(f"net.stack: rotary positions need heads of even width, not {self.width // self.heads}")


class Cache(NamedTuple):
    """Keys and values of the tokens so far, of all layers; each leaf [batch, ...], so that batches can be reordered.

    keys, values  [batch, layers, length, groups, features]
    position      i32[batch], how many there are
    memory        what a translator translates; None for a language model
    """

    keys: jax.Array
    values: jax.Array
    position: jax.Array
    memory: Memory | None


class Seen(NamedTuple):
    """What all layers are told: positions i32[batch or 1, time]; the mask bool[batch, 1, time, keys] of what each token
    may attend to, None for all (of those before it, where `causal`); and a memory, if there is one."""

    positions: jax.Array
    mask: jax.Array | None
    memory: Memory | None


class Attention(nn.Module):
    """Multi-head attention of a sequence to itself, or to a memory."""

    stack: Stack
    causal: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, seen: Seen, cache: tuple[jax.Array, jax.Array] | None, memory: Memory | None = None
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
        """x [batch, time, width] -> the same, and this layer's cache with the new keys and values in it."""
        stack, (batch, time, width) = self.stack, x.shape
        heads, groups = stack.heads, stack.groups or stack.heads
        size = width // heads
        split = lambda y, n: y.reshape(batch, -1, n, size)
        if memory is None:
            q, k, v = jnp.split(self._dense((heads + 2 * groups) * size, "qkv")(x), _bounds(heads, groups, size), -1)
            mask = seen.mask
        else:
            q = self._dense(width, "q")(x)
            k, v = jnp.split(self._dense(2 * groups * size, "kv")(memory.tokens), 2, -1)
            mask = memory.mask[:, None, None, :]
        q, k, v = split(q, heads), split(k, groups), split(v, groups)
        if stack.positions == "rotary" and memory is None:
            q, k = rotated(q, seen.positions), rotated(k, seen.positions)
        if cache is not None and memory is None:
            rows = jnp.arange(batch)[:, None]
            k = cache[0].at[rows, seen.positions].set(k)
            v = cache[1].at[rows, seen.positions].set(v)
            cache = (k, v)
        causal = self.causal and memory is None and cache is None
        self.sow("intermediates", "queries", q)
        self.sow("intermediates", "keys", k)
        y = attend(q, k, v, mask, causal, flash=stack.attention == "flash")
        deviation = 0.02 / (2 * stack.layers) ** 0.5
        return self._dense(width, "out", nn.initializers.normal(deviation))(y.reshape(batch, time, width)), cache

    def _dense(self, features: int, name: str, kernel_init: Any = SMALL) -> nn.Dense:
        return Dense(features, self.stack.bias, kernel_init=kernel_init, name=name)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, causal: bool, flash: bool) -> jax.Array:
    """softmax(q k^T / sqrt(size)) v, [batch, time, heads, size]; k and v may have fewer heads.

    mask: bool, broadcast to [batch, heads, time, keys], True where a query may attend to a key; None: everywhere.
    flash: in programs for NVIDIA's GPUs by cuDNN, where it can: see `fits_cudnn`.
    """

    def by(implementation: Literal["xla", "cudnn"], mask: jax.Array | None) -> Callable[..., jax.Array]:
        return lambda q, k, v: jax.nn.dot_product_attention(
            q, k, v, mask=mask, is_causal=causal, implementation=implementation
        )

    if not flash or not cuda_installed() or not fits_cudnn(q, k):
        return by("xla", mask)(q, k, v)
    # cuDNN has no broadcast of a mask over the queries.
    pairs = None if mask is None else jnp.broadcast_to(mask, (*mask.shape[:2], q.shape[1], k.shape[1]))
    return jax.lax.platform_dependent(q, k, v, cuda=by("cudnn", pairs), default=by("xla", mask))


def cuda_installed() -> bool:
    """Whether JAX has a CUDA plugin; without one it can't trace cuDNN's attention, whatever it compiles for."""
    return any(map(importlib.util.find_spec, ("jax_cuda12_plugin", "jax_cuda13_plugin")))


def fits_cudnn(q: jax.Array, k: jax.Array) -> bool:
    """Whether cuDNN's attention takes these arrays, forward and backward.

    It takes 16-bit numbers, heads of up to 128 features (a multiple of 8), and even numbers of queries and keys.
    """
    even = q.shape[1] % 2 == 0 and k.shape[1] % 2 == 0
    return q.dtype.itemsize == 2 and q.shape[-1] <= 128 and q.shape[-1] % 8 == 0 and even


def _bounds(heads: int, groups: int, size: int) -> tuple[int, int]:
    return heads * size, (heads + groups) * size


def rotated(x: jax.Array, positions: jax.Array) -> jax.Array:
    """x [batch, time, heads, features], the two halves of its features turned by angles that grow with the position.

    Position p turns pair i by p * 10000^(-2i / features): the products of queries and keys depend on distances alone.
    """
    half = x.shape[-1] // 2
    angle = positions[:, :, None, None] * 10000.0 ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


def sinusoids(positions: jax.Array, width: int) -> jax.Array:
    """[..., width] of positions i32[...]: sines, then cosines, of wavelengths from 2 pi to 10000 * 2 pi."""
    angle = positions[..., None] * 10000.0 ** (-jnp.arange(width // 2) / (width // 2))
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)


class FeedForward(nn.Module):
    """Two dense layers, each token by itself."""

    stack: Stack

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, time, width] -> the same."""
        stack = self.stack
        dense = lambda name, features, init: Dense(features, stack.bias, kernel_init=init, name=name)
        hidden = stack.hidden or 4 * stack.width
        match stack.activation:
            case "gelu":
                y = nn.gelu(dense("up", hidden, SMALL)(x))
            case "relu":
                y = nn.relu(dense("up", hidden, SMALL)(x))
            case "swiglu":
                gate, y = jnp.split(dense("gate_up", 2 * hidden, SMALL)(x), 2, -1)
                y = nn.silu(gate) * y
        return dense("down", stack.width, nn.initializers.normal(0.02 / (2 * stack.layers) ** 0.5))(y)


class Block(nn.Module):
    """Self-attention, attention to the memory if there is one, feed-forward: each added to what comes in."""

    stack: Stack
    causal: bool
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array, seen: Seen, cache: Any) -> tuple[jax.Array, Any]:
        """x [batch, time, width] -> the same, and this layer's cache."""

        def added(x: jax.Array, layer: Any) -> jax.Array:
            norm = nn.LayerNorm(epsilon=1e-5, use_bias=self.stack.bias)
            drop = Dropout(self.stack.dropout)
            return (
                x + drop(layer(norm(x)), self.train)
                if self.stack.norm == "pre"
                else norm(x + drop(layer(x), self.train))
            )

        def attend(x: jax.Array) -> jax.Array:
            nonlocal cache
            y, cache = Attention(self.stack, self.causal, name="attention")(x, seen, cache)
            return y

        x = added(x, attend)
        if seen.memory is not None:
            cross = Attention(self.stack, name="cross")
            x = added(x, lambda x: cross(x, seen, None, seen.memory)[0])
        return added(x, FeedForward(self.stack)), cache


class Blocks(nn.Module):
    """The stack itself: embedded tokens in, features out."""

    stack: Stack
    causal: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, seen: Seen, train: bool, cache: Any = None) -> tuple[jax.Array, Any]:
        """x [batch, time, width] -> the same, and the cache (keys, values), if one is given."""
        stack = self.stack
        x = Dropout(stack.dropout)(x, train)
        block = nn.remat(Block, prevent_cse=False) if stack.remat else Block
        layers = nn.scan(
            block,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, 1),
            out_axes=1,
            length=stack.layers,
            unroll=min(stack.unroll, stack.layers),
        )
        x, cache = layers(stack, self.causal, train, name="layers")(x, seen, cache)
        return nn.LayerNorm(epsilon=1e-5, use_bias=stack.bias)(x) if stack.norm == "pre" else x, cache


class Embedding(nn.Module):
    """Tokens and their positions as features; the same table turned round makes logits.

    Attributes:
        context: the longest sequence, for learned positions
    """

    stack: Stack
    vocabulary: int
    context: int

    def setup(self) -> None:
        self.tokens = nn.Embed(self.vocabulary, self.stack.width, embedding_init=SMALL)
        if self.stack.positions == "learned":
            self.positions = nn.Embed(self.context, self.stack.width, embedding_init=SMALL)

    def __call__(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        """i32[batch, time], positions i32[batch or 1, time] -> [batch, time, width]."""
        x = self.tokens(tokens)
        if self.stack.positions == "learned":
            return x + self.positions(positions)
        if self.stack.positions == "sinusoidal":
            # The table's numbers are small, for it makes logits too; the sinusoids would drown them.
            return x * self.stack.width**0.5 + sinusoids(positions, self.stack.width).astype(x.dtype)
        return x

    def logits(self, x: jax.Array, count: int | None = None) -> jax.Array:
        """[batch, time, width] -> [batch, time, vocabulary], or [batch, time, count] of its first tokens."""
        return product(x, self.tokens.embedding[:count].T.astype(x.dtype))

    def dtype(self) -> jnp.dtype:
        """The dtype of the features, which the net computes in."""
        token = jnp.zeros((1, 1), jnp.int32)
        return self(token, token).dtype


def _length(tokens: jax.Array, context: int) -> jax.Array:
    """Positions i32[1, time]. Raises Mistake where there are more tokens than the net has places for."""
    if tokens.shape[1] > context:
        raise Mistake(f"a sequence of {tokens.shape[1]} tokens is longer than the net's context of {context}")
    return jnp.arange(tokens.shape[1])[None]


class LanguageModel(nn.Module):
    """A decoder: each token's logits for the next one. Radford et al. 2019 with the stack as it is.

    Attributes:
        stack: the blocks
        tied: whether the tokens' embeddings are the output layer too (Press & Wolf 2017, arXiv:1608.05859)
    """

    stack: Stack = Stack()
    tied: bool = True
    context: Filled[int] = 0
    outputs: Filled[int] = 0

    def setup(self) -> None:
        self.embedding = Embedding(self.stack, self.outputs, self.context)
        self.blocks = Blocks(self.stack, causal=True)
        if not self.tied:
            self.head = Dense(self.outputs, use_bias=False, kernel_init=SMALL)

    def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        """i32[batch, time] -> logits [batch, time, outputs]. Raises Mistake beyond the context."""
        positions = _length(tokens, self.context)
        x, _ = self.blocks(self.embedding(tokens, positions), Seen(positions, None, None), train)
        return self._logits(x)

    def start(self, source: jax.Array, length: int) -> Cache:
        """An empty cache for as many sequences as `source` ([batch, ...]) has, of up to `length` tokens."""
        if length > self.context:
            raise Mistake(f"{length} tokens are more than the net's context of {self.context}")
        return _empty(self.stack, source.shape[0], length, self.embedding.dtype(), None)

    def extend(self, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """The logits [batch, time, outputs] of tokens i32[batch, time] that follow those in the cache."""
        x, cache = _extended(self.blocks, self.embedding, tokens, cache)
        return self._logits(x), cache

    def _logits(self, x: jax.Array) -> jax.Array:
        return self.embedding.logits(x) if self.tied else self.head(x)


def _empty(stack: Stack, batch: int, length: int, dtype: jnp.dtype, memory: Memory | None) -> Cache:
    groups = stack.groups or stack.heads
    zeros = jnp.zeros((batch, stack.layers, length, groups, stack.width // stack.heads), dtype)
    return Cache(zeros, zeros, jnp.zeros(batch, jnp.int32), memory)


def _extended(blocks: Blocks, embedding: Embedding, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
    positions = cache.position[:, None] + jnp.arange(tokens.shape[1])
    before = jnp.arange(cache.keys.shape[2]) <= positions[:, None, :, None]
    seen = Seen(positions, before, cache.memory)
    x, (keys, values) = blocks(embedding(tokens, positions), seen, False, (cache.keys, cache.values))
    return x, Cache(keys, values, cache.position + tokens.shape[1], cache.memory)


class Encoder(nn.Module):
    """Each token's features, from all tokens of its text.

    Attributes:
        context: the longest text
    """

    stack: Stack
    vocabulary: int
    context: int

    def setup(self) -> None:
        self.embedding = Embedding(self.stack, self.vocabulary, self.context)
        self.blocks = Blocks(self.stack)

    def __call__(self, tokens: jax.Array, train: bool) -> Memory:
        """i32[batch, time], padded with PAD. Raises Mistake beyond the context."""
        positions, mask = _length(tokens, self.context), tokens != PAD
        seen = Seen(positions, mask[:, None, None, :], None)
        x, _ = self.blocks(self.embedding(tokens, positions), seen, train)
        return Memory(x, mask)

    def logits(self, x: jax.Array, count: int | None = None) -> jax.Array:
        """[..., width] -> [..., vocabulary], or [..., count] of its first tokens."""
        return self.embedding.logits(x, count)


class Classifier(nn.Module):
    """An encoder, and a dense layer on the mean and the maximum of its features.

    Attributes:
        stack: the blocks
        dropout: before the last layer
    """

    stack: Stack = Stack()
    dropout: float = 0.0
    vocabulary: Filled[int] = 0
    context: Filled[int] = 0
    outputs: Filled[int] = 0

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        """i32[batch, time], padded with PAD -> logits [batch, outputs]."""
        features, mask = Encoder(self.stack, self.vocabulary, self.context, name="encoder")(tokens, train)
        pooled = Dropout(self.dropout)(pool(features, mask), train)
        return Dense(self.outputs, kernel_init=SMALL, name="head")(pooled)


class MaskedModel(nn.Module):
    """An encoder that guesses tokens hidden from it, to pre-train a `Classifier`: their encoders' parameters are alike.

    Devlin et al. 2019, "BERT" (arXiv:1810.04805).

    Attributes:
        stack: the blocks
    """

    stack: Stack = Stack()
    vocabulary: Filled[int] = 0
    context: Filled[int] = 0
    outputs: Filled[int] = 0

    @nn.compact
    def __call__(self, inputs: tuple[jax.Array, jax.Array], train: bool = False) -> jax.Array:
        """(tokens i32[batch, time], places i32[batch, n]) -> logits [batch, n, outputs] at those places."""
        tokens, places = inputs
        encoder = Encoder(self.stack, self.vocabulary, self.context, name="encoder")
        features = jnp.take_along_axis(encoder(tokens, train).tokens, places[:, :, None], 1)
        x = nn.gelu(Dense(self.stack.width, kernel_init=SMALL)(features))
        logits = encoder.logits(nn.LayerNorm(epsilon=1e-5)(x), self.outputs)
        return logits + self.param("bias", nn.initializers.zeros, (self.outputs,))


class Translator(nn.Module):
    """An encoder, and a decoder that attends to it; one table embeds both languages and makes the logits.

    Attributes:
        stack: the blocks of the encoder, and of the decoder
    """

    stack: Stack = Stack()
    context: Filled[int] = 0
    outputs: Filled[int] = 0

    def setup(self) -> None:
        self.encoder = Encoder(self.stack, self.outputs, self.context)
        self.blocks = Blocks(self.stack, causal=True)

    def __call__(self, inputs: tuple[jax.Array, jax.Array], train: bool = False) -> jax.Array:
        """(source i32[batch, time], target so far i32[batch, time']) -> logits [batch, time', outputs]."""
        source, target = inputs
        memory, positions = self.encoder(source, train), _length(target, self.context)
        x, _ = self.blocks(self.encoder.embedding(target, positions), Seen(positions, None, memory), train)
        return self.encoder.logits(x)

    def start(self, source: jax.Array, length: int) -> Cache:
        """The encoded source i32[batch, time], and an empty cache for translations of up to `length` tokens."""
        memory = self.encoder(source, False)
        return _empty(self.stack, source.shape[0], length, memory.tokens.dtype, memory)

    def extend(self, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """The logits [batch, time, outputs] of tokens i32[batch, time] that follow those in the cache."""
        x, cache = _extended(self.blocks, self.encoder.embedding, tokens, cache)
        return self.encoder.logits(x), cache
