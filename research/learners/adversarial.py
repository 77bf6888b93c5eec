"""What experiments with a generator and a discriminator have in common."""

from dataclasses import dataclass
from typing import Any

from research.core.errors import UserError
from research.core.experiment import Experiment
from research.core.optimizers import Optimizer

ADAM = Optimizer(learning_rate=2e-4, b1=0.5, b2=0.999)
"""DCGAN's."""


@dataclass(frozen=True, kw_only=True)
class Adversarial(Experiment):
    """An experiment with a generator and a discriminator; each says what its data and its nets are.

    Attributes:
        generator_optimizer: optimizer of the generator, or of all generators together
        discriminator_optimizer: optimizer of the discriminator, or of all discriminators together
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
    classifier_dir: str | None = None
    classifier_hash: str | None = None
    sample_metrics_every: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classifier_hash is not None and self.classifier_dir is None:
            raise UserError("classifier_hash is of the weights of a classifier: give classifier_dir too")
        self.run.check_interval("sample_metrics_every", self.sample_metrics_every)
