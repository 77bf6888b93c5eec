"""Criteria, (outputs, targets, mask) -> (loss, metrics), all over the examples with mask 1; and losses made of them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from research.core.metrics import Mean, Metrics, Perplexity, added, confusion, mean
from research.core.modules import Network
from research.core.state import Batch, State, evaluated, owned
from research.core.types import Tree
from research.core.update import Aux, Loss

Criterion = Callable[[Any, Any, jax.Array], tuple[Mean, Metrics]]


def classification(smoothing: float = 0.0, names: Sequence[str] = ()) -> Criterion:
    """Cross-entropy of logits f32[batch, classes] against labels i32[batch], in nats, and the accuracy.

    Logits f32[batch, classifiers, classes] are those of several classifiers: the loss is the mean of their losses, and
    the accuracy is that of their mean logits.

    smoothing  label-smoothing factor: the part of each target spread evenly over the classes (Szegedy et al. 2016,
               arXiv:1512.00567)
    names      of the classes, in evaluation: precision, recall and F1 of each are reported
    """

    def criterion(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> tuple[Mean, Metrics]:
        logits = logits.reshape(len(logits), -1, logits.shape[-1])
        losses = cross_entropy(logits, jnp.broadcast_to(labels[:, None], logits.shape[:2]), smoothing)
        predicted = logits.mean(1).argmax(-1)
        metrics: Metrics = {"accuracy": mean(predicted == labels, mask)}
        if names:
            metrics["confusion"] = confusion(predicted, labels, mask, names)
        return mean(losses.mean(1), mask), metrics

    return criterion


def tokens(ignored: int, smoothing: float = 0.0, lengths: np.ndarray | None = None) -> Criterion:
    """Cross-entropy of logits f32[batch, time, vocabulary] against tokens i32[batch, time], in nats, and the accuracy.

    Both are means over the tokens: the targets equal to `ignored` count for nothing.

    lengths  i32[vocabulary], the characters of each token; with them, the loss is also reported in bits per character
    """

    def criterion(logits: jax.Array, targets: jax.Array, mask: jax.Array) -> tuple[Mean, Metrics]:
        weights = mask[:, None] * (targets != ignored)
        targets = jnp.maximum(targets, 0)
        loss = mean(cross_entropy(logits, targets, smoothing), weights)
        metrics: Metrics = {"accuracy": mean(logits.argmax(-1) == targets, weights)}
        if lengths is not None:
            characters = (weights * jnp.asarray(lengths, jnp.float32)[targets]).sum()
            nats = mean(cross_entropy(logits, targets), weights)
            metrics["bits_per_character"] = Mean(nats.total / math.log(2), characters)
        return loss, metrics

    return criterion


def with_perplexity(criterion: Criterion) -> Criterion:
    """`criterion`, a mean loss in nats per token, with the perplexity among its metrics."""

    def evaluated(outputs: Any, targets: Any, mask: jax.Array) -> tuple[Mean, Metrics]:
        value, metrics = criterion(outputs, targets, mask)
        return value, {**metrics, "perplexity": Perplexity(*value)}

    return evaluated


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """-log softmax(logits)[label], in nats: logits [..., classes], labels i32[...] -> [...]; see `classification`."""
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    # The smoothed target's share of the loss, without a one-hot of every label.
    spread = jax.nn.logsumexp(logits, -1) - logits.mean(-1)
    return (1 - smoothing) * loss + smoothing * spread


def criterion_loss(net: Network, name: str, criterion: Criterion, chunk: int | None = None) -> Loss:
    """The loss for `update` that is `criterion` of what the net called `name` makes of a batch's inputs.

    chunk  number of tokens of each sequence whose outputs are in memory at once, for a criterion that is a mean over
           tokens. The net then has two methods that make up its `__call__`: `features`, from inputs to features
           [batch, time, width], and `logits`, from the features of any tokens to their outputs. None: all at once
    """

    def loss(params: Tree, state: State, batch: Batch, rng: jax.Array) -> tuple[Mean, Aux]:
        value, metrics, moved = _applied(net, criterion, params, owned(state, name), batch, rng, chunk)
        return value, Aux(metrics, moved)

    return loss


def criterion_metrics(
    net: Network, name: str, criterion: Criterion, state: State, batch: Batch, chunk: int | None = None
) -> Metrics:
    """The value of `criterion`, "loss", and its metrics for the parameters of `name` that are evaluated.

    chunk  see `criterion_loss`
    """
    value, metrics, _ = _applied(net, criterion, evaluated(state, name), owned(state, name), batch, None, chunk)
    return {"loss": value, **metrics}


def _applied(
    net: Network,
    criterion: Criterion,
    params: Tree,
    collections: dict[str, Tree],
    batch: Batch,
    rng: jax.Array | None,
    chunk: int | None,
) -> tuple[Mean, Metrics, dict[str, Tree]]:
    """The criterion of what the net makes of a batch's inputs: its value, its metrics, and the moved collections."""
    if chunk is None:
        outputs, moved = net.apply(params, collections, batch.inputs, rng=rng)
        return *criterion(outputs, batch.targets, batch.mask), moved

    def part(features: jax.Array, targets: jax.Array) -> tuple[Mean, Metrics]:
        logits, _ = net.apply(params, collections, features, method="logits")
        return criterion(logits, targets, batch.mask)

    features, moved = net.apply(params, collections, batch.inputs, rng=rng, method="features")
    return *_summed_over_time(part, (features, batch.targets), chunk), moved


def _summed_over_time(part: Callable, data: tuple[jax.Array, ...], chunk: int) -> Any:
    """The sum of `part(*data)` over chunks of the time of data [batch, time, ...]; whole batches, which devices split.

    The backward pass computes each chunk again, so that nothing of a chunk is kept beside its sums.
    """
    part = jax.checkpoint(part, prevent_cse=False)  # a scan's body needs no barrier against it
    chunk = min(chunk, data[0].shape[1])
    count, rest = divmod(data[0].shape[1], chunk)
    chunks = [x[:, : count * chunk].reshape(len(x), count, chunk, *x.shape[2:]).swapaxes(0, 1) for x in data]
    _, found = jax.lax.scan(lambda _, chunk: ((), part(*chunk)), (), chunks)
    total = added(found)
    if rest:
        total = jax.tree.map(jnp.add, total, part(*(x[:, count * chunk :] for x in data)))
    return total
