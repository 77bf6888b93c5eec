"""What experiments with a generator and a discriminator have in common."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

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
        judge: directory of a finished run of a classifier of such images, which judges what is generated, or None
        judge_hash: of that classifier's weights, as a report tells it; another one is refused
    """

    data: Any
    generator: Any
    discriminator: Any
    generator_optimizer: Optimizer = ADAM
    discriminator_optimizer: Optimizer = ADAM
    judge: str | None = None
    judge_hash: str | None = None


def prepared(pixels: jax.Array) -> jax.Array:
    """u8 [...] -> f32 [...] in [-1, 1]."""
    return pixels.astype(jnp.float32) / 127.5 - 1
