"""What experiments with two players have in common: nets that descend losses of their own, in turns."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from research.core.errors import Mistake
from research.core.experiment import Run, positive
from research.core.optimizers import Optimizer
from research.core.state import Mean, Metrics
from research.core.update import Descent

ADAM = Optimizer(learning_rate=2e-4, b1=0.5, b2=0.999)
"""DCGAN's."""


@dataclass(frozen=True, kw_only=True)
class Players:
    """An experiment with a generator and a discriminator; each says what its data and its nets are.

    Attributes:
        generator_optimizer: the optimizer of the generator, or of both generators
        discriminator_optimizer: the optimizer of the discriminator, or of both discriminators
        classifier_dir: directory of a finished run of an image classifier, which evaluates the generated images
        classifier_hash: hash of that classifier's weights (or its first digits), as sample_metrics.json states it;
            a classifier with other weights is refused
        sample_metrics_every: steps between evaluations of the sample metrics during training; by default they are
            computed once, at the end
    """

    data: Any
    generator: Any
    discriminator: Any
    generator_optimizer: Optimizer = ADAM
    discriminator_optimizer: Optimizer = ADAM
    descent: Descent = field(default_factory=Descent)
    run: Run = field(default_factory=Run)
    classifier_dir: str | None = None
    classifier_hash: str | None = None
    sample_metrics_every: int | None = None

    def __post_init__(self) -> None:
        positive(self, "", "sample_metrics_every")
        self.run.check_interval("sample_metrics_every", self.sample_metrics_every)
        if self.data.batch % self.descent.micro:
            raise Mistake(f"descent.micro={self.descent.micro} does not divide data.batch={self.data.batch}")

    def divisible(self) -> dict[str, int]:
        """See `Experiment`."""
        return {
            "data.batch": self.data.batch // self.descent.micro,
            "data.evaluation_batch": self.data.evaluation_batch,
        }


def prepared(pixels: jax.Array) -> jax.Array:
    """u8 [...] -> f32 [...] in [-1, 1]."""
    return pixels.astype(jnp.float32) / 127.5 - 1


def together(metrics: dict[str, Metrics]) -> Metrics:
    """The metrics of several nets: losses and gradient norms by net, and the mean "gradient_norm" of all updates."""
    ours = ("loss", "gradient_norm")
    named = {f"{net}_{k}" if k in ours else k: value for net, own in metrics.items() for k, value in own.items()}
    totals, counts = zip(*(own["gradient_norm"] for own in metrics.values()), strict=True)
    return named | {"gradient_norm": Mean(sum(totals), sum(counts))}
