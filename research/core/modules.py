"""The calls on Flax modules: `network` makes a module two pure functions, which own dtypes and random numbers.

`RandomByExample` layers, such as `Dropout`, take their random numbers from there, by example.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Annotated, Any, NamedTuple, Protocol, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import tyro
from jax import lax

from research.core.devices import shard_batch
from research.core.errors import UserError
from research.core.int8 import RANGES, int8_layer, largest_input, linear
from research.core.types import Tree

T = TypeVar("T")
FromData = Annotated[T, tyro.conf.Suppress]
"""Marks a net's field that `build` fills in because the data decide it; it is no option of the command line."""


def bind(net: nn.Module, **values: Any) -> nn.Module:
    """`net` with those of the values that it has a field for: what the data decide."""
    return net.clone(**{field.name: values[field.name] for field in dataclasses.fields(net) if field.name in values})


LEAST = {
    **dict.fromkeys(("width", "widths", "channels", "embedding"), 1),
    **dict.fromkeys(("hidden", "blocks", "downsampling_blocks", "tower", "bigram_buckets"), 0),
}
"""The least values of fields by name, in all nets: of the sizes of layers, and of what a net may have none of."""


def check_sizes(module: nn.Module) -> None:
    """Raises UserError where a field of `module`, or of a module in it, is less than `LEAST` has it."""
    for field in dataclasses.fields(module):
        value = getattr(module, field.name)
        if isinstance(value, nn.Module) and field.name != "parent":
            check_sizes(value)
        sizes, least = value if isinstance(value, tuple) else (value,), LEAST.get(field.name)
        if least is not None and any(isinstance(x, int) and x < least for x in sizes):
            raise UserError(f"{field.name} of {type(module).__name__} must be at least {least}, not {value}")


class Apply(Protocol):
    """(params, collections, *inputs, rng, method) -> (outputs, moved collections); see `Network`."""

    def __call__(
        self,
        params: Tree,
        collections: dict[str, Tree],
        *inputs: Any,
        rng: jax.Array | None = None,
        method: str | None = None,
    ) -> tuple[Any, dict[str, Tree]]: ...


class Network(NamedTuple):
    """A Flax module as two pure functions, made by `network`.

    init   (key, inputs) -> (params, collections), for inputs like `inputs` ([batch, ...]); the collections are those
           that the module keeps beside its parameters: batch statistics, if any, and others of its own
    apply  (params, collections, *inputs, rng=None, method=None) -> (outputs in float32, the collections as they are
           afterwards). `rng`, one key for each example [batch], means training: the module is called with `train=True`
           and may move its collections. `method` calls another method of the module than `__call__`
    """

    init: Callable[[jax.Array, Any], tuple[Tree, dict[str, Tree]]]
    apply: Apply


@functools.cache
def network(module: nn.Module, dtype: str = "float32", quantization: str | None = None) -> Network:
    """`module` as a `Network` that computes in `dtype`, in training and in evaluation.

    With the quantization "int8", the products of its dense layers and convolutions are of int8, see `core.int8`, and
    the ranges of their inputs are a collection of their own; those of the method `logits` are not, which a loss calls
    by itself on chunks.

    Parameters stay as they are (float32) and are cast where they are used; of an embedding table, a leaf called
    `embedding`, the rows are cast after the gather, so that their gradient is summed in float32. Collections are not
    cast. Of equal modules it is the same Network, so that what is compiled for one serves the other.

    In training, each `RandomByExample` layer gets the examples' keys, so that an example's mask does not depend on
    where or in which microbatch it is computed. Other rng streams of the module start from the first example's key.

    Raises UserError as `check_sizes` does; `init` does where no layer is quantised.
    """
    check_sizes(module)

    def init(key: jax.Array, inputs: Any) -> tuple[Tree, dict[str, Tree]]:
        with nn.intercept_methods(_interceptor("float32", None, quantization)) if quantization else nullcontext():
            variables = dict(module.init(key, inputs))
        if quantization and RANGES not in variables:
            raise UserError(
                f"quantization: {type(module).__name__} has no layer whose products could be of {quantization}: "
                "leave it out"
            )
        return variables.pop("params", {}), variables

    def apply(
        params: Tree,
        collections: dict[str, Tree],
        *inputs: Any,
        rng: jax.Array | None = None,
        method: str | None = None,
    ) -> tuple[Any, dict[str, Tree]]:
        variables = {"params": _cast_parameters(params, dtype), **collections}
        inputs = cast(inputs, dtype)
        with nn.intercept_methods(_interceptor(dtype, rng, quantization)):
            if rng is None:
                return cast(module.apply(variables, *inputs, method=method), jnp.float32), collections
            # Dropout takes from its stream only what tells one layer from another: the same on all devices.
            rngs = {"params": rng[0], "dropout": jax.random.key(0)}
            outputs, moved = module.apply(
                variables, *inputs, train=True, rngs=rngs, mutable=list(collections), method=method
            )
        return cast(outputs, jnp.float32), {**collections, **moved}

    return Network(init, apply)


def cast(tree: Tree, dtype: Any) -> Tree:
    """`tree` with its floating leaves in `dtype`."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else x, tree)


def _cast_parameters(params: Tree, dtype: str) -> Tree:
    table = lambda path: getattr(path[-1], "key", None) == "embedding"
    return jax.tree.map_with_path(lambda path, x: x if table(path) else cast(x, dtype), params)


def input_ranges(
    module: nn.Module, dtype: str, params: Tree, collections: dict[str, Tree], *inputs: Any
) -> dict[str, Tree]:
    """The collection of the ranges of the layers' inputs, as `module` is evaluated in `dtype` on `inputs`."""

    def observe(call: Callable, arguments: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
        if context.method_name != "__call__" or linear(context.module) is None:
            return call(*arguments, **options)
        return largest_input(context.module, call, *arguments)

    variables = {"params": _cast_parameters(params, dtype), **collections}
    with nn.intercept_methods(_interceptor(dtype, None)), nn.intercept_methods(observe):
        _, seen = module.apply(variables, *cast(inputs, dtype), mutable=[RANGES])
    return dict(seen)


def _interceptor(dtype: str, rng: jax.Array | None, quantization: str | None = None) -> Callable:
    def intercept(call: Callable, arguments: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
        nonlocal quantization
        if context.method_name == "logits" and quantization:
            chosen, quantization = quantization, None
            try:
                return call(*arguments, **options)
            finally:
                quantization = chosen
        if context.method_name == "__call__":
            if rng is not None and isinstance(context.module, RandomByExample):
                return call(*arguments, **options, keys=rng)
            if isinstance(context.module, nn.Embed):
                return shard_batch(call(*arguments, **options).astype(dtype))
            if quantization and (form := linear(context.module)) is not None:
                return int8_layer(context.module, form, call, rng is not None, *arguments)
        return call(*arguments, **options)

    return intercept


class RandomByExample(nn.Module):
    """A layer that draws random numbers for each example, by keys [batch] that its `__call__` takes as `keys`.

    Where it is given None, keys are derived by the example's place in this batch, see `own_keys`.
    """


def own_keys(layer_key: jax.Array, batch: int, keys: jax.Array | None) -> jax.Array:
    """One key for each example [batch], of one layer's own.

    layer_key: of the layer, from its rng stream "dropout"
    keys: typed PRNG keys [batch], into which a number of the layer is folded
    """
    if keys is None:
        return jax.vmap(jax.random.fold_in, (None, 0))(layer_key, jnp.arange(batch))
    if keys.shape != (batch,):
        raise ValueError(f"a layer of {batch} examples was given keys of shape {keys.shape}")
    return jax.vmap(jax.random.fold_in, (0, None))(keys, jax.random.bits(layer_key))


class Dropout(RandomByExample):
    """Sets a random fraction `rate` of the numbers to 0 and scales the others by 1 / (1 - rate).

    Srivastava, Hinton, Krizhevsky, Sutskever & Salakhutdinov 2014. An example's mask depends on its own key alone,
    not on where in a batch, a microbatch or on which device it is computed. The rate is rounded to a 256th, to the
    least and the largest of them at the edges: one byte is drawn for each number, since random bits are most of
    dropout's cost on a CPU.

    Attributes:
        rate: the fraction that is set to 0
        shared: axes along which all numbers of an example are dropped or kept together
        batch_axis: the axis of the examples
    """

    rate: float
    shared: tuple[int, ...] = ()
    batch_axis: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise UserError(f"a dropout rate must be at least 0 and below 1, not {self.rate}")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, keys: jax.Array | None = None) -> jax.Array:
        """`x` with dropout in training; `x` itself in evaluation, or where the rate is 0.

        keys: typed PRNG keys [batch], see `RandomByExample`
        """
        if not train or self.rate == 0:
            return x
        keys = own_keys(self.make_rng("dropout"), x.shape[self.batch_axis], keys)
        shape = [1 if axis in self.shared else size for axis, size in enumerate(x.shape)]
        del shape[self.batch_axis]
        dropped = min(255, max(1, round(256 * self.rate)))
        kept = jax.vmap(lambda key: random_bytes(key, tuple(shape)) >= dropped, out_axes=self.batch_axis)(keys)
        return jnp.where(kept, x * (256 / (256 - dropped)), 0).astype(x.dtype)


def random_bytes(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform u8 of a shape: four for each random word."""
    size = math.prod(shape)
    words = jax.random.bits(key, (-(-size // 4),), jnp.uint32)
    return lax.bitcast_convert_type(words, jnp.uint8).reshape(-1)[:size].reshape(shape)
