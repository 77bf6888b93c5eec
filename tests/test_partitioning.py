"""One global program over a mesh: with the batch split, no net moves activations between devices."""

import re

import jax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from nets import NETS, name, with_keys


@pytest.mark.parametrize("net, inputs", NETS, ids=name)
def test_gradients_are_summed_and_nothing_is_gathered(net, inputs, monkeypatch):
    """With XLA's convolutions, as on GPUs and TPUs: the CPU's own flatten pixels and batch, which XLA gathers."""
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *arrays, default, **platforms: default(*arrays))
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    everywhere, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    variables = jax.eval_shape(net.init, jax.random.key(0), inputs)
    params = variables.pop("params")

    def loss(params, collections, inputs, keys):
        variables, rngs = {"params": params, **collections}, {"dropout": jax.random.key(0)}
        with with_keys(keys):
            outputs, moved = net.apply(variables, inputs, train=True, mutable=["batch_stats"], rngs=rngs)
        return (outputs**2).mean(), moved

    step = jax.jit(
        jax.grad(loss, has_aux=True),
        in_shardings=(everywhere, everywhere, split, split),
        out_shardings=(everywhere, everywhere),
    )
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 4))
    program = step.lower(params, variables, inputs, keys).compile().as_text()
    collectives = set(re.findall(r" (all-\w+|collective-\w+|reduce-scatter)(?:-start)?\(", program))
    assert collectives == {"all-reduce"}
