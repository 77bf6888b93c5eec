"""Optimizers: the size of their decay, their defaults, and Muon's matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.core.optimizers import Optimizer, optimizer

RATE, DECAY = 0.1, 0.3
PARAMS = {
    "Dense_0": {"kernel": jnp.full((4, 6), 2.0), "bias": jnp.full(6, 2.0)},
    "head": {"kernel": jnp.full((6, 3), 2.0)},
    "Embed_0": {"embedding": jnp.full((5, 4), 2.0)},
}


@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor", "lion", "muon"])
def test_size_of_the_decay(name):
    """With gradients of 0 an update multiplies kernels by 1 - rate * decay; the second rate is half of the first."""
    config = Optimizer(
        name=name, learning_rate=RATE, weight_decay=DECAY, schedule="halving", halve_at=(0.1,), momentum=0
    )
    tx, params = optimizer(config, 10), PARAMS
    state = tx.init(params)
    for rate in (RATE, RATE / 2):
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
        after = optax.apply_updates(params, updates)
        for kernel in ("Dense_0", "head"):
            np.testing.assert_allclose(
                after[kernel]["kernel"], params[kernel]["kernel"] * (1 - rate * DECAY), rtol=1e-6
            )
        embedding = params["Embed_0"]["embedding"] * (1 if name == "muon" else 1 - rate * DECAY)
        np.testing.assert_allclose(after["Embed_0"]["embedding"], embedding, rtol=1e-6)
        np.testing.assert_array_equal(after["Dense_0"]["bias"], params["Dense_0"]["bias"])
        params = after


@pytest.mark.parametrize(("name", "b2"), [("adamw", 0.999), ("lion", 0.99)])
def test_default_of_b2(name, b2):
    """After a gradient of 1, the moment that b2 decays is 1 - b2."""
    tx, params = optimizer(Optimizer(name=name), 10), {"kernel": jnp.ones(())}
    _, state = tx.update(params, tx.init(params), params)
    moment = optax.tree.get(state, "nu" if name == "adamw" else "mu")
    assert float(moment["kernel"]) == pytest.approx(1 - b2, rel=1e-4)
