"""The count of floating-point operations, against numbers worked out by hand."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from learners import EXPERIMENTS

from research.core.transformations import scan_steps, with_feed
from research.nets.conv import convolve, convolve_transposed
from research.training.flops import flops


def count(f, *shapes):
    """The FLOPs of `f` of float32 arrays of these shapes."""
    return flops(jax.make_jaxpr(f)(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)))


MATMUL = 2 * 2 * 3 * 5
"""Of [2, 3] @ [3, 5]."""


def test_products():
    assert count(jnp.matmul, (2, 3), (3, 5)) == MATMUL
    assert count(jnp.matmul, (7, 2, 3), (7, 3, 5)) == count(jax.vmap(jnp.matmul), (7, 2, 3), (7, 3, 5)) == 7 * MATMUL
    assert count(jnp.vdot, (9,), (9,)) == 18
    assert count(lambda x: jnp.exp(x) + x, (9,)) == 0


def test_the_gradient_is_twice_the_forward_pass():
    loss = lambda x, w: (jnp.tanh(x @ w) ** 2).sum()
    assert count(jax.value_and_grad(loss, (0, 1)), (2, 3), (3, 5)) == 3 * MATMUL
    assert count(jax.value_and_grad(loss, 1), (2, 3), (3, 5)) == 2 * MATMUL


def test_loops_count_by_their_length():
    def scanned(x, w):
        inner = lambda x, _: (jax.lax.scan(lambda x, _: (x @ w, None), x, None, length=4)[0], None)
        return jax.lax.scan(inner, x, None, length=6, unroll=2)[0]

    assert count(scanned, (2, 3), (3, 3)) == 6 * 4 * 36
    assert count(lambda x: jax.lax.fori_loop(0, 10, lambda _, x: x @ x, x), (3, 3)) == 10 * 54


def test_a_while_loop_is_unknown_unless_it_has_none():
    loop = lambda body: lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, body, x)
    product = loop(lambda x: x @ x)
    assert math.isnan(count(lambda x: jax.lax.scan(lambda x, _: (product(x), None), x, None, 3)[0], (3, 3)))
    assert math.isnan(count(lambda x: jax.lax.cond(x.sum() > 0, product, lambda x: x @ x, x), (3, 3)))
    assert count(lambda x: loop(lambda x: x + 1)(x @ x), (3, 3)) == 54


def test_of_branches_the_larger():
    either = lambda p, x: jax.lax.cond(p.sum() > 0, lambda x: x @ x @ x, lambda x: x @ x, x)
    assert count(either, (1,), (3, 3)) == 108


def test_calls_are_followed():
    @jax.custom_vjp
    def squared(x):
        return x @ x

    squared.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x.T + x.T @ g,))
    assert count(jax.jit(squared), (3, 3)) == 54
    assert count(jax.value_and_grad(lambda x: squared(x).sum()), (3, 3)) == 3 * 54
    # Forward, forward again, and two of the backward pass, of which the last product needs no value.
    again = jax.checkpoint(lambda x: jnp.sin(jnp.sin(x @ x)))
    assert count(jax.value_and_grad(lambda x: again(x).sum()), (3, 3)) == 4 * 54


def test_every_device_counts():
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    spec = PartitionSpec("data")
    mapped = jax.shard_map(lambda x, w: x @ w, mesh=mesh, in_specs=(spec, PartitionSpec()), out_specs=spec)
    assert count(mapped, (8, 3), (3, 5)) == 4 * MATMUL
    assert count(jax.jit(jax.pmap(lambda x: x @ x, devices=jax.devices()[:4])), (4, 3, 3)) == 4 * 54


CHWN = ("CHWN", "HWIO", "CHWN")


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_and_its_gradient(stride, groups):
    def convolved(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (stride, stride), "SAME", dimension_numbers=CHWN, feature_group_count=groups
        )

    channels, features, size, batch = 4, 6, 8, 5
    forward = 2 * (size // stride) ** 2 * batch * features * 9 * channels // groups
    shapes = (channels, size, size, batch), (3, 3, channels // groups, features)
    assert count(convolved, *shapes) == forward
    assert count(jax.value_and_grad(lambda *x: (convolved(*x) ** 2).sum(), (0, 1)), *shapes) == 3 * forward


def test_our_convolutions_are_what_they_compute():
    """Whichever way a platform computes them."""
    for width in (4, 8):
        shapes = (width, 8, 8, 2), (3, 3, width, 6)
        forward = 2 * 8 * 8 * 2 * 6 * 9 * width
        assert count(convolve, *shapes) == forward
        assert count(jax.value_and_grad(lambda *x: (convolve(*x) ** 2).sum(), (0, 1)), *shapes) == 3 * forward
    assert count(convolve_transposed, (4, 8, 8, 2), (4, 4, 4, 6)) == 2 * 8 * 8 * 2 * 6 * 16 * 4


def test_of_a_step_of_a_language_model():
    """Six operations for each token and parameter of a product, four for each entry of attention's products, forward.

    As in appendix B of Chowdhery et al. 2022 (arXiv:2204.02311); the gradient's norm is two for each parameter.
    """
    experiment = EXPERIMENTS["transformer"]
    learner, feed = dataclasses.replace(experiment, loss_chunk=None).build(), experiment.feeds().train
    state = jax.eval_shape(learner.init, jax.random.key(0))
    batch, time, width, layers, vocabulary = 32, 8, 8, 2, 51
    products = layers * 12 * width**2 + vocabulary * width
    norm = 2 * sum(x.size for x in jax.tree.leaves(state.params))
    step = 6 * batch * time * products + layers * 3 * 4 * batch * time**2 * width + norm
    steps = scan_steps(with_feed(learner.step, feed), 5)
    assert flops(jax.make_jaxpr(steps)(state, None)) == 5 * step
