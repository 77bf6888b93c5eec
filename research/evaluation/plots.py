"""Pictures: image grids, confusion matrices, charts, films. Each is one file, written atomically. curves.py has
learning curves."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from PIL import Image

from research.core.bucket import located
from research.core.files import failing, replacing

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's palette, which colour-blind readers can distinguish."""

DPI = 130
"""Pixels per inch."""

GAP = 0.04
"""Inches between the images of a grid."""


def image_grid(images: Any, captions: Sequence[str] | None, path: Path | str, columns: int | None = None) -> None:
    """Draws images [n, height, width, channels] in a grid, each with its caption above it where captions are given.

    The images are uint8, or floats from 0 to 1; one channel is grey. If any float is outside [0, 1], all images are
    scaled by the same factor to fit.
    """
    images = np.asarray(images)
    if not len(images):
        return
    if images.dtype != np.uint8:
        images = images.astype(np.float32)
        low, high = min(0.0, float(np.nanmin(images))), max(1.0, float(np.nanmax(images)))
        images = np.nan_to_num((images - low) / (high - low))
    n, height, width, _ = images.shape
    columns = columns or min(n, max(1, math.ceil(math.sqrt(n * height / width))))
    rows = math.ceil(n / columns)
    longest = max((len(line) for text in captions or () for line in text.splitlines()), default=0)
    lines = max((text.count("\n") + 1 for text in captions or ()), default=0)
    # Positions are in inches, on one pair of axes: with a pair for each image, 240 images take two seconds.
    across, above = max(1.0, 0.075 * longest), 0.16 * lines
    down = across * height / width
    figure = Figure(figsize=(columns * (across + GAP) + GAP, rows * (above + down + GAP) + GAP), dpi=DPI)
    ax = figure.add_axes((0, 0, 1, 1))
    for i, image in enumerate(images):
        left, top = GAP + i % columns * (across + GAP), GAP + above + i // columns * (above + down + GAP)
        limit = 255 if images.dtype == np.uint8 else 1
        extent = (left, left + across, top + down, top)
        ax.imshow(drawable(image), cmap="gray", vmin=0, vmax=limit, interpolation="nearest", extent=extent)
        if captions:
            ax.text(left + across / 2, top - 0.03, captions[i], fontsize=8, ha="center", va="bottom")
    ax.set(xlim=(0, figure.get_figwidth()), ylim=(figure.get_figheight(), 0), aspect="auto")
    ax.axis("off")
    write(figure, path)


def drawable(image: Any) -> Any:
    """An image [height, width, channels] as Matplotlib draws it: of other than 3 or 4 channels the first, in grey."""
    return image if image.shape[-1] in (3, 4) else image[..., 0]


def masks(images: Any, truths: Any, predictions: Any, names: Sequence[str], path: Path | str) -> None:
    """Draws rows of an image, its true and its predicted classes, in colours that a legend names.

    images u8[n, height, width, channels], truths and predictions u8[n, height, width]; a number that is no class, as
    where none is known, is white.
    """
    n, height, width, _ = images.shape
    palette = np.array([colormaps["tab20"]((2 * k + k // 10) % 20)[:3] for k in range(len(names))])
    coloured = lambda numbers: np.concatenate([palette, np.ones((256 - len(names), 3))])[numbers]
    figure = new_figure(9.0, n * (3.0 * height / width + 0.05) + 0.6 + 0.2 * math.ceil(len(names) / 6))
    axes = figure.subplots(n, 3, squeeze=False)
    for row, pictures in zip(axes, zip(images, coloured(truths), coloured(predictions), strict=True), strict=True):
        for ax, picture in zip(row, pictures, strict=True):
            ax.axis("off")
            ax.imshow(drawable(picture), cmap="gray", vmin=0, vmax=255)
    for ax, title in zip(axes[0], ("image", "truth", "prediction"), strict=True):
        ax.set_title(title, fontsize=11)
    handles = [Patch(color=colour, label=name) for colour, name in zip(palette, names, strict=True)]
    figure.legend(handles=handles, ncols=6, loc="outside lower center", frameon=False, fontsize=9)
    write(figure, path)


def attributions(
    images: Any, maps: Mapping[str, Any], captions: Sequence[str], right: Sequence[bool], path: Path | str
) -> None:
    """Draws rows of an image and of maps of its pixels, a column for each of `maps`, f[n, height, width] by name.

    A map that has negative numbers is blue and red around 0, any other from dark to bright, each on a scale of its own
    up to the 99th percentile.

    images    f32[n, height, width, channels] in 0 ... 1; one channel is grey
    captions  of the rows, drawn above the images; those that are not `right` in red
    """
    n, height, width, _ = images.shape
    side = min(1.5, 9.0 / (len(maps) + 1))
    above = 0.1 + 0.12 * (1 + max(caption.count("\n") for caption in captions))
    figure = new_figure(side * (len(maps) + 1) + 0.2, n * (side * height / width + above) + 0.2)
    axes = figure.subplots(n, len(maps) + 1, squeeze=False)
    for row, image, caption, correct, numbers in zip(axes, images, captions, right, range(n), strict=True):
        row[0].imshow(drawable(image), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        row[0].set_title(caption, fontsize=7, pad=2, color="black" if correct else "#b00000")
        for ax, values in zip(row[1:], maps.values(), strict=True):
            values = np.asarray(values[numbers], np.float32)
            limit = float(np.quantile(np.abs(values), 0.99)) or 1.0
            signed = bool((values < 0).any())
            colours = "RdBu_r" if signed else "inferno"
            ax.imshow(values, cmap=colours, vmin=-limit if signed else 0, vmax=limit, interpolation="nearest")
    for ax in axes.flat:
        ax.axis("off")
    for ax, name in zip(axes[0, 1:], maps, strict=True):
        ax.set_title(name, fontsize=7, pad=2)
    write(figure, path)


def reliability(found: Mapping[str, tuple[Any, Any, Any]], path: Path | str) -> None:
    """Draws the accuracy by confidence of each label, beside that of perfect calibration.

    found  by label: the mean confidence, the accuracy and the examples of each bin [bins]; bins of fewer than ten
           are left out, for their accuracy is chance. The area of a point grows with the share of the examples
    """
    figure, ax = _chart(4.6, 4.6)
    ax.plot([0, 1], [0, 1], color="#999999", lw=1, ls="--")
    for (label, (confidence, accuracy, count)), colour in zip(found.items(), palette(len(found)), strict=True):
        there = np.asarray(count) >= 10
        x, y, size = (np.asarray(values)[there] for values in (confidence, accuracy, count))
        ax.plot(x, y, color=colour, lw=1.2, label=label)
        ax.scatter(x, y, 4 + 60 * size / max(size.sum(), 1), color=colour)
    ax.set(xlabel="confidence", ylabel="accuracy", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    ax.legend(frameon=False, fontsize=8)
    write(figure, path)


def bars(found: Mapping[str, tuple[Any, Any]], labels: Sequence[str], path: Path | str) -> None:
    """Draws a panel for each quantity, with a bar for each label and its value written beside it.

    found  by quantity: its values [labels] and their interval [2, labels]; NaN where there is none
    """
    columns = math.ceil(math.sqrt(len(found)))
    rows = math.ceil(len(found) / columns)
    figure = new_figure(3.6 * columns, rows * (0.24 * len(labels) + 0.9))
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    places = np.arange(len(labels))
    for ax, (name, (values, (low, high))) in zip(axes, found.items(), strict=False):
        around = np.stack([values - low, high - values]).clip(0)
        ax.barh(places, values, 0.7, color=COLOURS[5], xerr=around, error_kw={"lw": 1, "capsize": 2})
        for place, value, end in zip(places, values, np.fmax(values, high), strict=True):
            if not np.isnan(value):
                ax.text(end, place, f"  {value:.3g}", va="center", fontsize=7)
        ax.margins(x=0.15)
        if not (np.array([values, low]) < 0).any():
            ax.set_xlim(left=0)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.set_title(name, fontsize=10)
        ax.set_yticks(places, labels, fontsize=8)
        despine(ax, "x")
    axes[0].invert_yaxis()  # shared: the first label is at the top
    for ax in axes[len(found) :]:
        ax.remove()
    write(figure, path)


def confusion(matrix: Any, names: Sequence[str], path: Path | str) -> None:
    """Draws a confusion matrix of counts [true class, predicted class], coloured by the share of the true class."""
    matrix = np.asarray(matrix)
    n = len(names)
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    large = n > 30  # too many numbers to read
    size = 8.0 if large else max(4.0, 0.5 * n + 1.5)
    figure = new_figure(size + 0.8, size)
    ax = figure.subplots()
    image = ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=ax, label="share of the true class", shrink=0.8)
    if not large:
        ax.set_xticks(range(n), names, rotation=45, ha="right", rotation_mode="anchor")
        ax.set_yticks(range(n), names)
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                ink = "white" if share[row, column] > 0.5 else "black"
                ax.text(column, row, f"{count:.0f}", ha="center", va="center", color=ink, fontsize=8)
    ax.set_xlabel("predicted class")
    ax.set_ylabel("true class")
    ax.set_title(f"{np.trace(matrix) / max(matrix.sum(), 1):.2%} of {matrix.sum():,.0f} correct", fontsize=11)
    write(figure, path)


def profiles(
    thresholds: np.ndarray,
    found: Mapping[str, tuple[np.ndarray, np.ndarray]],
    metric: str,
    side: Literal["above", "below"],
    path: Path | str,
) -> None:
    """Draws performance profiles: the share of runs above each of the thresholds [n], or below it.

    found  by label: the shares [n] and their interval [2, n]
    """
    figure, ax = _chart(5.5, 3.6)
    for (label, (share, (low, high))), colour in zip(found.items(), COLOURS, strict=False):
        ax.plot(thresholds, share, color=colour, lw=1.8, label=label)
        ax.fill_between(thresholds, low, high, color=colour, alpha=0.2, lw=0)
    ax.set(xlabel=metric.replace("_", " "), ylabel=f"share of runs {side}", ylim=(-0.02, 1.02))
    ax.ticklabel_format(useOffset=False)
    ax.legend(frameon=False)
    write(figure, path)


def lines(found: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str, y: str, path: Path | str) -> None:
    """Draws a line for each label, (xs, ys) of `found`, y from 0 to 1."""
    figure, ax = _chart(5.5, 3.6)
    for (label, (xs, ys)), colour in zip(found.items(), palette(len(found)), strict=True):
        ax.plot(xs, ys, "o-", ms=3, color=colour, lw=1.8, label=label)
    ax.set(xlabel=x, ylabel=y, ylim=(-0.02, 1.02))
    ax.legend(frameon=False, fontsize=8)
    write(figure, path)


def by_size(
    found: Mapping[str, tuple[Sequence[float], Sequence[Sequence[float]]]], x: str, y: str, path: Path | str
) -> None:
    """Draws a line for each label of `found`, (sizes, values of each seed at each of them): the means, and each seed.

    Sizes are drawn by their logarithms.
    """
    figure, ax = _chart(5.5, 3.6)
    for (label, (sizes, values)), colour in zip(found.items(), palette(len(found)), strict=True):
        ax.plot(sizes, [sum(each) / len(each) for each in values], "-", color=colour, lw=1.8, label=label)
        points = [(size, value) for size, each in zip(sizes, values, strict=True) for value in each]
        ax.plot(*zip(*points, strict=True), "o", color=colour, ms=4, alpha=0.6, mew=0)
    ticks = sorted({size for sizes, _ in found.values() for size in sizes})
    ax.set_xscale("log")
    ax.set_xticks(ticks, [str(size) for size in ticks])
    ax.minorticks_off()
    ax.set(xlabel=x, ylabel=y)
    ax.legend(frameon=False, fontsize=8)
    write(figure, path)


def growth(sizes: Sequence[int], values: Sequence[float], size: str, unit: str, path: Path | str) -> None:
    """Draws how a speed grows with a size, in powers of two, beside the line of the same speed for each."""
    figure, ax = _chart(4.5, 3.4)
    ax.plot(sizes, [values[0] / sizes[0] * n for n in sizes], color="#999999", lw=1, ls="--", label="in proportion")
    ax.plot(sizes, values, "o-", color=COLOURS[0], lw=1.8, label="measured")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set(xlabel=size, ylabel=f"{unit}, all {size} together", xticks=sizes, xticklabels=[str(n) for n in sizes])
    ax.legend(frameon=False)
    write(figure, path)


def film(frames: Sequence[Image.Image], duration: int | Sequence[int], path: Path) -> None:
    """Writes frames to a GIF that begins again at its end; `duration` is that of each frame, or of all, in ms.

    Raises RunError where it can't be written.
    """
    with failing("write", path), replacing(path) as temporary:
        frames[0].save(temporary, save_all=True, append_images=frames[1:], duration=duration, loop=0)


def palette(count: int) -> list[Any]:
    """So many colours: those of the palette, or of a scale from blue to red where it has too few."""
    return list(COLOURS[:count] if count <= len(COLOURS) else colormaps["turbo"](np.linspace(0.05, 0.95, count)))


def new_figure(width: float, height: float) -> Figure:
    """A figure of so many inches, whose parts make room for each other."""
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def _chart(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of one panel."""
    figure = new_figure(width, height)
    ax = figure.subplots()
    despine(ax)
    return figure, ax


def despine(ax: Axes, grid: Literal["both", "x"] = "both") -> None:
    """Leaves the axes two sides, and draws a grid: across both, or x alone."""
    ax.grid(alpha=0.25, axis=grid)
    ax.spines[["top", "right"]].set_visible(False)


def write(figure: Figure, path: Path | str) -> None:
    """Writes a figure to a file. Raises RunError where it can't be written."""
    path = located(path)
    with failing("write", path), replacing(path) as temporary:
        figure.savefig(temporary)
