"""The data: its order, its feeds, its sources, its augmentation."""

import dataclasses
import os
import shutil
import sys
import threading
import tracemalloc
from functools import partial
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import records

from research.core.errors import RunError, UserError
from research.core.state import NO_BATCH, example_keys
from research.data.augment import Augment, augment
from research.data.checks import check_images, check_labels
from research.data.feed import (
    DeviceFeed,
    Empty,
    EvalBatches,
    HostFeed,
    device_feed,
    episodes,
    feeds,
    prefetched,
    take,
)
from research.data.images import Images, arrays, moments, without_test
from research.data.order import indices, permute, positions, split
from research.data.unpaired import Domains, Unpaired

SIZES = (1, 2, 3, 10, 97, 1000)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


# ---- moments


def test_moments_take_little_memory(rng):
    images = rng.integers(0, 256, (20, 512, 512, 3), dtype=np.uint8)
    tracemalloc.start()
    mean, std = moments(images)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < images.nbytes, "by parts of a size, however few images they are"
    np.testing.assert_allclose(mean, images.mean((0, 1, 2)) / 255, rtol=1e-9)
    np.testing.assert_allclose(std, images.std((0, 1, 2)) / 255, rtol=1e-9)


# ---- order


def whole(epoch, size, seed):
    return permute(np.arange(size, dtype=np.uint32), np.uint32(epoch), size, seed, np)


@pytest.mark.parametrize("size", SIZES)
def test_each_epoch_is_a_permutation(size):
    for epoch in (0, 1, 2**32 - 1):
        np.testing.assert_array_equal(np.sort(whole(epoch, size, seed=3)), np.arange(size))


def test_epochs_and_seeds_differ():
    orders = [whole(epoch, 1000, seed) for epoch, seed in ((0, 0), (1, 0), (0, 1), (1, 1), (0, -1))]
    for i, a in enumerate(orders):
        assert (a == np.arange(1000)).mean() < 0.02
        for b in orders[:i]:
            assert (a == b).mean() < 0.02


def test_all_orders_of_four_are_about_as_frequent():
    epochs = np.repeat(np.arange(24_000, dtype=np.uint32), 4)
    orders = permute(np.tile(np.arange(4, dtype=np.uint32), 24_000), epochs, 4, 0, np).reshape(-1, 4)
    _, counts = np.unique(orders @ [64, 16, 4, 1], return_counts=True)
    assert len(counts) == 24 and counts.min() > 850 and counts.max() < 1150


@pytest.mark.parametrize("size", SIZES)
def test_batches_run_on_through_epochs_on_host_and_device(size):
    batch, epochs = 7, 3
    steps = -(-size * epochs // batch)
    host = np.stack([indices(step, batch, size, 5, np) for step in range(steps)])
    device = jax.jit(lambda: jax.lax.map(lambda step: indices(step, batch, size, 5), jnp.arange(steps)))()
    assert host.dtype == device.dtype == np.int32
    np.testing.assert_array_equal(host, device)
    for epoch in host.ravel()[: epochs * size].reshape(epochs, size):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(size))


@pytest.mark.parametrize("size", [1, 2, 60_000, 54_001, 2**31 - 1, 2**31])
def test_positions_do_not_overflow(size):
    device = jax.jit(lambda step: positions(step, 128, size))
    for step in (0, 123_456_789, 2**31 - 1):
        for batch in (1, 128, 10_007):
            exact = [step * batch + i for i in range(batch)]
            found = [positions(step, batch, size, np)]
            if batch == 128:
                found.append(device(step))
            for epoch, offset in found:
                np.testing.assert_array_equal(epoch, [p // size % 2**32 for p in exact])
                np.testing.assert_array_equal(offset, [p % size for p in exact])


@pytest.mark.parametrize("size", [2**31 + 1, 2**32 + 7, 10**12])
def test_the_host_counts_in_64_bits(size):
    for step in (0, 123_456_789, 2**31 - 1):
        exact = [step * 10_007 + i for i in range(10_007)]
        epoch, offset = positions(step, 10_007, size, np)
        np.testing.assert_array_equal(epoch, [p // size % 2**32 for p in exact])
        np.testing.assert_array_equal(offset, [p % size for p in exact])
    found = indices(7, 10_007, size, 0, np)
    assert found.dtype == np.int64 and len(np.unique(found)) == 10_007
    assert 0 <= found.min() < 0.01 * size and 0.99 * size < found.max() < size
    with pytest.raises(ValueError, match=f"{size} examples are more than a device can index"):
        indices(7, 8, size, 0, jnp)


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_words_of_64_bits_give_the_same_permutation(size):
    narrow = np.arange(size, dtype=np.uint32)
    wide = permute(narrow.astype(np.uint64), np.uint32(3), size, 5, np)
    assert wide.dtype == np.uint64
    np.testing.assert_array_equal(wide, permute(narrow, np.uint32(3), size, 5, np))


def test_rows_are_those_of_the_whole():
    expected = indices(11, 24, 100, 0, np)
    for rows in (np.arange(6, 12), np.array([23, 0, 5, 5])):
        np.testing.assert_array_equal(indices(11, 24, 100, 0, np, rows), expected[rows])
        np.testing.assert_array_equal(jax.jit(lambda r: indices(11, 24, 100, 0, jnp, r))(rows), expected[rows])
    with pytest.raises(ValueError, match="batches of 0 from 100"):
        indices(0, 0, 100, 0, np)


def test_the_parts_of_a_split_are_disjoint_and_never_empty():
    rest, part = split(100, 0.1, seed=1)
    assert len(part) == 10
    np.testing.assert_array_equal(np.sort(np.concatenate([rest, part])), np.arange(100))
    assert not np.array_equal(part, split(100, 0.1, seed=2)[1])
    assert [len(x) for x in split(2, 0.001, 0)] == [len(x) for x in split(2, 0.999, 0)] == [1, 1]


# ---- feeds


def pair(batch=8, size=21):
    x = np.arange(size * 6, dtype=np.uint8).reshape(size, 3, 2)
    y = {"label": np.arange(size, dtype=np.int32)}
    return device_feed(x, y, batch=batch, seed=4), HostFeed(x, y, batch=batch, seed=4)


def test_device_and_host_feeds_give_the_same_batches():
    device, host = pair()
    put = jax.device_put(device)
    at = jax.jit(lambda feed, step, rows=None: feed.batch_at(step, rows))
    seen = []
    for step in (0, 1, 2, 10**6):
        batch = host.batch_at(step)
        equal(at(put, step), batch)
        np.testing.assert_array_equal(batch.index, indices(step, 8, 21, 4, np))
        np.testing.assert_array_equal(batch.inputs, host.inputs[batch.index])
        np.testing.assert_array_equal(batch.targets["label"], batch.index)
        assert batch.mask.dtype == np.float32 and batch.mask.sum() == 8
        equal(host.batch_at(step, np.array([5, 0])), jax.tree.map(lambda x: x[[5, 0]], batch))
        equal(at(put, step, jnp.arange(4, 8)), jax.tree.map(lambda x: x[4:], batch))
        seen.extend(batch.index)
    assert sorted(seen[:21]) == list(range(21))
    assert (device.resident, host.resident, Empty().resident) == (True, False, True)
    assert (device.batch, host.batch, Empty().batch) == (8, 8, 0)


def test_more_examples_than_a_device_can_index():
    many = np.broadcast_to(np.uint8(1), (2**31 + 1, 1))
    with pytest.raises(
        UserError, match=r"2,147,483,649 training examples are more than the 2,147,483,648.*--data.feed"
    ):
        device_feed(many, (), 2, 0)
    batch = HostFeed(many, (), 4, 0).batch_at(2**29)
    assert batch.index.dtype == np.int32 and batch.inputs.tolist() == [[1]] * 4


def test_empty_feed_has_no_leaves():
    assert jax.tree.leaves(Empty()) == [] and Empty().batch_at(3) == NO_BATCH


def test_last_evaluation_batch_is_masked():
    x, y = np.arange(10.0), np.arange(10)
    batches = lambda size: EvalBatches.of(lambda at: take((x, y), None, at), 10, size)
    first, second, last = batches(4)
    assert {b.inputs.shape for b in (first, second, last)} == {(4,)}
    np.testing.assert_array_equal(last.mask, [1, 1, 0, 0])
    np.testing.assert_array_equal(last.index, [8, 9, 9, 9])
    kept = np.concatenate([b.targets[b.mask == 1] for b in (first, second, last)])
    np.testing.assert_array_equal(kept, y)
    assert len(batches(5)) == 2 and batches(5)[-1].mask.all()
    assert len(batches(4)[1:]) == 2
    equal(batches(4)[1:], [second, last])
    with pytest.raises(IndexError):
        batches(4)[3]


def test_episodes_are_seeds():
    *_, batch = episodes(100, 7, 4)
    np.testing.assert_array_equal(batch.index, [104, 105, 106, 107])
    assert batch.mask.tolist() == [1, 1, 1, 0] and batch.inputs == batch.targets == ()


def workers():
    return [t for t in threading.enumerate() if t.name.startswith("prefetch")]


def test_prefetched_gives_dispatches_in_order():
    _, host = pair()
    with prefetched(host, 3, 10, 3, lambda make, _: jax.device_put(make(None))) as dispatches:
        got = list(dispatches)
    assert [len(batches.index) for batches in got] == [3, 3, 1] and isinstance(got[0].inputs, jax.Array)
    expected = [host.batch_at(step) for step in range(3, 10)]
    equal(jax.tree.map(lambda *x: np.concatenate(x), *got), jax.tree.map(lambda *x: np.stack(x), *expected))
    assert not workers()


def test_prefetched_raises_where_the_batches_are_read():
    _, host = pair()

    def put(make, _):
        if loaded:
            raise OSError("the disk is gone")
        loaded.append(make(None))
        return loaded[0]

    loaded = []
    with prefetched(host, 0, 12, 4, put) as dispatches:
        assert next(dispatches).index.shape == (4, 8)
        with pytest.raises(OSError, match="the disk is gone"):
            next(dispatches)
    assert not workers()


def test_prefetched_ends_when_the_consumer_stops():
    _, host = pair()
    loaded = []
    with (
        pytest.raises(KeyError),
        prefetched(host, 0, 10**9, 2, lambda make, _: loaded.append(0) or make(None)) as dispatches,
    ):
        next(dispatches)
        raise KeyError
    assert not workers() and len(loaded) <= 2


# ---- images


def test_digits():
    spec = Images().spec()
    assert (spec.shape, spec.classes, spec.names[3]) == ((8, 8, 1), 10, "3")
    data = arrays("digits", None)
    assert len(data.train_labels) + len(data.test_labels) == 1797 and len(data.test_labels) == 359
    assert (data.train_images.min(), data.train_images.max()) == (0, 255)
    pixels = data.train_images / 255
    np.testing.assert_allclose((spec.mean[0], spec.std[0]), (pixels.mean(), pixels.std()), rtol=1e-12)


def test_image_feeds():
    made, other = Images(batch=32, evaluation_batch=100).feeds(), Images(seed=1, feed="host").feeds()
    assert isinstance(made.train, DeviceFeed) and isinstance(other.train, HostFeed)
    examples = lambda split: int(sum(b.mask.sum() for b in split))
    assert len(made.train.places) + examples(made.validation) == 1797 - 359
    assert examples(made.validation) == 144 and examples(made.test) == examples(other.test) == 359
    assert {b.inputs.shape for b in (*made.validation, *made.test)} == {(100, 8, 8, 1)}
    # The seed moves the validation split, never the test data.
    np.testing.assert_array_equal(np.concatenate([b.inputs for b in made.test])[:359], other.test[0].inputs[:359])
    assert not np.array_equal(made.validation[0].targets, other.validation[0].targets[:100])
    batch = made.train.batch_at(0)
    assert (batch.inputs.dtype, batch.inputs.shape, batch.targets.dtype) == (np.uint8, (32, 8, 8, 1), np.int32)


@pytest.mark.parametrize("feed", ["device", "host"])
def test_feeds_hold_the_images_once(feed):
    config = Images(feed=feed, batch=32)
    whole, train = config.load(), config.feeds().train
    held = jax.tree.leaves(train)
    assert sum(np.shares_memory(x, whole.train_images) for x in held) == 1
    assert sum(x.nbytes for x in held if not any(map(partial(np.shares_memory, x), whole[:4]))) <= 1438 * 8
    rest, part = split(1438, 0.1, 0)
    np.testing.assert_array_equal(train.places, rest)
    batch = train.batch_at(5)
    np.testing.assert_array_equal(batch.inputs, whole.train_images[rest[batch.index]])
    np.testing.assert_array_equal(batch.targets, whole.train_labels[rest[batch.index]])
    validation = config.feeds().validation
    np.testing.assert_array_equal(validation[0].inputs[:144], whole.train_images[part])
    assert isinstance(validation, EvalBatches) and validation[0].inputs is not validation[0].inputs


def test_two_domains_are_read_once():
    config = Unpaired(name="digits", classes=("3", "8"), batch=4)
    first, second = config.load(), dataclasses.replace(config, batch=5).load()
    assert all(map(np.shares_memory, first, second))
    train = config.feeds().train
    assert np.shares_memory(train.x.examples[0], first.train_x) and np.shares_memory(train.y.examples[0], first.train_y)


def test_a_set_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match=r"fashion_mnist: not found in .*--data\.dir.*tfds build.*digits needs nothing"):
        Images("fashion_mnist").spec()
    with pytest.raises(UserError, match="did you mean digits"):
        Images("digts").spec()
    with pytest.raises(UserError, match=r"data\.batch must be at least 1"):
        Images(batch=0)
    with pytest.raises(UserError, match="fraction"):
        Images(validation=1.0)


def test_what_is_no_set_of_labelled_images():
    images, labels = np.zeros((4, 2, 2, 1), np.uint8), np.array([0, 1, 2, 3], np.int32)
    check_images("ok", images)
    check_labels("ok", labels, 4, 4)
    with pytest.raises(UserError, match=r"set: expected labels 0 \.\.\. 2; 1 are out of range, example 3 has 3"):
        check_labels("set", labels, 4, 3)
    with pytest.raises(UserError, match="set: expected 3 whole numbers"):
        check_labels("set", labels, 3, 4)
    for wrong in (images[..., 0], images.astype(np.float32), images[:0]):
        with pytest.raises(UserError, match="set: expected images uint8"):
            check_images("set", wrong)
    with pytest.raises(UserError, match="too few"):
        feeds((images[:1], labels[:1]), (images, labels), 2, 2, 0.1, 0)
    split = without_test(np.tile(images, (5, 1, 1, 1)), np.arange(20), ("a",) * 20)
    np.testing.assert_array_equal(np.sort(np.concatenate([split.train_labels, split.test_labels])), np.arange(20))


def from_guide(path, monkeypatch):
    """The module that docs/extending.md shows as the file `path`."""
    page = (Path(__file__).parent.parent / "docs" / "extending.md").read_text()
    module = ModuleType(Path(path).stem)
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look their module up
    exec(page.split(f"```python\n# {path}\n")[1].split("```")[0], module.__dict__)
    return module


def test_a_source_that_inherits_is_limited_and_checked(monkeypatch):
    stripes = from_guide("research/data/stripes.py", monkeypatch).Stripes
    whole, few = stripes(examples=100).load(), stripes(examples=100, limit=10)
    assert [len(part) for part in whole[:4]] == [100, 100, 25, 25]
    equal(few.load()[:4], tuple(part[:10] for part in whole[:4]))
    feeds = few.feeds()
    examples = lambda split: int(sum(b.mask.sum() for b in split))
    assert len(feeds.train.places) + examples(feeds.validation) == examples(feeds.test) == 10
    assert few.spec().mean == pytest.approx([whole.train_images[:10].mean() / 255])
    data = few.arrays()
    for wrong, message in (
        (data._replace(test_labels=data.test_labels + 3), r"stripes, split test: expected labels 0 \.\.\. 7"),
        (data._replace(test_labels=np.full_like(data.test_labels, -1)), "stripes, split test: expected labels"),
        (data._replace(train_labels=data.train_labels[1:]), "split train: expected 100 whole numbers as labels"),
        (data._replace(train_images=data.train_images / 255), "split train: expected images uint8"),
        (
            data._replace(train_images=list(data.train_images)),
            "expected images uint8 .*, an array of NumPy, not a list",
        ),
        (data._replace(test_labels=list(data.test_labels)), "split test: expected labels in an array of NumPy, not a"),
        (data[:4], r"`arrays` is to return Arrays\(train_images, .*, names\), not 4 values"),
        (
            data._replace(test_images=data.test_images[:, 1:]),
            r"one shape expected, not \(12, 12, 1\) for training",
        ),
    ):

        class Wrong(stripes):
            def arrays(self, found=wrong):
                return found

        for use in (Wrong.load, Wrong.feeds, Wrong.spec):
            with pytest.raises(UserError, match=message):
                use(Wrong(name="stripes", seed=len(message)))
        with pytest.raises(UserError, match=message):  # before classes are chosen: the label -1 would be the last one
            Wrong(name="stripes", classes=(0, 7)).load()


def test_two_domains_that_inherit_are_limited_and_checked():
    class Greys(Unpaired):
        def arrays(self):
            part = lambda count, side: np.zeros((count, side, side, 1), np.uint8)
            return Domains(part(9, 2), part(8, 2), part(7, 2), part(6, self.seed))

    assert [len(part) for part in Greys(limit=7, seed=2).load()] == [7, 7, 7, 6]
    with pytest.raises(UserError, match=r"cifar10: images of one shape expected, not \(2, 2, 1\) and \(3, 3, 1\)"):
        Greys(seed=3).feeds()
    with pytest.raises(UserError, match="cifar10, test_y: expected images uint8"):
        Greys(seed=0).feeds()


def built(directory: Path, examples, image="image", label="label"):
    """Labelled images in the format of TFDS, with a split train alone."""
    import tensorflow_datasets as tfds

    tensor = tfds.features.Tensor(shape=(None, None, 1), dtype=np.uint8, encoding="zlib")
    features = {image: tensor, label: tfds.features.ClassLabel(num_classes=2)}
    return records.built(directory, features, {"train": examples})


def image(height, label):
    return {"image": np.full((height, 4, 1), height * 10 + label, np.uint8), "label": label}


def test_a_prepared_set_without_a_test_split(tmp_path):
    where = built(tmp_path, [image(3, k % 2) for k in range(20)])
    data = arrays("tiny", where)
    assert data.train_images.shape == (16, 3, 4, 1) and data.test_images.shape == (4, 3, 4, 1)
    np.testing.assert_array_equal(data.train_images[:, 0, 0, 0], 30 + data.train_labels)
    assert sorted([*data.train_labels, *data.test_labels]) == [0] * 10 + [1] * 10


def test_features_of_other_names(tmp_path):
    where = built(tmp_path, [{"photo": image(3, 0)["image"], "kind": k % 2} for k in range(20)], "photo", "kind")
    data = Images("tiny", where, image_feature="photo", label_feature="kind").load()
    assert data.train_images.shape == (16, 3, 4, 1) and sorted(data.train_labels.tolist()) == [0] * 8 + [1] * 8
    domains = Unpaired("tiny", ("1", "0"), where, image_feature="photo", label_feature="kind").load()
    assert len(domains.train_x) == int(data.train_labels.sum())
    with pytest.raises(
        UserError, match="features image and kind, a class, and a split train; it has features kind, photo"
    ):
        Images("tiny", where, label_feature="kind").load()
    with pytest.raises(UserError, match="features photo and photo, a class"):
        Images("tiny", where, image_feature="photo", label_feature="photo").load()


def test_sets_are_cached_by_their_directory(tmp_path, monkeypatch):
    for name, height in (("a", 3), ("b", 5)):
        (tmp_path / name).mkdir()
        built(tmp_path / name, [image(height, k % 2) for k in range(20)])
    monkeypatch.chdir(tmp_path)
    for name, height in (("a", 3), ("b", 5)):
        monkeypatch.setenv("TFDS_DATA_DIR", name)
        assert Images("tiny").spec().shape == Images("tiny").load().train_images.shape[1:] == (height, 4, 1)
    monkeypatch.chdir("b")
    monkeypatch.setenv("TFDS_DATA_DIR", "../a")
    assert np.shares_memory(
        Images("tiny").load().train_images, arrays("tiny", str(tmp_path / "a"), None, "image", "label").train_images
    )


def test_images_of_unequal_shapes(tmp_path):
    where = built(tmp_path, [image(3 + k % 2, 0) for k in range(20)])
    with pytest.raises(UserError, match=r"tiny, split train: images of one shape expected, not \(3, 4, 1\) and \(4, 4"):
        arrays("tiny", where)


MNIST = Path(os.environ.get("TFDS_DATA_DIR", "nowhere")) / "mnist"


@pytest.mark.skipif(not MNIST.exists(), reason="no mnist in TFDS_DATA_DIR")
@pytest.mark.parametrize("damage", ["flipped", "truncated", "removed"])
def test_damaged_records(tmp_path, damage):
    shutil.copytree(MNIST, tmp_path / "mnist", copy_function=shutil.copyfile)
    (shard, *_) = sorted((tmp_path / "mnist").glob("*/*train.array_record-00000*"))
    content = bytearray(shard.read_bytes())
    shard.unlink()
    content[100_000] ^= 1
    if damage != "removed":
        shard.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    with pytest.raises(RunError, match=f"mnist, split train: can't read the data in {tmp_path}.*prepare it again"):
        arrays("mnist", str(tmp_path))


# ---- augmentation

KEYS = example_keys(jax.random.key(0), jnp.arange(64))


augmented = jax.jit(augment, static_argnums=0)


def run(how, images, keys=KEYS):
    return np.asarray(augmented(how, keys, jnp.asarray(images, jnp.float32)))


def noise(*shape):
    return np.random.default_rng(0).random((64, *shape), np.float32)


def test_shift_moves_a_point_within_bounds_and_never_wraps():
    image = np.zeros((64, 9, 11, 2))
    image[:, 4, 5] = 1, 0.5
    seen = set()
    for moved in run(Augment(shift=2), image):
        ((y, x),) = np.argwhere(moved[..., 0])
        np.testing.assert_array_equal(moved[y, x], [1, 0.5])
        seen.add((int(y) - 4, int(x) - 5))
    assert len(seen) > 12 and {y for y, _ in seen} == {x for _, x in seen} == {-2, -1, 0, 1, 2}

    corner = np.zeros((64, 9, 11, 1))
    corner[:, 0, 0] = 1
    moved = run(Augment(shift=2), corner)
    assert moved[:, 3:].sum() == moved[:, :, 3:].sum() == 0 and 0 < moved.sum() < 64


def test_flip_is_exact_and_in_half_of_the_images():
    images = noise(5, 6, 3)
    flipped = run(Augment(flip=True), images)
    same, mirrored = ((flipped == x).all((1, 2, 3)) for x in (images, images[:, :, ::-1]))
    assert (same ^ mirrored).all() and 16 < mirrored.sum() < 48


def test_rotation_by_nothing_is_the_identity():
    images = noise(7, 8, 3)
    np.testing.assert_allclose(run(Augment(rotation=0.0, scaling=0.0), images), images, atol=1e-6)
    # Resampled or moved as whole pixels, a shift and a flip are the same.
    both = Augment(shift=2, flip=True)
    np.testing.assert_allclose(run(Augment(shift=2, flip=True, rotation=0.0), images), run(both, images), atol=1e-5)


def test_rotation_and_scaling_move_a_point_as_they_should():
    image = np.zeros((64, 41, 41, 1))
    image[:, 17:24, 29:36] = 1  # a square whose middle is 12 to the right of the image's
    y, x = np.mgrid[-20:21, -20:21]

    def middles(how):
        out = run(how, image)[..., 0]
        return (out * y).sum((1, 2)) / out.sum((1, 2)), (out * x).sum((1, 2)) / out.sum((1, 2)), out.sum((1, 2))

    cy, cx, _ = middles(Augment(rotation=90.0))
    angles = np.degrees(np.arctan2(cy, cx))
    np.testing.assert_allclose(np.hypot(cy, cx), 12, atol=0.2)
    assert abs(angles).max() <= 91 and angles.max() > 60 and angles.min() < -60
    cy, cx, area = middles(Augment(scaling=0.25))
    np.testing.assert_allclose(cy, 0, atol=0.1)
    assert 8.5 < cx.min() < 10 and 14 < cx.max() < 15.5
    np.testing.assert_allclose(area / 49, (cx / 12) ** 2, rtol=0.1)


def test_images_are_not_scaled_to_nothing_and_beyond():
    """By a factor below 0, 1 less a scaling above 1, an image would be turned round."""
    with pytest.raises(UserError, match=r"augment\.scaling must be between 0 and 1, not 1\.5"):
        Augment(scaling=1.5)
    with pytest.raises(UserError, match=r"augment\.jitter must be between 0 and 1\.25, not 1\.3"):
        Augment(jitter=1.3)


def test_cutout_blacks_out_a_square():
    images = noise(12, 12, 2) + 1
    cut = run(Augment(cutout=4), images) == 0
    np.testing.assert_array_equal(run(Augment(cutout=4), images)[~cut], images[~cut])
    sizes = []
    for hole in cut:
        rows, columns = hole.any((1, 2)).sum(), hole.any((0, 2)).sum()
        assert hole.sum() == rows * columns * 2 and 2 <= rows <= 4 and 2 <= columns <= 4
        sizes.append(rows * columns)
    assert max(sizes) == 16 and min(sizes) < 16


def test_noise_has_its_deviation():
    added = run(Augment(noise=0.1), np.zeros((64, 8, 8, 3)))
    assert abs(added.std() - 0.1) < 0.003 and abs(added.mean()) < 0.003


ALL = Augment(flip=True, rotation=10.0, scaling=0.1, shift=2, cutout=3, noise=0.01)


@pytest.mark.parametrize("how", [ALL, Augment(flip=True, shift=2)], ids=["all", "whole pixels"])
def test_an_example_depends_on_its_key_alone(how):
    images = noise(8, 9, 3)
    out = run(how, images)
    order = np.random.default_rng(1).permutation(64)
    np.testing.assert_allclose(run(how, images[order], KEYS[order]), out[order], atol=1e-6)
    np.testing.assert_array_equal(run(how, images), out)
    same = run(how, np.broadcast_to(images[:1], images.shape))
    assert len(np.unique(same.reshape(64, -1), axis=0)) > 32


def test_no_augmentation_changes_nothing_and_floats_may_be_traced():
    images = noise(4, 4, 1)
    np.testing.assert_array_equal(run(Augment(), images), images)
    noisy = lambda std: augment(Augment(noise=std, rotation=std), KEYS, jnp.asarray(images))
    swept = jax.jit(jax.vmap(noisy))(jnp.array([0.0, 0.5]))
    np.testing.assert_allclose(swept[0], images, atol=1e-6)
    assert abs(swept[1] - images).max() > 0.5
    with pytest.raises(UserError, match=r"augment\.shift"):
        Augment(shift=-1)
