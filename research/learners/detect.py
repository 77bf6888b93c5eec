"""Object detection by FCOS: `supervised` with a loss of every location of the feature pyramid.

Tian, Shen, Chen & He 2019, "FCOS: Fully convolutional one-stage object detection" (arXiv:1904.01355), with the
improvements of its table 3: only the middle of a box is positive ("center sampling"), centerness is predicted beside
the box, distances are in strides, and the box's loss is generalised IoU's (Rezatofighi et al. 2019, arXiv:1902.09630).

    (c, t)     each location's class and distances: those of the smallest box that it is responsible for   `assigned`
    L(p, t, o) = 1 / N sum_locations focal(p, c) + [c > 0] (giou(t) + bce(o, centerness(t)))               `fcos`
    score      = sqrt(p * o); the best ones, less those that overlap better ones of their class            `detected`
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from research.core.errors import UserError, between, positive
from research.core.experiment import Experiment, Inference, Load, Report, Run
from research.core.losses import Criterion
from research.core.metrics import Mean, Metrics
from research.core.optimizers import Optimizer
from research.core.state import Batch, Learner, State
from research.data.box_augment import BoxAugment, augment_boxes
from research.data.boxes import BoxData, BoxedImages, Objects
from research.data.canvases import Canvases
from research.data.pixels import scaled, standardised
from research.data.toy_boxes import ToyBoxes
from research.evaluation import boxes as reports
from research.learners.supervised import Supervised, pixel_inference, supervised
from research.nets.detector import Detector, Outputs

ALPHA, GAMMA = 0.25, 2.0
"""The focal loss's weight of positives and its exponent (Lin et al. 2017, arXiv:1708.02002)."""


class Locations(NamedTuple):
    """The locations of all levels, in the order of `Outputs`.

    points  f32[locations, 2], (y, x) in pixels
    stride  f32[locations], that of their level
    low     f32[locations], a location is responsible for a box whose farthest side is further than this many pixels
    high    f32[locations], and not further than this
    """

    points: jax.Array
    stride: jax.Array
    low: jax.Array
    high: jax.Array


@dataclass(frozen=True, kw_only=True)
class Detect(Supervised):
    """An experiment in object detection.

    Attributes:
        data: the images and their boxes
        net: a Flax module: images -> `Outputs`, with a field `outputs` for the number of classes, and `strides`
        augment: augmentation of training images and their boxes
        reach: largest distance to the farthest side of the boxes that a level is responsible for, in its strides; the
            last level has all larger ones
        radius: how far from the middle of a box locations are positive, in strides
        candidates: number of the best boxes of an image that suppression chooses from
        detections: number of boxes found in an image, at most
        least_score: boxes with a lower score are not kept
        overlap: of two boxes of a class whose intersection over union is above this, the better one is kept
        ap_every: steps between evaluations of the average precision on the validation data; by default it is computed
            once, at the end, on the test data
    """

    data: BoxData = field(default_factory=BoxedImages)
    net: nn.Module = field(default_factory=Detector)
    augment: BoxAugment = field(default_factory=BoxAugment)
    reach: float = 8.0
    radius: float = 1.5
    candidates: int = 1000
    detections: int = 100
    least_score: float = 0.05
    overlap: float = 0.6
    ap_every: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "", "candidates", "detections")
        between(self, "", 0, 1, "least_score", "overlap")
        for name in ("radius", "reach"):
            value = getattr(self, name)
            if isinstance(value, int | float) and not value > 0:  # one that a sweep traces is not looked at
                raise UserError(f"{name} must be above 0, not {value}")
        self.run.check_interval("ap_every", self.ap_every)

    def module(self) -> nn.Module:
        """See `Supervised`. Raises UserError where the net does not take the images."""
        (height, width, _), strides = self.data.spec().shape, self.net.strides
        if height % strides[-1] or width % strides[-1]:
            size = "--data.resize" if hasattr(self.data, "resize") else "--data.size"
            raise UserError(f"images of {height}x{width}: the net needs multiples of {strides[-1]}: set {size}")
        return self.net.clone(outputs=self.data.spec().classes)

    def build(self) -> Learner:
        """See `Experiment`."""
        spec = self.data.spec()
        criterion = fcos(self.locations(), self.radius)

        def prepare(batch: Batch) -> Batch:
            return batch._replace(inputs=standardised(scaled(batch.inputs), spec))

        def augment(keys: jax.Array, batch: Batch) -> Batch:
            images, objects = augment_boxes(self.augment, keys, scaled(batch.inputs), batch.targets)
            return batch._replace(inputs=standardised(images, spec), targets=objects)

        return supervised(
            self.network(self.module()),
            self.updater(),
            jnp.zeros((1, *spec.shape)),
            criterion,
            eval_criterion=criterion,
            augment=augment,
            prepare=prepare,
        )

    def locations(self) -> Locations:
        """Where the net looks for objects."""
        return locations(self.data.spec().shape[:2], self.net.strides, self.reach)

    def detected(self, state: State, images: jax.Array) -> jax.Array:
        """The objects that are found in u8[batch, height, width, channels]; see `detected`."""
        outputs = self.outputs(state, standardised(scaled(images), self.data.spec()))
        choice = Choice(self.candidates, self.detections, self.least_score, self.overlap)
        return detected(outputs, self.locations(), self.data.spec().shape, choice)

    def reports(self, load: Load) -> Iterable[Report]:
        """See `Experiment`."""
        return (reports.detection(self.detected, self.data.spec().names, self.ap_every),)

    def inference(self, state: State) -> dict[str, Inference]:
        """See `Experiment`."""
        about = (
            "Each object is a row (ymin, xmin, ymax, xmax, score, class): a box in pixels, a score from 0 to 1, the "
            "best ones first, and the number of its class. Rows with a score of 0 are none. "
            f"Classes are {', '.join(self.data.spec().names)}."
        )
        return pixel_inference(lambda images: self.detected(state, images), "objects", about)


def locations(shape: tuple[int, int], strides: tuple[int, ...], reach: float) -> Locations:
    """The `Locations` of images of this height and width, on levels of these strides; see `Detect.reach`."""
    levels = []
    for level, stride in enumerate(strides):
        rows, columns = ((jnp.arange(size // stride) + 0.5) * stride for size in shape)
        points = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)
        low = reach * strides[level - 1] if level else 0.0
        high = reach * stride if level < len(strides) - 1 else jnp.inf
        levels.append((points, *(jnp.full(len(points), x, jnp.float32) for x in (stride, low, high))))
    return Locations(*(jnp.concatenate(parts) for parts in zip(*levels, strict=True)))


def assigned(objects: Objects, where: Locations, radius: float) -> tuple[jax.Array, jax.Array]:
    """What each location is to find in one image: (class i32[locations], -1 for none; distances f32[locations, 4]).

    A location is positive for a box that it lies in, no further than `radius` strides from the box's middle along both
    axes, and whose farthest side is within its level's reach. Of several boxes, it takes the smallest one.

    objects  of one image, [n, ...]
    """
    points, middle = where.points[:, None], (objects.boxes[:, :2] + objects.boxes[:, 2:]) / 2
    distances = jnp.concatenate([points - objects.boxes[:, :2], objects.boxes[:, 2:] - points], -1)
    central = (jnp.abs(points - middle) < radius * where.stride[:, None, None]).all(-1)
    farthest = distances.max(-1)
    fits = (farthest > where.low[:, None]) & (farthest <= where.high[:, None])
    candidate = (distances.min(-1) > 0) & central & fits & objects.valid
    area = jnp.where(candidate, (objects.boxes[:, 2:] - objects.boxes[:, :2]).prod(-1), jnp.inf)
    chosen = area.argmin(-1)
    labels = jnp.where(candidate.any(-1), objects.labels[chosen], -1)
    return labels, jnp.take_along_axis(distances, chosen[:, None, None], 1)[:, 0]


def fcos(where: Locations, radius: float) -> Criterion:
    """The loss of `Outputs` against `Objects`, equation 2 of FCOS.

    It is a mean over the positive locations of all images; an image without one counts as if it had one.
    """

    def criterion(outputs: Outputs, objects: Objects, mask: jax.Array) -> tuple[Mean, Metrics]:
        labels, distances = jax.vmap(lambda one: assigned(one, where, radius))(objects)
        is_object = labels >= 0
        distances = jnp.where(is_object[..., None], distances / where.stride[:, None], 1)
        truth = jax.nn.one_hot(labels, outputs.logits.shape[-1])
        # Sums over the locations of each image, [batch].
        classes = focal(outputs.logits, truth).sum((1, 2))
        over_objects = lambda losses: jnp.where(is_object, losses, 0).sum(1)
        boxes = over_objects(1 - giou(outputs.distances, distances))
        middles = over_objects(optax.sigmoid_binary_cross_entropy(outputs.centerness, centerness(distances)))
        count = (mask * jnp.maximum(is_object.sum(1), 1)).sum()
        part = lambda losses: Mean(jnp.where(mask == 0, 0, losses * mask).sum(), count)
        metrics: Metrics = {"class_loss": part(classes), "box_loss": part(boxes), "centerness_loss": part(middles)}
        return part(classes + boxes + middles), metrics

    return criterion


def focal(logits: jax.Array, truth: jax.Array) -> jax.Array:
    """The focal loss of logits [...] against 0 or 1 (Lin et al. 2017, equation 5)."""
    p = jax.nn.sigmoid(logits)
    of_truth = truth * p + (1 - truth) * (1 - p)
    weight = truth * ALPHA + (1 - truth) * (1 - ALPHA)
    return weight * (1 - of_truth) ** GAMMA * optax.sigmoid_binary_cross_entropy(logits, truth)


def giou(a: jax.Array, b: jax.Array) -> jax.Array:
    """The generalised IoU of boxes around one point, by distances [..., 4] to the top, left, bottom and right."""
    area = lambda x: (x[..., 0] + x[..., 2]) * (x[..., 1] + x[..., 3])
    both, hull = area(jnp.minimum(a, b)), area(jnp.maximum(a, b))
    union = area(a) + area(b) - both
    return both / union - (hull - union) / hull


def centerness(distances: jax.Array) -> jax.Array:
    """How near to the middle of its box a location is, 0 ... 1, by distances [..., 4] (equation 3 of FCOS)."""
    top, left, bottom, right = jnp.moveaxis(distances, -1, 0)
    ratio = lambda a, b: jnp.minimum(a, b) / jnp.maximum(a, b)
    return jnp.sqrt(ratio(top, bottom) * ratio(left, right))


class Choice(NamedTuple):
    """Which boxes of an image are kept; see `Detect`."""

    candidates: int
    detections: int
    least_score: float
    overlap: float


def detected(outputs: Outputs, where: Locations, shape: tuple[int, ...], choice: Choice) -> jax.Array:
    """The objects found, f32[batch, detections, 6]: ymin, xmin, ymax, xmax in pixels, score, class; the best first.

    shape  of an image, (height, width, ...)

    Where fewer are found, rows are 0.
    """
    limits = jnp.array(shape[:2] * 2, jnp.float32)

    def one(logits: jax.Array, distances: jax.Array, centerness: jax.Array) -> jax.Array:
        classes = logits.shape[-1]
        scores = jnp.sqrt(jax.nn.sigmoid(logits) * jax.nn.sigmoid(centerness)[:, None])
        score, place = jax.lax.top_k(scores.reshape(-1), min(choice.candidates, scores.size))
        at, label = place // classes, place % classes
        away = distances[at] * where.stride[at, None]
        points = where.points[at]
        boxes = jnp.concatenate([points - away[:, :2], points + away[:, 2:]], 1).clip(0, limits)
        score = jnp.where(suppressed(boxes, label, choice.overlap), 0, score)
        kept, best = jax.lax.top_k(score, min(choice.detections, len(score)))
        rows = jnp.concatenate([boxes[best], kept[:, None], label[best, None].astype(jnp.float32)], 1)
        rows = jnp.where(kept[:, None] > choice.least_score, rows, 0)
        return jnp.pad(rows, ((0, choice.detections - len(rows)), (0, 0)))

    return jax.vmap(one)(*outputs)


def suppressed(boxes: jax.Array, labels: jax.Array, overlap: float) -> jax.Array:
    """Non-maximum suppression: bool[n], whether a box [n, 4] overlaps one of its class that precedes it and is kept.

    boxes  the best first
    """
    rivals = (iou(boxes, boxes) > overlap) & (labels[:, None] == labels)
    later = jnp.arange(len(boxes))

    def one(n: jax.Array, gone: jax.Array) -> jax.Array:
        return gone | (~gone[n] & rivals[n] & (later > n))

    return jax.lax.fori_loop(0, len(boxes), one, jnp.zeros(len(boxes), bool))


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """The intersection over union of boxes [n, 4] and [m, 4]: [n, m]; 0 of empty ones."""
    low, high = jnp.maximum(a[:, None, :2], b[:, :2]), jnp.minimum(a[:, None, 2:], b[:, 2:])
    both = jnp.maximum(high - low, 0).prod(-1)
    area = lambda x: (x[:, 2:] - x[:, :2]).prod(-1)
    return both / jnp.maximum(area(a)[:, None] + area(b) - both, 1e-8)


def tiny() -> dict[str, Experiment]:
    """Tiny settings, for the tests of what holds for every learner."""
    net = Detector(stem=4, widths=(4, 4), blocks=(1, 1), levels=2, channels=4, tower=0, groups=2)
    sgd = Optimizer(name="sgd", learning_rate=0.01)
    run = Run(steps=12, steps_per_dispatch=3, evaluate_every=6, save_every=6, metric="loss", mode="min")
    augment = BoxAugment(flip=True, scaling=0.2, stretch=0.1, shift=0.1, brightness=0.1, contrast=0.1, colour=0.1)
    return {
        "detector": Detect(
            data=ToyBoxes(), net=net, augment=augment, reach=2, candidates=40, detections=10, optimizer=sgd, run=run
        ),
        "canvas_detector": Detect(
            data=Canvases(name="digits", size=32, objects=3, scales=(1, 2), canvases=80, evaluation_batch=40),
            net=Detector(stem=4, widths=(8,), blocks=(1,), levels=1, channels=4, tower=1, groups=2),
            reach=2,
            candidates=40,
            detections=10,
            average=0.9,
            optimizer=sgd,
            run=run,
        ),
    }
