"""The two calls on Flax modules that learners make: `initialise` and `forward`."""

import dataclasses
from typing import Annotated, Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import tyro

from research.core.state import Tree
from research.core.update import cast

T = TypeVar("T")
Filled = Annotated[T, tyro.conf.Suppress]
"""Marks a net's field that `build` fills in (what the data or the place decide); no option of the command line."""


def filled(net: nn.Module, **values: Any) -> nn.Module:
    """`net` with those of the values that it has a field for: what the data decide."""
    names = {field.name for field in dataclasses.fields(net)}
    return net.clone(**{name: value for name, value in values.items() if name in names})


def on_axis(net: nn.Module, axis: str | None) -> nn.Module:
    """`net`, told which mapped axis its batch is split over. One with statistics over the batch has a field `axis`."""
    return filled(net, axis=axis)


def initialise(net: nn.Module, key: jax.Array, inputs: Any) -> tuple[Tree, dict[str, Tree]]:
    """(params, collections) for inputs like `inputs` ([batch, ...]); collections: batch statistics, if any."""
    variables = dict(on_axis(net, None).init(key, inputs))
    return variables.pop("params", {}), variables


def forward(
    net: nn.Module, params: Tree, collections: dict[str, Tree], inputs: Any, key: jax.Array | None = None
) -> tuple[Any, dict[str, Tree]]:
    """Outputs in float32, and the collections the net has moved.

    A `key` (for dropout) means training: the net is called with `train=True` and may move its own collections;
    those it does not have (target network, averages) pass through. It computes in the dtype of `params`.
    """
    dtype = next((x.dtype for x in jax.tree.leaves(params) if jnp.issubdtype(x.dtype, jnp.floating)), jnp.float32)
    variables = {"params": params, **collections}
    if key is None:
        return cast(net.apply(variables, cast(inputs, dtype)), jnp.float32), collections
    outputs, moved = net.apply(
        variables, cast(inputs, dtype), train=True, rngs={"dropout": key}, mutable=["batch_stats"]
    )
    return cast(outputs, jnp.float32), {**collections, **moved}
