"""Language modelling: `supervised` with the cross-entropy of each next token."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import flax.linen as nn
import jax.numpy as jnp

from research.core.errors import positive
from research.core.experiment import Experiment, Inference, Load, Report, Run
from research.core.losses import tokens, with_perplexity
from research.core.modules import bind
from research.core.optimizers import Optimizer
from research.core.state import Learner, State
from research.core.update import UpdateConfig
from research.data.text import Text
from research.data.toy import toy_text
from research.evaluation import text as reports
from research.learners.supervised import Supervised, supervised
from research.nets import lstm, transformer


@dataclass(frozen=True, kw_only=True)
class Language(Supervised):
    """An experiment in language modelling.

    Attributes:
        data: the text
        net: a Flax module: tokens i32[batch, time] -> logits of the next ones [batch, time, outputs]
        loss_chunk: number of tokens of each sequence whose logits are in memory at once, in training and evaluation.
            The backward pass computes them again. None: those of all tokens
    """

    data: Text = field(default_factory=Text)
    net: nn.Module = field(default_factory=transformer.LanguageModel)
    loss_chunk: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "", "loss_chunk")

    def module(self) -> nn.Module:
        """See `Supervised`."""
        text = self.data.spec()
        return bind(self.net, outputs=text.classes, context=self.data.context)

    def build(self) -> Learner:
        """See `Experiment`."""
        vocabulary = self.data.spec().tokenizer
        criterion = tokens(ignored=-1, lengths=None if vocabulary is None else vocabulary.lengths)
        example = jnp.zeros((1, self.data.context), jnp.int32)
        return supervised(
            self.network(self.module()),
            self.updater(),
            example,
            criterion,
            eval_criterion=with_perplexity(criterion),
            chunk=self.loss_chunk,
        )

    def units_per_step(self, batch: int) -> dict[str, int]:
        """See `Experiment`."""
        return {"examples": batch, "tokens": batch * self.data.context}

    def reports(self, load: Load) -> Iterable[Report]:
        """See `Experiment`."""
        module, tokenizer = self.module(), self.data.spec().tokenizer
        return () if tokenizer is None else (reports.language(module, self.network(module).apply, tokenizer),)

    def inference(self, state: State) -> dict[str, Inference]:
        """See `Experiment`."""
        return {
            "inference": Inference(
                lambda tokens: self.outputs(state, tokens),
                lambda batch: {"tokens": batch.inputs},
                "logits",
                "The logits [batch, time, vocabulary] at each token are those of the token after it. They depend on no "
                "later token: fill up a shorter text at its end with any tokens, and read the logits at its last one.",
            )
        }


def tiny() -> dict[str, Experiment]:
    """Tiny settings, for the tests of what holds for every learner: SGD, dropout on."""
    run = Run(steps=12, steps_per_dispatch=4, evaluate_every=4, save_every=4, metric="loss", mode="min")
    stack = transformer.Stack(layers=2, width=8, heads=2, dropout=0.1, attention_dropout=0.1, scan_unroll=1)
    return {
        "transformer": Language(
            data=toy_text(),
            net=transformer.LanguageModel(stack),
            loss_chunk=3,
            optimizer=Optimizer(name="sgd", learning_rate=0.05),
            run=run,
        ),
        "lstm": Language(
            data=toy_text(),
            net=lstm.LanguageModel(width=8, dropout=0.1),
            optimizer=Optimizer(name="sgd", learning_rate=0.05, schedule="cosine", warmup=2),
            update=UpdateConfig(clip=0.5),
            run=run,
        ),
    }
