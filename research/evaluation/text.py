"""Reports on text: samples, attention maps, cell states, translations with their BLEU, classification mistakes."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import sacrebleu
from matplotlib.figure import Figure

from research.core.console import console
from research.core.experiment import Report, Split
from research.core.files import failing, replacing
from research.core.metrics import Numbers
from research.core.special_tokens import EOS, PAD
from research.core.state import Batch, State, Weights, evaluated, weights
from research.core.transformations import each_seed, first_seed
from research.core.types import Tree
from research.data.text import END, IGNORED
from research.data.tokenizer import Tokenizer
from research.evaluation import plots as plot
from research.evaluation.decoding import Apply, Sampling, beam_search, sample
from research.evaluation.predictions import confusion_matrix, ensemble_accuracy
from research.evaluation.seeds import by_seed
from research.nets import lstm, transformer
from research.nets.attention import attention_weights

MAX_TOKENS = 64
"""Tokens in an attention map, and in a row of cells.png."""

NUM_CELLS = 8
"""Cells in cells.png."""

MAX_TEXTS = 40
"""Translations in translations.txt, and mistakes in mistakes.txt."""


def language(net: nn.Module, apply: Apply, tokenizer: Tokenizer) -> Report:
    """samples.txt, texts that the net writes; attention.png of a Transformer, cells.png of an LSTM.

    Of several seeds, they are of the first.
    """

    def run(state: State, split: Split, directory: Path) -> Numbers:
        net_weights = weights(first_seed(state), "net")
        batches = list(itertools.islice(split.batches, 2))
        text = np.concatenate([batch.inputs[(batch.mask > 0) & (batch.targets != IGNORED).all(1)] for batch in batches])
        text = text if len(text) else batches[0].inputs[:1]
        _write_samples(apply, net_weights, tokenizer, text, directory / "samples.txt")
        if isinstance(net, transformer.LanguageModel):
            _draw_attention(net, net_weights[0], tokenizer, text[0], directory / "attention.png")
        if isinstance(net, lstm.LanguageModel):
            _draw_cells(apply, net_weights, tokenizer, text.reshape(-1)[:4000], directory / "cells.png")
        return {}

    return Report(run)


def _write_samples(apply: Apply, weights: Weights, tokenizer: Tokenizer, text: np.ndarray, path: Path) -> None:
    """Writes continuations of the first halves of three windows of `text`, i32[windows, context]."""
    half = max(1, text.shape[1] // 2)
    prompts = jnp.asarray(text[np.linspace(0, len(text) - 1, 3).astype(int), :half])
    tokens = sample(apply, weights, prompts, jax.random.key(0), max(1, text.shape[1] - half), Sampling(0.8))
    texts = [f"{tokenizer.decode(p)}⟫{tokenizer.decode(t)}" for p, t in zip(prompts, tokens, strict=True)]
    _write_text(path, "\n\n----\n\n".join(["The text after ⟫ is written by the net.", *texts]))


def _draw_attention(net: nn.Module, params: Tree, tokenizer: Tokenizer, tokens: np.ndarray, path: Path) -> None:
    """Draws the attention weights of a text, a row of panels for each layer."""
    tokens = tokens[:MAX_TOKENS]
    _, collections = net.apply({"params": params}, jnp.asarray(tokens)[None], mutable=["intermediates"])
    inputs = collections["intermediates"]["blocks"]["layers"]["attention"]
    maps = np.asarray(attention_weights(inputs["queries"][0][:, 0], inputs["keys"][0][:, 0], causal=True))
    labels = _labels(tokenizer, tokens)
    _draw_maps(maps, labels, labels, "attention of rows to columns", path)


def _draw_cells(apply: Apply, weights: Weights, tokenizer: Tokenizer, tokens: np.ndarray, path: Path) -> None:
    """Draws cell states of the last layer along a text (Karpathy, Johnson & Fei-Fei 2015, arXiv:1506.02078).

    The cells drawn are those that vary most over the text relative to their change from one token to the next.
    """

    def step(carry: Tree, token: jax.Array) -> tuple[Tree, jax.Array]:
        (_, carry), _ = apply(*weights, token[None, None], carry, method="extend")
        return carry, carry.cell[0, -1]

    start, _ = apply(*weights, jnp.zeros((1, 1), jnp.int32), 1, method="start")
    states = np.tanh(np.asarray(jax.jit(lambda t: jax.lax.scan(step, start, t)[1])(jnp.asarray(tokens))))
    changes = np.abs(np.diff(states[MAX_TOKENS:], axis=0)).mean(0)
    chosen = np.argsort(-states[MAX_TOKENS:].std(0) / (changes + 0.05))[:NUM_CELLS]
    count = min(4 * MAX_TOKENS, len(tokens))
    rows = -(-count // MAX_TOKENS)
    labels = _labels(tokenizer, tokens[:count])
    figure = Figure(figsize=(11, 0.24 * rows * NUM_CELLS + 1.5), dpi=130, layout="constrained")
    figure.suptitle("cells of the last layer along a text: negative states are blue, positive ones red", fontsize=11)
    for ax, cell in zip(figure.subplots(len(chosen), 1, squeeze=False)[:, 0], chosen, strict=True):
        grid = np.full(rows * MAX_TOKENS, np.nan)
        grid[:count] = states[:count, cell]
        ax.imshow(grid.reshape(rows, MAX_TOKENS), cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
        for n, label in enumerate(labels):
            colour, place = "white" if abs(states[n, cell]) > 0.7 else "black", (n % MAX_TOKENS, n // MAX_TOKENS)
            ax.text(*place, label, ha="center", va="center", fontsize=6, family="monospace", color=colour)
        ax.set(xticks=[], yticks=[])
        ax.set_ylabel(f"{cell}", fontsize=7, rotation=0, ha="right", va="center")
    plot.write(figure, path)


class Beam(NamedTuple):
    """The parameters of a beam search, see `beam_search`."""

    beams: int
    length_penalty: float


def translation(
    net: nn.Module,
    apply: Apply,
    tokenizer: Tokenizer,
    length: int,
    beam: Beam,
    texts: Callable[[str], tuple[Sequence[str], Sequence[str]]],
    every: int | None,
) -> Report:
    """BLEU of the split's translations (Papineni et al. 2002; sacrebleu, Post 2018), cased and detokenized.

    It writes translations.txt, and attention.png of one of them, both of the first seed.

    length  tokens of a translation at most
    texts   name of a split -> its source texts and their reference translations
    every   steps between evaluations on the validation split, or None
    """

    def run(state: State, split: Split, directory: Path) -> Numbers:
        sources, references = texts(split.name)
        metric = sacrebleu.BLEU()

        def translate(weights: Weights) -> list[str]:
            translations = [""] * len(sources)
            for batch in split.batches:
                best, _ = beam_search(apply, weights, jnp.asarray(batch.inputs[0]), length, *beam)
                for index, tokens, valid in zip(batch.index, np.asarray(best[:, 0]), batch.mask, strict=True):
                    if valid:
                        translations[index] = tokenizer.decode(before_eos(tokens))
            return translations

        each = [translate(weights(one, "net")) for one in each_seed(state)]
        scores = [metric.corpus_score(translations, [list(references)]) for translations in each]
        signature = f"{metric.get_signature()}, beam {beam.beams}, length penalty {beam.length_penalty}"
        if split.name == "test":
            console.print(f"BLEU {np.mean([score.score for score in scores]):.2f} ({signature})", markup=False)
        lines = [
            f"{s}\n  reference:   {r}\n  translation: {t}"
            for s, r, t in itertools.islice(zip(sources, references, each[0], strict=True), MAX_TEXTS)
        ]
        _write_text(directory / "translations.txt", "\n\n".join([f"{scores[0]}\n{signature}", *lines]))
        params = evaluated(first_seed(state), "net")
        _draw_alignment(net, params, tokenizer, split.batches[0], directory / "attention.png")
        return by_seed([{"bleu": score.score, "brevity_penalty": score.bp} for score in scores])

    return Report(run, every, ("bleu", "brevity_penalty"))


def before_eos(tokens: np.ndarray) -> np.ndarray:
    """The tokens before the first EOS or PAD."""
    ends = np.flatnonzero((tokens == EOS) | (tokens == PAD))
    return tokens[: ends[0]] if ends.size else tokens


def _draw_alignment(net: nn.Module, params: Tree, tokenizer: Tokenizer, batch: Batch, path: Path) -> None:
    """Draws the attention of a reference translation to its source; of a Transformer, that of the last layer."""
    sizes = (np.asarray(batch.inputs[0]) != PAD).sum(1) * (np.asarray(batch.mask) > 0)
    longest = int(np.argmax(sizes))
    source, target = (np.asarray(x[longest]) for x in batch.inputs)
    source, target = source[source != PAD], target[target != PAD]
    inputs = (jnp.asarray(source)[None], jnp.asarray(target)[None])
    attend = jax.jit(lambda params: net.apply({"params": params}, inputs, mutable=["intermediates"])[1])
    intermediates = attend(params)["intermediates"]
    if isinstance(net, lstm.Translator):
        maps = np.asarray(intermediates["decoder"]["attention"][0])[None]
    else:
        cross = intermediates["blocks"]["layers"]["cross"]
        maps = np.asarray(attention_weights(cross["queries"][0][-1:, 0], cross["keys"][0][-1:, 0]))
    rows = _labels(tokenizer, np.append(target[1:], EOS))
    _draw_maps(maps, rows, _labels(tokenizer, source), "attention of target (rows) to source", path)


def classification(
    logits: Callable[[Weights, jax.Array], jax.Array], tokenizer: Tokenizer, names: Sequence[str]
) -> Report:
    """confusion.png; mistakes.txt, those with the least probability for the true class.

    Of several seeds, these are of the first, and ensemble_accuracy is that of their mean prediction.

    logits  (weights, tokens i32[batch, time]) -> [batch, classes]
    names   of the classes
    """
    logits = jax.jit(logits)

    def run(state: State, split: Split, directory: Path) -> Numbers:
        def evaluate(weights: Weights) -> np.ndarray:
            rows = [np.asarray(logits(weights, jnp.asarray(b.inputs)))[b.mask > 0] for b in split.batches]
            return np.asarray(jax.nn.log_softmax(np.concatenate(rows)))

        each = np.stack([evaluate(weights(one, "net")) for one in each_seed(state)])
        outputs = each[0]
        labels = np.concatenate([b.targets[b.mask > 0] for b in split.batches])
        texts = [text for b in split.batches for text in b.inputs[b.mask > 0]]
        predicted = outputs.argmax(1)
        matrix = confusion_matrix(labels, predicted, len(names))
        plot.confusion(matrix, names, directory / "confusion.png")
        worst = np.argsort(outputs[np.arange(len(labels)), labels])[:MAX_TEXTS]
        mistakes = [
            f"is {names[labels[i]]}, predicted {names[predicted[i]]} "
            f"({np.exp(outputs[i, predicted[i]]):.1%}):\n{tokenizer.decode(before_eos(texts[i]))}"
            for i in worst
            if labels[i] != predicted[i]
        ]
        _write_text(directory / "mistakes.txt", "\n\n".join(mistakes))
        return {"ensemble_accuracy": ensemble_accuracy(each, labels)} if len(each) > 1 else {}

    return Report(run)


def _labels(tokenizer: Tokenizer, tokens: Any) -> list[str]:
    """Each token as text for a picture, with visible line breaks, tabs and ends."""
    visible = str.maketrans({"\n": "⏎", "\t": "⇥", END: "∎"})
    return [tokenizer.decode([int(t)]).translate(visible) or "∎" for t in tokens]


def _draw_maps(maps: np.ndarray, rows: list[str], columns: list[str], title: str, path: Path) -> None:
    """Draws maps [layers, heads, rows, columns] in a grid of panels; a single layer is the last one."""
    layers, heads = maps.shape[:2]
    side = 2.2 if layers * heads > 1 else 6.0
    figure = Figure(figsize=(side * heads + 0.4, side * layers + 0.6), dpi=130, layout="constrained")
    figure.suptitle(f"{title}: darker is more", fontsize=10)
    labelled = max(len(rows), len(columns)) <= 48
    for (layer, head), ax in np.ndenumerate(figure.subplots(layers, heads, squeeze=False)):
        # Their square roots, since most weights are small.
        ax.imshow(np.sqrt(maps[layer, head]), cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        name = f"layer {layer + 1}, head {head + 1}" if layers > 1 else f"head {head + 1}"
        ax.set_title(name if layers * heads > 1 else "", fontsize=7)
        if labelled and head == 0:
            ax.set_yticks(range(len(rows)), rows, fontsize=5 if layers * heads > 1 else 8)
        if labelled and layer == layers - 1:
            ax.set_xticks(range(len(columns)), columns, fontsize=5 if layers * heads > 1 else 8, rotation=90)
    plot.write(figure, path)


def _write_text(path: Path, text: str) -> None:
    with failing("write", path), replacing(path) as temporary:
        temporary.write_text(text + "\n")
