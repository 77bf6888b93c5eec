"""Reports on object detection: average precision by pycocotools, and pictures with boxes."""

import contextlib
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from research.core.experiment import Report, Split
from research.core.metrics import Numbers
from research.core.state import State
from research.core.transformations import each_seed
from research.data.boxes import Objects
from research.evaluation import plots
from research.evaluation.seeds import by_seed

Detected = Callable[[State, jax.Array], jax.Array]
"""(State, images u8[batch, h, w, c]) -> f32[batch, n, 6]: ymin, xmin, ymax, xmax, score, class. A score of 0: none."""

PICTURES = 12
"""Images in boxes.png."""

LEAST_SCORE = 0.4
"""The least score of a box that boxes.png shows."""


def detection(detected: Detected, names: Sequence[str], every: int | None) -> Report:
    """The average precision of detected objects, and boxes.png, some images with the true and the detected boxes.

    ap50       mean over the classes of the average precision at an intersection over union of 0.5
    ap50_95    the mean of those at 0.5, 0.55, ... 0.95, COCO's AP
    ap50_NAME  that of one class

    Two figures differ from published ones. COCO ignores what is detected within a crowd, whose box is not among the
    objects here, so that such a detection counts as wrong. VOC ignores objects that are marked as difficult, which
    count here as all others.

    names  of the classes
    every  steps between evaluations during training, or None
    """
    detected = jax.jit(detected)

    def run(state: State, split: Split, directory: Path) -> Numbers:
        images: list[np.ndarray] = []
        truth: list[Objects] = []
        for batch in split.batches:
            valid = np.asarray(batch.mask) > 0
            images += list(np.asarray(batch.inputs)[valid][: PICTURES - len(images)])
            truth += [Objects(*one) for one in zip(*(np.asarray(x)[valid] for x in batch.targets), strict=True)]

        def found(one: State) -> list[np.ndarray]:
            parts = ((batch.mask, jax.device_get(detected(one, batch.inputs))) for batch in split.batches)
            return [rows for mask, part in parts for rows in part[np.asarray(mask) > 0]]

        each = [found(one) for one in each_seed(state)]
        draw(images, truth, each[0], names, directory / "boxes.png")
        return by_seed([average_precision(truth, rows, names) for rows in each])

    return Report(run, every, ("ap50", "ap50_95", *(f"ap50_{name}" for name in names)))


def average_precision(truth: Sequence[Objects], found: Sequence[np.ndarray], names: Sequence[str]) -> dict[str, float]:
    """The numbers of `detection`, over images.

    truth  of each image, [n, ...]
    found  in each image, f32[n, 6], see `Detected`

    Classes without an object are left out; where there is no object at all, the numbers are NaN.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def entry(image: int, box: np.ndarray, label: Any, **more: Any) -> dict[str, Any]:
        ymin, xmin, ymax, xmax = map(float, box)
        size = (xmax - xmin, ymax - ymin)
        of_box = {"bbox": [xmin, ymin, *size], "area": math.prod(size), "iscrowd": 0}
        return {"image_id": image, "category_id": int(label), **of_box, **more}

    def coco(entries: list[dict[str, Any]]) -> Any:
        made = COCO()
        made.dataset = {
            "images": [{"id": at} for at in range(len(truth))],
            "categories": [{"id": at, "name": name} for at, name in enumerate(names)],
            # Numbered from 1: a match is told by the number of its partner, and 0 is none.
            "annotations": [{"id": at + 1, **one} for at, one in enumerate(entries)],
        }
        made.createIndex()
        return made

    objects = [
        entry(at, box, label)
        for at, one in enumerate(truth)
        for box, label in zip(one.boxes[one.valid], one.labels[one.valid], strict=True)
    ]
    rows = [
        entry(at, row[:4], row[5], score=float(row[4])) for at, one in enumerate(found) for row in one if row[4] > 0
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco(objects), coco(rows), "bbox")
        evaluation.params.maxDets = [max([100, *map(len, found)])]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    # [thresholds, recalls, classes]; -1 where a class has no object.
    precision = evaluation.eval["precision"][..., 0, 0]
    by_class = np.where(precision < 0, np.nan, precision).mean(1)
    there = ~np.isnan(by_class[0])
    mean = lambda values: float(values[..., there].mean()) if there.any() else math.nan
    each = {f"ap50_{name}": float(value) for name, value in zip(names, by_class[0], strict=True)}
    return {"ap50": mean(by_class[0]), "ap50_95": mean(by_class), **each}


def draw(
    images: Sequence[np.ndarray],
    truth: Sequence[Objects],
    found: Sequence[np.ndarray],
    names: Sequence[str],
    path: Path,
) -> None:
    """Draws images u8[height, width, channels] with their true boxes (dashed) and those found (with their scores)."""
    columns = min(4, len(images))
    rows = math.ceil(len(images) / columns)
    height, width, channels = images[0].shape
    figure = Figure(figsize=(3.2 * columns, 3.2 * rows * height / width + 0.4), dpi=130, layout="constrained")
    colours = dict(enumerate(plots.palette(len(names))))

    def box(ax: Any, corners: np.ndarray, **style: Any) -> None:
        ymin, xmin, ymax, xmax = (corners - 0.5).tolist()  # a picture's pixel k has its middle at k
        ax.add_patch(Rectangle((xmin, ymin), xmax - xmin, ymax - ymin, fill=False, **style))

    for at, ax in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        ax.axis("off")
        if at >= len(images):
            continue
        image = plots.drawable(images[at])
        ax.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        one = truth[at]
        for corners in one.boxes[one.valid]:
            box(ax, corners, lw=1.6, ls=(0, (2, 2)), ec="#888888" if channels == 3 else "#ffffff")
        for *corners, score, label in found[at]:
            if score >= LEAST_SCORE:
                colour = colours[int(label)]
                box(ax, np.array(corners), lw=1.0, ec=colour)
                text = f"{names[int(label)]} {score:.2f}" if len(names) > 3 else f"{score:.2f}"
                ink = "white" if np.dot(to_rgb(colour), (0.3, 0.6, 0.1)) < 0.5 else "black"
                top = max(corners[0], 0.04 * height)  # inside of the picture
                ax.text(corners[1], top, text, fontsize=5, color=ink, va="bottom", clip_on=True,
                        bbox={"fc": colour, "ec": "none", "pad": 0.4})  # fmt: skip
    title = f"found, with a score of at least {LEAST_SCORE} (dashed: truth)"
    if len(names) <= len(plots.COLOURS):
        handles = [Rectangle((0, 0), 1, 1, fc=colours[at], label=name) for at, name in enumerate(names)]
        figure.legend(handles=handles, ncols=len(names) + 1, loc="outside upper center", frameon=False, title=title)
    else:
        figure.suptitle(title, fontsize=10)
    plots.write(figure, path)
