"""Transformers: a language model, an encoder and a translator, made of the same blocks.

Vaswani et al. 2017, "Attention is all you need" (arXiv:1706.03762). The parameters of the layers are stacked, leaves
[layers, ...], whether the layers are compiled one by one or as a loop.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core.devices import shard_batch
from research.core.errors import UserError, positive
from research.core.int8 import RANGES
from research.core.modules import Dropout, FromData
from research.core.special_tokens import PAD
from research.nets.attention import attend, attend_with_dropout, rotary
from research.nets.dense import Dense, DenseGeneral, product
from research.nets.sequence import Memory, pool

KERNEL_INIT = nn.initializers.normal(0.02)
"""Of kernels and embeddings: Radford et al. 2019, "Language models are unsupervised multitask learners"."""

TENSOR_AXES = {
    "(qkv|q|kv)/(kernel|bias)": -3,  # groups: the heads of keys and values, each with its queries
    "(up|gate_up)/(kernel|bias)": -1,  # hidden features
    "(out|down)/kernel": -2,  # inputs, which are split by then: the heads, the hidden features
    "tokens/embedding": -2,  # vocabulary
}
"""The axes that `--shard tensor` splits, see `Layout`: of each pair of matrices the outputs of the first and the inputs
of the second, so that a layer is summed over the devices once (Shoeybi et al. 2019, "Megatron-LM",
arXiv:1909.08053)."""


@dataclass(frozen=True)
class Stack:
    """A stack of blocks.

    Attributes:
        layers: number of blocks
        width: features of a token
        heads: number of attention heads, a divisor of the width
        num_kv_heads: number of heads of keys and values, a divisor of `heads`; None: as many as `heads` (grouped-query
            attention, Ainslie et al. 2023, arXiv:2305.13245)
        mlp_dim: hidden features of the feed-forward layers; None: 4 times the width
        activation: activation of the feed-forward layers; swiglu is a product of two (Shazeer 2020, arXiv:2002.05202)
        norm: pre: layer normalisation before each layer; post: after its residual sum (Xiong et al. 2020,
            arXiv:2002.04745)
        positions: how positions are encoded: learned or sinusoidal embeddings, or rotary (Su et al. 2021,
            arXiv:2104.09864)
        dropout: dropout rate of embeddings and of the output of each layer
        attention_dropout: dropout rate of the attention weights; above 0, training does without flash attention
        bias: whether layers have biases
        remat: what the backward pass computes again of a block, to save memory: none; dots: everything but the outputs
            of dense layers, so the attention weights, norms and activations; full: everything but the block's input
        scan_unroll: number of blocks compiled one by one; deeper stacks are compiled as a loop of so many a turn
        attention: flash: cuDNN's flash attention where a program for NVIDIA GPUs computes in 16 bits, XLA's elsewhere;
            xla: XLA's everywhere
    """

    layers: int = 4
    width: int = 128
    heads: int = 4
    num_kv_heads: int | None = None
    mlp_dim: int | None = None
    activation: Literal["gelu", "relu", "swiglu"] = "gelu"
    norm: Literal["pre", "post"] = "pre"
    positions: Literal["learned", "sinusoidal", "rotary"] = "learned"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    bias: bool = True
    remat: Literal["none", "dots", "full"] = "none"
    scan_unroll: int = 8
    attention: Literal["flash", "xla"] = "flash"

    def __post_init__(self) -> None:
        positive(self, "stack", "layers", "width", "heads", "num_kv_heads", "mlp_dim", "scan_unroll")
        if self.width % self.heads or self.heads % (self.num_kv_heads or self.heads):
            raise UserError(
                f"stack: heads={self.heads} must divide width={self.width}, and "
                f"num_kv_heads={self.num_kv_heads} must divide heads"
            )
        if self.positions == "rotary" and self.width // self.heads % 2:
            raise UserError(f"stack: rotary positions need heads of even width, not {self.width // self.heads}")
        if self.positions == "sinusoidal" and self.width % 2:
            raise UserError(f"stack: sinusoidal positions need an even width, not {self.width}")


class Cache(NamedTuple):
    """The keys and values of the tokens so far, in all layers; leaves [batch, ...], so that beams can be reordered.

    keys, values  [batch, layers, length, num_kv_heads, features]
    position      i32[batch], the number of tokens so far
    memory        the encoded source of a translator; None for a language model
    """

    keys: jax.Array
    values: jax.Array
    position: jax.Array
    memory: Memory | None


class AttentionInputs(NamedTuple):
    """What attention reads beside its features, the same in all layers.

    positions  i32[batch or 1, time]
    mask       bool[batch, 1, time or 1, keys], True where a token may attend to a key; None: everywhere. Besides it,
               causal attention hides later tokens
    memory     the encoded source that a decoder attends to; None where there is none
    """

    positions: jax.Array
    mask: jax.Array | None
    memory: Memory | None


class Attention(nn.Module):
    """Multi-head attention of a sequence to itself or to a memory."""

    stack: Stack
    causal: bool = False
    train: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        inputs: AttentionInputs,
        cache: tuple[jax.Array, jax.Array] | None,
        memory: Memory | None = None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
        """x [batch, time, width] -> the same, and this layer's cache with the new keys and values in it."""
        stack, (batch, time, width) = self.stack, x.shape
        heads, kv_heads = stack.heads, stack.num_kv_heads or stack.heads
        group, head_dim = heads // kv_heads, width // heads
        # A group is a head of keys and values, and the heads of queries that attend to it.
        if memory is None:
            qkv = self._heads((kv_heads, group + 2, head_dim), "qkv")(x)
            q, kv = qkv[..., :group, :], qkv[..., group:, :]
            mask = inputs.mask
        else:
            q = self._heads((kv_heads, group, head_dim), "q")(x)
            kv = self._heads((kv_heads, 2, head_dim), "kv")(memory.tokens)
            mask = memory.mask[:, None, None, :]
        q, k, v = q.reshape(batch, time, heads, head_dim), kv[..., 0, :], kv[..., 1, :]
        if stack.positions == "rotary" and memory is None:
            q, k = rotary(q, inputs.positions), rotary(k, inputs.positions)
        if cache is not None and memory is None:
            rows = jnp.arange(batch)[:, None]
            k = cache[0].at[rows, inputs.positions].set(k)
            v = cache[1].at[rows, inputs.positions].set(v)
            cache = (k, v)
        causal = self.causal and memory is None and cache is None
        self.sow("intermediates", "queries", q)
        self.sow("intermediates", "keys", k)
        if self.train and stack.attention_dropout:
            drop = Dropout(stack.attention_dropout)
            y = attend_with_dropout(q, k, v, mask, causal, lambda weights: drop(weights, True))
        else:
            y = attend(q, k, v, mask, causal, flash=stack.attention == "flash")
        out = Dense(width, stack.bias, kernel_init=_output_init(stack), name="out")
        return out(y.reshape(batch, time, width)), cache

    def _heads(self, features: tuple[int, int, int], name: str) -> nn.DenseGeneral:
        return DenseGeneral(features, use_bias=self.stack.bias, kernel_init=KERNEL_INIT, name=name)


def _output_init(stack: Stack) -> nn.initializers.Initializer:
    """The initializer of kernels whose outputs are added to the residual stream: Radford et al. 2019, section 2.3."""
    return nn.initializers.normal(0.02 / (2 * stack.layers) ** 0.5)


def sinusoids(positions: jax.Array, width: int) -> jax.Array:
    """Sinusoidal embeddings [..., width] of positions i32[...]: sines, then cosines; wavelengths 2 pi to 20000 pi."""
    angle = positions[..., None] * 10000.0 ** (-jnp.arange(width // 2) / (width // 2))
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)


class FeedForward(nn.Module):
    """Two dense layers, applied to each token."""

    stack: Stack

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, time, width] -> the same."""
        stack = self.stack
        dense = lambda name, features, init: Dense(features, stack.bias, kernel_init=init, name=name)
        mlp_dim = stack.mlp_dim or 4 * stack.width
        match stack.activation:
            case "gelu":
                y = nn.gelu(dense("up", mlp_dim, KERNEL_INIT)(x))
            case "relu":
                y = nn.relu(dense("up", mlp_dim, KERNEL_INIT)(x))
            case "swiglu":
                gate_up = DenseGeneral((2, mlp_dim), use_bias=stack.bias, kernel_init=KERNEL_INIT, name="gate_up")
                y = gate_up(x)
                y = nn.silu(y[..., 0, :]) * y[..., 1, :]
        return dense("down", stack.width, _output_init(stack))(y)


class Block(nn.Module):
    """Self-attention, attention to the memory if there is one, and feed-forward layers, each with a residual sum."""

    stack: Stack
    causal: bool
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array, inputs: AttentionInputs, cache: Any) -> tuple[jax.Array, Any]:
        """x [batch, time, width] -> the same shape, and this layer's cache."""

        def residual(x: jax.Array, layer: Any) -> jax.Array:
            norm = nn.LayerNorm(epsilon=1e-5, use_bias=self.stack.bias)
            drop = Dropout(self.stack.dropout)
            if self.stack.norm == "pre":
                return x + drop(layer(norm(x)), self.train)
            return norm(x + drop(layer(x), self.train))

        def self_attention(x: jax.Array) -> jax.Array:
            nonlocal cache
            y, cache = Attention(self.stack, self.causal, self.train, name="attention")(x, inputs, cache)
            return y

        x = residual(x, self_attention)
        if inputs.memory is not None:
            cross = Attention(self.stack, train=self.train, name="cross")
            x = residual(x, lambda x: cross(x, inputs, None, inputs.memory)[0])
        return residual(x, FeedForward(self.stack)), cache


class Blocks(nn.Module):
    """The stack of blocks, from embedded tokens to features."""

    stack: Stack
    causal: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, inputs: AttentionInputs, train: bool, cache: Any = None) -> tuple[jax.Array, Any]:
        """x [batch, time, width] -> the same shape, and the cache (keys, values), if one is given."""
        stack = self.stack
        x = Dropout(stack.dropout)(x, train)
        layers = nn.scan(
            _rematerialised(stack),
            variable_axes={"params": 0, "intermediates": 0, RANGES: 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, 1),
            out_axes=1,
            length=stack.layers,
            unroll=min(stack.scan_unroll, stack.layers),
        )
        x, cache = layers(stack, self.causal, train, name="layers")(x, inputs, cache)
        return nn.LayerNorm(epsilon=1e-5, use_bias=stack.bias)(x) if stack.norm == "pre" else x, cache


def _rematerialised(stack: Stack) -> Any:
    """The class `Block`, its activations kept or computed again as `stack.remat` says."""
    match stack.remat:
        case "none":
            return Block
        case "dots":
            return nn.remat(Block, prevent_cse=False, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
        case "full":
            return nn.remat(Block, prevent_cse=False)


class Embedding(nn.Module):
    """The embeddings of tokens and positions; the table of the tokens is also the last layer.

    Attributes:
        context: length of the longest sequence, for learned positions
    """

    stack: Stack
    vocabulary: int
    context: int

    def setup(self) -> None:
        self.tokens = nn.Embed(self.vocabulary, self.stack.width, embedding_init=KERNEL_INIT)
        if self.stack.positions == "learned":
            self.positions = nn.Embed(self.context, self.stack.width, embedding_init=KERNEL_INIT)

    def __call__(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        """i32[batch, time], positions i32[batch or 1, time] -> [batch, time, width]."""
        x = self.tokens(tokens)
        if self.stack.positions == "learned":
            return x + self.positions(positions)
        if self.stack.positions == "sinusoidal":
            # The factor is the paper's (section 3.4). The table is smaller than theirs, since it makes logits too: at
            # the start tokens have a root mean square of 0.02 * sqrt(width), and the sinusoids of sqrt(1/2).
            return x * self.stack.width**0.5 + sinusoids(positions, self.stack.width).astype(x.dtype)
        return x

    def logits(self, x: jax.Array, count: int | None = None) -> jax.Array:
        """[..., width] -> logits [..., vocabulary], or [..., count] of its first tokens."""
        return shard_batch(product(x, self.tokens.embedding[:count].T.astype(x.dtype)))

    def dtype(self) -> jnp.dtype:
        """The dtype of the features, which the net computes in."""
        token = jnp.zeros((1, 1), jnp.int32)
        return self(token, token).dtype


def _positions(tokens: jax.Array, context: int) -> jax.Array:
    """The positions i32[1, time] of tokens [batch, time]. Raises UserError where they are more than the context."""
    if tokens.shape[1] > context:
        raise UserError(f"a sequence of {tokens.shape[1]} tokens is longer than the net's context of {context}")
    return jnp.arange(tokens.shape[1])[None]


class LanguageModel(nn.Module):
    """An autoregressive language model; with the default stack that of GPT-2 (Radford et al. 2019).

    Attributes:
        stack: the blocks
        tied: whether the table of embeddings is also the last layer (Press & Wolf 2017, arXiv:1608.05859)
    """

    stack: Stack = Stack()
    tied: bool = True
    context: FromData[int] = 0
    outputs: FromData[int] = 0

    tensor_axes: ClassVar[Mapping[str, int]] = TENSOR_AXES | {"head/kernel": -1}

    def setup(self) -> None:
        self.embedding = Embedding(self.stack, self.outputs, self.context)
        self.blocks = Blocks(self.stack, causal=True)
        if not self.tied:
            self.head = Dense(self.outputs, use_bias=False, kernel_init=KERNEL_INIT)

    def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        """i32[batch, time] -> logits [batch, time, outputs] of the tokens that follow. Raises UserError where the
        sequence is longer than the context."""
        return self.logits(self.features(tokens, train))

    def features(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        """i32[batch, time] -> the features [batch, time, width] that the last layer reads."""
        positions = _positions(tokens, self.context)
        return self.blocks(self.embedding(tokens, positions), AttentionInputs(positions, None, None), train)[0]

    def logits(self, x: jax.Array) -> jax.Array:
        """Features [..., width] -> logits [..., outputs], the last layer."""
        return self.embedding.logits(x) if self.tied else self.head(x)

    def start(self, source: jax.Array, length: int) -> Cache:
        """An empty cache for sequences of up to `length` tokens, as many as `source` ([batch, ...]) has."""
        if length > self.context:
            raise UserError(f"{length} tokens are more than the net's context of {self.context}")
        return _empty_cache(self.stack, source.shape[0], length, self.embedding.dtype(), None)

    def extend(self, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """The logits [batch, time, outputs] of tokens i32[batch, time] after the cached ones, and the new cache."""
        x, cache = _extend(self.blocks, self.embedding, tokens, cache)
        return self.logits(x), cache


def _empty_cache(stack: Stack, batch: int, length: int, dtype: jnp.dtype, memory: Memory | None) -> Cache:
    kv_heads = stack.num_kv_heads or stack.heads
    zeros = jnp.zeros((batch, stack.layers, length, kv_heads, stack.width // stack.heads), dtype)
    return Cache(zeros, zeros, jnp.zeros(batch, jnp.int32), memory)


def _extend(blocks: Blocks, embedding: Embedding, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
    positions = cache.position[:, None] + jnp.arange(tokens.shape[1])
    causal = jnp.arange(cache.keys.shape[2]) <= positions[:, None, :, None]
    inputs = AttentionInputs(positions, causal, cache.memory)
    x, (keys, values) = blocks(embedding(tokens, positions), inputs, False, (cache.keys, cache.values))
    return x, Cache(keys, values, cache.position + tokens.shape[1], cache.memory)


class Encoder(nn.Module):
    """Features of each token that depend on all tokens of its text.

    Attributes:
        context: length of the longest text
    """

    stack: Stack
    vocabulary: int
    context: int

    def setup(self) -> None:
        self.embedding = Embedding(self.stack, self.vocabulary, self.context)
        self.blocks = Blocks(self.stack)

    def __call__(self, tokens: jax.Array, train: bool) -> Memory:
        """i32[batch, time], padded with PAD -> their features and mask. Raises UserError where the text is longer than
        the context."""
        positions, mask = _positions(tokens, self.context), tokens != PAD
        inputs = AttentionInputs(positions, mask[:, None, None, :], None)
        x, _ = self.blocks(self.embedding(tokens, positions), inputs, train)
        return Memory(x, mask)

    def logits(self, x: jax.Array, count: int | None = None) -> jax.Array:
        """[..., width] -> logits [..., vocabulary], or [..., count] of its first tokens."""
        return self.embedding.logits(x, count)


class Classifier(nn.Module):
    """An encoder, and a dense layer on the mean and the maximum of its features.

    Attributes:
        stack: the blocks
        dropout: dropout rate before the last layer
    """

    stack: Stack = Stack()
    dropout: float = 0.0
    vocabulary: FromData[int] = 0
    context: FromData[int] = 0
    outputs: FromData[int] = 0

    tensor_axes: ClassVar[Mapping[str, int]] = TENSOR_AXES

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        """i32[batch, time], padded with PAD -> logits [batch, outputs]."""
        features, mask = Encoder(self.stack, self.vocabulary, self.context, name="encoder")(tokens, train)
        pooled = Dropout(self.dropout)(pool(features, mask), train)
        return Dense(self.outputs, kernel_init=KERNEL_INIT, name="head")(pooled)


class MaskedModel(nn.Module):
    """A masked language model to pre-train the encoder of a `Classifier`, whose parameters have the same names.

    Devlin et al. 2019, "BERT" (arXiv:1810.04805).

    Attributes:
        stack: the blocks
    """

    stack: Stack = Stack()
    vocabulary: FromData[int] = 0
    context: FromData[int] = 0
    outputs: FromData[int] = 0

    tensor_axes: ClassVar[Mapping[str, int]] = TENSOR_AXES

    @nn.compact
    def __call__(self, inputs: tuple[jax.Array, jax.Array], train: bool = False) -> jax.Array:
        """(tokens i32[batch, time], positions i32[batch, n]) -> logits [batch, n, outputs] of the tokens there."""
        tokens, positions = inputs
        encoder = Encoder(self.stack, self.vocabulary, self.context, name="encoder")
        features = jnp.take_along_axis(encoder(tokens, train).tokens, positions[:, :, None], 1)
        x = nn.gelu(Dense(self.stack.width, kernel_init=KERNEL_INIT)(features))
        logits = encoder.logits(nn.LayerNorm(epsilon=1e-5)(x), self.outputs)
        return logits + self.param("bias", nn.initializers.zeros, (self.outputs,))


class Translator(nn.Module):
    """An encoder, and a decoder that attends to it. One table of embeddings serves both languages and the last layer.

    Attributes:
        stack: the blocks of the encoder, and those of the decoder
    """

    stack: Stack = Stack()
    context: FromData[int] = 0
    outputs: FromData[int] = 0

    tensor_axes: ClassVar[Mapping[str, int]] = TENSOR_AXES

    def setup(self) -> None:
        self.encoder = Encoder(self.stack, self.outputs, self.context)
        self.blocks = Blocks(self.stack, causal=True)

    def __call__(self, inputs: tuple[jax.Array, jax.Array], train: bool = False) -> jax.Array:
        """(source i32[batch, time], target i32[batch, time']) -> logits [batch, time', outputs] of what follows."""
        return self.logits(self.features(inputs, train))

    def features(self, inputs: tuple[jax.Array, jax.Array], train: bool = False) -> jax.Array:
        """The inputs of `__call__` -> the features [batch, time', width] that the last layer reads."""
        source, target = inputs
        memory, positions = self.encoder(source, train), _positions(target, self.context)
        x = self.encoder.embedding(target, positions)
        return self.blocks(x, AttentionInputs(positions, None, memory), train)[0]

    def logits(self, x: jax.Array) -> jax.Array:
        """Features [..., width] -> logits [..., outputs], by the table of embeddings."""
        return self.encoder.logits(x)

    def start(self, source: jax.Array, length: int) -> Cache:
        """The encoded source i32[batch, time], and an empty cache for translations of up to `length` tokens."""
        memory = self.encoder(source, False)
        return _empty_cache(self.stack, source.shape[0], length, memory.tokens.dtype, memory)

    def extend(self, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """The logits [batch, time, outputs] of tokens i32[batch, time] after the cached ones, and the new cache."""
        x, cache = _extend(self.blocks, self.encoder.embedding, tokens, cache)
        return self.logits(x), cache
