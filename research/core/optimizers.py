"""Optimizers and schedules by name: one flat dataclass over optax."""

import operator
from dataclasses import dataclass
from typing import Literal

import jax
import optax
from jax.tree_util import tree_map_with_path

from research.core.muon import muon
from research.core.types import Tree


@dataclass(frozen=True)
class Optimizer:
    """What moves the parameters.

    Attributes:
        name: adamw (Loshchilov & Hutter 2019, arXiv:1711.05101; Adam where weight_decay is 0), sgd (with momentum),
            adafactor (Shazeer & Stern 2018, arXiv:1804.04235), lion (Chen et al. 2023, arXiv:2302.06675), or muon
            (Jordan et al. 2024): kernels of hidden layers by Muon, each of fused matrices (queries, keys and values,
            the gates of an LSTM) by itself, and first and last layers, embeddings, biases and scales by Adam. Muon's
            updates have the size of Adam's (Liu et al. 2025, arXiv:2502.16982), so that both share learning_rate
        learning_rate: its peak
        schedule: constant; linear or cosine, down to `final_fraction` of it at the last step; halving, at `halve_at`;
            one_cycle (Smith & Topin 2018, arXiv:1708.07120): up from 1/25 over the first 30 %, then down by a
            cosine to nothing
        warmup: steps over which the others rise linearly from 0
        weight_decay: strength of weight decay, of kernels and embeddings (muon: of kernels alone). For sgd it is added
            to the gradient (L2 regularisation); for all others each update subtracts it times the learning rate from
            the parameters (decoupled decay)
        momentum: decay of the momentum of sgd and of muon
        nesterov: whether the momentum of sgd and of muon is Nesterov's; muon's Adam has none of it
        b1: decay of the first moment, of adamw, of muon's Adam and of lion
        b2: decay of the second moment of adamw and of muon's Adam, by default 0.999; of lion's momentum, by default
            0.99, as in its paper
        eps: added to the root of the second moment, of adamw and of muon's Adam
        final_fraction: learning rate at the end of `linear` and `cosine`, as a fraction of learning_rate
        halve_at: the fractions of the run after which `halving` halves the learning rate
    """

    name: Literal["adamw", "sgd", "adafactor", "lion", "muon"] = "adamw"
    learning_rate: float = 1e-3
    schedule: Literal["constant", "linear", "cosine", "halving", "one_cycle"] = "constant"
    warmup: int = 0
    final_fraction: float = 0.0
    halve_at: tuple[float, ...] = (0.5, 0.75, 0.875)
    weight_decay: float = 0.0
    momentum: float = 0.9
    nesterov: bool = True
    b1: float = 0.9
    b2: float | None = None
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if self.warmup < 0:
            raise ValueError(f"optimizer.warmup must be 0 or more steps, not {self.warmup}")


def schedule(how: Optimizer, steps: int) -> optax.Schedule:
    """The learning rate as a function of the optimizer's count of updates, of `steps` in all."""
    after = max(steps - how.warmup, 1)
    match how.schedule:
        case "constant":
            shape = optax.constant_schedule(1.0)
        case "linear":
            shape = optax.linear_schedule(1.0, how.final_fraction, after)
        case "cosine":
            shape = optax.cosine_decay_schedule(1.0, after, how.final_fraction)
        case "halving":
            shape = optax.piecewise_constant_schedule(1.0, {int(at * steps) - how.warmup: 0.5 for at in how.halve_at})
        case "one_cycle":
            shape = optax.cosine_onecycle_schedule(after, 1.0)
    if how.warmup:
        shape = optax.join_schedules([optax.linear_schedule(0.0, 1.0, how.warmup), shape], [how.warmup])
    # The peak is multiplied in last, so that a sweep can vmap it.
    return lambda count: how.learning_rate * shape(count)


def optimizer(how: Optimizer, steps: int) -> optax.GradientTransformation:
    """The optimizer for a run of `steps` updates."""
    rate = schedule(how, steps)
    b2 = how.b2 if how.b2 is not None else 0.99 if how.name == "lion" else 0.999
    match how.name:
        case "adamw":
            return optax.adamw(rate, how.b1, b2, how.eps, weight_decay=how.weight_decay, mask=decayed)
        case "sgd":
            sgd = optax.sgd(rate, how.momentum, how.nesterov)
            return optax.chain(optax.add_decayed_weights(how.weight_decay, decayed), sgd)
        case "adafactor":
            # Optax's own decay of adafactor isn't multiplied by the learning rate.
            decay = optax.add_decayed_weights(lambda count: -how.weight_decay * rate(count), decayed)
            return optax.chain(optax.adafactor(rate), decay)
        case "lion":
            return optax.lion(rate, how.b1, b2, weight_decay=how.weight_decay, mask=decayed)
        case "muon":
            adam = optax.adamw(rate, how.b1, b2, how.eps, weight_decay=how.weight_decay, mask=_kernels)
            return muon(rate, how.momentum, how.nesterov, how.weight_decay, adam)


def decayed(params: Tree) -> Tree:
    """True for kernels and embeddings; False for biases and the scales of norms, which are not decayed."""
    embedding = lambda path, _: path[-1].key == "embedding"
    return jax.tree.map(operator.or_, _kernels(params), tree_map_with_path(embedding, params))


def _kernels(params: Tree) -> Tree:
    return tree_map_with_path(lambda path, _: path[-1].key.endswith("kernel"), params)
