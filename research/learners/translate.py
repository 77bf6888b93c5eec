"""Translation: `supervised` with the label-smoothed cross-entropy of each next word of the target."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core.errors import between, positive
from research.core.experiment import Experiment, Feeds, Inference, Load, Report, Run
from research.core.losses import tokens
from research.core.modules import bind
from research.core.optimizers import Optimizer
from research.core.special_tokens import EOS, PAD
from research.core.state import Learner, State, weights
from research.data.buckets import padded
from research.data.pairs import Pairs
from research.data.toy import ToyPairs
from research.evaluation import text as reports
from research.evaluation.decoding import beam_search
from research.learners.supervised import Supervised, supervised
from research.nets import transformer


@dataclass(frozen=True, kw_only=True)
class Translate(Supervised):
    """An experiment in translation.

    Attributes:
        data: the pairs of sentences
        net: a Flax module: (source, target so far), each i32[batch, time] -> logits [batch, time, outputs]
        loss_chunk: number of tokens of each sequence whose logits are in memory at once, in training and evaluation.
            The backward pass computes them again. None: those of all tokens
        smoothing: label-smoothing factor
        beams: sequences kept at each step of the beam search
        length_penalty: exponent of the length penalty: the beam search divides log-probabilities by
            ((5 + length) / 6) ** length_penalty
        bleu_every: steps between evaluations of the BLEU on the validation data; by default it is computed once, at the
            end, on the test data
    """

    data: Pairs = field(default_factory=Pairs)
    net: nn.Module = field(default_factory=transformer.Translator)
    loss_chunk: int | None = None
    smoothing: float = 0.1
    beams: int = 5
    length_penalty: float = 1.0
    bleu_every: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "", "loss_chunk", "beams")
        between(self, "", 0, 1, "smoothing")
        between(self, "", 0, math.inf, "length_penalty")
        self.run.check_interval("bleu_every", self.bleu_every)

    def module(self) -> nn.Module:
        """See `Supervised`."""
        pairs = self.data.spec()
        return bind(self.net, outputs=pairs.tokenizer.size, context=pairs.length)

    def build(self) -> Learner:
        """See `Experiment`."""
        words = jnp.zeros((1, self.data.spec().length), jnp.int32)
        criterion = tokens(ignored=PAD, smoothing=self.smoothing)
        return supervised(
            self.network(self.module()),
            self.updater(),
            (words, words),
            criterion,
            eval_criterion=tokens(ignored=PAD),
            chunk=self.loss_chunk,
        )

    def feeds(self) -> Feeds:
        """See `Experiment`."""
        return self.data.feeds(self.run.steps_per_dispatch)

    def reports(self, load: Load) -> Iterable[Report]:
        """See `Experiment`."""
        module, pairs = self.module(), self.data.spec()
        texts = lambda split: (self.data.sources(split), self.data.references(split))
        beam = reports.Beam(self.beams, self.length_penalty)
        apply = self.network(module).apply
        return (reports.translation(module, apply, pairs.tokenizer, pairs.length, beam, texts, self.bleu_every),)

    def inference(self, state: State) -> dict[str, Inference]:
        """See `Experiment`."""
        apply, length = self.network(self.module()).apply, self.data.spec().length

        def translation(source: jax.Array) -> jax.Array:
            net_weights = weights(state, "net")
            return beam_search(apply, net_weights, source, length, self.beams, self.length_penalty)[0][:, 0]

        return {
            "inference": Inference(
                translation,
                lambda batch: {"source": padded(list(batch.inputs[0]), length)},
                "translation",
                f"Put the token {EOS} after the source, and fill it up with the token {PAD}. The translation is the "
                f"best one that a beam search of {self.beams} beams finds, up to its first {EOS}.",
            )
        }


def tiny() -> dict[str, Experiment]:
    """Tiny settings, for the tests of what holds for every learner: SGD, dropout on."""
    stack = transformer.Stack(
        layers=2, width=8, heads=2, positions="sinusoidal", dropout=0.1, remat="full", scan_unroll=1
    )
    return {
        "translator": Translate(
            data=ToyPairs(),
            net=transformer.Translator(stack),
            loss_chunk=8,
            optimizer=Optimizer(name="sgd", learning_rate=0.7),  # below, the first norms move by less than rounding
            run=Run(steps=12, steps_per_dispatch=4, evaluate_every=4, save_every=4, metric="loss", mode="min"),
        )
    }
