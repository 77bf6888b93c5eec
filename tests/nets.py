"""One small net of every kind, with inputs, for tests that hold for all of them."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core.modules import Dropout
from research.core.special_tokens import PAD
from research.nets import lstm, transformer
from research.nets.bottleneck import BottleneckResNet
from research.nets.cnn import CNN, ResNet
from research.nets.cyclegan import CycleGenerator, PatchDiscriminator
from research.nets.dcgan import DCGANDiscriminator, DCGANGenerator
from research.nets.gan import DenseDiscriminator, DenseGenerator
from research.nets.q import MLP, MinAtarNet
from research.nets.residual import ResidualDiscriminator, ResidualGenerator
from research.nets.transformer import Stack
from research.nets.vit import ViT
from research.nets.whitened import WhitenedCNN

WORDS = jax.random.randint(jax.random.key(0), (4, 8), 5, 50).at[0, 6:].set(PAD)
IMAGES = jax.random.normal(jax.random.key(1), (4, 8, 8, 2))
LABELS, NOISE = jnp.arange(4) % 3, jax.random.normal(jax.random.key(2), (4, 5))
GANS = {"shape": (8, 8, 2), "classes": 3}
STACK = Stack(layers=2, width=16, heads=4, dropout=0.1, scan_unroll=1)
OTHER = Stack(
    layers=2, width=16, heads=4, num_kv_heads=2, positions="rotary", activation="swiglu", scan_unroll=1, remat="full"
)
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
    (WhitenedCNN(widths=(8, 8), outputs=3), IMAGES),
    (BottleneckResNet((2, 4), (1, 1), stem=4, outputs=3), IMAGES),
    (ViT(Stack(layers=2, width=16, heads=4, dropout=0.1, positions="sinusoidal"), outputs=3), IMAGES),
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
    (lstm.Classifier(layers=2, width=8, embedding=6, bigram_buckets=16, vocabulary=50, outputs=3), WORDS),
    (lstm.MaskedModel(width=8, embedding=6, vocabulary=50, outputs=30), (WORDS, WORDS[:, :2] % 6)),
]


def name(value):
    """The name of a net in the tests' ids."""
    return f"{type(value).__module__[14:]}-{type(value).__name__}" if isinstance(value, nn.Module) else ""


def with_keys(keys):
    """A context in which every Dropout is given the keys [batch]."""

    def hand_over(call, arguments, options, context):
        if isinstance(context.module, Dropout):
            options = options | {"keys": keys}
        return call(*arguments, **options)

    return nn.intercept_methods(hand_over)
