"""Object detection against loops in NumPy: the loss, what each location is to find, decoding, suppression, AP, data."""

import dataclasses
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learners import EXPERIMENTS

from research.core.errors import UserError
from research.core.experiment import Split
from research.core.state import Batch, example_keys
from research.data import made_up
from research.data.box_augment import BoxAugment, augment_boxes
from research.data.boxes import Annotated, BoxedImages, Objects
from research.data.canvases import Canvases, interpolation
from research.data.toy_boxes import ToyBoxes
from research.evaluation.boxes import average_precision, detection
from research.learners import detect
from research.nets.detector import Outputs
from research.training import config
from research.training.checks import check_contract

SHAPE, STRIDES, REACH, RADIUS = (32, 48), (4, 8), 3.0, 0.8
WHERE = detect.locations(SHAPE, STRIDES, REACH)
LEVELS = [
    (stride, row, column) for stride in STRIDES for row in range(SHAPE[0] // stride) for column in range(48 // stride)
]


def some_objects(seed: int, count: int = 5) -> Objects:
    """Objects of one image, the last of them padding."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, [24, 40], (count, 2))
    found = np.concatenate([low, low + rng.uniform(3, 25, (count, 2))], 1).clip(0, [*SHAPE, *SHAPE])
    return Objects(found.astype(np.float32), rng.integers(0, 3, count).astype(np.int32), np.arange(count) < count - 1)


def some_outputs(seed: int, batch: int, classes: int = 3) -> Outputs:
    rng, n = np.random.default_rng(seed), len(LEVELS)
    draw = lambda *shape: rng.normal(size=(batch, n, *shape)).astype(np.float32)
    return Outputs(2 * draw(classes), np.exp(draw(4) / 2), draw())


def overlap(a, b):
    """(intersection, union) of two boxes."""
    sides = [max(0.0, min(a[k + 2], b[k + 2]) - max(a[k], b[k])) for k in (0, 1)]
    area = lambda x: (x[2] - x[0]) * (x[3] - x[1])
    both = sides[0] * sides[1]
    return both, area(a) + area(b) - both


def assigned(objects: Objects) -> list[tuple[int, list[float]] | None]:
    """The class and the distances of each location, from the paper's text."""
    found = []
    for stride, row, column in LEVELS:
        y, x, best = (row + 0.5) * stride, (column + 0.5) * stride, None
        for box, label, valid in zip(*objects, strict=True):
            away = [y - box[0], x - box[1], box[2] - y, box[3] - x]
            middle = [abs(y - (box[0] + box[2]) / 2), abs(x - (box[1] + box[3]) / 2)]
            area = (box[2] - box[0]) * (box[3] - box[1])
            of_level = max(away) <= REACH * 4 if stride == 4 else max(away) > REACH * 4
            if (
                valid
                and min(away) > 0
                and max(middle) < RADIUS * stride
                and of_level
                and (best is None or area < best[0])
            ):
                best = area, int(label), away
        found.append(best and best[1:])
    return found


def sigmoid(x):
    return 1 / (1 + np.exp(-np.float64(x)))


def test_each_location_finds_the_smallest_box_of_its_level():
    kinds = set()
    for seed in range(8):
        objects = some_objects(seed)
        labels, distances = jax.jit(lambda one: detect.assigned(one, WHERE, RADIUS))(objects)
        for n, expected in enumerate(assigned(objects)):
            assert labels[n] == (-1 if expected is None else expected[0])
            if expected is not None:
                np.testing.assert_allclose(distances[n], expected[1], atol=1e-4)
                kinds.add((LEVELS[n][0], expected[0]))
    assert len(kinds) == 6, "each class on each level"


def test_the_loss_is_that_of_the_paper():
    images, outputs = [some_objects(seed) for seed in range(4)], some_outputs(0, 4)
    images[1] = images[1]._replace(valid=np.zeros(5, bool))
    objects = Objects(*(np.stack(x) for x in zip(*images, strict=True)))
    mask = np.array([1, 1, 1, 0], np.float32)
    value, metrics = jax.jit(detect.fcos(WHERE, RADIUS))(outputs, objects, mask)
    parts, positives = dict.fromkeys(("class_loss", "box_loss", "centerness_loss"), 0.0), 0
    for image in range(3):
        truth = assigned(images[image])
        positives += max(1, sum(one is not None for one in truth))
        for n, one in enumerate(truth):
            for label, p in enumerate(sigmoid(outputs.logits[image, n])):
                is_class = one is not None and one[0] == label
                parts["class_loss"] -= 0.25 * (1 - p) ** 2 * np.log(p) if is_class else 0.75 * p**2 * np.log(1 - p)
            if one is None:
                continue
            stride, row, column = LEVELS[n]
            y, x = (row + 0.5) * stride, (column + 0.5) * stride
            corners = lambda away, y=y, x=x: [y - away[0], x - away[1], y + away[2], x + away[3]]
            a, b = corners(outputs.distances[image, n] * stride), corners(one[1])
            both, union = overlap(a, b)
            hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
            parts["box_loss"] += 1 - (both / union - (hull - union) / hull)
            top, left, bottom, right = one[1]
            target = np.sqrt(min(top, bottom) / max(top, bottom) * min(left, right) / max(left, right))
            o = sigmoid(outputs.centerness[image, n])
            parts["centerness_loss"] -= target * np.log(o) + (1 - target) * np.log(1 - o)
    assert value.count == positives
    for name, total in parts.items():
        np.testing.assert_allclose(metrics[name].total, total, rtol=1e-4)
    np.testing.assert_allclose(value.total, sum(parts.values()), rtol=1e-4)


def greedy(rows, limit):
    """Boxes of (score, label, box), the best first, without those that overlap a better one of their class too far."""
    kept = []
    for score, label, box in sorted(rows, key=lambda row: -row[0]):
        rivals = (overlap(box, other) for _, same, other in kept if same == label)
        if all(both <= limit * union for both, union in rivals):
            kept.append((score, label, box))
    return kept


def test_what_is_found_are_the_best_boxes_less_those_that_overlap_them():
    outputs = some_outputs(1, 2)
    for candidates, count, least in ((60, 20, 0.1), (360, 400, 0.5)):
        choice = detect.Choice(candidates, count, least, overlap=0.3)
        found = np.asarray(jax.jit(lambda x, choice=choice: detect.detected(x, WHERE, (*SHAPE, 3), choice))(outputs))
        assert found.shape == (2, count, 6)
        for image in range(2):
            rows = []
            for n, (stride, row, column) in enumerate(LEVELS):
                point, away = np.array([row + 0.5, column + 0.5]) * stride, outputs.distances[image, n] * stride
                box = np.concatenate([point - away[:2], point + away[2:]]).clip(0, [*SHAPE, *SHAPE])
                for label, logit in enumerate(outputs.logits[image, n]):
                    rows.append((np.sqrt(sigmoid(logit) * sigmoid(outputs.centerness[image, n])), label, box))
            kept = greedy(sorted(rows, key=lambda row: -row[0])[:candidates], 0.3)[:count]
            assert len(kept) < candidates - 10, "some are suppressed"
            kept = [row for row in kept if row[0] > least]
            expected = [[*box, score, label] for score, label, box in kept]
            np.testing.assert_allclose(found[image, : len(kept)], expected, atol=1e-3)
            assert not found[image, len(kept) :].any()


def test_average_precision_by_hand():
    truth = [Objects(np.float32([[0, 0, 10, 10], [20, 20, 30, 30]]), np.int32([0, 0]), np.array([True, True]))]
    truth += [Objects(np.float32([[0, 0, 10, 10], [0, 0, 0, 0]]), np.int32([1, 0]), np.array([True, False]))]
    first = [[0, 0, 10, 10, 0.9, 0], [50, 50, 60, 60, 0.8, 0], [20, 20, 30, 30, 0.7, 0], [0, 0, 0, 0, 0, 0]]
    # The box of class 1 has an intersection over union of 0.62 with the true one: it counts at 0.5, 0.55 and 0.6.
    found = [np.float32(first), np.float32([[0, 0, 10, 6.2, 0.5, 1]])]
    numbers = average_precision(truth, found, ("cat", "dog", "cow"))
    # Precision is 1 up to a recall of 1/2, then 2/3; COCO reads it at 101 recalls.
    cat = (51 + 50 * 2 / 3) / 101
    assert numbers["ap50_cat"] == pytest.approx(cat) and numbers["ap50_dog"] == pytest.approx(1)
    assert np.isnan(numbers["ap50_cow"]) and numbers["ap50"] == pytest.approx((cat + 1) / 2)
    assert numbers["ap50_95"] == pytest.approx((cat + 0.3) / 2)
    assert average_precision(truth, [np.zeros((3, 6))] * 2, ("cat", "dog"))["ap50"] == 0


def test_the_report_writes_a_picture_and_counts_no_padding(tmp_path):
    feeds = EXPERIMENTS["detector"].feeds()
    (batch,) = feeds.validation
    assert 0 < batch.mask.sum() < len(batch.mask)
    right = np.concatenate([batch.targets.boxes, batch.targets.valid[..., None], batch.targets.labels[..., None]], -1)
    report = detection(lambda state, images: jnp.asarray(right), ("high", "wide"), every=5)
    state = jax.jit(EXPERIMENTS["detector"].build().init)(jax.random.key(0))
    numbers = report.run(state, Split("validation", feeds.validation), tmp_path)
    assert numbers == pytest.approx({"ap50": 1, "ap50_95": 1, "ap50_high": 1, "ap50_wide": 1})
    assert set(numbers) == set(report.metrics) and report.every == 5
    assert (tmp_path / "boxes.png").stat().st_size > 10_000


def extent(image, threshold):
    """The box around what is brighter than a threshold."""
    rows, columns = (np.flatnonzero(image.max(axis) > threshold) for axis in (1, 0))
    return [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]


def test_augmentation_keeps_boxes_on_their_objects():
    rng, count = np.random.default_rng(0), 40
    images, found = np.zeros((count, 40, 60, 3), np.float32), np.zeros((count, 2, 4), np.float32)
    for n in range(count):
        top, left, height, width = *rng.integers(0, (28, 40)), *rng.integers(6, 13, 2)
        images[n, top : top + height, left : left + width] = 0.8
        found[n, 0] = top, left, top + height, left + width
    objects = Objects(found, np.tile(np.int32([2, 0]), (count, 1)), np.tile([True, False], (count, 1)))
    change = BoxAugment(
        flip=True, flip_vertical=True, scaling=0.4, stretch=0.2, shift=0.3, brightness=0.05, contrast=0.1, colour=0.1
    )
    keys = example_keys(jax.random.key(3), jnp.arange(count))
    after, moved = jax.jit(lambda *x: augment_boxes(change, *x))(keys, images, objects)
    after, moved = np.asarray(after), jax.tree.map(np.asarray, moved)
    assert not moved.valid[:, 1].any() and 20 < moved.valid[:, 0].sum() < count, "some have left the image"
    sizes = []
    for n in np.flatnonzero(moved.valid[:, 0]):
        image = after[n].mean(-1)
        np.testing.assert_allclose(moved.boxes[n, 0], extent(image, (image.max() + np.median(image)) / 2), atol=1.01)
        sizes.append(moved.boxes[n, 0] - found[n, 0])
    assert np.abs(sizes).max() > 10
    for n in np.flatnonzero(~moved.valid[:, 0]):
        assert not moved.boxes[n].any() and not moved.labels[n].any()
    for min_visible in (0.3, 1.0):
        with jax.debug_nans(True):  # as --debug has it: nothing is divided by the area of a box that pads
            same, kept = augment_boxes(BoxAugment(min_visible=min_visible), keys, images, objects)
        np.testing.assert_allclose(same, images, atol=1e-5)
        np.testing.assert_allclose(kept.boxes, objects.boxes, atol=1e-4)
    moved = augment_boxes(BoxAugment(shift=0.5, min_visible=0), keys, images, objects)[1]
    assert ((moved.boxes[:, 0, 2:] > moved.boxes[:, 0, :2]).all(1) == moved.valid[:, 0]).all(), "some have left it"
    with pytest.raises(UserError, match=r"augment\.min_visible"):
        BoxAugment(min_visible=2)


@pytest.mark.parametrize("step", [0.5, 1.0, 1.1, 1.5, 2.0, 2.7])
def test_an_image_of_one_colour_keeps_it_in_every_size(step):
    at = step * (np.arange(60) - 10.3)
    matrix = np.asarray(interpolation(jnp.array(at), 32, jnp.float32(step)))
    sums, reach = matrix.sum(1), max(step, 1)
    np.testing.assert_allclose(sums[(at >= reach - 1) & (at <= 32 - reach)], 1, atol=1e-6)
    assert not sums[(at <= -reach) | (at >= 31 + reach)].any() and (sums <= 1 + 1e-6).all() and (matrix >= 0).all()


def test_canvases_have_their_digits_where_the_boxes_are():
    data = Canvases(name="digits", size=48, objects=4, scales=(1.0, 2.0), canvases=30, evaluation_batch=16)
    feed, (first, second) = data.feeds().train, data.feeds().test
    batch = jax.device_get(jax.jit(feed.batch_at)(2))
    pixels, objects = batch.inputs, batch.targets
    assert pixels.shape == (32, 48, 48, 1) and pixels.dtype == np.uint8
    assert set(objects.valid.sum(1)) == {1, 2, 3, 4} and len(set(objects.labels[objects.valid])) == 10
    for image, found in zip(pixels[..., 0].astype(float), zip(*objects, strict=True), strict=True):
        ink = image.copy()
        for box, _, valid in zip(*found, strict=True):
            if not valid:
                continue
            assert (box[:2] >= 0).all() and (box[2:] <= 48).all()
            ymin, xmin, ymax, xmax = (*np.floor(box[:2]).astype(int), *np.ceil(box[2:]).astype(int))
            np.testing.assert_allclose(
                extent(image[ymin:ymax, xmin:xmax], 60), [0, 0, ymax - ymin, xmax - xmin], atol=5
            )
            ink[ymin:ymax, xmin:xmax] = 0
        assert ink.sum() < 0.1 * image.sum(), "hardly any ink is outside of all boxes"
        boxed = found[0][found[2]]
        for a in range(len(boxed)):
            for b in range(a):
                area = min((x[2] - x[0]) * (x[3] - x[1]) for x in (boxed[a], boxed[b]))
                assert overlap(boxed[a], boxed[b])[0] <= 0.1 * area + 1e-3
    assert first.mask.all() and second.mask.sum() == 14
    again = dataclasses.replace(data, seed=5).feeds().test[0]
    np.testing.assert_array_equal(first.inputs, again.inputs)
    assert len(np.unique(first.inputs.reshape(16, -1), axis=0)) == 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"boxes": [[0.1, 0.1, 0.5, 1.2]]},
            r"train: a box of image 1, \[0.1, 0.1, 0.5, 1.2\] .*, is not inside the image",
        ),
        ({"boxes": [[0.1, 0.1, 0.1, 0.5]]}, "train: a box of image 1, .*, is empty: mend the data, or drop"),
        ({"boxes": np.zeros((0, 4)), "labels": []}, "train: image 1 has no box; --data.allow-empty"),
        ({"labels": [2]}, "train: image 1 has an object of the class 2, not of 0 ... 1"),
        ({"labels": [0, 1]}, "image 1 has not as many labels as boxes"),
        ({"all": 0}, "train: no example of the class wide"),
    ],
)
def test_wrong_boxes_are_one_line(change, message):
    given = ToyBoxes().arrays()

    class Wrong(ToyBoxes):
        def arrays(self):
            images, found, labels = given.train
            if "all" in change:
                return given._replace(train=Annotated(images, found, [np.zeros_like(x) for x in labels]))
            replaced = list(found), list(labels)
            replaced[0][1] = np.array(change.get("boxes", [[0.1, 0.1, 0.5, 0.5]]), np.float32)
            replaced[1][1] = np.array(change.get("labels", [1]), np.int32)
            return given._replace(train=Annotated(images, *replaced))

    with pytest.raises(UserError, match=message) as caught:
        Wrong().load()
    assert "\n" not in str(caught.value)
    if "boxes" in change:
        (_, objects), _, _ = Wrong(invalid="drop", allow_empty=True).load()
        assert objects.valid[1].sum() == 0 and objects.valid[0].any()


@pytest.mark.parametrize("field", ["radius", "reach"])
def test_no_location_would_be_positive(field):
    for value in (0, float("nan")):
        with pytest.raises(UserError, match=f"{field} must be above 0, not {value}"):
            dataclasses.replace(EXPERIMENTS["detector"], **{field: value})


def test_the_limit_is_of_each_split():
    whole = len(ToyBoxes().load()[0][0])
    assert whole > 6
    for splits, limit in ((("train",), 3), (("train", "validation"), 3), (("train", "validation"), whole)):
        (images, _), (test, _), _ = ToyBoxes(train_splits=splits, limit=limit).load()
        assert len(images) == min(whole, len(splits) * limit) and len(test) <= limit


def test_a_data_set_without_boxes():
    if not (Path(os.environ.get("TFDS_DATA_DIR", "")) / "mnist").is_dir():
        pytest.skip("MNIST is not in TFDS_DATA_DIR")
    expected = r"features image and objects \(bbox and label\), and splits train, test; it has features image, label"
    with pytest.raises(UserError, match=expected):
        BoxedImages(name="mnist").load()


def test_images_of_a_size_that_the_net_does_not_take():
    odd = dataclasses.replace(EXPERIMENTS["canvas_detector"], data=Canvases(name="digits", size=38, scales=(1, 2)))
    with pytest.raises(UserError, match=r"images of 38x38: the net needs multiples of 4: set --data\.size"):
        odd.build()
    with pytest.raises(UserError, match=r"data\.size 12 is less than that of the largest digit, 16"):
        Canvases(name="digits", size=12, scales=(1, 2)).feeds()


def test_a_step_of_coco_on_made_up_data(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    experiment, made = made_up.available(config.load("coco_detector"), tmp_path)
    assert made and len(experiment.data.spec().names) == 80
    # Of a shallow net: golden.py has steps, and the real depth takes half a minute to trace.
    net = experiment.net.clone(stem=8, widths=(8, 8, 8, 8), blocks=(1, 1, 1, 1), channels=8, tower=1, groups=4)
    data = dataclasses.replace(experiment.data, batch=2, evaluation_batch=4, limit=50)
    experiment = dataclasses.replace(experiment, data=data, net=net)
    learner, feeds = experiment.build(), experiment.feeds()
    batch = feeds.train.batch_at(0)
    assert isinstance(batch, Batch) and batch.targets.boxes.shape == (2, 93, 4)
    check_contract(learner, jax.random.key(0), batch, feeds.validation[0], experiment, experiment.reports(None))
    outputs = jax.eval_shape(lambda: learner.evaluate(learner.init(jax.random.key(0)), feeds.validation[0]))
    assert set(outputs) == {"loss", "class_loss", "box_loss", "centerness_loss"}


def test_bccd_is_read():
    """Counts as counted apart from this code."""
    if not (Path(os.environ.get("TFDS_DATA_DIR", "")) / "bccd").is_dir():
        pytest.skip("BCCD is not in TFDS_DATA_DIR")
    import tensorflow_datasets as tfds

    data = BoxedImages(name="bccd", resize=(120, 160), train_splits=("train", "validation"))
    (images, objects), (test, found), names = data.load()
    assert (
        images.shape == (292, 120, 160, 3) and test.shape == (72, 120, 160, 3) and names == ("RBC", "WBC", "Platelets")
    )
    assert np.bincount(objects.labels[objects.valid]).tolist() == [3348, 301, 292]
    assert np.bincount(found.labels[found.valid]).tolist() == [805, 71, 69]
    one = tfds.data_source("bccd", split="test", data_dir=os.environ["TFDS_DATA_DIR"])[3]
    expected = np.stack(one["objects"]["bbox"]) * [120, 160, 120, 160]
    np.testing.assert_allclose(found.boxes[3][found.valid[3]], expected, atol=1e-3)
    small = one["image"].reshape(120, 4, 160, 4, 3).mean((1, 3))
    assert np.abs(small - test[3]).max() <= 1
