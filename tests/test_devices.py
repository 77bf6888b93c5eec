"""The collectives of `research.core.devices` under jit, pmap and shard_map."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from research.core.devices import AXIS, axis_if_bound, devices, gathered, position, summed
from research.core.metrics import mean
from research.core.optimizers import Optimizer
from research.core.update import Aux, UpdateConfig, updater


def mapped(name, f):
    """`f` of this device's part of x [8, ...], its results stacked by device: leaves [devices, ...]."""
    if name == "pmap":
        return lambda x: jax.pmap(f, AXIS, devices=jax.devices()[:4])(x.reshape(4, -1, *x.shape[1:]))
    stacked = lambda x: jax.tree.map(lambda y: jnp.asarray(y)[None], f(x))
    mesh = jax.make_mesh((4,), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    return jax.jit(jax.shard_map(stacked, mesh=mesh, in_specs=P(AXIS), out_specs=P(AXIS), check_vma=False))


X = np.arange(24, dtype=np.float32).reshape(8, 3)


@pytest.mark.parametrize("name", ["pmap", "shard_map"])
def test_collectives_where_the_axis_is_bound(name):
    total = lambda x: summed({"floats": x.sum(0), "count": jnp.int32(len(x))})
    mixed = mapped(name, total)(X)
    np.testing.assert_array_equal(mixed["floats"], np.tile(X.sum(0), (4, 1)))
    np.testing.assert_array_equal(mixed["count"], [8] * 4)
    assert mixed["count"].dtype == jnp.int32
    # Where an int32 is summed as a float32, this is 2**25.
    exact = mapped(name, lambda x: summed((x.sum(), jnp.int32(2**23) + (x[0, 0] == 0))))(X)[1]
    np.testing.assert_array_equal(exact, [2**25 + 1] * 4)
    np.testing.assert_array_equal(mapped(name, lambda x: summed((x.sum(), x[0])))(X)[1], np.tile(X[::2].sum(0), (4, 1)))
    np.testing.assert_array_equal(mapped(name, lambda x: gathered({"x": x}))(X)["x"], np.tile(X, (4, 1, 1)))
    np.testing.assert_array_equal(mapped(name, lambda x: position(len(x)))(X), np.arange(8).reshape(4, 2))
    np.testing.assert_array_equal(mapped(name, lambda x: jnp.int32(devices()) + 0 * x[0, 0].astype(int))(X), [4] * 4)


def test_nothing_is_done_where_no_axis_is_bound():
    def f(x):
        assert devices() == 1
        assert axis_if_bound() is None
        tree = {"x": x}
        assert summed(tree) is tree and gathered(tree) is tree
        return position(5)

    np.testing.assert_array_equal(jax.jit(f)(X), np.arange(5))
    assert summed(()) == ()


@pytest.mark.parametrize("name", ["pmap", "shard_map"])
def test_an_update_is_that_of_the_global_batch(name):
    """The devices have 2, 0, 1 and 2 examples that count; the keys are those of the places in the global batch."""
    sgd = Optimizer(name="sgd", learning_rate=0.1, momentum=0.0, nesterov=False)
    init, update = updater(UpdateConfig(clip=0.5), {"net": (sgd, 10)})
    state = init(jax.random.key(0), {"net": ({"kernel": jnp.float32(2)}, {})})

    def loss(params, state, batch, rng):
        x, y, mask = batch.T
        drawn = jax.vmap(jax.random.uniform)(rng)
        return mean((params["kernel"] * x - y + drawn) ** 2, mask), Aux(rows=drawn)

    def f(batch):
        after, aux = update(state, "net", loss, batch)
        return after.params["net"]["kernel"], aux.metrics["gradient_norm"].value, aux.rows

    batch = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    batch[:, 2] = [1, 1, 0, 0, 1, 0, 1, 1]
    kernel, norm, rows = jax.jit(f)(batch)
    kernels, norms, parts = mapped(name, f)(batch)
    np.testing.assert_allclose(kernels, np.full(4, kernel), rtol=1e-6)
    np.testing.assert_allclose(norms, np.full(4, norm), rtol=1e-6)
    np.testing.assert_array_equal(np.concatenate(parts), rows)
    assert len(np.unique(rows)) == 8 and norm > 0.5
