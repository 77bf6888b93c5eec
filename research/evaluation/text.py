"""Reports on text: samples, attention maps, cells over a text, translations and their BLEU, mistakes."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import sacrebleu
from matplotlib.figure import Figure

from research.core.console import console
from research.core.experiment import Feeds, Report
from research.core.files import failing, replacing
from research.core.metrics import Metrics
from research.core.special_tokens import EOS, PAD
from research.core.state import Batch, State
from research.core.transformations import each_seed, first_seed
from research.core.types import Tree
from research.data.text import END
from research.data.tokenizer import Tokenizer
from research.evaluation import plots as plot
from research.evaluation.decoding import Sampling, beam_search, sample
from research.evaluation.sample_metrics import ensemble_accuracy
from research.nets import lstm, transformer
from research.core.metrics import merged

SHOWN = 64
"""Tokens in a picture of a text."""

CELLS = 8
"""Cells in cells.png."""

PRINTED = 40
"""Translations or mistakes in a text file."""


def weights(state: State) -> Tree:
    """The parameters that are judged: averaged ones where there are any; of several seeds, the first's."""
    return first_seed(state, evaluated(state))


def evaluated(state: State) -> Tree:
    """The parameters that are judged, of all seeds."""
    return state.collections.get("average", state.params)


def language(net: nn.Module, tokenizer: Tokenizer | None, evaluate: Callable[[State, Batch], Metrics]) -> Report:
    """The perplexity of the test text; and, where there is a tokenizer, what the net writes (samples.txt) and pictures:
    attention.png of a Transformer, cells.png of an LSTM."""

    def report(state: State, feeds: Feeds, directory: Path) -> dict[str, float]:
        params = weights(state)
        text = np.concatenate([batch.inputs[batch.mask > 0] for batch in feeds.test[:2]])
        if tokenizer is not None:
            samples(net, params, tokenizer, text, directory / "samples.txt")
            if isinstance(net, transformer.LanguageModel):
                attention(net, params, tokenizer, text[0], directory / "attention.png")
            if isinstance(net, lstm.LanguageModel):
                cells(net, params, tokenizer, text.reshape(-1)[:4000], directory / "cells.png")
        one = state._replace(
            **{name: first_seed(state, value) for name, value in state._asdict().items() if name != "step"}
        )
        judge = jax.jit(evaluate)
        found = [jax.device_get(judge(one, batch)) for batch in feeds.test]
        loss = merged(jax.tree.map(lambda *x: np.stack(x), *found))["loss"]
        return {"perplexity": math.exp(loss)}

    return report


def samples(net: nn.Module, params: Tree, tokenizer: Tokenizer, text: np.ndarray, path: Path) -> None:
    """What the net makes of the beginnings of three windows of `text` i32[windows, context]."""
    context = text.shape[1]
    prompt = jnp.asarray(text[np.linspace(0, len(text) - 1, 3).astype(int), : context // 2])
    drawn = sample(net, params, prompt, jax.random.key(0), context - prompt.shape[1], Sampling(0.8))
    lines = [f"{tokenizer.decode(p)}⟫{tokenizer.decode(d)}" for p, d in zip(prompt, drawn, strict=True)]
    _write_text(path, "\n\n----\n\n".join(["What comes after ⟫ is the net's.", *lines]))


def attention(net: nn.Module, params: Tree, tokenizer: Tokenizer, tokens: np.ndarray, path: Path) -> None:
    """Where each token of a text looks, head by head: a row of panels for each layer."""
    tokens = tokens[:SHOWN]
    _, found = net.apply({"params": params}, jnp.asarray(tokens)[None], mutable=["intermediates"])
    told = found["intermediates"]["blocks"]["layers"]["attention"]
    maps = attended(told["queries"][0][:, 0], told["keys"][0][:, 0], causal=True)
    _draw_maps(maps, _marks(tokenizer, tokens), _marks(tokenizer, tokens), "each row is a token, and attends to", path)


def attended(queries: jax.Array, keys: jax.Array, causal: bool = False) -> np.ndarray:
    """Attention weights [layers, heads, time, keys] of queries [layers, time, heads, size] and keys (of groups)."""
    keys = jnp.repeat(keys, queries.shape[2] // keys.shape[2], axis=2)
    scores = jnp.einsum("lthd,lshd->lhts", queries, keys) / math.sqrt(queries.shape[-1])
    if causal:
        scores = jnp.where(jnp.tri(scores.shape[-1], dtype=bool), scores, -jnp.inf)
    return np.asarray(jax.nn.softmax(scores))


def cells(net: nn.Module, params: Tree, tokenizer: Tokenizer, tokens: np.ndarray, path: Path) -> None:
    """What cells of the last layer remember along a text (Karpathy, Johnson & Fei-Fei 2015, arXiv:1506.02078).

    Those are shown whose values vary most from one stretch of the text to the next, and least within a stretch.
    """

    def step(carry: Tree, token: jax.Array) -> tuple[Tree, jax.Array]:
        _, carry = net.apply({"params": params}, token[None, None], carry, method="extend")
        return carry, carry.cell[0, -1]

    start = net.apply({"params": params}, jnp.zeros((1, 1)), 1, method="start")
    values = np.tanh(np.asarray(jax.jit(lambda t: jax.lax.scan(step, start, t)[1])(jnp.asarray(tokens))))
    changes = np.abs(np.diff(values[SHOWN:], axis=0)).mean(0)
    chosen = np.argsort(-values[SHOWN:].std(0) / (changes + 0.05))[:CELLS]
    shown = min(4 * SHOWN, len(tokens))
    rows = -(-shown // SHOWN)
    marks = _marks(tokenizer, tokens[:shown])
    figure = Figure(figsize=(11, 0.24 * rows * CELLS + 1.5), dpi=130, layout="constrained")
    figure.suptitle("cells of the last layer along a test text: blue below 0, red above", fontsize=11)
    for ax, cell in zip(figure.subplots(len(chosen), 1, squeeze=False)[:, 0], chosen, strict=True):
        grid = np.full(rows * SHOWN, np.nan)
        grid[:shown] = values[:shown, cell]
        ax.imshow(grid.reshape(rows, SHOWN), cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
        for n, mark in enumerate(marks):
            ink = "white" if abs(values[n, cell]) > 0.7 else "black"
            ax.text(n % SHOWN, n // SHOWN, mark, ha="center", va="center", fontsize=6, family="monospace", color=ink)
        ax.set(xticks=[], yticks=[])
        ax.set_ylabel(f"{cell}", fontsize=7, rotation=0, ha="right", va="center")
    _save(figure, path)


def translation(
    net: nn.Module,
    tokenizer: Tokenizer,
    length: int,
    beams: int,
    penalty: float,
    sources: Sequence[str],
    references: Sequence[str],
) -> Report:
    """BLEU of the test split's translations (Papineni et al. 2002; sacrebleu, Post 2018), cased and detokenised; with
    translations.txt, and attention.png of one of them."""

    def report(state: State, feeds: Feeds, directory: Path) -> dict[str, float]:
        params = weights(state)
        hypotheses = [""] * len(sources)
        for batch in feeds.test:
            best, _ = beam_search(net, params, jnp.asarray(batch.inputs[0]), length, beams, penalty)
            for place, tokens, there in zip(batch.index, np.asarray(best[:, 0]), batch.mask, strict=True):
                if there:
                    hypotheses[place] = tokenizer.decode(words(tokens))
        metric = sacrebleu.BLEU()
        bleu = metric.corpus_score(hypotheses, [list(references)])
        signature = str(metric.get_signature())
        console.print(f"BLEU {bleu.score:.2f} ({signature}), beam {beams}, length penalty {penalty}", markup=False)
        told = [
            f"{s}\n  reference:   {r}\n  translation: {h}"
            for s, r, h in list(zip(sources, references, hypotheses, strict=True))[:PRINTED]
        ]
        _write_text(directory / "translations.txt", "\n\n".join([f"{bleu}\n{signature}", *told]))
        _draw_alignment(net, params, tokenizer, feeds.test[0], length, directory / "attention.png")
        return {"bleu": bleu.score, "brevity_penalty": bleu.bp}

    return report


def words(tokens: np.ndarray) -> np.ndarray:
    """The tokens before EOS."""
    ends = np.flatnonzero((tokens == EOS) | (tokens == PAD))
    return tokens[: ends[0]] if ends.size else tokens


def _draw_alignment(net: nn.Module, params: Tree, tokenizer: Tokenizer, batch: Batch, length: int, path: Path) -> None:
    """Where each word of a reference translation looks in its source: of a Transformer, heads of the last layer."""
    sizes = (np.asarray(batch.inputs[0]) != PAD).sum(1) * (np.asarray(batch.mask) > 0)
    at = int(np.argmax(sizes))
    source, target = (np.asarray(x[at])[: int((np.asarray(x[at]) != PAD).sum())] for x in batch.inputs)
    inputs = (jnp.asarray(source)[None], jnp.asarray(target)[None])
    _, found = net.apply({"params": params}, inputs, mutable=["intermediates"])
    told = found["intermediates"]
    if isinstance(net, lstm.Translator):
        maps = np.asarray(told["decoder"]["attention"][0])[None]
    else:
        cross = told["blocks"]["layers"]["cross"]
        maps = attended(cross["queries"][0][-1:, 0], cross["keys"][0][-1:, 0])
    written = np.append(target[1:], EOS)
    _draw_maps(maps, _marks(tokenizer, written), _marks(tokenizer, source), "to be written, each word looks at", path)


def classification(
    logits: Callable[[Tree, jax.Array], jax.Array], tokenizer: Tokenizer, names: Sequence[str]
) -> Report:
    """Test texts counted in confusion.png, the worst mistakes in mistakes.txt; precision, recall and F1 of each class.

    Of several seeds they are the first's; ensemble_accuracy is that of their mean prediction.

    logits  (params, tokens i32[batch, time]) -> [batch, classes]
    """
    logits = jax.jit(logits)

    def judged(params: Tree, test: Iterable[Batch]) -> np.ndarray:
        rows = [np.asarray(logits(params, jnp.asarray(b.inputs)))[b.mask > 0] for b in test]
        return np.asarray(jax.nn.log_softmax(np.concatenate(rows)))

    def report(state: State, feeds: Feeds, directory: Path) -> dict[str, float]:
        each = np.stack([judged(params, feeds.test) for params in each_seed(state, evaluated(state))])
        outputs = each[0]
        truth = np.concatenate([b.targets[b.mask > 0] for b in feeds.test])
        texts = [text for b in feeds.test for text in b.inputs[b.mask > 0]]
        predicted = outputs.argmax(1)
        matrix = np.zeros((len(names), len(names)), int)
        np.add.at(matrix, (truth, predicted), 1)
        plot.confusion(matrix, names, directory / "confusion.png")
        worst = np.argsort(outputs[np.arange(len(truth)), truth])[:PRINTED]
        told = [
            f"is {names[truth[i]]}, says {names[predicted[i]]} "
            f"({np.exp(outputs[i, predicted[i]]):.1%}):\n{tokenizer.decode(words(texts[i]))}"
            for i in worst
            if truth[i] != predicted[i]
        ]
        _write_text(directory / "mistakes.txt", "\n\n".join(told))
        together = {"ensemble_accuracy": ensemble_accuracy(each, truth)} if len(each) > 1 else {}
        return scores(matrix, names) | together

    return report


def scores(matrix: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Precision, recall and F1 of each class, of a matrix of counts [true class, predicted class]; 0 for 0 / 0."""
    right, found, there = np.diag(matrix), matrix.sum(0), matrix.sum(1)
    share = lambda a, b: (a / np.maximum(b, 1)).tolist()
    kinds = {"precision": share(right, found), "recall": share(right, there), "f1": share(2 * right, found + there)}
    named = ((f"{kind}_{name}", x) for kind, each in kinds.items() for name, x in zip(names, each, strict=True))
    return dict(named)


def _marks(tokenizer: Tokenizer, tokens: Any) -> list[str]:
    """Each token as a picture shows it."""
    shown = str.maketrans({"\n": "⏎", "\t": "⇥", END: "∎"})
    return [tokenizer.decode([int(t)]).translate(shown) or "∎" for t in tokens]


def _draw_maps(maps: np.ndarray, rows: list[str], columns: list[str], told: str, path: Path) -> None:
    """Maps [layers, heads, rows, columns], in a grid; of one layer, it is the last."""
    layers, heads = maps.shape[:2]
    side = 2.2 if layers * heads > 1 else 6.0
    figure = Figure(figsize=(side * heads + 0.4, side * layers + 0.6), dpi=130, layout="constrained")
    figure.suptitle(f"{told} the columns: dark is more", fontsize=10)
    labelled = max(len(rows), len(columns)) <= 48
    for (layer, head), ax in np.ndenumerate(figure.subplots(layers, heads, squeeze=False)):
        # By its root: most weights are small.
        ax.imshow(np.sqrt(maps[layer, head]), cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        name = f"layer {layer + 1}, head {head + 1}" if layers > 1 else f"head {head + 1}"
        ax.set_title(name if layers * heads > 1 else "", fontsize=7)
        if labelled and head == 0:
            ax.set_yticks(range(len(rows)), rows, fontsize=5 if layers * heads > 1 else 8)
        if labelled and layer == layers - 1:
            ax.set_xticks(range(len(columns)), columns, fontsize=5 if layers * heads > 1 else 8, rotation=90)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with failing("write", path), replacing(path) as temporary:
        figure.savefig(temporary)


def _write_text(path: Path, text: str) -> None:
    with failing("write", path), replacing(path) as temporary:
        temporary.write_text(text + "\n")
