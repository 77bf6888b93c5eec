"""Images that are decoded as batches are asked for, and how they are cropped, mixed and augmented."""

import copy
import dataclasses
import io
import os
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from records import built

from research.core.errors import RunError, UserError
from research.core.losses import classification
from research.data import randaugment
from research.data.crops import DRAWS, evaluation_image, random_resized_crop, training_image, uniforms
from research.data.encoded import Encoded, Folder
from research.data.feed import prefetched
from research.data.large_images import LargeImages, Reader
from research.data.mixing import Mixed, Mixing, criterion_of_mixed, mixed, rectangle
from research.data.randaugment import OPERATIONS, RandAugment
from research.learners.classify import Classify
from research.nets.bottleneck import BottleneckResNet, overlapping_max_pool

KEY = jax.random.key(0)


def smooth(rng, height, width):
    """Pixels of a photograph's smoothness."""
    small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """train/CLASS/*.jpg, 30 images of three classes, and val/CLASS/*.JPEG, 7 images."""
    path, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count, suffix in (("train", 30, "jpg"), ("val", 7, "JPEG")):
        for n in range(count):
            (path / split / "abc"[n % 3]).mkdir(parents=True, exist_ok=True)
            height, width = rng.integers(40, 90, 2)
            image = Image.fromarray(smooth(rng, height, width))
            (image.convert("L") if n == 4 else image).save(path / split / "abc"[n % 3] / f"{n:03}.{suffix}")
    (path / "train" / "a" / "notes.txt").write_text("no image")
    return path


def source(folder, **options):
    own = {"size": 24, "resize": 28, "batch": 8, "evaluation_batch": 4, "validation": 0.1, "workers": 2}
    return LargeImages(name=str(folder), **own | options)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


# Crops.


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (64, 64), (333, 67), (257, 301)])
def test_a_centre_crop_has_the_bytes_that_pillow_gives(rng, size):
    width, height = size
    pixels, short = smooth(rng, height, width), min(size)
    whole = Image.fromarray(pixels).resize((56 * width // short, 56 * height // short), Image.Resampling.BILINEAR)
    left, top = round((whole.width - 48) / 2), round((whole.height - 48) / 2)
    expected = np.asarray(whole.crop((left, top, left + 48, top + 48)))
    np.testing.assert_array_equal(evaluation_image(pixels, 56, 48), expected)


def test_random_parts_are_uniform_in_area_and_log_uniform_in_ratio():
    draws = uniforms(0, np.zeros(4000, np.uint32), np.arange(4000), DRAWS)
    boxes = np.array([random_resized_crop(row, 1000, 1000, (0.1, 0.5), (3 / 4, 4 / 3)) for row in draws])
    sides = boxes[:, 2:] - boxes[:, :2]
    area, ratio = sides.prod(1) / 1e6, np.log(sides[:, 0] / sides[:, 1])
    assert boxes.min() >= 0 and boxes.max() <= 1000
    edges = lambda low, high: np.linspace(low, high, 9)
    for values, low, high in ((area, 0.1, 0.5), (ratio, np.log(3 / 4), np.log(4 / 3))):
        assert low - 0.005 <= values.min() and values.max() <= high + 0.005
        share = np.histogram(values, edges(low - 1e-2, high + 1e-2))[0] / len(values)
        np.testing.assert_allclose(share[1:-1], 1 / 8, atol=0.03)
    at = boxes[:, :2] / (1000 - sides)  # where there is room
    np.testing.assert_allclose(at.mean(0), 0.5, atol=0.02)
    np.testing.assert_allclose(at.std(0), 12**-0.5, atol=0.02)


def test_a_part_that_fits_no_image_is_its_centre():
    draws = uniforms(0, [0], [0], DRAWS)[0]
    assert random_resized_crop(draws, 1000, 12, (0.9, 1.0), (3 / 4, 4 / 3)) == (492, 0, 508, 12)
    assert random_resized_crop(draws, 12, 1000, (0.9, 1.0), (3 / 4, 4 / 3)) == (0, 492, 12, 508)


def test_random_numbers_hang_on_seed_epoch_and_index():
    base = uniforms(0, [0, 0], [5, 6], 50)
    assert base.min() >= 0 and base.max() < 1 and len(np.unique(base)) == 100
    for other in (uniforms(1, [0], [5], 50), uniforms(0, [1], [5], 50), uniforms(0, [5], [0], 50)):
        assert not np.isin(other, base).any()
    np.testing.assert_array_equal(uniforms(0, [0], [6], 50)[0], base[1])


def test_a_training_image_is_the_part_drawn_and_half_are_flipped(rng):
    pixels = smooth(rng, 60, 80)
    draws = uniforms(0, np.zeros(40), np.arange(40), DRAWS)
    flipped = 0
    for row in draws:
        left, top, right, bottom = map(int, random_resized_crop(row, 80, 60, (0.3, 1.0), (3 / 4, 4 / 3)))
        part = Image.fromarray(pixels[top:bottom, left:right]).resize((20, 20), Image.Resampling.BILINEAR)
        found = training_image(pixels, row, 20, (0.3, 1.0), (3 / 4, 4 / 3), True).astype(int)
        apart = lambda other, found=found: np.abs(found - other)[2:-2, 2:-2].max()  # its edges see what is outside
        straight, mirrored = apart(np.asarray(part)), apart(np.asarray(part)[:, ::-1])
        assert min(straight, mirrored) <= 2 < max(straight, mirrored)
        flipped += mirrored < straight
    assert 10 < flipped < 30


def test_a_jpeg_is_decoded_small_where_its_part_is_large(tmp_path, rng):
    Image.fromarray(smooth(rng, 400, 480)).save(tmp_path / "a.jpg", quality=95)
    whole, draws = np.asarray(Image.open(tmp_path / "a.jpg")), uniforms(0, [0], [0], DRAWS)[0]
    crop = lambda data: training_image(data, draws, 40, (0.5, 0.9), (1.0, 1.0), False).astype(int)
    assert np.abs(crop(str(tmp_path / "a.jpg")) - crop(whole)).mean() < 1.5


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pixels_of_these_channels_are_taken(rng, channels):
    pixels = rng.integers(0, 256, (40, 50, channels), dtype=np.uint8)
    expected = pixels[:, 5:45, :3] if channels > 1 else np.repeat(pixels[:, 5:45], 3, -1)
    np.testing.assert_array_equal(evaluation_image(pixels, 40, 40), expected)


def test_an_image_of_16_bits_is_read_alike_from_a_file_and_from_bytes(tmp_path, rng):
    file, grey = tmp_path / "a.png", rng.integers(0, 2**16, (40, 50), dtype=np.uint16)
    Image.fromarray(grey).save(file)
    for read in (
        lambda data: evaluation_image(data, 40, 40),
        lambda data: training_image(data, np.full(DRAWS, 0.5), 40, (0.5, 0.9), (1.0, 1.0), False),
    ):
        np.testing.assert_array_equal(read(str(file)), read(file.read_bytes()))
    np.testing.assert_array_equal(evaluation_image(str(file), 40, 40)[..., 1], grey[:, 5:45] >> 8)
    for mode in ("I", "F"):
        Image.fromarray(grey).convert(mode).save(tmp_path / "a.tiff")
        with pytest.raises(OSError, match=f"pixels of mode {mode}"):
            evaluation_image(str(tmp_path / "a.tiff"), 40, 40)


# Batches.


def test_batches_are_a_function_of_the_step(folder):
    a, b = (source(folder).feeds().train for _ in range(2))
    same(a.batch_at(3), b.batch_at(3))
    one = source(folder, workers=1).feeds().train
    same(a.batch_at(5), one.batch_at(5))
    assert not np.array_equal(a.batch_at(3).inputs, a.batch_at(4).inputs)
    other = source(folder, seed=1).feeds().train
    assert not np.array_equal(a.batch_at(3).index, other.batch_at(3).index)


def test_processes_read_their_rows_of_a_batch(folder):
    feed = source(folder).feeds().train
    whole = feed.batch_at(7)
    for rows in (np.arange(3), np.arange(3, 8), np.array([0, 1, 6, 7])):
        same(feed.batch_at(7, rows), jax.tree.map(lambda x, rows=rows: x[rows], whole))


def test_every_image_is_seen_once_a_pass_in_another_order_and_in_other_parts(folder):
    feed = source(folder, batch=9).feeds().train
    assert feed.size == 27  # three are held out, since those of val are tested on
    first, second = ([feed.batch_at(step + start) for step in range(3)] for start in (0, 3))
    order = lambda batches: np.concatenate([batch.index for batch in batches])
    assert sorted(order(first)) == sorted(order(second)) == list(range(feed.size))
    assert list(order(first)) != list(order(second))
    image = lambda batches: np.concatenate([b.inputs for b in batches])[np.argsort(order(batches))]
    assert all(not np.array_equal(a, b) for a, b in zip(image(first), image(second), strict=True))


def test_only_the_rows_asked_for_are_decoded(folder):
    read = []

    class Counting:
        def __init__(self, source):
            self.source, self.name = source, source.name

        def __len__(self):
            return len(self.source)

        def read(self, places):
            read.extend(places)
            return self.source.read(places)

    class Counted(LargeImages):
        def sources(self):
            found = super().sources()
            return found._replace(train=Counting(found.train))

    feeds = Counted(**dataclasses.asdict(source(folder))).feeds()
    assert read == []
    feeds.train.batch_at(0, np.arange(3))
    assert len(read) == 3
    with prefetched(feeds.train, 0, 6, 1, lambda batches, size: batches(None)) as dispatches:
        same(next(dispatches), jax.tree.map(lambda x: x[None], feeds.train.batch_at(0)))
    assert len(read) <= 3 + 4 * 8  # two batches ahead at most, and the one compared with


def test_evaluation_has_every_image_in_order(folder):
    feeds = source(folder, validation=0.2).feeds()
    assert [batch.mask.sum() for batch in feeds.test] == [4, 3]
    assert sum(batch.mask.sum() for batch in feeds.validation) == 6
    files = [Path(one.data) for one in Folder(folder / "val", "abc").read(range(7))]
    assert sorted(files) == sorted(folder.glob("val/*/*.JPEG"))
    images = np.concatenate([batch.inputs for batch in feeds.test])
    for file, image in zip(files, images, strict=False):
        np.testing.assert_array_equal(image, evaluation_image(str(file), 28, 24))
    labels = np.concatenate([batch.targets for batch in feeds.test])[:7]
    assert list(labels) == ["abc".index(file.parent.name) for file in files]
    same(feeds.test[1].inputs[3], feeds.test[1].inputs[2])  # the padding


def test_the_first_images_of_a_folder_are_of_all_classes(folder):
    """They are shuffled, always in the same way: by class the first ten would be those of a alone."""
    feeds = source(folder, limit=10, batch=9).feeds()
    few = np.concatenate([feeds.train.batch_at(0).targets, feeds.validation[0].targets[:1]])
    assert np.bincount(few, minlength=3).min() >= 2
    train = Folder(folder / "train", "abc")
    assert train.read(range(30)) == Folder(folder / "train", "abc").read(range(30))
    assert np.bincount(train.labels).tolist() == [10, 10, 10]
    assert all(Path(one.data).parent.name == "abc"[one.label] for one in train.read(range(30)))


def test_a_folder_may_have_all_three_splits(folder, tmp_path):
    for split, origin in (("train", "train"), ("validation", "val"), ("test", "val")):
        os.symlink(folder / origin, tmp_path / split)
    feeds = source(tmp_path).feeds()
    assert feeds.train.size == 30 and len(feeds.validation) == len(feeds.test) == 2
    assert source(folder).spec() == ((24, 24, 3), 3, ("a", "b", "c"), LargeImages.mean, LargeImages.std)


# Damage.


@pytest.fixture
def damaged(folder, tmp_path):
    """The folder, with a file of train/b cut off in its middle, and one of val/a that is no image."""
    for file in folder.glob("*/*/*"):
        (tmp_path / file.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file.relative_to(folder)).write_bytes(file.read_bytes())
    half = tmp_path / "train/b/010.jpg"
    half.write_bytes(half.read_bytes()[:-100])
    (tmp_path / "val/a/003.JPEG").write_bytes(b"nothing")
    return tmp_path


def test_an_unreadable_image_is_named(damaged):
    feeds = source(damaged, batch=30).feeds()
    with pytest.raises(
        RunError, match=r"train/b/010.jpg: this image can't be read \(.*truncated.*--data.unreadable"
    ) as e:
        feeds.train.batch_at(0)
    assert "\n" not in str(e.value)
    with pytest.raises(RunError, match=r"val/a/003.JPEG: this image can't be read"):
        list(feeds.test)


def test_the_run_goes_on_without_it_if_told_to(damaged, folder, capsys):
    feed, good = (source(path, batch=27, unreadable="replace").feeds().train for path in (damaged, folder))
    bad = next(n for n, p in enumerate(feed.reader.places) if feed.reader.source.name(p).endswith("b/010.jpg"))
    for step in range(3):
        batch, other, expected = feed.batch_at(step), feed.batch_at(step), good.batch_at(step)
        same(batch, other)
        rest = batch.index != bad
        assert (~rest).sum() <= 1
        same(*(jax.tree.map(lambda x, rest=rest: x[rest], b) for b in (batch, expected)))
        for row in np.flatnonzero(~rest):  # the next one in its place, by the draws of its own
            after = good.reader.source.read([good.reader.places[bad + 1]])[0]
            own = {"side": 24, "scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), "flip": True}
            assert batch.targets[row] == after.label
            found = [training_image(after.data, uniforms(0, [e], [bad], DRAWS)[0], **own) for e in range(3)]
            assert any(np.array_equal(image, batch.inputs[row]) for image in found)
    said = capsys.readouterr().err
    assert said.count("train/b/010.jpg") == 1 and "left out" in said


def test_it_is_left_out_of_an_evaluation(damaged):
    feeds = source(damaged, unreadable="replace").feeds()
    assert sum(batch.mask.sum() for batch in feeds.test) == 6
    named = [Path(one.data).name for one in Folder(damaged / "val", "abc").read(range(7))]
    bad = named.index("003.JPEG")
    mask, images = (np.concatenate([getattr(b, name) for b in feeds.test])[:7] for name in ("mask", "inputs"))
    assert list(mask) == [n != bad for n in range(7)] and not images[bad].any()


def test_a_folder_of_nothing_but_damage_ends_the_run(tmp_path):
    for name in ("train/a", "val/a"):
        (tmp_path / name).mkdir(parents=True)
        for n in range(3):
            (tmp_path / name / f"{n}.jpg").write_bytes(b"nothing")
    with pytest.raises(RunError, match="100 images in a row can't be read"):
        source(tmp_path, unreadable="replace", validation=0.4).feeds().train.batch_at(0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"resize": 20}, "data.resize=20 is less than data.size=24"),
        ({"std": (0.2, 0.0, 0.2)}, "data.std must be above 0"),
        ({"scale": (0.0, 1.0)}, "data.scale"),
        ({"ratio": (2.0, 1.0)}, "data.ratio"),
        ({"workers": 0}, "data.workers must be at least 1"),
        ({"name": "./nowhere"}, "there is no such folder"),
        ({"test_split": "train2"}, "no split train2 to test on; it has train, val"),
    ],
)
def test_wrong_options_are_one_message(folder, options, message):
    with pytest.raises(UserError, match=message):
        LargeImages(**{"name": str(folder), "size": 24, "resize": 28} | options).feeds()


def test_a_class_that_training_lacks_is_named(folder, tmp_path):
    os.symlink(folder / "train", tmp_path / "train")
    (tmp_path / "test/z").mkdir(parents=True)
    with pytest.raises(UserError, match="z is no class of the training images"):
        source(tmp_path).feeds()


def images_of(directory, **labels):
    """A set of TensorFlow Datasets of two classes: splits of images that have these labels."""
    import tensorflow_datasets as tfds

    features = {"image": tfds.features.Image(shape=(24, 24, 3)), "label": tfds.features.ClassLabel(names=["a", "b"])}
    Image.new("RGB", (24, 24)).save(file := io.BytesIO(), "PNG")
    example = lambda label: {"image": io.BytesIO(file.getvalue()), "label": label}
    return built(directory, features, {split: [example(label) for label in own] for split, own in labels.items()})


def test_a_test_split_without_labels_is_not_tested_on(tmp_path, capsys):
    said = lambda: " ".join(capsys.readouterr().err.split())
    options = {"size": 24, "resize": 24, "batch": 8, "evaluation_batch": 4, "validation": 0.2}
    labels = {"train": [0, 1] * 10, "test": [-1] * 3}
    where = images_of(tmp_path / "a", **labels, validation=[1] * 5)
    feeds = LargeImages("tiny", where, **options).feeds()
    assert "tiny: its test split has no labels; its validation split is the test data" in said()
    assert feeds.train.size == 16 and [sum(b.mask.sum() for b in part) for part in feeds[1:3]] == [4, 5]
    assert (feeds.test[0].targets == 1).all()
    with pytest.raises(UserError, match="tiny: its split test has no labels"):
        LargeImages("tiny", where, test_split="test", **options).feeds()
    where = images_of(tmp_path / "b", **labels)
    feeds = LargeImages("tiny", where, **options).feeds()
    assert "tiny: its test split has no labels; a fifth of its training images is the test data" in said()
    assert sum(b.mask.sum() for b in feeds.test) == 4
    with pytest.raises(UserError, match="tiny: its split train has no labels"):
        LargeImages("tiny", images_of(tmp_path / "c", train=[-1] * 8), **options).feeds()


@pytest.mark.parametrize("wrong", [-1, 3])
def test_a_label_that_is_none_of_the_classes(folder, wrong):
    class Wrong(LargeImages):
        def sources(self):
            found = super().sources()
            train = copy.copy(found.train)  # others have the same, from a cache
            train.labels = labels = found.train.labels.copy()
            labels[7] = wrong
            train.name = lambda place: f"image {place}"
            train.read = lambda places: [Encoded(np.zeros((30, 30, 3), np.uint8), int(labels[p])) for p in places]
            return found._replace(train=train)

    feed = Wrong(**dataclasses.asdict(source(folder, seed=3, unreadable="replace"))).feeds().train
    with pytest.raises(RunError, match=rf"image 7: its label {wrong} is none of the classes 0 \.\.\. 2"):
        [feed.batch_at(step) for step in range(8)]


def test_records_are_those_of_tensorflow_datasets():
    if not os.environ.get("TFDS_DATA_DIR"):
        pytest.skip("TFDS_DATA_DIR is not set")
    import tensorflow_datasets as tfds

    try:
        feeds = LargeImages(name="cifar10", size=32, resize=32, scale=(1.0, 1.0), flip=False).feeds()
    except UserError as missing:
        pytest.skip(str(missing))
    # TFDS itself reads the variable when it is imported, which may have been in a test that sets it.
    expected = tfds.data_source("cifar10", split="test", data_dir=os.environ["TFDS_DATA_DIR"])
    batch = feeds.test[0]
    for n in range(6):
        example = expected[n]
        np.testing.assert_array_equal(batch.inputs[n], example["image"])
        assert batch.targets[n] == example["label"]
    assert isinstance(feeds.train.reader, Reader) and feeds.train.size == 49_500


# Mixing.


def test_mixup_and_its_labels_by_hand(rng):
    images, labels = rng.random((4, 6, 5, 3), np.float32), np.array([3, 1, 4, 1])
    keys = jax.random.split(KEY, 4)
    found, targets = mixed(Mixing(mixup=0.7), keys, images, labels)
    assert len(set(np.asarray(targets.share))) == 4 and targets.share.min() >= 0 and targets.share.max() <= 1
    for row, partner in enumerate((1, 0, 3, 2)):
        share = float(targets.share[row])
        np.testing.assert_allclose(found[row], share * images[row] + (1 - share) * images[partner], atol=1e-6)
        assert targets.others[row] == labels[partner] and targets.labels[row] == labels[row]
    shares = mixed(Mixing(mixup=0.2), jax.random.split(KEY, 4000), np.zeros((4000, 1, 1, 1)), np.zeros(4000, int))[
        1
    ].share
    np.testing.assert_allclose([shares.mean(), shares.var()], [0.5, 0.25 / 1.4], atol=0.02)  # those of Beta(0.2, 0.2)


def test_cutmix_labels_are_the_shares_of_the_pixels():
    keys, images = (
        jax.random.split(KEY, 64),
        np.arange(64, dtype=np.float32)[:, None, None, None] + np.zeros((1, 9, 7, 1)),
    )
    found, targets = mixed(Mixing(cutmix=1.0), keys, images, np.arange(64))
    for row in range(64):
        partner = row ^ 1
        own = np.asarray(found[row, ..., 0] == row)
        assert ((found[row, ..., 0] == partner) == ~own).all()
        np.testing.assert_allclose(targets.share[row], own.mean(), atol=1e-6)
        rows, columns = (~own).any(1), (~own).any(0)
        assert (~own == rows[:, None] & columns).all()  # a rectangle
        for line in (rows, columns):
            assert (np.diff(np.flatnonzero(line)) == 1).all()


def test_a_rectangle_has_the_area_asked_for():
    inside = jax.vmap(lambda key: rectangle(key, jnp.float32(0.75), 40, 60))(jax.random.split(KEY, 300))
    area = np.asarray(inside).sum((1, 2))
    assert area.max() == 20 * 30  # a quarter, where none of it is cut off
    assert np.asarray(inside).any(0).all()


def test_with_both_half_of_the_images_take_each():
    images, labels = np.stack([np.zeros((8, 8, 1)), np.ones((8, 8, 1))] * 200).astype(np.float32), np.zeros(400, int)
    found, _ = mixed(Mixing(mixup=1.0, cutmix=1.0), jax.random.split(KEY, 400), images, labels)
    averaged = ((found > 0.001) & (found < 0.999)).any((1, 2, 3))
    assert 150 < averaged.sum() < 250


def test_the_loss_of_mixed_labels_is_that_of_soft_ones(rng):
    logits, mask = rng.normal(size=(5, 4)).astype(np.float32), np.array([1, 1, 0, 1, 1], np.float32)
    targets = Mixed(np.array([0, 1, 2, 3, 0]), np.array([1, 0, 0, 2, 3]), np.array([0.2, 0.9, 0.5, 1, 0], np.float32))
    value, metrics = criterion_of_mixed(classification(0.1))(logits, targets, mask)
    total = right = 0.0
    for row in range(5):
        soft = np.zeros(4)
        soft[targets.labels[row]] += targets.share[row]
        soft[targets.others[row]] += 1 - targets.share[row]
        log = logits[row] - np.log(np.exp(logits[row]).sum())
        total += mask[row] * -((0.9 * soft + 0.1 / 4) * log).sum()
        right += mask[row] * soft[logits[row].argmax()]
    np.testing.assert_allclose([value.total, value.count, metrics["accuracy"].total], [total, 4, right], rtol=1e-5)


def test_mixing_refuses_what_it_cannot_do():
    from research.learners.robust import AdversarialTraining

    with pytest.raises(UserError, match=r"pairs of images: data.batch must be even, not 7"):
        Classify(data=LargeImages(batch=7), mixing=Mixing(mixup=0.2))
    with pytest.raises(UserError, match="no one label"):
        Classify(mixing=Mixing(mixup=0.2), adversarial=AdversarialTraining(steps=1, radius=0.1))
    assert Classify(mixing=Mixing(cutmix=1.0)).divisible()["half of data.batch, which mixing takes"] == 64


# RandAugment.


def pillow(name, image, share, sign):
    """What Pillow makes of an image by each operation."""
    level, width, height = sign * share, image.width, image.height
    move = lambda *matrix: image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)
    enhanced = lambda kind: kind(image).enhance(1 + 0.9 * level)
    return {
        "identity": lambda: image,
        "shear_x": lambda: move(1, 0.3 * level, 0, 0, 1, 0),
        "shear_y": lambda: move(1, 0, 0, 0.3 * level, 1, 0),
        "translate_x": lambda: move(1, 0, int(level * width * 150 / 331), 0, 1, 0),
        "translate_y": lambda: move(1, 0, 0, 0, 1, int(level * height * 150 / 331)),
        "rotate": lambda: image.rotate(30 * level),
        "brightness": lambda: enhanced(ImageEnhance.Brightness),
        "colour": lambda: enhanced(ImageEnhance.Color),
        "contrast": lambda: enhanced(ImageEnhance.Contrast),
        "sharpness": lambda: enhanced(ImageEnhance.Sharpness),
        "posterize": lambda: ImageOps.posterize(image, 8 - round(4 * share)),
        "solarize": lambda: ImageOps.solarize(image, 255 * (1 - share)),
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
    }[name]()


apply = jax.jit(randaugment.operation, static_argnums=2)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_those_of_pillow(rng, name):
    pixels = (smooth(rng, 32, 44) // 2 + rng.integers(20, 60, (32, 44, 3))).astype(np.uint8)
    for magnitude in (9, 23):
        for sign in (-1, 1):
            found = np.asarray(apply(OPERATIONS.index(name), pixels.astype(np.float32), magnitude, float(sign)))
            expected = np.asarray(pillow(name, Image.fromarray(pixels), magnitude / 30, sign)).astype(np.float32)
            apart = np.abs(found - expected)
            if name == "rotate":  # Pillow rounds the matrix
                assert (apart > 0).mean() < 0.01
            else:
                assert apart.max() <= 1 and (apart > 0).mean() < 0.02


def test_a_constant_image_stays_as_it_is():
    flat = np.full((6, 6, 3), 77, np.float32)
    for name in ("autocontrast", "equalize"):
        np.testing.assert_array_equal(apply(OPERATIONS.index(name), flat, 9, 1.0), flat)


def test_operations_are_drawn_by_the_key_of_the_example(rng):
    images, keys = np.repeat(rng.integers(0, 256, (1, 12, 12, 3)) / np.float32(255), 40, 0), jax.random.split(KEY, 40)
    augment = jax.jit(lambda keys, images: randaugment.randaugment(RandAugment(2, 20), keys, images))
    found = np.asarray(augment(keys, images))
    np.testing.assert_array_equal(np.asarray(augment(keys[::-1], images))[::-1], found)
    assert len({image.tobytes() for image in found}) > 25 and found.min() >= 0 and found.max() <= 1
    np.testing.assert_array_equal(randaugment.randaugment(RandAugment(), keys, images), images)
    with pytest.raises(UserError, match=r"randaugment\.magnitude must be between 0 and 30"):
        RandAugment(2, 31)


# The net.


def test_resnet_50_has_as_many_parameters_as_torchvisions():
    net = BottleneckResNet(outputs=1000)
    shapes = jax.eval_shape(net.init, KEY, jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32))
    assert sum(x.size for x in jax.tree.leaves(shapes["params"])) == 25_557_032
    features = jax.eval_shape(net.clone(outputs=0).apply, shapes, jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32))
    assert features.shape == (2, 2048)


def test_overlapping_pooling_by_a_loop(rng):
    x = rng.normal(size=(2, 8, 6, 3)).astype(np.float32)
    found = np.asarray(overlapping_max_pool(x))
    assert found.shape == (2, 4, 3, 3)
    for row in range(4):
        for column in range(3):
            part = x[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            np.testing.assert_array_equal(found[:, row, column], part.max((1, 2)))


def test_blocks_start_as_their_shortcuts(rng):
    net, images = BottleneckResNet((2,), (2,), stem=8, outputs=0), rng.normal(size=(2, 16, 16, 3)).astype(np.float32)
    variables = net.init(KEY, images)
    scales = {k: v["BatchNorm_0"] for k, v in variables["params"].items() if k.startswith("Batch")}
    last = [variables["params"][f"Bottleneck_{n}"]["BatchNorm_2"]["BatchNorm_0"]["scale"] for n in range(2)]
    assert not np.any(last) and all(np.all(own["scale"] == 1) for own in scales.values())


# ---- the page of the docs


def test_the_examples_of_the_page_on_data(folder, tmp_path, monkeypatch, capsys):
    """Its config trains on a folder of images, and its loop in a notebook trains digits_cnn."""
    page = (Path(__file__).parent.parent / "docs" / "data.md").read_text()
    photos, notebook = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    shutil.copytree(folder, tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    made = {}
    exec(photos, made)
    experiment = made["config"]()
    learner, feeds = experiment.build(), experiment.feeds()
    assert feeds.train.batch_at(0).inputs.shape == (32, 64, 64, 3) and experiment.data.spec().names == ("a", "b", "c")
    _, metrics = jax.eval_shape(learner.step, learner.init(jax.random.key(0)), feeds.train.batch_at(0))
    assert set(metrics) >= {"loss", "accuracy"}
    capsys.readouterr()
    exec(notebook.replace("range(100)", "range(30)"), {})
    loss, accuracy = (float(x) for x in re.findall(r"[\d.]{3,}", capsys.readouterr().out))
    assert loss < 1.9 and accuracy > 0.3
