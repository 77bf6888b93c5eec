"""Supervised learning: one `descend`. CNN, LSTM and Transformer differ in the net and the criterion alone."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from research.descend import Descent, descend
from research.losses import Criterion
from research.network import forward, initialise, on_axis
from research.state import Batch, Learner, Mean, Metrics, State, Tree, each, mean, stream


def supervised(
    net: nn.Module,
    example: Any,
    criterion: Criterion,
    judge: Criterion,
    tx: optax.GradientTransformation,
    rate: optax.Schedule,
    prepare: Callable[[Any], Any] = lambda inputs: inputs,
    augment: Callable[[jax.Array, Any], Any] = lambda keys, inputs: inputs,
    how: Descent = Descent(),
    axis: str | None = None,
) -> Learner:
    """Descends `criterion` of `net`'s outputs.

    example    inputs like those of a batch, prepared, leaves [1, ...]
    judge      the criterion of evaluation
    prepare    a batch's inputs -> the net's inputs
    augment    the same for training, with a key for each example, [batch]
    tx, rate   the optimizer, and its learning rate by step (for the log)
    """
    net = on_axis(net, axis)

    def init(key: jax.Array) -> State:
        params, collections = initialise(net, key, example)
        return State(jnp.int32(0), key, params, tx.init(params), collections, ())

    def loss(
        params: Tree, collections: dict[str, Tree], batch: Batch, key: jax.Array
    ) -> tuple[Mean, tuple[dict[str, Tree], Metrics]]:
        outputs, collections = forward(net, params, collections, batch.inputs, key)
        value, metrics = criterion(outputs, batch.targets, batch.mask)
        return value, (collections, metrics)

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        inputs = augment(each(stream(state, "augment"), batch.index), batch.inputs)
        params, opt_state, collections, metrics = descend(
            loss,
            tx,
            state.params,
            state.opt_state,
            state.collections,
            batch._replace(inputs=inputs),
            stream(state, "dropout"),
            how,
            axis,
        )
        metrics["learning_rate"] = mean(rate(state.step))
        return State(state.step + 1, state.key, params, opt_state, collections, state.world), metrics

    def evaluate(state: State, batch: Batch) -> Metrics:
        outputs, _ = forward(net, state.params, state.collections, prepare(batch.inputs))
        value, metrics = judge(outputs, batch.targets, batch.mask)
        return {"loss": value, **metrics}

    return Learner(init, step, evaluate)
