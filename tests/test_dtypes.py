"""Nets in 16 bits: what they compute in them, what they don't, and how far from float32 they end."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import tree_map_with_path
from nets import LANGUAGE_MODELS, NETS, TRANSLATORS, WORDS, name

from research.nets import lstm


def cast(tree, dtype):
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def applied(net, dtype, variables, inputs, **options):
    """`net.apply` computing in `dtype`: kernels are cast before it, rows of embeddings after the gather."""

    def rows(call, arguments, options, context):
        found = call(*arguments, **options)
        return (
            found.astype(dtype) if isinstance(context.module, nn.Embed) and context.method_name == "__call__" else found
        )

    cast_kernels = lambda path, x: x if path[-1].key == "embedding" else cast(x, dtype)
    variables = variables | {"params": tree_map_with_path(cast_kernels, variables["params"])}
    with nn.intercept_methods(rows):
        return net.apply(variables, *(inputs if isinstance(inputs, list) else [cast(inputs, dtype)]), **options)


def floats(tree):
    """The names of the floating dtypes in a tree of arrays or shapes."""
    return {x.dtype.name for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)}


@pytest.mark.parametrize("net, inputs", NETS, ids=name)
def test_nets_compute_in_16_bits(net, inputs):
    """Outputs have the dtype, and in bfloat16 are near those in float32; batch statistics and gradients are float32."""

    def trained(params, others, dtype):
        options = {"train": True, "mutable": ["batch_stats"], "rngs": {"dropout": jax.random.key(1)}}
        outputs, moved = applied(net, dtype, others | {"params": params}, inputs, **options)
        return outputs.astype(jnp.float32).sum(), (outputs, moved)

    @jax.jit
    def both(key):
        others = net.init(key, inputs)
        params = others.pop("params")
        return params, others, *(trained(params, others, dtype)[1] for dtype in ("bfloat16", "float32"))

    params, others, (found, moved), (expected, _) = both(jax.random.key(0))
    assert floats(found) == {"bfloat16"} and floats(expected) == {"float32"} and floats(moved) <= {"float32"}
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.05 * float(jnp.abs(expected).max()))
    traced = lambda p, o: jax.grad(lambda p: trained(p, o, "float16"), has_aux=True)(p)
    gradient, (outputs, moved) = jax.eval_shape(traced, params, others)
    assert floats(gradient) == {"float32"} and floats(outputs) == {"float16"} and floats(moved) <= {"float32"}


@pytest.mark.parametrize("net", LANGUAGE_MODELS + TRANSLATORS, ids=name)
def test_caches_and_carries_have_the_dtype_of_the_net(net):
    tokens, dtype = WORDS[:, :3], "bfloat16"

    def extended():
        variables = net.init(jax.random.key(0), (WORDS, tokens) if net in TRANSLATORS else tokens)
        carry = applied(net, dtype, variables, [WORDS, 12], method="start")
        return carry, *applied(net, dtype, variables, [tokens, carry], method="extend")

    carry, logits, after = jax.eval_shape(extended)
    assert floats(carry) == floats(after) == floats(logits) == {dtype}
    assert jax.tree.map(jnp.shape, carry) == jax.tree.map(jnp.shape, after)


def test_the_gradient_of_an_embedding_is_summed_in_float32():
    """1,200 occurrences of one token: bfloat16 stops counting at 256."""
    text = jnp.full((100, 12), 7)
    net = lstm.Classifier(width=8, embedding=6, bigram_buckets=16, vocabulary=50, outputs=3)
    variables = jax.jit(net.init)(jax.random.key(0), text)
    total = lambda params, dtype: applied(net, dtype, {"params": params}, text).astype(jnp.float32).sum()
    found, expected = (
        jax.jit(jax.grad(total), static_argnums=1)(variables["params"], dtype) for dtype in ("bfloat16", "float32")
    )
    for path in (("encoder", "words"), ("bag", "words"), ("bag", "bigrams")):
        mine, theirs = found, expected
        for key in path:
            mine, theirs = mine[key], theirs[key]
        scale = float(jnp.abs(theirs["embedding"]).max())
        np.testing.assert_allclose(mine["embedding"], theirs["embedding"], atol=0.02 * scale)


@pytest.mark.parametrize("attention", ["luong", "bahdanau"])
def test_weights_of_attention_are_float32(attention):
    """In bfloat16 the weights of a long sentence sum to 1 within float32's digits, and so does the Transformer's."""
    net = lstm.Translator(width=8, attention=attention, outputs=50)
    source = jnp.tile(WORDS[1:], (1, 40))

    @jax.jit
    def attended(key):
        variables = net.init(key, (source, WORDS[1:]))
        variables = {"params": jax.tree.map(lambda x: 3 * x, variables["params"])}
        return applied(net, "bfloat16", variables, (source, WORDS[1:]), mutable=["intermediates"])

    _, sown = attended(jax.random.key(0))
    (weights,) = sown["intermediates"]["decoder"]["attention"]
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
