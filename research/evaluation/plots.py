"""Pictures: learning curves, grids of images, confusion matrices. Each function writes one PNG, atomically."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from research.core.files import failing, replacing

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's, which the colour-blind can tell apart."""

POINTS = 400
"""Of a line; what is longer is averaged in bins, or it would be a band of noise."""


SPLITS = ("train", "validation", "test")


class Curve(NamedTuple):
    """steps [n], and values [n, seeds] with NaN where there is none."""

    steps: np.ndarray
    values: np.ndarray


def curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path | str) -> None:
    """Learning curves of runs by label (the lines of metrics.jsonl), side by side: one panel a metric.

    Training and validation are together. Seeds are thin lines, with their mean and one standard deviation about it.
    """
    panels = _panels(runs)
    if not panels:
        return
    columns = min(3, math.ceil(math.sqrt(len(panels))))
    rows = math.ceil(len(panels) / columns)
    figure = _figure(4.6 * columns, 3.2 * rows + 0.6)
    several = len(runs) > 1
    found = {split for drawn in panels.values() for _, split in drawn}
    splits = [*(s for s in SPLITS if s in found), *sorted(found - set(SPLITS))]
    colours = {key: COLOURS[i % len(COLOURS)] for i, key in enumerate(runs if several else splits)}
    seeds = max(curve.values.shape[1] for drawn in panels.values() for curve in drawn.values())

    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax, (name, drawn) in zip(axes, panels.items(), strict=False):
        for (label, split), curve in drawn.items():
            _draw(ax, curve, colours[label if several else split], _style(split, several))
        _scale(ax, name, list(drawn.values()))
        ax.set_title(name.replace("_", " "), fontsize=11)
        ax.set_xlabel("steps")
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[len(panels) :]:
        ax.remove()

    def handle(label: str, colour: str, style: dict[str, Any]) -> Line2D:
        return Line2D([], [], color=colour, label=label, **style)

    by_split = [handle(s, "#444444" if several else colours[s], _style(s, several)) for s in splits]
    counted = "seeds" if several else f"{seeds} seeds"
    note = f"thin lines: {counted}; bold: their mean, shaded ± 1 standard deviation" if seeds > 1 else ""
    above = partial(figure.legend, loc="outside upper center", frameon=False, title_fontsize=12)
    if several:
        by_run = [handle(label, colours[label], _style("", False)) for label in runs]
        above(handles=by_run, ncols=min(len(runs), 2 * columns))
        figure.legend(handles=by_split, ncols=len(splits), title=note, loc="outside lower center", frameon=False)
    else:
        above(handles=by_split, ncols=len(splits), title=next(iter(runs)))
        figure.supxlabel(note, fontsize=10)
    _write(figure, path)


def image_grid(images: Any, captions: Sequence[str] | None, path: Path | str, columns: int | None = None) -> None:
    """Images [n, height, width, channels] in a grid, each under its caption if there are any.

    uint8, or floats from 0 to 1; one channel is grey. Floats beyond are scaled, all of them alike, to what they span.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8:
        images = images.astype(np.float32)
        low, high = min(0.0, float(np.nanmin(images))), max(1.0, float(np.nanmax(images)))
        images = np.nan_to_num((images - low) / (high - low))
    n, height, width, channels = images.shape
    columns = columns or min(n, max(1, math.ceil(math.sqrt(n * height / width))))
    rows = math.ceil(n / columns)
    longest = max((len(line) for text in captions or () for line in text.splitlines()), default=0)
    lines = max((text.count("\n") + 1 for text in captions or ()), default=0)
    across = max(1.0, 0.075 * longest)
    figure = _figure(columns * across, rows * (across * height / width + 0.16 * lines))
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    for i, ax in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        ax.axis("off")
        if i < n:
            image = images[i, ..., 0] if channels == 1 else images[i]
            limit = 255 if images.dtype == np.uint8 else 1
            ax.imshow(image, cmap="gray", vmin=0, vmax=limit, interpolation="nearest")
            if captions:
                ax.set_title(captions[i], fontsize=8, pad=2)
    _write(figure, path)


def confusion(matrix: Any, names: Sequence[str], path: Path | str) -> None:
    """A confusion matrix of counts, [true class, predicted class]; coloured by the share of the true class."""
    matrix = np.asarray(matrix)
    n = len(names)
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    many = n > 30  # too many to be read one by one
    size = 8.0 if many else max(4.0, 0.5 * n + 1.5)
    figure = _figure(size + 0.8, size)
    ax = figure.subplots()
    image = ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=ax, label="share of the true class", shrink=0.8)
    if not many:
        ax.set_xticks(range(n), names, rotation=45, ha="right", rotation_mode="anchor")
        ax.set_yticks(range(n), names)
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                ink = "white" if share[row, column] > 0.5 else "black"
                ax.text(column, row, f"{count:.0f}", ha="center", va="center", color=ink, fontsize=8)
    ax.set_xlabel("predicted class")
    ax.set_ylabel("true class")
    ax.set_title(f"{np.trace(matrix) / max(matrix.sum(), 1):.2%} of {matrix.sum():,.0f} right", fontsize=11)
    _write(figure, path)


def _panels(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[tuple[str, str], Curve]]:
    """By metric, the curve of each run and split; in the order in which metrics first appear."""
    points: dict[str, dict[tuple[str, str], list[tuple[int, list[Any]]]]] = {}
    for label, lines in runs.items():
        for line in lines:
            for name, value in line.items():
                if name in ("step", "split", "time"):
                    continue
                each = value if isinstance(value, list) else [value]
                if all(x is None or isinstance(x, int | float) for x in each):
                    points.setdefault(name, {}).setdefault((label, line["split"]), []).append((line["step"], each))
    return {name: {key: _curve(drawn) for key, drawn in by.items()} for name, by in points.items()}


def _curve(points: list[tuple[int, list[Any]]]) -> Curve:
    steps = np.array([step for step, _ in points])
    values = np.array([[np.nan if x is None else x for x in each] for _, each in points], float)
    if len(steps) > POINTS:
        bins = np.array_split(np.arange(len(steps)), POINTS)
        steps = np.array([steps[b].mean() for b in bins])
        values = np.stack([values[b].mean(0) for b in bins])
    return Curve(steps, values)


def _style(split: str, several: bool) -> dict[str, Any]:
    """One run has a colour for each split; of several, that is the run's, and training is the lighter line."""
    if split == "test":
        return {"lw": 0, "marker": "o", "ms": 5}
    return {"lw": 0.9, "alpha": 0.6} if several and split == "train" else {"lw": 1.8}


def _draw(ax: Axes, curve: Curve, colour: str, style: dict[str, Any]) -> None:
    there = ~np.isnan(curve.values).all(1)
    steps, values = curve.steps[there], curve.values[there]
    if not len(steps):
        return
    mean = np.nanmean(values, 1)
    if values.shape[1] > 1:
        spread = np.nanstd(values, 1)
        ax.fill_between(steps, mean - spread, mean + spread, color=colour, alpha=0.15, lw=0)
        if style["lw"]:
            ax.plot(steps, values, color=colour, lw=0.5, alpha=0.3)
    if len(steps) == 1:
        style = {**style, "marker": "o", "ms": 5}
    ax.plot(steps, mean, color=colour, **style)


def _scale(ax: Axes, name: str, drawn: Sequence[Curve]) -> None:
    """Logarithmic for what is positive and falls far, as losses do."""
    values = np.concatenate([curve.values.ravel() for curve in drawn])
    values = values[~np.isnan(values)]
    kind = any(word in name for word in ("loss", "perplexity", "norm", "error"))
    if kind and len(values) and values.min() > 0 and values.max() > 20 * values.min():
        ax.set_yscale("log")


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _write(figure: Figure, path: Path | str) -> None:
    path = Path(path)
    with failing("write", path), replacing(path) as temporary:
        figure.savefig(temporary)
