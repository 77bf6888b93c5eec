"""Muon: which parameters it moves, as which matrices, and what it leaves to Adam.

Jordan, Jin, Boza, You, Cesista, Newhouse & Bernstein 2024, "Muon: an optimizer for hidden layers in neural networks"
(kellerjordan.github.io/posts/muon). Muon orthogonalises the momentum of the matrices of hidden layers. As its authors
do, first and last layers, embeddings, biases and scales are left to Adam. Parameters are told apart by their names:

    stem…, head        the modules of first and last layers: Adam; so is a dense layer called value, a dueling net's
    …kernel            of all other modules: Muon; a kernel of one row or one column is a vector: Adam
    anything else      Adam

A kernel [..., inputs, outputs] is a matrix of all its axes but the last, against the last, or against the last axes
where `OUTPUTS` says so; stacked layers (under "layers", leaves [layers, ...]) are a matrix each. Kernels that are
several matrices side by side are orthogonalised one by one:

    qkv, kv                                             queries, keys and values: [inputs, groups, heads, features]
    gate_up                                             the two factors of SwiGLU: [inputs, 2, features]
    Layer_N, gates, recurrent_kernel, context_kernel    the four gates of an LSTM

The queries, keys and values of a U-Net's attention are in one kernel without such a name: one matrix.
"""

import math
import re

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import DictKey, tree_map_with_path
from optax.contrib import MuonDimensionNumbers

from research.core.types import Tree

OUTPUTS = {"qkv": 3, "q": 3, "kv": 3, "gate_up": 2}
"""The number of axes that are outputs, of the kernels of modules that have several."""


def muon(
    learning_rate: optax.Schedule,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    mu_dtype: str,
    adam: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """Muon for the matrices of hidden layers, `adam` for all else.

    Updates are scaled to the root mean square of Adam's, 0.2, so that one learning rate serves both: Liu et al. 2025,
    "Muon is scalable for LLM training" (arXiv:2502.16982), section 2.2.

    mu_dtype: of the momentum
    """
    hidden = optax.contrib.muon(
        learning_rate,
        beta=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        mu_dtype=mu_dtype,
        muon_weight_dimension_numbers=axes,
        consistent_rms=0.2,
    )
    return optax.partition({"muon": of_matrices(hidden), "adam": adam}, labels)


def labels(params: Tree) -> Tree:
    """ "muon" or "adam" for each leaf; see above."""

    def label(path: tuple, x: jax.Array) -> str:
        names = _names(path)
        ends = any(name.startswith("stem") or name == "head" for name in names) or names[-2:] == ["value", "kernel"]
        if not names[-1].endswith("kernel") or ends:
            return "adam"
        inputs, outputs = axes_of(path, x)
        return "adam" if 1 in (math.prod(x.shape[n] for n in part) for part in (inputs, outputs)) else "muon"

    return tree_map_with_path(label, params)


def matrices(params: Tree) -> Tree:
    """Each kernel of a tree of kernels as the tuple of its matrices; see above."""

    def split(path: tuple, x: jax.Array) -> tuple[jax.Array, ...]:
        module, name = _module(path), path[-1].key
        if module == "qkv":
            heads = x.shape[-2]
            return tuple(jnp.split(x, (heads - 2, heads - 1), -2))
        if module in ("kv", "gate_up"):
            return tuple(jnp.split(x, 2, -2))
        if name in ("recurrent_kernel", "context_kernel") or re.fullmatch(r"gates|Layer_\d+", module):
            return tuple(jnp.split(x, 4, -1))
        return (x,)

    return tree_map_with_path(split, params)


def flattened(params: Tree) -> Tree:
    """Each leaf of the modules in `OUTPUTS` with one axis of outputs: a kernel [..., inputs, outputs]."""

    def flat(path: tuple, x: jax.Array) -> jax.Array:
        module = _module(path)
        return x.reshape(*x.shape[: -OUTPUTS[module]], -1) if module in OUTPUTS else x

    return tree_map_with_path(flat, params)


def of_matrices(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx`, applied to the `matrices` of parameters and gradients; its updates are joined again."""

    def update(updates: Tree, state: Tree, params: Tree = None) -> tuple[Tree, Tree]:
        found, state = tx.update(matrices(updates), state, matrices(params))
        return tree_map_with_path(lambda path, _, parts: _joined(path, parts), updates, found), state

    return optax.GradientTransformation(lambda params: tx.init(matrices(params)), update)


def axes(params: Tree) -> Tree:
    """Which axes of each leaf are the rows of a matrix, and which its columns."""
    return tree_map_with_path(lambda path, x: MuonDimensionNumbers(*axes_of(path, x)), params)


def axes_of(path: tuple, kernel: jax.Array) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes of a kernel, or of one of its matrices, that are inputs, and those that are outputs."""
    stacked, first = "layers" in _names(path), kernel.ndim - OUTPUTS.get(_module(path), 1)
    return tuple(range(int(stacked), first)), tuple(range(first, kernel.ndim))


def _joined(path: tuple, parts: tuple[jax.Array, ...]) -> jax.Array:
    """The kernel of which these are the `matrices`."""
    return jnp.concatenate(parts, -2 if _module(path) in OUTPUTS else -1)


def _names(path: tuple) -> list[str]:
    return [part.key for part in path if isinstance(part, DictKey)]


def _module(path: tuple) -> str:
    """The name of the module that a leaf is of; "" where it is of none."""
    return ("", *_names(path))[-2]
