"""Text classification: `supervised` with cross-entropy."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import flax.linen as nn
import jax.numpy as jnp

from research.core.errors import between
from research.core.experiment import Experiment, Feeds, Inference, Load, Report, Run
from research.core.losses import classification
from research.core.modules import bind
from research.core.optimizers import Optimizer
from research.core.special_tokens import PAD
from research.core.state import Learner, State
from research.data.buckets import padded
from research.data.sentences import Sentences
from research.data.toy import ToySentences
from research.evaluation import text as reports
from research.learners.supervised import Supervised, supervised
from research.nets import lstm


@dataclass(frozen=True, kw_only=True)
class ClassifyText(Supervised):
    """An experiment in text classification.

    Attributes:
        data: the labelled texts
        net: a Flax module: tokens i32[batch, time], padded -> logits [batch, outputs]
        smoothing: label-smoothing factor
    """

    data: Sentences = field(default_factory=Sentences)
    net: nn.Module = field(default_factory=lstm.Classifier)
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        between(self, "", 0, 1, "smoothing")

    def module(self) -> nn.Module:
        """See `Supervised`."""
        texts = self.data.spec()
        return bind(self.net, vocabulary=texts.tokenizer.size, context=texts.length, outputs=texts.classes)

    def build(self) -> Learner:
        """See `Experiment`."""
        return supervised(
            self.network(self.module()),
            self.updater(),
            jnp.zeros((1, self.data.spec().length), jnp.int32),
            classification(self.smoothing),
            eval_criterion=classification(names=self.data.spec().names),
        )

    def feeds(self) -> Feeds:
        """See `Experiment`."""
        return self.data.feeds(self.run.steps_per_dispatch)

    def reports(self, load: Load) -> Iterable[Report]:
        """See `Experiment`."""
        net, texts = self.network(self.module()), self.data.spec()
        logits = lambda weights, tokens: net.apply(*weights, tokens)[0]
        return (reports.classification(logits, texts.tokenizer, texts.names),)

    def inference(self, state: State) -> dict[str, Inference]:
        """See `Experiment`."""
        texts = self.data.spec()
        return {
            "inference": Inference(
                lambda tokens: self.outputs(state, tokens),
                lambda batch: {"tokens": padded(list(batch.inputs), texts.length)},
                "logits",
                f"Fill up a shorter text at its end with the token {PAD}. Of a longer one, leave out the middle. The "
                "largest logit is that of the predicted class.",
                texts.names,
            )
        }


def tiny() -> dict[str, Experiment]:
    """Tiny settings, for the tests of what holds for every learner: SGD, dropout on."""
    return {
        "sentences": ClassifyText(
            data=ToySentences(),
            net=lstm.Classifier(
                width=8, embedding=8, bigram_buckets=16, word_dropout=0.1, dropout=0.1, bag_dropout=0.1
            ),
            average=0.9,
            optimizer=Optimizer(name="sgd", learning_rate=0.05),
            run=Run(steps=12, steps_per_dispatch=4, evaluate_every=4, save_every=4, metric="loss", mode="min"),
        )
    }
