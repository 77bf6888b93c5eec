"""Optimizers and learning rate schedules by name: one flat dataclass over optax."""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import jax
import optax

from research.core.errors import UserError, between
from research.core.lookahead import Lookahead
from research.core.muon import flattened, muon
from research.core.patterns import matching
from research.core.types import Tree


@dataclass(frozen=True)
class Optimizer:
    """An optimizer and the schedule of its learning rate.

    Attributes:
        name: adamw (Loshchilov & Hutter 2019, arXiv:1711.05101; Adam where weight_decay is 0), sgd (with momentum),
            rmsprop (Hinton 2012, centred by Graves 2013, arXiv:1308.0850, section 4.2; no momentum), adafactor (Shazeer
            & Stern 2018, arXiv:1804.04235; stacked layers are clipped and scaled as one), lion (Chen et al. 2023,
            arXiv:2302.06675), or muon (Jordan et al. 2024): kernels of hidden layers by Muon, each of fused matrices
            (queries, keys and values, the gates of an LSTM) by itself, and first and last layers, embeddings, biases
            and scales by Adam. Muon's updates have the size of Adam's (Liu et al. 2025, arXiv:2502.16982), so that both
            share learning_rate
        learning_rate: the peak of the learning rate
        schedule: how the learning rate changes: constant; linear or cosine: from the peak to final_ratio of it after
            the last update; halving: see halve_at; one_cycle (Smith & Topin 2018, arXiv:1708.07120): rises from 1/25
            of the peak in the first 30 % of the run and falls to about 0 by a cosine
        warmup: number of updates in which the learning rate rises linearly from initial_ratio of the peak, before its
            schedule begins
        initial_ratio: learning rate at the first update of the warmup, as a fraction of the peak
        final_ratio: learning rate after the last update of linear and cosine, as a fraction of the peak
        halve_at: fractions of the run after which the schedule halving halves the learning rate
        weight_decay: strength of weight decay, of kernels and embeddings (muon: of kernels alone). For sgd it is added
            to the gradient (L2 regularisation); for all others each update subtracts it times the learning rate from
            the parameters (decoupled decay)
        decays: patterns of the paths of parameters, each with the weight decay that takes the place of weight_decay
            there, biases and scales included; for sgd
        momentum: decay of the momentum of sgd and of muon
        nesterov: whether the momentum of sgd and of muon is Nesterov's; muon's Adam has none of it
        b1: decay of the first moment of adamw, of muon's Adam and of lion
        b2: decay of the second moment of adamw and of muon's Adam, by default 0.999; of rmsprop's mean and variance, by
            default 0.95; of lion's momentum, by default 0.99; both as in their papers
        eps: number added to the root of the second moment of adamw and of muon's Adam, and of rmsprop's variance
        mu_dtype: dtype in which the first moment (the momentum of sgd, lion and muon) is kept between updates; bfloat16
            halves its memory. adafactor keeps none, and rmsprop's is always in float32
        lookahead: averaging of the parameters as they move
    """

    name: Literal["adamw", "sgd", "rmsprop", "adafactor", "lion", "muon"] = "adamw"
    learning_rate: float = 1e-3
    schedule: Literal["constant", "linear", "cosine", "halving", "one_cycle"] = "constant"
    warmup: int = 0
    initial_ratio: float = 0.0
    final_ratio: float = 0.0
    halve_at: tuple[float, ...] = (0.5, 0.75, 0.875)
    weight_decay: float = 0.0
    decays: tuple[tuple[str, float], ...] = ()
    momentum: float = 0.9
    nesterov: bool = True
    b1: float = 0.9
    b2: float | None = None
    eps: float = 1e-8
    mu_dtype: Literal["float32", "bfloat16"] = "float32"
    lookahead: Lookahead = field(default_factory=Lookahead)

    def __post_init__(self) -> None:
        if self.name in ("rmsprop", "adafactor") and self.mu_dtype != "float32":
            raise UserError(f"optimizer.mu_dtype must be float32 for {self.name}")
        if self.decays and self.name != "sgd":
            raise UserError(f"optimizer.decays are for sgd, not for {self.name}")
        for pattern, decay in self.decays:
            if decay < 0:
                raise UserError(f"optimizer.decays must be at least 0, not {decay} for {pattern!r}")
        between(self, "optimizer", 0, math.inf, "learning_rate", "warmup", "initial_ratio", "final_ratio")
        between(self, "optimizer", 0, math.inf, "weight_decay", "eps")
        between(self, "optimizer", 0, 1, "halve_at", "momentum", "b1", "b2")
        for name in ("b1", "b2"):
            value = getattr(self, name)
            if isinstance(value, int | float) and value == 1:  # a sweep traces it
                raise UserError(f"optimizer.{name} must be below 1: a mean that nothing enters is divided by 0")

    @property
    def betas(self) -> tuple[float, float]:
        """`b1`, and `b2` or its default."""
        return self.b1, self.b2 if self.b2 is not None else {"rmsprop": 0.95, "lion": 0.99}.get(self.name, 0.999)


def schedule(config: Optimizer, steps: int) -> optax.Schedule:
    """The learning rate as a function of the number of updates so far, of `steps` in all."""
    decay_steps = max(steps - config.warmup, 1)
    match config.schedule:
        case "constant":
            shape = optax.constant_schedule(1.0)
        case "linear":
            shape = optax.linear_schedule(1.0, config.final_ratio, decay_steps)
        case "cosine":
            shape = optax.cosine_decay_schedule(1.0, decay_steps, config.final_ratio)
        case "halving":
            halvings = Counter(int(fraction * steps) - config.warmup for fraction in config.halve_at)
            shape = optax.piecewise_constant_schedule(1.0, {at: 0.5**count for at, count in halvings.items()})
        case "one_cycle":
            shape = optax.cosine_onecycle_schedule(decay_steps, 1.0)
    if config.warmup:
        shape = optax.join_schedules(
            [optax.linear_schedule(config.initial_ratio, 1.0, config.warmup), shape], [config.warmup]
        )
    # The peak is a factor of the result, so that a sweep over it can be a vmap.
    return lambda count: config.learning_rate * shape(count)


def optimizer(config: Optimizer, steps: int) -> optax.GradientTransformation:
    """The optimizer for a run of `steps` updates."""
    learning_rate, weight_decay, (b1, b2) = schedule(config, steps), config.weight_decay, config.betas
    adamw = lambda mask: optax.adamw(learning_rate, b1, b2, config.eps, 0.0, config.mu_dtype, weight_decay, mask)
    match config.name:
        case "adamw":
            return adamw(decayed)
        case "sgd":
            sgd = optax.sgd(learning_rate, config.momentum, config.nesterov, config.mu_dtype)
            patterns = [pattern for pattern, _ in config.decays]
            rest = lambda params: jax.tree.map(
                lambda d, own: d and not own, decayed(params), matching(params, patterns)
            )
            own = [
                optax.add_decayed_weights(decay, lambda params, pattern=pattern: matching(params, [pattern]))
                for pattern, decay in config.decays
            ]
            return optax.chain(optax.add_decayed_weights(weight_decay, rest), *own, sgd)
        case "rmsprop":
            decay = optax.add_decayed_weights(weight_decay, decayed)
            return optax.chain(_by_deviation(b2, config.eps), decay, optax.scale_by_learning_rate(learning_rate))
        case "adafactor":
            # Optax does not multiply the weight decay of adafactor by the learning rate.
            decay = optax.add_decayed_weights(lambda count: -weight_decay * learning_rate(count), decayed)
            return optax.chain(_of_flattened(optax.adafactor(learning_rate)), decay)
        case "lion":
            return optax.lion(learning_rate, b1, b2, config.mu_dtype, weight_decay, decayed)
        case "muon":
            return muon(
                learning_rate, config.momentum, config.nesterov, weight_decay, config.mu_dtype, adam=adamw(_kernels)
            )


class _Deviation(NamedTuple):
    """The running mean and variance of the gradient, like the parameters."""

    mu: Tree
    nu: Tree


def _by_deviation(b2: float, eps: float) -> optax.GradientTransformation:
    """The gradient over its running standard deviation plus `eps`.

    Optax takes the variance as the mean square less the squared mean, which rounding makes negative, and its root NaN,
    where a gradient stays the same. Here it is moved by squares alone, and never below 0.
    """

    def init(params: Tree) -> _Deviation:
        return _Deviation(optax.tree.zeros_like(params), optax.tree.zeros_like(params))

    def update(gradient: Tree, state: _Deviation, params: Tree = None) -> tuple[Tree, _Deviation]:
        offset = optax.tree.sub(gradient, state.mu)
        mu = jax.tree.map(lambda mu, d: mu + (1 - b2) * d, state.mu, offset)
        nu = jax.tree.map(lambda nu, d: b2 * (nu + (1 - b2) * d**2), state.nu, offset)
        return jax.tree.map(lambda g, nu: g / (nu**0.5 + eps), gradient, nu), _Deviation(mu, nu)

    return optax.GradientTransformation(init, update)


def _of_flattened(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx`, applied to `flattened` kernels: Adafactor factors the two largest axes, and not those of single heads."""

    def update(updates: Tree, state: Tree, params: Tree = None) -> tuple[Tree, Tree]:
        found, state = tx.update(flattened(updates), state, flattened(params))
        return jax.tree.map(lambda x, flat: flat.reshape(x.shape), updates, found), state

    return optax.GradientTransformation(lambda params: tx.init(flattened(params)), update)


def decayed(params: Tree) -> Tree:
    """True for kernels and embeddings; False for biases and the scales of norms, which are not decayed."""
    return matching(params, ("*kernel", "embedding", "*/embedding"))


def _kernels(params: Tree) -> Tree:
    return matching(params, ("*kernel",))
