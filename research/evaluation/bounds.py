"""A report on variational autoencoders: the importance-weighted bound on the log-likelihood of the test images."""

import math
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from research.core.experiment import Report, Split
from research.core.metrics import Numbers
from research.core.state import Batch, State
from research.core.transformations import each_seed
from research.evaluation.samples import show
from research.evaluation.seeds import by_seed

LogWeights = Callable[[State, Batch, jax.Array], jax.Array]
"""(State, batch, numbers i32[n] of codes) -> log p(x, z) - log q(z|x) of each image and code: [batch, n]."""

AT_ONCE = 4096
"""Codes that are decoded at once."""


def importance_weighted(log_weights: LogWeights, num_samples: int) -> Report:
    """importance_weighted_nll: the bound of Burda et al. 2016 on the negative log-likelihood, in nats per image.

    It is the mean over all images of -log of the mean weight of `num_samples` codes. It is at most the negative
    evidence lower bound, and approaches the negative log-likelihood from above as the samples become more.
    """
    bound = jax.jit(lambda state, batch: bounds(lambda numbers: log_weights(state, batch, numbers), num_samples))

    def run(state: State, split: Split, directory: Path) -> Numbers:
        def evaluate(state: State) -> dict[str, float]:
            found = [(np.asarray(bound(state, batch), np.float64), batch.mask) for batch in split.batches]
            values, masks = (np.concatenate(parts) for parts in zip(*found, strict=True))
            return {"importance_weighted_nll": -float(np.average(values, weights=masks))}

        values = by_seed([evaluate(one) for one in each_seed(state)])
        show(f"importance-weighted bound of {num_samples:,} samples, in nats", values)
        return values

    return Report(run)


def bounds(log_weights: Callable[[jax.Array], jax.Array], num_samples: int) -> jax.Array:
    """log of the mean of `num_samples` importance weights of each image: f32[batch].

    log_weights: numbers i32[n] of codes -> the logarithms [batch, n] of their weights

    At most `AT_ONCE` codes are in memory at a time, or one for each image.
    """
    batch = jax.eval_shape(log_weights, jnp.zeros(1, jnp.int32)).shape[0]
    chunk = -(-num_samples // -(-num_samples // max(1, AT_ONCE // batch)))  # chunks of nearly equal size

    def add(total: jax.Array, start: jax.Array) -> tuple[jax.Array, None]:
        numbers = start + jnp.arange(chunk)
        weights = jnp.where(numbers < num_samples, log_weights(numbers), -jnp.inf)
        return jnp.logaddexp(total, jax.nn.logsumexp(weights, 1)), None

    total, _ = jax.lax.scan(add, jnp.full(batch, -jnp.inf), jnp.arange(0, num_samples, chunk))
    return total - math.log(num_samples)
