"""The Vision Transformer: its patches and positions against loops, and what it makes of some of the patches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core.errors import UserError
from research.core.modules import network
from research.data.images import Images
from research.learners.classify import Classify
from research.nets.transformer import Stack
from research.nets.vit import PatchEncoder, ViT, grid_sinusoids, patches, unpatched

STACK = Stack(layers=2, width=8, heads=2, positions="sinusoidal")
IMAGES = jax.random.normal(jax.random.key(1), (3, 4, 8, 2))


def test_patches_are_those_of_a_loop():
    found = np.asarray(patches(IMAGES, 2))
    images = np.asarray(IMAGES)
    for row in range(2):
        for column in range(4):
            expected = images[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].reshape(3, -1)
            np.testing.assert_array_equal(found[:, 4 * row + column], expected)
    np.testing.assert_array_equal(unpatched(jnp.asarray(found), (4, 8, 2)), images)
    with pytest.raises(UserError, match=r"net\.patch=3 does not divide images of 4x8"):
        patches(IMAGES, 3)


def test_positions_are_those_of_a_loop():
    expected = np.zeros((6, 8))
    for place in range(6):
        row, column = place // 3, place % 3
        for k in range(2):
            rate = 10000.0 ** (-k / 2)
            expected[place, [k, 2 + k]] = np.sin(rate * row), np.cos(rate * row)
            expected[place, [4 + k, 6 + k]] = np.sin(rate * column), np.cos(rate * column)
    np.testing.assert_allclose(grid_sinusoids((2, 3), 8), expected, atol=1e-6)
    assert len(np.unique(grid_sinusoids((8, 8), 192).round(4), axis=0)) == 64
    with pytest.raises(UserError, match="multiple of 4"):
        grid_sinusoids((2, 3), 6)


@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
def test_features_follow_their_patches(positions):
    """A patch has its own position wherever it stands in the sequence; those left out do not count."""
    encoder = PatchEncoder(Stack(layers=2, width=8, heads=2, positions=positions), 2)
    order = jnp.stack([jax.random.permutation(jax.random.key(n), 8) for n in range(3)])
    params = jax.jit(encoder.init, static_argnums=2)(jax.random.key(0), IMAGES, False)
    apply = jax.jit(encoder.apply, static_argnums=2)
    whole = apply(params, IMAGES, False)
    shuffled = apply(params, IMAGES, False, order)
    np.testing.assert_allclose(shuffled, jnp.take_along_axis(whole, order[..., None], 1), atol=1e-5)

    row, column = jnp.divmod(order[:, :3], 4)
    hidden = jnp.ones((3, 2, 4), bool).at[jnp.arange(3)[:, None], row, column].set(False)
    dark = jnp.where(hidden.repeat(2, 1).repeat(2, 2)[..., None], 100.0, IMAGES)
    some = [apply(params, images, False, order[:, :3]) for images in (IMAGES, dark)]
    np.testing.assert_array_equal(*some)
    assert not np.allclose(some[0], shuffled[:, :3], atol=1e-3), "those that are kept attend to each other alone"
    moved = apply(params, IMAGES[:, ::-1], False).mean(1)
    assert not np.allclose(moved, whole.mean(1), atol=1e-3), "the same patches elsewhere"


def test_logits_are_a_linear_layer_on_the_mean_of_the_features():
    net = network(ViT(STACK, 2, outputs=5))
    params, _ = jax.jit(net.init)(jax.random.key(0), IMAGES)
    assert not params["head"]["kernel"].any()
    params["head"]["kernel"] = jax.random.normal(jax.random.key(1), (8, 5))
    features, _ = jax.jit(network(ViT(STACK, 2)).apply)(params, {}, IMAGES)
    each = jax.jit(PatchEncoder(STACK, 2).apply, static_argnums=2)({"params": params["encoder"]}, IMAGES, False)
    np.testing.assert_allclose(features, each.mean(1), atol=1e-6)
    logits, _ = jax.jit(net.apply)(params, {}, IMAGES)
    np.testing.assert_allclose(logits, features @ params["head"]["kernel"], atol=1e-4)


def test_bad_settings():
    with pytest.raises(UserError, match="sinusoidal or learned, not rotary"):
        ViT(Stack(layers=1, width=8, heads=2, positions="rotary"), 2, outputs=2).init(jax.random.key(0), IMAGES)
    with pytest.raises(UserError, match=r"net\.patch must be at least 1"):
        ViT(STACK, 0)
    with pytest.raises(UserError, match=r"net\.patch=3 does not divide images of 8x8"):
        jax.eval_shape(Classify(data=Images(name="digits"), net=ViT(STACK, 3)).build().init, jax.random.key(0))
