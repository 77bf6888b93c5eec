"""Nets in bfloat16: what they compute in it, what they don't, and how far from float32 they end."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import tree_map_with_path

from research.core.special_tokens import PAD
from research.nets import lstm, transformer
from research.nets.cnn import CNN, ResNet
from research.nets.cyclegan import CycleGenerator, PatchDiscriminator
from research.nets.dcgan import DCGANDiscriminator, DCGANGenerator
from research.nets.gan import DenseDiscriminator, DenseGenerator
from research.nets.q import MLP, MinAtarNet
from research.nets.residual import ResidualDiscriminator, ResidualGenerator
from research.nets.transformer import Stack

pytestmark = pytest.mark.usefixtures("quickly")
WORDS = jax.random.randint(jax.random.key(0), (3, 8), 5, 50).at[0, 6:].set(PAD)
IMAGES = jax.random.normal(jax.random.key(1), (3, 8, 8, 2))
LABELS, NOISE = jnp.arange(3), jax.random.normal(jax.random.key(2), (3, 5))
GANS = {"shape": (8, 8, 2), "classes": 3}
STACK = Stack(layers=2, width=16, heads=4, dropout=0.1)
OTHER = Stack(layers=2, width=16, heads=4, groups=2, positions="rotary", activation="swiglu", unroll=1, remat=True)
TRANSLATORS = [
    transformer.Translator(Stack(layers=1, width=16, heads=4, positions="sinusoidal", norm="post"),
                           context=20, outputs=50),
    lstm.Translator(layers=2, width=8, outputs=50),
    lstm.Translator(layers=2, width=8, attention="bahdanau", outputs=50),
]  # fmt: skip
LANGUAGE_MODELS = [
    transformer.LanguageModel(STACK, context=20, outputs=50),
    transformer.LanguageModel(OTHER, tied=False, context=20, outputs=50),
    lstm.LanguageModel(width=8, embedding=6, dropout=0.3, outputs=50),
]
NETS = [
    (CNN(widths=(8, 8), hidden=6, dropout=0.1, outputs=3), IMAGES),
    (ResNet((8, 16), (1, 1), "project", outputs=3), IMAGES),
    (MLP(outputs=3), IMAGES),
    (MinAtarNet(outputs=3), IMAGES),
    (DCGANGenerator(widths=(8, 4), hidden=8, **GANS), (NOISE, LABELS)),
    (DCGANDiscriminator(widths=(8, 8), hidden=8, norm="layer", spectral=True, classes=3), (IMAGES, LABELS)),
    (ResidualGenerator(widths=(8, 8), **GANS), (NOISE, LABELS)),
    (ResidualDiscriminator(widths=(8, 8), classes=3), (IMAGES, LABELS)),
    (DenseGenerator(**GANS), (NOISE, LABELS)),
    (DenseDiscriminator(classes=3), (IMAGES, LABELS)),
    (CycleGenerator(width=8, blocks=1), IMAGES),
    (PatchDiscriminator(widths=(8, 8), norm="layer"), IMAGES),
    *((net, WORDS) for net in LANGUAGE_MODELS),
    *((net, (WORDS, WORDS[:, :5])) for net in TRANSLATORS),
    (transformer.Classifier(STACK, vocabulary=50, context=8, outputs=3), WORDS),
    (transformer.MaskedModel(STACK, vocabulary=50, context=8, outputs=30), (WORDS, WORDS[:, :2] % 6)),
    (lstm.Classifier(layers=2, width=8, embedding=6, pairs=16, vocabulary=50, outputs=3), WORDS),
    (lstm.MaskedModel(width=8, embedding=6, vocabulary=50, outputs=30), (WORDS, WORDS[:, :2] % 6)),
]
ids = lambda value: f"{type(value).__module__[14:]}-{type(value).__name__}" if isinstance(value, nn.Module) else ""


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


@pytest.mark.parametrize("net, inputs", NETS, ids=ids)
def test_nets_compute_in_bfloat16(net, inputs):
    """Outputs are bfloat16, and near those in float32; batch statistics and gradients are float32."""
    variables = net.init(jax.random.key(0), inputs)

    def trained(params, dtype):
        options = {"train": True, "mutable": ["batch_stats"], "rngs": {"dropout": jax.random.key(1)}}
        outputs, moved = applied(net, dtype, variables | {"params": params}, inputs, **options)
        return outputs.astype(jnp.float32).sum(), (outputs, moved)

    params = variables["params"]
    found, moved = jax.jit(lambda p: trained(p, "bfloat16")[1])(params)
    expected, _ = jax.jit(lambda p: trained(p, "float32")[1])(params)
    assert floats(found) == {"bfloat16"} and floats(expected) == {"float32"} and floats(moved) <= {"float32"}
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.05 * float(jnp.abs(expected).max()))
    gradient, _ = jax.eval_shape(lambda p: jax.grad(lambda p: trained(p, "bfloat16"), has_aux=True)(p), params)
    assert floats(gradient) == {"float32"}


@pytest.mark.parametrize("net", LANGUAGE_MODELS + TRANSLATORS, ids=ids)
def test_caches_and_carries_have_the_dtype_of_the_net(net):
    tokens = WORDS[:, :3]
    variables = net.init(jax.random.key(0), (WORDS, tokens) if net in TRANSLATORS else tokens)
    extend = lambda tokens, carry: applied(net, "bfloat16", variables, [tokens, carry], method="extend")
    carry = applied(net, "bfloat16", variables, [WORDS, 12], method="start")
    logits, after = jax.eval_shape(extend, tokens, carry)
    assert floats(carry) == floats(after) == floats(logits) == {"bfloat16"}
    assert jax.tree.map(jnp.shape, carry) == jax.tree.map(jnp.shape, after)


def test_the_gradient_of_an_embedding_is_summed_in_float32():
    """1,200 occurrences of one token: bfloat16 stops counting at 256."""
    text = jnp.full((100, 12), 7)
    net = lstm.Classifier(width=8, embedding=6, pairs=16, vocabulary=50, outputs=3)
    variables = net.init(jax.random.key(0), text)
    total = lambda params, dtype: applied(net, dtype, {"params": params}, text).astype(jnp.float32).sum()
    found, expected = (
        jax.jit(jax.grad(total), static_argnums=1)(variables["params"], dtype) for dtype in ("bfloat16", "float32")
    )
    for path in (("encoder", "words"), ("bag", "words"), ("bag", "pairs")):
        mine, theirs = found, expected
        for name in path:
            mine, theirs = mine[name], theirs[name]
        scale = float(jnp.abs(theirs["embedding"]).max())
        np.testing.assert_allclose(mine["embedding"], theirs["embedding"], atol=0.02 * scale)


@pytest.mark.parametrize("attention", ["luong", "bahdanau"])
def test_weights_of_attention_are_float32(attention):
    """In bfloat16 the weights of a long sentence sum to 1 within float32's digits, and so does the Transformer's."""
    net = lstm.Translator(width=8, attention=attention, outputs=50)
    source = jnp.tile(WORDS[1:], (1, 40))
    variables = net.init(jax.random.key(0), (source, WORDS[1:]))
    variables = {"params": jax.tree.map(lambda x: 3 * x, variables["params"])}
    _, sown = applied(net, "bfloat16", variables, (source, WORDS[1:]), mutable=["intermediates"])
    (weights,) = sown["intermediates"]["decoder"]["attention"]
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
