"""The leaves of a State by name, as a checkpoint holds them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.core.errors import UserError
from research.core.patterns import path_name
from research.core.types import Tree


def named(tree: Tree) -> dict[str, Any]:
    """The leaves of `tree` by name, e.g. "params/net/Dense_0/kernel", in the tree's order.

    Raises UserError where two leaves have the same name.
    """
    paths = jax.tree_util.tree_leaves_with_path(tree)
    leaves = {path_name(path): leaf for path, leaf in paths}
    if len(leaves) != len(paths):
        raise UserError("two leaves of the State have the same name: a name with a slash in it may be the cause")
    return leaves


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def plain(leaves: dict[str, Any]) -> dict[str, Any]:
    """`leaves` as orbax can save them: PRNG keys as their bits, arrays without elements left out."""
    return {name: jax.random.key_data(x) if _is_key(x) else x for name, x in leaves.items() if x.size}


def plain_shape(leaf: Any) -> jax.ShapeDtypeStruct:
    """The shape and dtype in which orbax saves `leaf`, and where `leaf` says that it is to be."""
    shape = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=getattr(leaf, "sharding", None))


def typed(found: Any, leaf: Any) -> Any:
    """The array that orbax read as a leaf like `leaf`; `found` is None for one without elements, which is not saved."""
    if found is None:
        return np.zeros(leaf.shape, leaf.dtype)
    return jax.random.wrap_key_data(jnp.asarray(found), impl=_implementation(leaf)) if _is_key(leaf) else found


def _implementation(key: Any) -> Any:
    found: list[Any] = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), key)  # key_impl does not take a shape
    return found[0]


def describe(leaf: Any) -> str:
    """The dtype and shape of `leaf`, e.g. "float32[3,4]"."""
    return f"{leaf.dtype.name}[{','.join(map(str, leaf.shape))}]"


def differences(held: Mapping[str, str], leaves: Mapping[str, Any]) -> list[str]:
    """How the leaves of a checkpoint, `held`, differ from `leaves`, one text for each difference."""
    wanted = {name: describe(leaf) for name, leaf in leaves.items()}
    both = [name for name in wanted if name in held]
    return [
        *(f"{name} is {held[name]} there, {wanted[name]} here" for name in both if held[name] != wanted[name]),
        *(f"{name} is not there" for name in wanted if name not in held),
        *(f"{name} is there only" for name in held if name not in wanted),
    ]


def check_same(path: Path, held: Mapping[str, str], leaves: Mapping[str, Any]) -> None:
    """Raise UserError where the leaves of the checkpoint at `path`, `held`, differ from `leaves`."""
    differ = differences(held, leaves)
    if differ:
        more = f"; and {len(differ) - 3} more" if len(differ) > 3 else ""
        raise UserError(
            f"checkpoint {path} holds something else ({'; '.join(differ[:3])}{more}): "
            "use the config, the data and the code that it was made with"
        )
