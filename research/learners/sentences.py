"""Text classification: `supervised` with cross-entropy."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import flax.linen as nn
import jax.numpy as jnp

from research.core.experiment import Feeds, Load, Report
from research.core.losses import classification
from research.core.modules import filled, forward
from research.core.state import Learner
from research.data.sentences import Sentences
from research.evaluation import text as reports
from research.learners.supervised import Training
from research.nets import lstm


@dataclass(frozen=True, kw_only=True)
class ClassifyText(Training):
    """An experiment in text classification.

    Attributes:
        data: the labelled texts
        net: a Flax module: tokens i32[batch, time], padded -> logits [batch, outputs]
        smoothing: of the labels
    """

    data: Sentences = field(default_factory=Sentences)
    net: nn.Module = field(default_factory=lstm.Classifier)
    smoothing: float = 0.0

    def model(self) -> nn.Module:
        """The net, with what the data fill in."""
        texts = self.data.spec()
        return filled(self.net, vocabulary=texts.tokenizer.size, context=texts.length, outputs=texts.classes)

    def build(self, axis: str | None = None) -> Learner:
        """See `Experiment`."""
        return self.learner(
            self.model(),
            jnp.zeros((1, self.data.spec().length), jnp.int32),
            classification(self.smoothing),
            judge=classification(),
            axis=axis,
        )

    def feeds(self) -> Feeds:
        """See `Experiment`."""
        return self.data.feeds(self.run.chunk)

    def reports(self, load: Load) -> Iterable[Report]:
        """See `Experiment`."""
        net, texts = self.model(), self.data.spec()
        logits = lambda params, inputs: forward(net, params, {}, inputs)[0]
        return (reports.classification(logits, texts.tokenizer, texts.names),)
