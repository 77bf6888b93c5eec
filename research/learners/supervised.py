"""Supervised learning: one `update`. LSTM and Transformer differ in the net and the criterion alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import flax.linen as nn
import jax

from research.core.errors import between
from research.core.experiment import Experiment, Inference
from research.core.losses import Criterion, criterion_loss, criterion_metrics
from research.core.metrics import Metrics
from research.core.modules import Network, network
from research.core.optimizers import Optimizer
from research.core.state import Batch, Learner, State, example_keys, learner, rng, weights
from research.core.update import Updater, updater

Augmentation = Callable[[jax.Array, Batch], Batch]
"""(keys [batch], batch as it is fed) -> batch as the net and the criterion read it."""


@dataclass(frozen=True, kw_only=True)
class Supervised(Experiment):
    """What supervised experiments have in common; each adds its data and its net.

    Attributes:
        average: decay of the moving average of the weights that is evaluated; None to evaluate the last weights. Batch
            statistics are not averaged: those of the last weights are evaluated with it
        optimizer: optimizer of the net
        quantization: int8: dense layers and convolutions multiply 8-bit integers, in training (rounding has the
            gradient of the identity) and in evaluation; weights stay float32 for the optimizer
    """

    data: Any
    net: Any
    average: float | None = None
    optimizer: Optimizer = field(default_factory=Optimizer)
    quantization: Literal["int8"] | None = None

    dtypes = ("float32", "bfloat16", "float16")

    def __post_init__(self) -> None:
        super().__post_init__()
        between(self, "", 0, 1, "average")

    def updater(self) -> Updater:
        """`init` and `update` of one net, called "net"."""
        return updater(self.update, {"net": (self.optimizer, self.run.steps)}, {"net": self.average})

    def tensor_axes(self) -> Mapping[str, int]:
        """See `Experiment`; those of a net with the class attribute `tensor_axes`."""
        return getattr(self.net, "tensor_axes", {})

    def network(self, module: nn.Module) -> Network:
        """`module`, computing in the config's dtype, or with products of int8."""
        return network(module, self.update.dtype, self.quantization)

    def module(self) -> nn.Module:
        """The net, with what the data fill in."""
        return self.net

    def outputs(self, state: State, inputs: Any) -> Any:
        """What the net makes of inputs, leaves [batch, ...], with the weights that are evaluated."""
        return self.network(self.module()).apply(*weights(state, "net"), inputs)[0]


def pixel_inference(
    function: Callable[[jax.Array], jax.Array], output: str, about: str = "", names: Sequence[str] = ()
) -> dict[str, Inference]:
    """The `Experiment.inference` of a net for images: a function of u8[batch, height, width, channels].

    about  whole sentences on what it returns; for the others see `Inference`
    """
    how = (
        "Images are pixels from 0 to 255, [batch, height, width, channels], which the program scales and standardises."
    )
    images = lambda batch: {"images": batch.inputs}
    return {"inference": Inference(function, images, output, f"{how} {about}".strip(), names)}


def supervised(
    net: Network,
    updater: Updater,
    example: Any,
    criterion: Criterion,
    eval_criterion: Criterion,
    augment: Augmentation = lambda keys, batch: batch,
    prepare: Callable[[Batch], Batch] = lambda batch: batch,
    chunk: int | None = None,
) -> Learner:
    """The learner that minimises `criterion` of the net's outputs.

    updater         of a net called "net"
    example         inputs like those of a batch, prepared, leaves [1, ...]
    eval_criterion  the criterion of evaluation
    augment         prepares a batch for training, with a key for each example
    prepare         the same for evaluation
    chunk           see `criterion_loss`
    """
    loss = criterion_loss(net, "net", criterion, chunk)

    def init(key: jax.Array) -> State:
        return updater.init(key, {"net": net.init(key, example)})

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        batch = augment(example_keys(rng(state, "augment"), batch.index), batch)
        state, aux = updater.update(state, "net", loss, batch)
        return state, dict(aux.metrics)

    def evaluate(state: State, batch: Batch) -> Metrics:
        return criterion_metrics(net, "net", eval_criterion, state, prepare(batch), chunk)

    return learner(init, step, evaluate)
