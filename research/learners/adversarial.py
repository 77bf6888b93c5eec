"""What experiments with a generator and a discriminator have in common."""

from dataclasses import dataclass
from typing import Any

from research.core.optimizers import Optimizer
from research.learners.generative import EvaluatedByClassifier

ADAM = Optimizer(learning_rate=2e-4, b1=0.5, b2=0.999)
"""DCGAN's."""


@dataclass(frozen=True, kw_only=True)
class Adversarial(EvaluatedByClassifier):
    """An experiment with a generator and a discriminator; each says what its data and its nets are.

    Attributes:
        generator_optimizer: optimizer of the generator, or of all generators together
        discriminator_optimizer: optimizer of the discriminator, or of all discriminators together
    """

    data: Any
    generator: Any
    discriminator: Any
    generator_optimizer: Optimizer = ADAM
    discriminator_optimizer: Optimizer = ADAM
