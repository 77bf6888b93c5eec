"""Attention on NVIDIA's GPUs by cuDNN: every Transformer of configs/ traces and lowers, with the CUDA plugin stubbed.

Nothing is compiled: JAX's own checks of shapes and dtypes run when a program is traced and lowered, and need no GPU.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core.modules import bind, cast
from research.nets import attention
from research.nets.attention import attend, attend_with_dropout
from research.nets.masked_autoencoder import MaskedAutoencoder
from research.nets.transformer import (
    Attention,
    AttentionInputs,
    Classifier,
    LanguageModel,
    MaskedModel,
    Stack,
    Translator,
)
from research.nets.vit import ViT
from research.training import config

IMAGES = jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.bfloat16)
SMALL = Stack(layers=2, width=32, heads=4)
NETS = {name: net for name in config.names() if hasattr(net := getattr(config.load(name), "net", None), "stack")} | {
    "masked": MaskedModel(SMALL),
    "rotary": LanguageModel(Stack(layers=2, width=64, heads=4, num_kv_heads=2, positions="rotary", remat="full")),
}


@pytest.fixture
def cuda(monkeypatch):
    """As if the CUDA plugin were installed, with cuDNN 9.10."""
    monkeypatch.setattr(attention, "cuda_installed", lambda: True)
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)


def inputs(net, length):
    words = jax.ShapeDtypeStruct((4, length), jnp.int32)
    match net:
        case Translator():
            return words, jax.ShapeDtypeStruct((4, length + 2), jnp.int32)
        case MaskedModel():
            return words, jax.ShapeDtypeStruct((4, 3), jnp.int32)
        case ViT():
            return IMAGES
        case MaskedAutoencoder():
            return IMAGES, jax.ShapeDtypeStruct((4, length), jnp.int32)
    return words


def lowered(net, length=16, dtype="bfloat16"):
    """Training of a net in 16 bits, of one layer as the others are like it, lowered for cuda, as text."""
    net = bind(net.clone(stack=replace(net.stack, layers=1)), vocabulary=50, context=32, outputs=50)
    shapes = inputs(net, length)
    params = jax.eval_shape(net.init, jax.random.key(0), shapes)["params"]

    def loss(params, inputs, key):
        logits = net.apply({"params": cast(params, dtype)}, inputs, train=True, rngs={"dropout": key})
        return logits.astype(jnp.float32).sum()

    step = jax.jit(jax.value_and_grad(loss))
    key = jax.eval_shape(lambda: jax.random.key(0))
    return step.trace(params, shapes, key).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("name", NETS)
def test_every_transformer_trains_in_bfloat16_with_cudnn(name, cuda):
    text, net = lowered(NETS[name]), NETS[name]
    if net.stack.attention_dropout:  # cuDNN has none of ours
        assert "__cudnn$fmha" not in text
        return
    biased = not isinstance(net, LanguageModel | ViT | MaskedAutoencoder)  # padding is masked by a bias
    assert ("__cudnn$fmhaScaleBiasSoftmax(" in text) == ("__cudnn$fmhaScaleBiasSoftmaxBackward(" in text) == biased
    unbiased = not biased or isinstance(net, Translator)  # causal attention has none, nor have patches
    assert ("__cudnn$fmhaSoftmax(" in text) == ("__cudnn$fmhaSoftmaxBackward(" in text) == unbiased


def test_what_cudnn_can_not_do_is_left_to_xla(cuda):
    """Odd lengths, heads of 4 features, and what is told to be XLA's."""
    for net, length in [
        (Classifier(SMALL), 15),
        (LanguageModel(SMALL), 15),
        (LanguageModel(Stack(layers=1, width=16, heads=4)), 16),
        (LanguageModel(Stack(layers=1, width=32, heads=4, attention="xla")), 16),
    ]:
        assert "__cudnn" not in lowered(net, length)


def test_in_float16_both_attend(cuda):
    assert "__cudnn$fmhaSoftmaxBackward(" in lowered(LanguageModel(SMALL), dtype="float16")
    assert "__cudnn" not in lowered(LanguageModel(SMALL), 15, dtype="float16")


def test_without_the_plugin_xla_attends():
    assert "__cudnn" not in lowered(LanguageModel(SMALL))


def test_generation_traces_with_cudnn(cuda):
    """Prefixes of even length have a mask of their own for each query."""
    net = bind(Translator(SMALL), context=32, outputs=50)
    words = jnp.ones((4, 16), jnp.int32)
    params = cast(jax.jit(net.init)(jax.random.key(0), (words, words))["params"], jnp.bfloat16)

    def generate(params):
        carry = net.apply({"params": params}, words, 20, method="start")
        return net.apply({"params": params}, words[:, :6], carry, method="extend")

    found = [jax.jit(generate).trace(params).lower(lowering_platforms=(p,)).as_text() for p in ("cuda", "cpu")]
    assert "__cudnn" in found[0] and "__cudnn" not in found[1]
    logits, _ = jax.jit(generate)(params)  # on the CPU, by XLA
    assert np.isfinite(logits.astype(jnp.float32)).all()


@pytest.mark.parametrize("causal", [False, True])
def test_attention_dropout_drops_weights_and_is_off_in_evaluation(causal):
    """With nothing dropped, training's formula equals evaluation's; weights are dropped before values."""
    stack = lambda rate: Stack(width=8, heads=2, num_kv_heads=1, attention_dropout=rate)
    attention = lambda rate, train: Attention(stack(rate), causal, train)
    x, rngs = jax.random.normal(jax.random.key(0), (64, 4, 8)), {"dropout": jax.random.key(2)}
    mask = None if causal else (jnp.arange(4) < 3)[None, None, None, :]
    inputs = AttentionInputs(jnp.arange(4)[None], mask, None)
    params = jax.jit(lambda key: attention(0.0, False).init(key, x, inputs, None))(jax.random.key(1))
    run = lambda rate, train: jax.jit(lambda p: attention(rate, train).apply(p, x, inputs, None, rngs=rngs)[0])(params)
    plain = run(0.0, False)
    np.testing.assert_array_equal(run(0.5, False), plain)
    assert not np.allclose(run(0.5, True), plain, atol=1e-3)
    q, k, v = (jax.random.normal(jax.random.key(i), (64, 4, heads, 8)) for i, heads in enumerate((4, 2, 2)))
    kept = jax.jit(lambda q, k, v: attend_with_dropout(q, k, v, mask, causal, lambda weights: weights))
    expected = jax.jit(lambda q, k, v: attend(q, k, v, mask, causal, flash=False))(q, k, v)
    np.testing.assert_allclose(kept(q, k, v), expected, rtol=1e-5, atol=1e-6)
    q, k = jnp.zeros((2, 3, 2, 4)), jnp.zeros((2, 3, 1, 4))  # all weights are equal
    last = lambda weights: weights * (jnp.arange(3) == 2)
    v = jnp.arange(24.0).reshape(2, 3, 1, 4)
    found = attend_with_dropout(q, k, v, None, False, last)
    np.testing.assert_allclose(found, jnp.broadcast_to(v[:, 2:] / 3, found.shape), rtol=1e-6)
