"""Supervised learning: one `descend`. CNN, LSTM and Transformer differ in the net and the criterion alone."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from research.core.errors import Mistake
from research.core.experiment import Run
from research.core.losses import Criterion
from research.core.modules import forward, initialise, on_axis
from research.core.optimizers import Optimizer, optimizer, schedule
from research.core.state import Batch, Learner, Mean, Metrics, State, Tree, each, mean, stream
from research.core.transformations import averaged
from research.core.update import Descent, descend


def unchanged(batch: Batch) -> Batch:
    """The batch as it is fed is what the net reads."""
    return batch


def supervised(
    net: nn.Module,
    example: Any,
    criterion: Criterion,
    judge: Criterion,
    tx: optax.GradientTransformation,
    rate: optax.Schedule,
    prepare: Callable[[Batch], Batch] = unchanged,
    augment: Callable[[jax.Array, Batch], Batch] = lambda keys, batch: batch,
    how: Descent = Descent(),
    axis: str | None = None,
) -> Learner:
    """Descends `criterion` of `net`'s outputs.

    example    inputs like those of a batch, prepared, leaves [1, ...]
    judge      the criterion of evaluation
    prepare    a batch as it is fed -> as the net and the criterion read it
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
        params, opt_state, collections, metrics = descend(
            loss,
            tx,
            state.params,
            state.opt_state,
            state.collections,
            augment(each(stream(state, "augment"), batch.index), batch),
            stream(state, "dropout"),
            how,
            axis,
        )
        metrics["learning_rate"] = mean(rate(state.step))
        return State(state.step + 1, state.key, params, opt_state, collections, state.world), metrics

    def evaluate(state: State, batch: Batch) -> Metrics:
        batch = prepare(batch)
        outputs, _ = forward(net, state.params, state.collections, batch.inputs)
        value, metrics = judge(outputs, batch.targets, batch.mask)
        return {"loss": value, **metrics}

    return Learner(init, step, evaluate)


@dataclass(frozen=True, kw_only=True)
class Training:
    """What all supervised experiments have in common; each says what its data and its net are.

    Attributes:
        average: decay of the averaged weights that are evaluated, None to evaluate the last ones
    """

    data: Any
    net: Any
    average: float | None = None
    optimizer: Optimizer = field(default_factory=Optimizer)
    descent: Descent = field(default_factory=Descent)
    run: Run = field(default_factory=Run)

    def __post_init__(self) -> None:
        if self.data.batch % self.descent.micro:
            raise Mistake(f"descent.micro={self.descent.micro} does not divide data.batch={self.data.batch}")

    def learner(self, net: nn.Module, example: Any, criterion: Criterion, **options: Any) -> Learner:
        """`supervised` with this optimizer, and averaging; the options are its own."""
        learner = supervised(
            net=net,
            example=example,
            criterion=criterion,
            tx=optimizer(self.optimizer, self.run.steps),
            rate=schedule(self.optimizer, self.run.steps),
            how=self.descent,
            **options,
        )
        return learner if self.average is None else averaged(learner, self.average)

    def divisible(self) -> dict[str, int]:
        """See `Experiment`."""
        return {
            "data.batch": self.data.batch // self.descent.micro,
            "data.evaluation_batch": self.data.evaluation_batch,
        }
