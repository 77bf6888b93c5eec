"""Learning curves: a panel for each metric of the metrics.jsonl of one run or several."""

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from research.evaluation.plots import despine, new_figure, palette, write

POINTS = 400
"""Points of a line at most; longer curves are averaged in bins, so that they are readable."""

SPLITS = ("train", "validation", "test")
"""The order of the legend."""


class Curve(NamedTuple):
    """steps [n] and values [n, seeds]; a missing value is NaN."""

    steps: np.ndarray
    values: np.ndarray


def learning_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path | str) -> None:
    """Draws the learning curves of runs, given by label as the lines of their metrics.jsonl: one panel for each metric.

    Training and validation share a panel. Each seed is a thin, faint line; their mean is drawn too, with its
    95 % bootstrap interval.
    """
    panels = _panels(runs)
    if not panels:
        return
    columns = min(3, math.ceil(math.sqrt(len(panels))))
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(4.6 * columns, 3.2 * rows + 0.6)
    several = len(runs) > 1
    found = {split for by_run in panels.values() for _, split in by_run}
    splits = [*(s for s in SPLITS if s in found), *sorted(found - set(SPLITS))]
    colours = dict(zip(runs if several else splits, palette(len(runs if several else splits)), strict=True))
    seeds = max(curve.values.shape[1] for by_run in panels.values() for curve in by_run.values())

    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax, (name, by_run) in zip(axes, panels.items(), strict=False):
        for (label, split), curve in by_run.items():
            _draw(ax, curve, colours[label if several else split], _style(split, several))
        _scale(ax, name, list(by_run.values()))
        ax.set_title(name.replace("_", " "), fontsize=11)
        ax.set_xlabel("steps")
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.xaxis.set_major_locator(MaxNLocator(5))
        despine(ax)
    for ax in axes[len(panels) :]:
        ax.remove()

    def handle(label: str, colour: str, style: dict[str, Any]) -> Line2D:
        return Line2D([], [], color=colour, label=label, **style)

    split_handles = [handle(s, "#444444" if several else colours[s], _style(s, several)) for s in splits]
    if seeds == 1:
        note = ""
    elif several:  # the width of a line tells training from validation
        note = "faint lines: seeds; shaded: the 95 % interval of their mean"
    else:
        note = f"thin lines: {seeds} seeds; bold: their mean; shaded: its 95 % interval"
    above = partial(figure.legend, loc="outside upper center", frameon=False, title_fontsize=12)
    if several:
        run_handles = [handle(label, colours[label], _style("", False)) for label in runs]
        across = int(4.6 * columns / (0.7 + 0.09 * max(map(len, runs))))  # labels side by side, in inches
        above(handles=run_handles, ncols=max(1, min(len(runs), 2 * columns, across)))
        figure.legend(handles=split_handles, ncols=len(splits), title=note, loc="outside lower center", frameon=False)
    else:
        above(handles=split_handles, ncols=len(splits), title=next(iter(runs)))
        figure.supxlabel(note, fontsize=10)
    write(figure, path)


def _panels(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[tuple[str, str], Curve]]:
    """The curves by metric, then by (run, split); metrics are in the order of their first appearance."""
    points: dict[str, dict[tuple[str, str], list[tuple[int, list[Any]]]]] = {}
    for label, lines in runs.items():
        for line in lines:
            for name, value in line.items():
                if name in ("step", "split", "time"):
                    continue
                each = value if isinstance(value, list) else [value]
                if all(x is None or isinstance(x, int | float) for x in each):
                    points.setdefault(name, {}).setdefault((label, line["split"]), []).append((line["step"], each))
    return {name: {key: _curve(pairs) for key, pairs in by_run.items()} for name, by_run in points.items()}


def _curve(points: list[tuple[int, list[Any]]]) -> Curve:
    steps = np.array([step for step, _ in points])
    values = np.array([[np.nan if x is None else x for x in each] for _, each in points], float)
    if len(steps) > POINTS:
        bins = np.array_split(np.arange(len(steps)), POINTS)
        steps = np.array([steps[b].mean() for b in bins])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a bin without a value
            values = np.stack([np.nanmean(values[b], 0) for b in bins])
    return Curve(steps, values)


def _style(split: str, several: bool) -> dict[str, Any]:
    """Line properties. A single run has a colour for each split; of several runs, training is the lighter line."""
    if split == "test":
        return {"lw": 0, "marker": "o", "ms": 5}
    return {"lw": 0.9, "alpha": 0.6} if several and split == "train" else {"lw": 1.8}


def _draw(ax: Axes, curve: Curve, colour: str, style: dict[str, Any]) -> None:
    valid = ~np.isnan(curve.values).all(1)
    steps, values = curve.steps[valid], curve.values[valid]
    if not len(steps):
        return
    mean = np.nanmean(values, 1)
    if values.shape[1] > 1:
        # A bootstrap interval lies between the least and the greatest seed: on a log axis it stays above 0.
        drawn = np.random.default_rng(0).integers(0, values.shape[1], (500, values.shape[1]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a mean of seeds that have all diverged
            low, high = np.nanquantile(np.nanmean(values[:, drawn], -1), (0.025, 0.975), axis=1)
        ax.fill_between(steps, low, high, color=colour, alpha=0.2, lw=0)
        if style["lw"]:
            ax.plot(steps, values, color=colour, lw=0.5, alpha=0.3)
    if len(steps) == 1:
        style = {**style, "marker": "o", "ms": 5}
    ax.plot(steps, mean, color=colour, **style)


def _scale(ax: Axes, name: str, curves: Sequence[Curve]) -> None:
    """Makes the axis logarithmic for losses and the like that are positive and span a factor of more than 20."""
    values = np.concatenate([curve.values.ravel() for curve in curves])
    values = values[~np.isnan(values)]
    kind = any(word in name for word in ("loss", "perplexity", "norm", "error"))
    if kind and len(values) and values.min() > 0 and values.max() > 20 * values.min():
        ax.set_yscale("log")
