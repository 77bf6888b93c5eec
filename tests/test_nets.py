"""Layers against an independent computation: NumPy and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from scipy.signal import correlate

from research.core.devices import AXIS
from research.core.losses import classification
from research.core.modules import network
from research.nets import conv
from research.nets.cnn import CNN, ResNet
from research.nets.q import MinAtarNet

pytestmark = pytest.mark.usefixtures("quickly")
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


@pytest.mark.parametrize("case", CASES)
def test_convolution(case):
    c, h, w_, n, f, k, stride, padding = case
    x = jax.random.normal(jax.random.key(0), (c, h, w_, n))
    w = jax.random.normal(jax.random.key(1), (k, k, c, f)) / (k * c**0.5)
    np.testing.assert_allclose(conv.convolve(x, w, stride, padding), by_scipy(x, w, stride, padding), atol=1e-4)
    # The gradient, on the CPU, against that of XLA's own convolution, which other platforms take.
    cotangent = jax.random.normal(jax.random.key(2), conv._lax(x, w, stride, padding).shape)
    gradients = [
        jax.jit(lambda x, w, f=f: jax.vjp(lambda x, w: f(x, w, stride, padding), x, w)[1](cotangent))(x, w)
        for f in (conv.convolve, conv._lax)
    ]
    for mine, theirs in zip(*gradients, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4 * float(jnp.abs(theirs).max()))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", CASES)
def test_convolution_in_16_bits(case, dtype):
    """Forward and backward within a rounding or two of XLA's convolution of the same numbers in float32."""
    c, h, w_, n, f, k, stride, padding = case
    x = jax.random.normal(jax.random.key(0), (c, h, w_, n)).astype(dtype)
    w = (jax.random.normal(jax.random.key(1), (k, k, c, f)) / (k * c**0.5)).astype(dtype)
    cotangent = jax.random.normal(jax.random.key(2), conv._lax(x, w, stride, padding).shape).astype(dtype)

    def values(convolution, *arrays):
        def both(x, w, cotangent):
            y, pull = jax.vjp(lambda x, w: convolution(x, w, stride, padding), x, w)
            return y, *pull(cotangent)

        return jax.jit(both)(*arrays)

    found = values(conv.convolve, x, w, cotangent)
    expected = values(conv._lax, *(a.astype(jnp.float32) for a in (x, w, cotangent)))
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == dtype
        scale = float(jnp.abs(theirs).max())
        np.testing.assert_allclose(mine.astype(jnp.float32), theirs, atol=2 * float(jnp.finfo(dtype).eps) * scale)


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
    variables = norm.init(jax.random.key(0), x, False)
    y, moved = norm.apply(variables, x, True, mutable=["batch_stats"])
    mean, var = x.mean((1, 2, 3), keepdims=True), x.var((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5), atol=1e-4)
    (stats,) = moved["batch_stats"].values()
    np.testing.assert_allclose(stats["mean"], 0.1 * mean.ravel(), rtol=1e-4)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * var.ravel(), rtol=1e-4)
    np.testing.assert_allclose(norm.apply(variables, x, False), x / np.sqrt(1 + 1e-5), rtol=1e-5)


@pytest.mark.parametrize("how", ["jit", "pmap", "shard_map"])
def test_batch_norm_is_over_all_devices(how):
    x = jax.random.normal(jax.random.key(0), (4, 2, 3, 3, 2)) * jnp.arange(1.0, 5.0)[:, None, None, None, None]
    whole = jnp.concatenate(list(x), 3)
    norm = conv.BatchNorm()
    variables = norm.init(jax.random.key(0), whole, False)
    f = lambda x: norm.apply(variables, x, True, mutable=["batch_stats"])
    expected, moved = f(whole)
    mesh = jax.make_mesh((4,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    match how:
        case "jit":
            found, stats = jax.jit(f, in_shardings=NamedSharding(mesh, P(None, None, None, AXIS)))(whole)
        case "pmap":
            found, stats = jax.pmap(f, AXIS, out_axes=(3, None), devices=jax.devices()[:4])(x)
            found = found.reshape(whole.shape)
        case "shard_map":
            specs = P(None, None, None, AXIS)
            f = jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=(specs, P()), check_vma=False)
            found, stats = jax.jit(f)(whole)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), stats, moved)


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
    x = jax.random.normal(jax.random.key(0), (5, 8, 8, 2))
    init, apply = network(net)
    params, collections = init(jax.random.key(1), x)
    plain, same_collections = apply(params, collections, x)
    trained, moved = apply(params, collections, x, rng=jax.random.split(jax.random.key(2), 5))
    assert plain.shape == trained.shape == (5, 3) and plain.dtype == jnp.float32
    assert same_collections is collections
    assert not np.array_equal(*(jax.tree.leaves(c)[0] for c in (collections, moved)))
    # Examples do not see each other in evaluation, and do, through the batch statistics, in training.
    np.testing.assert_allclose(apply(params, collections, x[:2])[0], plain[:2], atol=1e-5)
    half, _ = network(net, "bfloat16").apply(params, collections, x)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, plain, atol=0.2)


def test_classification_by_hand():
    logits = np.array([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [5.0, 0.0, 0.0]], np.float32)
    labels, mask = np.array([0, 2, 1]), np.array([1.0, 1.0, 0.0])
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    plain, metrics = classification()(logits, labels, mask)
    assert plain.value == pytest.approx(-(log_p[0, 0] + log_p[1, 2]) / 2, rel=1e-5)
    assert metrics["accuracy"].value == 0.5 and metrics["accuracy"].count == 2
    two, metrics = classification()(np.stack([logits, -3 * logits], 1), labels, mask)
    other, _ = classification()(-3 * logits, labels, mask)
    assert two.value == pytest.approx(float(plain.value + other.value) / 2, rel=1e-5) and two.count == 2
    assert metrics["accuracy"].value == 0  # the mean logits are (-2, 0, 0) and (0, -1, 0), the labels 0 and 2
    smooth, _ = classification(0.3)(logits, labels, mask)
    targets = np.full((3, 3), 0.1) + 0.7 * np.eye(3)[labels]
    assert smooth.value == pytest.approx(-(targets * log_p)[:2].sum() / 2, rel=1e-5)
