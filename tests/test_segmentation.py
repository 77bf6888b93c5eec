"""Segmentation: U-Net, images with masks, their augmentation, losses and metrics, against direct computations."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import jaccard_score

from research.core.errors import UserError
from research.core.experiment import Run
from research.core.metrics import Overlap, computed
from research.core.modules import network
from research.core.optimizers import Optimizer
from research.data import tfds
from research.data.augment_masks import AugmentMasks, augment_masks
from research.data.masks import VOID, Arrays, Masks
from research.learners.segment import Segment, dice_loss, segmentation, weights
from research.nets.unet import GroupNorm, SelfAttention, UNet
from research.training import config, run

KEY = jax.random.key(0)


@dataclasses.dataclass(frozen=True)
class Given(Masks):
    """The arrays of a test."""

    given: tuple = ()

    def arrays(self):
        return Arrays(*self.given[:3], ("sky", "road", "car"))


def part(rng, count, image=(5, 7, 3), mask=(5, 7), classes=3):
    return rng.integers(0, 256, (count, *image), np.uint8), rng.integers(0, classes, (count, *mask)).astype(np.uint8)


def params_of(rng, module, inputs):
    """Parameters with nothing at zero."""
    draw = lambda path, p: (path[-1].key == "scale") + 0.3 * rng.normal(size=p.shape).astype(np.float32)
    return jax.tree.map_with_path(draw, jax.eval_shape(module.init, KEY, inputs))


def net(rng, module, *shape):
    """(apply, params with nothing at zero) of a module for such inputs, and inputs."""
    x = jnp.array(rng.normal(size=shape), jnp.float32)
    params = params_of(rng, module, x)
    return jax.jit(module.apply)(params, x), params["params"], np.asarray(x)


# The net.


def test_any_size_comes_out_as_it_went_in(rng):
    shape = (13, 10, 3)
    module = UNet(widths=(4, 8, 8), blocks=1, attention=(2,), head_width=4, outputs=5)
    out, params, x = net(rng, module, 2, *shape)
    assert out.shape == (2, *shape[:2], 5) and np.isfinite(out).all()
    # No example depends on another one.
    others = jax.jit(module.apply)({"params": params}, np.stack([x[0] + 1, x[1]]))
    np.testing.assert_allclose(out[1], others[1], rtol=1e-4, atol=1e-5)
    assert not np.allclose(out[0], others[0])
    # It is the middle of what becomes of an image with more of the same at its edges, of the next size that is halved.
    (top, bottom), (left, right) = ((n // 2, n - n // 2) for n in (-side % 4 for side in shape[:2]))
    whole = jax.jit(module.apply)({"params": params}, np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), "edge"))
    height, width, _ = shape
    np.testing.assert_allclose(out, whole[:, top : top + height, left : left + width], rtol=1e-4, atol=1e-5)


def test_it_sees_the_whole_image_and_keeps_each_pixel(rng):
    """The gradient of one output reaches the far corner, by the lowest level; fresh, the net is 0 everywhere."""
    module = UNet(widths=(4, 4, 4), blocks=1, outputs=1)
    _, params, x = net(rng, module, 1, 16, 16, 1)
    gradient = jax.jit(jax.grad(lambda x: module.apply({"params": params}, x)[0, 0, 0, 0]))(x)[0, ..., 0]
    assert abs(gradient[15, 15]) > 0 and abs(gradient[0, 0]) > abs(gradient[15, 15])
    assert not jax.jit(module.init_with_output)(KEY, x)[0].any()


def test_times_and_labels_matter(rng):
    module = UNet(widths=(4, 4), blocks=1, outputs=1, classes=2)
    x, times, labels = jnp.ones((2, 4, 4, 1)), jnp.array([1, 1000]), jnp.array([0, 2])
    params = params_of(rng, module, (x, times, labels))
    outputs = jax.jit(lambda *inputs: module.apply(params, inputs))
    assert not np.allclose(*outputs(x, times, labels[:1].repeat(2)), rtol=1e-3)
    assert not np.allclose(*outputs(x, times[:1].repeat(2), labels), rtol=1e-3)
    # In bfloat16, 999 and 1000 are the same number; the times are not cast.
    in_bfloat16 = jax.jit(network(module, "bfloat16").apply)
    near = in_bfloat16(params["params"], {}, (x, jnp.array([999, 1000]), labels[:1].repeat(2)))[0]
    assert not np.array_equal(near[0], near[1])


def test_group_norm_and_attention_by_loops(rng):
    out, params, x = net(rng, GroupNorm(), 8, 3, 2, 2)
    for group in (slice(0, 4), slice(4, 8)):
        for n in range(2):
            some = x[group, :, :, n]
            normed = (some - some.mean()) / np.sqrt(some.var() + 1e-5)
            expected = normed * params["scale"][group, None, None] + params["bias"][group, None, None]
            np.testing.assert_allclose(out[group, :, :, n], expected, rtol=1e-4, atol=1e-5)

    out, params, x = net(rng, SelfAttention(head_width=4), 8, 2, 3, 1)
    normed = np.asarray(GroupNorm().apply({"params": params["GroupNorm_0"]}, x))
    first, last = (jax.tree.map(np.asarray, params[name]) for name in ("Dense_0", "Dense_1"))
    pixels = normed[..., 0].reshape(8, 6).T @ first["kernel"] + first["bias"]
    found = []
    for head in pixels.reshape(6, 2, 12).swapaxes(0, 1):
        q, k, v = head[:, :4], head[:, 4:8], head[:, 8:]
        share = np.exp(q @ k.T / 2)
        found.append(share / share.sum(1, keepdims=True) @ v)
    expected = np.concatenate(found, 1) @ last["kernel"] + last["bias"]
    np.testing.assert_allclose(out[..., 0], x[..., 0] + expected.T.reshape(8, 2, 3), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"widths": (4, 0)}, "net.widths must be at least 1"),
        ({"attention": (3,)}, r"net.attention \(3,\): levels 0 ... 2 expected"),
    ],
)
def test_a_net_that_cannot_be(fields, message):
    with pytest.raises(UserError, match=message):
        UNet(**fields)


# Data.


def test_made_up_masks():
    data = Masks().load()
    (images, masks), names = data.train, data.names
    assert names == ("background", *"0123456789") and masks.shape == images.shape[:3]
    for value, low, high in ((0, 0, 96), (VOID, 96, 128)):
        np.testing.assert_array_equal(masks == value, (images[..., 0] >= low) & (images[..., 0] < high))
    assert all(len(np.unique(mask[(mask > 0) & (mask != VOID)])) == 1 for mask in masks)


def test_given_validation_data_is_used_and_else_it_is_held_out(rng):
    train, validation, test = part(rng, 6), part(rng, 3), part(rng, 2)
    found = Given(given=(train, validation, test), batch=6, evaluation_batch=4).feeds()
    (batch,) = found.validation
    np.testing.assert_array_equal(batch.targets[:3], validation[1])
    assert batch.mask.tolist() == [1, 1, 1, 0] and found.train.size == 6
    assert sorted(found.train.batch_at(0).index.tolist()) == list(range(6))
    assert Given(given=(train, None, test), validation=0.34).feeds().train.size == 4


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(mask=(5, 6)), "2 masks uint8 of 5x6 for 2 images of 5x7"),
        (dict(classes=9), "expected classes 0 ... 2 and 255 for none; [3-8] is out of range"),
        (dict(image=(6, 7, 3), mask=(6, 7)), r"images of one shape expected, not \(5, 7, 3\) for training"),
    ],
)
def test_wrong_masks_are_one_line(wrong, message, rng):
    with pytest.raises(UserError, match=message) as found:
        Given(given=(part(rng, 3), None, part(rng, 2, **wrong))).load()
    assert "\n" not in str(found.value)


def test_more_classes_than_a_mask_can_hold_are_one_line(monkeypatch):
    features = {"image": None, "segmentation_mask": SimpleNamespace(names=list(map(str, range(300))))}
    builder = SimpleNamespace(info=SimpleNamespace(features=features, splits={"train": None}))
    monkeypatch.setattr(tfds, "builder", lambda *_: builder)
    with pytest.raises(UserError, match="can hold 255 classes, and its feature segmentation_mask has 300"):
        Masks(name="many").load()


def test_camvid():
    try:
        data, spec = Masks(name="camvid_small", limit=20).load(), Masks(name="camvid_small", limit=20).spec()
    except UserError as missing:
        pytest.skip(str(missing))
    assert [len(split[0]) for split in data[:3]] == [20, 20, 20]
    assert spec.images.shape == (180, 240, 3) and spec.images.classes == 11 and "void" not in spec.images.names
    values, counts = np.unique(data.train[1], return_counts=True)
    assert set(values) <= {*range(11), VOID} and VOID in values
    known = dict(zip(values.tolist(), counts.tolist(), strict=True))
    known.pop(VOID)
    expected = [known.get(k, 0) / sum(known.values()) for k in range(11)]
    np.testing.assert_allclose(spec.shares, expected)
    assert spec.images.names[np.argmax(expected)] == "road"


# Augmentation.


def augmented(augment, images, masks, seed=0):
    keys = jax.random.split(jax.random.key(seed), len(images))
    return map(np.asarray, jax.jit(augment_masks, static_argnums=0)(augment, keys, images, masks))


def test_images_and_masks_move_together(rng):
    """An image whose brightness is the class of its pixel, in large squares: away from edges, they stay equal."""
    squares = rng.integers(0, 4, (16, 4, 4)).repeat(8, 1).repeat(8, 2)
    augment = AugmentMasks(crop=(24, 20), scaling=(0.5, 2.0), flip=True)
    images, masks = augmented(augment, squares[..., None] / 4.0, squares.astype(np.uint8))
    assert images.shape == (16, 24, 20, 1) and masks.shape == (16, 24, 20) and masks.dtype == np.uint8
    inside = masks != VOID
    equal = np.isclose(images[..., 0] * 4, np.where(inside, masks, 0), atol=1e-3)
    assert equal[inside].mean() > 0.7  # a mask that stays behind agrees in a quarter
    assert 0.02 < (~inside).mean() < 0.5
    assert len({image.tobytes() for image in images}) == 16


@pytest.mark.parametrize("scaling", [(0.0, 1.0), (-0.5, 0.5), (1.5, 0.75), (1.0, np.inf), (np.nan, 1.0)])
def test_factors_of_size_are_above_0(scaling):
    with pytest.raises(UserError, match=r"augment\.scaling are a smallest and a largest factor above 0"):
        AugmentMasks(scaling=scaling)


def test_a_flip_and_a_crop_are_exact(rng):
    images, masks = rng.random((12, 6, 8, 3)).astype(np.float32), rng.integers(0, 5, (12, 6, 8)).astype(np.uint8)
    found, found_masks = augmented(AugmentMasks(flip=True), images, masks)
    flipped = [np.allclose(x[:, ::-1], y, atol=1e-5) for x, y in zip(images, found, strict=True)]
    assert 0 < sum(flipped) < 12
    for n, side in enumerate(flipped):
        step = -1 if side else 1
        np.testing.assert_allclose(found[n], images[n][:, ::step], atol=1e-5)
        np.testing.assert_array_equal(found_masks[n], masks[n][:, ::step])
    # A crop larger than the image lies around it: black, and without a class.
    found, found_masks = augmented(AugmentMasks(crop=(8, 8)), images, masks)
    assert (found_masks == VOID).sum((1, 2)).min() >= 8 and found[found_masks == VOID].max() < 1


def test_a_crop_without_scaling_is_a_part_of_the_image(rng):
    images, masks = rng.random((40, 6, 8, 3)).astype(np.float32), rng.integers(0, 5, (40, 6, 8)).astype(np.uint8)
    found, found_masks = augmented(AugmentMasks(crop=(4, 7)), images, masks)
    starts = set()
    for n in range(40):
        places = [(y, x) for y in range(3) for x in range(2)]
        parts = [images[n, y : y + 4, x : x + 7] for y, x in places]
        ((y, x),) = (at for at, part in zip(places, parts, strict=True) if np.allclose(part, found[n], atol=1e-6))
        np.testing.assert_array_equal(found_masks[n], masks[n, y : y + 4, x : x + 7])
        starts.add((y, x))
    assert len(starts) == 6
    # A larger one holds the whole image.
    found, found_masks = augmented(AugmentMasks(crop=(9, 8)), images, masks)
    np.testing.assert_allclose(found[found_masks != VOID].reshape(images.shape), images, atol=1e-6)


def test_an_enlarged_image_is_not_darker_at_its_edge():
    images, masks = np.ones((8, 6, 8, 1), np.float32), np.zeros((8, 6, 8), np.uint8)
    found, found_masks = augmented(AugmentMasks(crop=(12, 16), scaling=(2.0, 2.0)), images, masks)
    assert not found_masks.any()
    np.testing.assert_allclose(found, 1, atol=1e-6)
    # What is outside is black.
    found, found_masks = augmented(AugmentMasks(crop=(20, 24), scaling=(1.5, 2.0)), images, masks)
    np.testing.assert_allclose(found[..., 0], found_masks != VOID, atol=1e-6)


def test_colours_leave_the_mask(rng):
    images, masks = rng.random((4, 6, 8, 3)).astype(np.float32), rng.integers(0, 5, (4, 6, 8)).astype(np.uint8)
    found, found_masks = augmented(AugmentMasks(colour=0.5), images, masks)
    np.testing.assert_array_equal(found_masks, masks)
    assert (abs(found - images).mean((1, 2, 3)) > 0.01).all() and found.min() >= 0 and found.max() <= 1
    same, _ = augmented(AugmentMasks(colour=0.0), images, masks)
    np.testing.assert_allclose(same, images, atol=1e-5)


# Losses and metrics.


def example(rng, batch=3, height=4, width=5, classes=4):
    logits = rng.normal(size=(batch, height, width, classes)).astype(np.float32)
    masks = rng.integers(0, classes, (batch, height, width)).astype(np.uint8)
    masks[rng.random(masks.shape) < 0.2] = VOID
    return logits, masks


def test_the_loss_by_loops(rng):
    logits, masks = example(rng)
    weight, mask = np.array([0.5, 1.0, 2.0, 4.0], np.float32), np.array([1, 0, 1], np.float32)
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    losses = []
    for n in (0, 2):
        total = count = 0.0
        for (i, j), c in np.ndenumerate(masks[n]):
            if c != VOID:
                total, count = total - weight[c] * np.log(shares[n, i, j, c]), count + weight[c]
        dice = []
        for c in np.unique(masks[n][masks[n] != VOID]):
            valid = masks[n] != VOID
            p, t = shares[n, ..., c][valid], masks[n][valid] == c
            dice.append(1 - 2 * (p * t).sum() / (p.sum() + t.sum()))
        losses.append(total / count + 0.3 * np.mean(dice))
    value, metrics = jax.jit(segmentation(jnp.array(weight), 0.3))(logits, masks, mask)
    assert value.value == pytest.approx(np.mean(losses), rel=1e-5) and value.count == 2
    valid = (masks != VOID)[[0, 2]]
    expected = (logits.argmax(-1) == masks)[[0, 2]][valid].mean()
    assert metrics["accuracy"].value == pytest.approx(expected)


def test_void_moves_nothing(rng):
    logits, masks = map(jnp.asarray, example(rng))
    criterion, mask = jax.jit(segmentation(dice=1.0)), jnp.ones(3)
    gradient = jax.jit(jax.grad(lambda logits: criterion(logits, masks, mask)[0].value))(logits)
    void = np.asarray(masks) == VOID
    assert not np.asarray(gradient)[void].any() and abs(np.asarray(gradient)[~void]).min() > 0
    value, metrics = criterion(logits, jnp.full_like(masks, VOID), mask)
    assert (value.count, value.total, metrics["accuracy"].count) == (0, 0, 0)


def test_a_perfect_prediction_has_no_dice_loss():
    labels = jnp.array([[[0, 1], [1, 1]]])
    sure = 50.0 * jax.nn.one_hot(labels, 3)
    assert dice_loss(sure, labels, jnp.ones((1, 2, 2))) == pytest.approx(0, abs=1e-6)
    assert dice_loss(-sure, labels, jnp.ones((1, 2, 2))) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("absent", [(), (2,), (0, 3)])
def test_mean_iou_is_that_of_scikit_learn(absent, rng):
    """One matrix over the pixels of all batches; a class that neither occurs nor is predicted is left out."""
    names, batches, true, predicted = tuple("abcd"), [], [], []
    criterion = jax.jit(segmentation(names=names))
    for _ in range(2):
        logits, masks = example(rng)
        for c in absent:
            masks[masks == c] = 1
            logits[..., c] = -9
        _, metrics = criterion(logits, masks, np.array([1, 1, 0], np.float32))
        batches.append(metrics)
        valid = masks[:2] != VOID
        true.append(masks[:2][valid])
        predicted.append(logits[:2].argmax(-1)[valid])
    true, predicted = np.concatenate(true), np.concatenate(predicted)
    values = computed(jax.tree.map(lambda *x: sum(map(np.asarray, x)), *batches))
    assert values["mean_iou"] == pytest.approx(jaccard_score(true, predicted, average="macro"))
    each = dict(zip(np.unique([true, predicted]), jaccard_score(true, predicted, average=None), strict=True))
    assert values["accuracy"] == pytest.approx((true == predicted).mean())
    for n, name in enumerate(names):
        assert values[f"iou_{name}"] == (pytest.approx(each[n]) if n in each else None)


def test_mean_iou_of_several_seeds_and_of_nothing():
    counts = np.array([[[2, 1], [1, 4]], [[3, 0], [0, 0]], [[0, 0], [0, 0]]], np.float32)
    values = Overlap(counts, ("a", "b")).compute("overlap")
    np.testing.assert_allclose(values["mean_iou"], [(2 / 4 + 4 / 6) / 2, 1, np.nan])


def test_weights():
    shares = np.array([0.64, 0.36, 0.0])
    by_root = weights(shares, 0.5)
    np.testing.assert_allclose(by_root * np.sqrt([0.64, 0.36, 0.36]), by_root[0] * 0.8, rtol=1e-6)
    np.testing.assert_allclose(weights(shares, 0.0), 1, rtol=1e-6)


# A run.


def test_a_run_learns_and_leaves_pictures(tmp_path):
    experiment = Segment(
        data=Masks(limit=200, batch=16, evaluation_batch=40),
        net=UNet(widths=(8,), blocks=1),
        optimizer=Optimizer(learning_rate=1e-2),
        run=Run(steps=60, steps_per_dispatch=20, evaluate_every=20, save_every=60, metric="mean_iou"),
    )
    result = run.train("digits_unet", config.Command(experiment, workdir=tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["split"] == "train"]
    assert losses[-1] < 0.6 * losses[0]
    test = {name: value["mean"] for name, value in result["test"].items()}
    each = [value for name, value in test.items() if name.startswith("iou_") and value is not None]
    assert test["mean_iou"] == pytest.approx(np.mean(each)) and test["iou_background"] > 0.8
    for name in ("predictions.png", "confusion.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 400
