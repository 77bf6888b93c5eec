"""Translation: `supervised` with the label-smoothed cross-entropy of each next word of the target."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import flax.linen as nn
import jax.numpy as jnp

from research.core.experiment import Experiment, Feeds, Report, Run
from research.core.losses import tokens
from research.core.modules import bind
from research.core.optimizers import Optimizer
from research.core.special_tokens import PAD
from research.core.state import Learner
from research.data.pairs import Pairs
from research.data.toy import ToyPairs
from research.evaluation import text as reports
from research.learners.supervised import Supervised, supervised
from research.nets import transformer


@dataclass(frozen=True, kw_only=True)
class Translate(Supervised):
    """An experiment in translation.

    Attributes:
        data: the pairs of sentences
        net: a Flax module: (source, target so far), each i32[batch, time] -> logits [batch, time, outputs]
        smoothing: of the targets
        beams: translations kept at each step of the search
        penalty: of short translations: scores are divided by ((5 + length) / 6) ** penalty
    """

    data: Pairs = field(default_factory=Pairs)
    net: nn.Module = field(default_factory=transformer.Translator)
    smoothing: float = 0.1
    beams: int = 5
    penalty: float = 1.0

    def model(self) -> nn.Module:
        """The net, with what the data fill in."""
        pairs = self.data.spec()
        return bind(self.net, outputs=pairs.tokenizer.size, context=pairs.length)

    def build(self) -> Learner:
        """See `Experiment`."""
        words = jnp.zeros((1, self.data.spec().length), jnp.int32)
        criterion = tokens(ignored=PAD, smoothing=self.smoothing)
        return supervised(self.network(self.model()), self.updater(), (words, words), criterion, tokens(ignored=PAD))

    def feeds(self) -> Feeds:
        """See `Experiment`."""
        return self.data.feeds(self.run.chunk)

    def reports(self) -> Iterable[Report]:
        """See `Experiment`."""
        pairs, data = self.data.spec(), self.data
        return (
            reports.translation(
                self.model(),
                pairs.tokenizer,
                pairs.length,
                self.beams,
                self.penalty,
                data.sources(),
                data.references(),
            ),
        )


def tiny() -> dict[str, Experiment]:
    """Tiny settings, for the tests of what holds for every learner: SGD, dropout on."""
    stack = transformer.Stack(layers=2, width=8, heads=2, positions="sinusoidal", dropout=0.1, remat=True, unroll=1)
    return {
        "translator": Translate(
            data=ToyPairs(),
            net=transformer.Translator(stack),
            optimizer=Optimizer(name="sgd", learning_rate=0.5),  # below, the first norms move by less than rounding
            run=Run(steps=12, chunk=4, evaluate_every=4, save_every=4, metric="loss", goal="min"),
        )
    }
