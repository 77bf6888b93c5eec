"""Language modelling: `supervised` with the cross-entropy of each next token."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import flax.linen as nn
import jax.numpy as jnp

from research.core.experiment import Feeds, Load, Report
from research.core.losses import tokens
from research.core.modules import filled
from research.core.state import Learner
from research.data.text import Text
from research.evaluation import text as reports
from research.evaluation.decoding import module_apply
from research.learners.supervised import Training
from research.nets import transformer


@dataclass(frozen=True, kw_only=True)
class Language(Training):
    """An experiment in language modelling.

    Attributes:
        data: the text
        net: a Flax module: tokens i32[batch, time] -> logits of the next ones [batch, time, outputs]
    """

    data: Text = field(default_factory=Text)
    net: nn.Module = field(default_factory=transformer.LanguageModel)

    def model(self) -> nn.Module:
        """The net, with what the data fill in."""
        text = self.data.spec()
        return filled(self.net, outputs=text.classes, context=self.data.context)

    def build(self, axis: str | None = None) -> Learner:
        """See `Experiment`."""
        vocabulary = self.data.spec().tokenizer
        criterion = tokens(ignored=-1, lengths=None if vocabulary is None else vocabulary.lengths)
        example = jnp.zeros((1, self.data.context), jnp.int32)
        return self.learner(self.model(), example, criterion, judge=criterion, axis=axis)

    def feeds(self) -> Feeds:
        """See `Experiment`."""
        return self.data.feeds()

    def reports(self, load: Load) -> Iterable[Report]:
        """See `Experiment`."""
        net, tokenizer = self.model(), self.data.spec().tokenizer
        return () if tokenizer is None else (reports.language(net, module_apply(net), tokenizer),)
