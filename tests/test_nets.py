"""Layers against an independent computation: NumPy and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from scipy.signal import correlate

from research.core.devices import AXIS
from research.core.errors import UserError
from research.core.losses import classification
from research.core.modules import network
from research.nets import conv, lstm
from research.nets.actor_critic import MinAtarActorCritic
from research.nets.autoencoder import ConvDecoder, ConvEncoder
from research.nets.cnn import CNN, ResNet
from research.nets.detector import Detector
from research.nets.projection import Projection
from research.nets.q import MinAtarNet
from research.nets.recurrent_q import RecurrentQ
from research.nets.residual import ResidualDiscriminator
from research.nets.whitened import WhitenedCNN

CASES = [
    # channels, height, width, batch, features, kernel, stride, padding
    (8, 12, 12, 3, 5, 3, 1, "SAME"),
    (9, 14, 13, 2, 8, 3, 1, "SAME"),
    (8, 10, 11, 2, 4, 3, 1, "VALID"),
    (1, 9, 8, 2, 4, 5, 1, "VALID"),
    (3, 9, 8, 2, 4, 3, 2, "SAME"),
    (8, 8, 8, 2, 4, 1, 2, "SAME"),
]


def by_scipy(x, w, stride, padding):
    """The convolution in float64, [features, height', width', batch]."""
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    if padding == "SAME":
        pads = jax.lax.padtype_to_pads(x.shape[1:3], w.shape[:2], (stride, stride), padding)
        x = np.pad(x, ((0, 0), *pads, (0, 0)))
    one = lambda image, kernel: sum(correlate(image[c], kernel[..., c], "valid") for c in range(len(image)))
    found = [[one(x[..., n], w[..., f])[::stride, ::stride] for n in range(x.shape[3])] for f in range(w.shape[3])]
    return np.moveaxis(np.array(found), 1, -1)


def drawn(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def of_a_convolution(case):
    """Its images, its kernel, and a cotangent of what it gives."""
    c, h, w_, n, f, k, stride, padding = case
    x, w = drawn(0, c, h, w_, n), drawn(1, k, k, c, f) / np.float32(k * c**0.5)
    return x, w, drawn(2, *jax.eval_shape(lambda x, w: conv._lax(x, w, stride, padding), x, w).shape)


def both_ways(case):
    """The compiled values and gradients of the convolution of this platform, and of XLA's own in float32."""

    def values(convolution, x, w, cotangent):
        y, pull = jax.vjp(lambda x, w: convolution(x, w, *case[-2:]), x, w)
        return y, *pull(cotangent)

    wide = lambda arrays: [a.astype(jnp.float32) for a in arrays]
    return jax.jit(lambda *arrays: (values(conv.convolve, *arrays), values(conv._lax, *wide(arrays))))


@pytest.mark.parametrize("case", CASES)
def test_convolution(case):
    x, w, cotangent = of_a_convolution(case)
    (y, *mine), (_, *theirs) = both_ways(case)(x, w, cotangent)
    np.testing.assert_allclose(y, by_scipy(x, w, *case[-2:]), atol=1e-4)
    # The gradient, on the CPU, against that of XLA's own convolution, which other platforms take.
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * float(np.abs(b).max()))


@pytest.mark.parametrize("case, dtype", [(CASES[n], "bfloat16") for n in (0, 2, 3, 5)] + [(CASES[0], "float16")])
def test_convolution_in_16_bits(case, dtype):
    """Forward and backward within a rounding or two of XLA's convolution of the same numbers in float32."""
    found, expected = both_ways(case)(*(x.astype(jnp.dtype(dtype)) for x in of_a_convolution(case)))
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == dtype
        scale = float(np.abs(theirs).max())
        atol = 2 * float(jnp.finfo(dtype).eps) * scale
        np.testing.assert_allclose(np.asarray(mine).astype(np.float32), theirs, atol=atol)


@pytest.mark.parametrize("kernel", [3, 4])
def test_transposed_convolution_in_bfloat16(kernel):
    x = jax.random.normal(jax.random.key(0), (6, 5, 4, 3)).astype(jnp.bfloat16)
    w = (jax.random.normal(jax.random.key(1), (kernel, kernel, 6, 2)) / 6).astype(jnp.bfloat16)
    found = jax.jit(conv.convolve_transposed)(x, w)
    expected = conv._lax_transposed(x.astype(jnp.float32), w.astype(jnp.float32))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.02 * float(jnp.abs(expected).max()))


def test_convolution_over_seeds_in_a_scan():
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 8, 3))
    w = jax.random.normal(jax.random.key(1), (2, 3, 3, 8, 8)) / 9

    def loss(f, x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(f(x, w)), None), x, None, length=2)[0].sum()

    mine, theirs = (
        jax.jit(jax.vmap(jax.grad(lambda x, w, f=f: loss(f, x, w), 1)))(x, w) for f in (conv.convolve, same)
    )
    np.testing.assert_allclose(mine, theirs, atol=1e-3)


def same(x, w):
    return conv._lax(x, w, 1, "SAME")


def test_lowering_is_chosen_by_the_platform_compiled_for():
    x, w = jnp.ones((8, 8, 8, 2)), jnp.ones((3, 3, 8, 8))
    text = lambda platform: jax.jit(conv.convolve).trace(x, w).lower(lowering_platforms=(platform,)).as_text()
    assert "stablehlo.convolution" not in text("cpu")
    for platform in ("cuda", "tpu"):
        assert text(platform).count("stablehlo.convolution") == 1 and "dot_general" not in text(platform)


def test_max_pool():
    x = np.random.default_rng(0).normal(size=(3, 5, 6, 2))
    expected = np.zeros((3, 2, 3, 2))
    for i in range(2):
        for j in range(3):
            expected[:, i, j] = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max((1, 2))
    np.testing.assert_allclose(conv.max_pool(jnp.array(x)), expected, rtol=1e-6)


def test_batch_norm():
    x = np.random.default_rng(0).normal(2, 3, (3, 4, 5, 6)).astype(np.float32)
    norm = conv.BatchNorm()
    variables = jax.jit(lambda x: norm.init(jax.random.key(0), x, False))(x)
    y, moved = jax.jit(lambda x: norm.apply(variables, x, True, mutable=["batch_stats"]))(x)
    mean, var = x.mean((1, 2, 3), keepdims=True), x.var((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5), atol=1e-4)
    (stats,) = moved["batch_stats"].values()
    np.testing.assert_allclose(stats["mean"], 0.1 * mean.ravel(), rtol=1e-4)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * var.ravel(), rtol=1e-4)
    np.testing.assert_allclose(norm.apply(variables, x, False), x / np.sqrt(1 + 1e-5), rtol=1e-5)


def test_batch_norm_is_over_all_devices():
    x = drawn(0, 4, 2, 3, 3, 2) * np.arange(1, 5, dtype=np.float32)[:, None, None, None, None]
    whole = np.concatenate(list(x), 3)
    norm = conv.BatchNorm()
    variables = jax.jit(lambda x: norm.init(jax.random.key(0), x, False))(whole)
    f = lambda x: norm.apply(variables, x, True, mutable=["batch_stats"])
    expected, moved = jax.jit(f)(whole)
    mesh, specs = jax.make_mesh((4,), (AXIS,), (AxisType.Auto,), devices=jax.devices()[:4]), P(None, None, None, AXIS)
    mapped = jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=(specs, P()), check_vma=False)
    for how, (found, stats) in {
        "jit": jax.jit(f, in_shardings=NamedSharding(mesh, specs))(whole),
        "pmap": jax.pmap(f, AXIS, out_axes=(3, None), devices=jax.devices()[:4])(x),
        "shard_map": jax.jit(mapped)(whole),
    }.items():
        np.testing.assert_allclose(found.reshape(whole.shape), expected, atol=1e-5, err_msg=how)
        jax.tree.map(lambda a, b, how=how: np.testing.assert_allclose(a, b, atol=1e-5, err_msg=how), stats, moved)


def test_sizes_are_the_papers():
    count = lambda net, shape: sum(x.size for x in jax.tree.leaves(shapes(net, shape)))
    shapes = lambda net, shape: jax.eval_shape(lambda: network(net).init(jax.random.key(0), jnp.zeros(shape)))[0]
    # He et al. 2016, table 6: 0.27 M and 0.46 M; ResNet-18 for CIFAR-10 has 11.17 M.
    assert count(ResNet(outputs=10), (1, 32, 32, 3)) == 269_722 + 0
    assert round(count(ResNet(blocks=(5, 5, 5), outputs=10), (1, 32, 32, 3)) / 1e6, 2) == 0.46
    wide = ResNet(widths=(64, 128, 256, 512), blocks=(2, 2, 2, 2), shortcut="project", outputs=10)
    assert count(wide, (1, 32, 32, 3)) == 11_173_962
    # Young & Tian 2019: 16 filters of 3x3 over 4 channels, 128 hidden units.
    assert count(MinAtarNet(outputs=3), (1, 10, 10, 4)) == 9 * 4 * 16 + 16 + 1024 * 128 + 128 + 128 * 3 + 3


@pytest.mark.parametrize(
    "net", [CNN(widths=(4, 8), hidden=6, dropout=0.5, outputs=3), ResNet((4, 8), (1, 1), outputs=3)]
)
def test_nets_shape_dtype_and_modes(net):
    init, apply = network(net)

    @jax.jit
    def called(x, keys):
        params, collections = init(jax.random.key(1), x)
        plain, same_collections = apply(params, collections, x)
        assert same_collections is collections
        trained, moved = apply(params, collections, x, rng=keys)
        half, _ = network(net, "bfloat16").apply(params, collections, x)
        return plain, trained, collections, moved, apply(params, collections, x[:2])[0], half

    keys = jax.random.split(jax.random.key(2), 5)
    plain, trained, collections, moved, two, half = called(drawn(0, 5, 8, 8, 2), keys)
    assert plain.shape == trained.shape == (5, 3) and plain.dtype == jnp.float32
    assert not np.array_equal(*(jax.tree.leaves(c)[0] for c in (collections, moved)))
    # Examples do not see each other in evaluation, and do, through the batch statistics, in training.
    np.testing.assert_allclose(two, plain[:2], atol=1e-5)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, plain, atol=0.2)


def test_classification_by_hand():
    logits = np.array([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [5.0, 0.0, 0.0]], np.float32)
    labels, mask = np.array([0, 2, 1]), np.array([1.0, 1.0, 0.0])
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    classify = jax.jit(classification())
    plain, metrics = classify(logits, labels, mask)
    assert plain.value == pytest.approx(-(log_p[0, 0] + log_p[1, 2]) / 2, rel=1e-5)
    assert metrics["accuracy"].value == 0.5 and metrics["accuracy"].count == 2
    two, metrics = classify(np.stack([logits, -3 * logits], 1), labels, mask)
    other, _ = classify(-3 * logits, labels, mask)
    assert two.value == pytest.approx(float(plain.value + other.value) / 2, rel=1e-5) and two.count == 2
    assert metrics["accuracy"].value == 0  # the mean logits are (-2, 0, 0) and (0, -1, 0), the labels 0 and 2
    smooth, _ = jax.jit(classification(0.3))(logits, labels, mask)
    targets = np.full((3, 3), 0.1) + 0.7 * np.eye(3)[labels]
    assert smooth.value == pytest.approx(-(targets * log_p)[:2].sum() / 2, rel=1e-5)


def test_images_or_widths_that_do_not_fit_are_refused():
    init = lambda net: net.init(jax.random.key(0), jnp.zeros((2, 8, 8, 3)))
    init(CNN(widths=(4, 4, 4)))
    with pytest.raises(UserError, match=r"net\.widths: 4 stages need images of at least 16 pixels a side"):
        init(CNN(widths=(4, 4, 4, 4)))
    init(ResNet((8, 4), (1, 1), "project"))
    with pytest.raises(UserError, match=r"net\.widths \(8, 4\) fall, and net\.shortcut pad adds channels"):
        ResNet((8, 4), (1, 1))


@pytest.mark.parametrize(
    "net, fields, message",
    [
        (MinAtarNet, {"channels": -1}, "channels of MinAtarNet must be at least 1, not -1"),
        (MinAtarNet, {"hidden": 0}, r"net\.hidden must be at least 1, not 0"),
        (MinAtarActorCritic, {"hidden": 0}, r"net\.hidden must be at least 1, not 0"),
        (Projection, {"hidden": 0}, r"projection\.hidden must be at least 1, not 0"),
        (Projection, {"width": 0}, "width of Projection must be at least 1, not 0"),
        (ConvEncoder, {"hidden": 0}, r"encoder\.hidden must be at least 1, not 0"),
        (ConvDecoder, {"hidden": 0}, r"decoder\.hidden must be at least 1, not 0"),
        (ConvEncoder, {"blocks": -1}, "blocks of ConvEncoder must be at least 0, not -1"),
        (Detector, {"tower": -1}, "tower of Detector must be at least 0, not -1"),
        (ResidualDiscriminator, {"downsampling_blocks": -1}, "downsampling_blocks of .* must be at least 0, not -1"),
        (RecurrentQ, {"width": -1}, "width of RecurrentQ must be at least 1, not -1"),
        (lstm.MaskedModel, {"embedding": 0}, "embedding of MaskedModel must be at least 1, not 0"),
        (lstm.Classifier, {"bigram_buckets": -1}, "bigram_buckets of Classifier must be at least 0, not -1"),
        (WhitenedCNN, {"momentum": 1.5}, r"net\.momentum must be between 0 and 1, not 1.5"),
    ],
)
def test_sizes_that_make_no_layer_are_refused(net, fields, message):
    network(net())
    with pytest.raises(UserError, match=message):
        network(net(**fields))
