"""Continue a prompt with a language model, or translate it: python -m experiments.sample DIR --prompt TEXT."""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.console import script
from experiments.runs import one_seed
from research.core.errors import UserError, between
from research.core.special_tokens import EOS
from research.core.state import State, weights
from research.evaluation.decoding import Sampling, beam_search, sample
from research.evaluation.text import before_eos
from research.learners.language import Language
from research.learners.translate import Translate
from research.training import workdir
from research.training.config import Directory


@dataclass(frozen=True)
class Options:
    """The options of `experiments.sample`.

    Attributes:
        directory: directory of the run
        prompt: text to continue or to translate; a translation is the likeliest one, and the options below but for
            --length are for language models alone
        length: number of tokens to generate; not used for translations, which end by themselves
        temperature: number that the logits are divided by; 0 always takes the likeliest token
        top_k: sample from the k likeliest tokens only; 0 samples from all tokens
        top_p: sample from the smallest set of likeliest tokens whose probabilities sum to at least this number: nucleus
            sampling, Holtzman et al. 2020, arXiv:1904.09751
        seed: seed of the sampling
    """

    directory: Annotated[Directory, tyro.conf.Positional]
    prompt: Annotated[str, tyro.conf.arg(help_behavior_hint="(default: a newline)")] = "\n"
    length: int = 500
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.length < 1 or not 0 <= self.temperature < math.inf or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise UserError("expected --length 1 or more, --temperature and --top-k 0 or more, --top-p from 0 to 1")
        between(self, "", -(2**31), 2**31 - 1, "seed")


def write(options: Options) -> None:
    """Prints the text piece by piece."""
    experiment, state = one_seed(options.directory)
    if not isinstance(experiment, Language | Translate):
        raise UserError(f"{options.directory} is not a run of a language model or a translator")
    workdir.check_kept(options.directory, experiment.feeds().kept)
    if isinstance(experiment, Translate):
        default = Options(options.directory, options.prompt, options.length)
        given = [name for name, value in vars(options).items() if value != getattr(default, name)]
        if given:
            raise UserError(f"translations are the likeliest ones, not drawn: leave out --{given[0].replace('_', '-')}")
        print(translated(experiment, state, options.prompt))
        return
    pieces = written(experiment, state, options)
    print(options.prompt + next(pieces), end="", flush=True)  # the first piece says what is wrong with the prompt
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def written(experiment: Language, state: State, options: Options) -> Iterator[str]:
    """The continuation of the prompt, piece by piece. When the context is full, its second half starts the next one.

    Raises UserError where the prompt has characters that the vocabulary lacks, or as many tokens as the context.
    """
    apply, tokenizer, context = (
        experiment.network(experiment.module()).apply,
        experiment.data.spec().tokenizer,
        experiment.data.context,
    )
    if tokenizer is None:
        raise UserError("this model was trained on token ids, without a tokenizer: there is no text to sample")
    tokens = tokenizer.encode(options.prompt)
    if not 0 < tokens.size < context:
        raise UserError(f"expected a --prompt of 1 to {context - 1} tokens, less than the context: not {tokens.size}")
    net_weights, key = weights(state, "net"), jax.random.key(options.seed)
    how = Sampling(options.temperature, options.top_k, options.top_p)
    done, shown = tokens.size, tokenizer.decode(tokens)
    while tokens.size < done + options.length:
        window = tokens if tokens.size < context else tokens[-(context // 2) :]
        piece = sample(
            apply,
            net_weights,
            jnp.asarray(window)[None],
            jax.random.fold_in(key, tokens.size),
            context - len(window),
            how,
        )
        tokens = np.concatenate([tokens, np.asarray(piece[0])])[: done + options.length]
        # All tokens are decoded, since a character may have several of them; the last character may be incomplete.
        text = tokenizer.decode(tokens).rstrip("\ufffd")
        yield text[len(shown) :]
        shown = text


def translated(experiment: Translate, state: State, text: str) -> str:
    """The likeliest translation that beam search finds. Raises UserError where the text is too long."""
    pairs = experiment.data.spec()
    tokens = np.append(pairs.tokenizer.encode(text), EOS)
    if tokens.size > pairs.length:
        raise UserError(f"a --prompt of {tokens.size} tokens is longer than the net's context of {pairs.length}")
    found, _ = beam_search(
        experiment.network(experiment.module()).apply,
        weights(state, "net"),
        jnp.asarray(tokens, jnp.int32)[None],
        pairs.length,
        experiment.beams,
        experiment.length_penalty,
    )
    return pairs.tokenizer.decode(before_eos(np.asarray(found[0, 0])))


main = script("sample", __doc__, Options, write)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
