"""Masked-token pre-training (BERT): `supervised` with the cross-entropy of tokens that are hidden from the net.

Devlin, Chang, Lee & Toutanova 2019, "BERT" (arXiv:1810.04805), section 3.1.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.data.sentences import Sentences
from research.data.tokens import MASK, PAD
from research.experiment import Feeds, Report
from research.learners.supervised import Training
from research.losses import tokens
from research.nets import transformer
from research.network import filled
from research.state import Batch, Learner, each

SPECIAL = MASK + 1
"""The first token that is a word, or a part of one."""


@dataclass(frozen=True, kw_only=True)
class Masked(Training):
    """An experiment in pre-training an encoder on texts without their labels.

    Attributes:
        data: the texts
        net: a Flax module: (tokens i32[batch, time], places i32[batch, n]) -> logits [batch, n, vocabulary]
        share: of the tokens to be guessed: 80 % of them are hidden, 10 % replaced by others, 10 % left as they are
    """

    data: Sentences = field(default_factory=Sentences)
    net: nn.Module = field(default_factory=transformer.MaskedModel)
    share: float = 0.15

    def build(self, axis: str | None = None) -> Learner:
        """See `Experiment`."""
        texts = self.data.spec()
        size = texts.tokenizer.size
        example = (jnp.zeros((1, texts.length), jnp.int32), jnp.zeros((1, 1), jnp.int32))

        def hidden(keys: jax.Array, batch: Batch) -> Batch:
            count = max(1, round(self.share * batch.inputs.shape[1]))
            corrupted, places, targets = jax.vmap(lambda k, t: hide(k, t, count, size))(keys, batch.inputs)
            return batch._replace(inputs=(corrupted, places), targets=targets)

        return self.learner(
            filled(self.net, vocabulary=size, context=texts.length),
            example,
            tokens(ignored=PAD),
            judge=tokens(ignored=PAD),
            prepare=lambda batch: hidden(each(jax.random.key(0), batch.index), batch),
            augment=hidden,
            axis=axis,
        )

    def feeds(self) -> Feeds:
        """See `Experiment`."""
        return self.data.feeds(self.run.chunk)

    def reports(self) -> Iterable[Report]:
        """See `Experiment`."""
        return ()


def hide(key: jax.Array, text: jax.Array, count: int, size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Chooses `count` tokens of `text` i32[time] to be guessed; where it is padded, its share of them.

    size: of the vocabulary

    Returns the text as the net sees it, the places i32[count], and the tokens there, PAD where none was chosen.
    """
    where, how, what = jax.random.split(key, 3)
    scores = jnp.where(text == PAD, -1.0, jax.random.uniform(where, text.shape))
    score, places = jax.lax.top_k(scores, count)
    length = (text != PAD).sum()
    chosen = (score >= 0) & (jnp.arange(count) < jnp.maximum(1, jnp.round(length * count / text.size)))
    truth = text[places]
    luck = jax.random.uniform(how, (count,))
    other = jax.random.randint(what, (count,), SPECIAL, size)
    shown = jnp.where(luck < 0.8, MASK, jnp.where(luck < 0.9, other, truth))
    text = text.at[places].set(jnp.where(chosen, shown, truth))
    return text, places, jnp.where(chosen, truth, PAD)
