"""Masked-token pre-training (BERT): `supervised` with the cross-entropy of tokens that are hidden from the net.

Devlin, Chang, Lee & Toutanova 2019, "BERT" (arXiv:1810.04805), section 3.1.
"""

from dataclasses import dataclass, field

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core.errors import UserError
from research.core.experiment import Experiment, Feeds, Inference, Run
from research.core.losses import tokens
from research.core.modules import bind
from research.core.optimizers import Optimizer
from research.core.special_tokens import MASK, PAD
from research.core.state import Batch, Learner, State, example_keys
from research.data.buckets import padded
from research.data.sentences import Sentences
from research.data.toy import ToySentences
from research.learners.supervised import Supervised, supervised
from research.nets import transformer

SPECIAL = MASK + 1
"""The first token that is a word, or a part of one."""


@dataclass(frozen=True, kw_only=True)
class Masked(Supervised):
    """An experiment in pre-training an encoder on texts without their labels.

    Attributes:
        data: the texts
        net: a Flax module: (tokens i32[batch, time], places i32[batch, n]) -> logits [batch, n, outputs]
        share: fraction of a text's tokens that the net predicts, of those that can be predicted: 80 % of them are
            masked, 10 % replaced by random tokens, and 10 % left unchanged
        predicted_tokens: number of tokens that can be predicted, the first ones of the vocabulary: of words the most
            frequent ones, with the token of unknown words; of byte pairs the bytes and the first pairs. None: all. The
            logits of a large vocabulary cost more than a small net
    """

    data: Sentences = field(default_factory=Sentences)
    net: nn.Module = field(default_factory=transformer.MaskedModel)
    share: float = 0.15
    predicted_tokens: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise UserError(f"share is a fraction above 0 and at most 1, not {self.share}")
        if self.predicted_tokens is not None and self.predicted_tokens <= SPECIAL:
            raise UserError(
                f"predicted_tokens must be more than the {SPECIAL} special tokens, not {self.predicted_tokens}"
            )

    @property
    def num_predicted(self) -> int:
        """The number of tokens that can be predicted."""
        size = self.data.spec().tokenizer.size
        return min(self.predicted_tokens or size, size)

    def module(self) -> nn.Module:
        """See `Supervised`."""
        texts = self.data.spec()
        return bind(self.net, vocabulary=texts.tokenizer.size, context=texts.length, outputs=self.num_predicted)

    def build(self) -> Learner:
        """See `Experiment`."""
        texts, predicted = self.data.spec(), self.num_predicted
        size = texts.tokenizer.size
        example = (jnp.zeros((1, texts.length), jnp.int32), jnp.zeros((1, 1), jnp.int32))

        def masked(keys: jax.Array, batch: Batch) -> Batch:
            count = max(1, round(self.share * batch.inputs.shape[1]))
            one = lambda key, text: mask_tokens(key, text, count, size, predicted)
            corrupted, places, targets = jax.vmap(one)(keys, batch.inputs)
            return batch._replace(inputs=(corrupted, places), targets=targets)

        return supervised(
            self.network(self.module()),
            self.updater(),
            example,
            tokens(ignored=PAD),
            eval_criterion=tokens(ignored=PAD),
            prepare=lambda batch: masked(example_keys(jax.random.key(0), batch.index), batch),
            augment=masked,
        )

    def feeds(self) -> Feeds:
        """See `Experiment`."""
        return self.data.feeds(self.run.steps_per_dispatch)

    def inference(self, state: State) -> dict[str, Inference]:
        """See `Experiment`."""

        def logits(tokens: jax.Array) -> jax.Array:
            everywhere = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
            return self.outputs(state, (tokens, everywhere))

        length = self.data.spec().length
        return {
            "inference": Inference(
                logits,
                lambda batch: {"tokens": padded(list(batch.inputs), length)},
                "logits",
                f"Replace the tokens to predict by the token {MASK}, and fill up a shorter text at its end with the "
                f"token {PAD}. The logits at each place are those of the first {self.num_predicted} tokens there.",
            )
        }


def mask_tokens(
    key: jax.Array, text: jax.Array, count: int, size: int, predicted: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Chooses `count` tokens of `text` i32[time] to be predicted; of fewer candidates, the same share.

    size     of the vocabulary
    predicted  the candidates are the tokens below it, but for PAD

    Returns the text as the net sees it, the places i32[count], and the tokens there, PAD where none was chosen.
    """
    where, how, what = jax.random.split(key, 3)
    candidates = (text != PAD) & (text < predicted)
    scores = jnp.where(candidates, jax.random.uniform(where, text.shape), -1.0)
    score, places = jax.lax.top_k(scores, count)
    length = candidates.sum()
    chosen = (score >= 0) & (jnp.arange(count) < jnp.maximum(1, jnp.round(length * count / text.size)))
    truth = text[places]
    uniform = jax.random.uniform(how, (count,))
    other = jax.random.randint(what, (count,), SPECIAL, size)
    replacement = jnp.where(uniform < 0.8, MASK, jnp.where(uniform < 0.9, other, truth))
    text = text.at[places].set(jnp.where(chosen, replacement, truth))
    return text, places, jnp.where(chosen, truth, PAD)


def tiny() -> dict[str, Experiment]:
    """Tiny settings, for the tests of what holds for every learner: SGD, dropout on."""
    stack = transformer.Stack(
        layers=2, width=8, heads=2, num_kv_heads=1, positions="rotary", dropout=0.1, scan_unroll=1
    )
    return {
        "masked": Masked(
            data=ToySentences(),
            net=transformer.MaskedModel(stack),
            optimizer=Optimizer(name="sgd", learning_rate=0.05),
            run=Run(steps=12, steps_per_dispatch=4, evaluate_every=4, save_every=4, metric="loss", mode="min"),
        )
    }
