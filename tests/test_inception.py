"""Inception-v3 against the same net of PyTorch's modules, with random weights; its file of weights; its report."""

import dataclasses
import hashlib
import json

import flax.linen as nn
import jax
import numpy as np
import pytest
from learners import EXPERIMENTS

from research.core.errors import UserError
from research.core.experiment import Split
from research.evaluation import inception
from research.evaluation.inception import FeatureExtractor, Inception, load_extractor, load_weights, resize
from research.evaluation.sample_metrics import fid
from research.evaluation.samples import latent_inputs, to_uint8
from research.nets.gan import DenseGenerator

torch = pytest.importorskip("torch")
functional = torch.nn.functional


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def one_thread():
    torch.set_num_threads(1)


class Layer(torch.nn.Module):
    def __init__(self, channels, features, kernel, stride=1, padding=0):
        super().__init__()
        self.conv = torch.nn.Conv2d(channels, features, kernel, stride, padding, bias=False)
        self.bn = torch.nn.BatchNorm2d(features, eps=0.001)

    def forward(self, x):
        return torch.relu(self.bn(self.conv(x)))


class Block(torch.nn.Module):
    """Branches: a list of a pool or None, and of layers (name, arguments); names that are a tuple are side by side."""

    def __init__(self, *branches):
        super().__init__()
        self.branches = []
        for pool, *layers in branches:
            for names, *arguments in layers:
                for name, given in zip(names.split(), arguments, strict=True):
                    self.add_module(name, Layer(*given))
            self.branches.append((pool, [names.split() for names, *_ in layers]))

    def forward(self, x):
        outputs = []
        for pool, layers in self.branches:
            y = x if pool is None else pool(x)
            for names in layers:
                y = torch.cat([getattr(self, name)(y) for name in names], 1)
            outputs.append(y)
        return torch.cat(outputs, 1)


def mean(x):
    return functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def most(x):
    return functional.max_pool2d(x, 3, 1, 1)


def shrunk(x):
    return functional.max_pool2d(x, 3, 2)


def grid_35(n, pooled):
    double = (
        ("branch3x3dbl_1", (n, 64, 1)),
        ("branch3x3dbl_2", (64, 96, 3, 1, 1)),
        ("branch3x3dbl_3", (96, 96, 3, 1, 1)),
    )
    return Block(
        (None, ("branch1x1", (n, 64, 1))),
        (None, ("branch5x5_1", (n, 48, 1)), ("branch5x5_2", (48, 64, 5, 1, 2))),
        (None, *double),
        (mean, ("branch_pool", (n, pooled, 1))),
    )


def grid_17(w):
    row, column = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))
    large = ("branch7x7_1", (768, w, 1)), ("branch7x7_2", (w, w, *row)), ("branch7x7_3", (w, 192, *column))
    double = (
        ("branch7x7dbl_1", (768, w, 1)),
        ("branch7x7dbl_2", (w, w, *column)),
        ("branch7x7dbl_3", (w, w, *row)),
        ("branch7x7dbl_4", (w, w, *column)),
        ("branch7x7dbl_5", (w, 192, *row)),
    )
    return Block((None, ("branch1x1", (768, 192, 1))), (None, *large), (None, *double),
                 (mean, ("branch_pool", (768, 192, 1))))  # fmt: skip


def grid_8(n, pool):
    fork = (384, 384, (1, 3), 1, (0, 1)), (384, 384, (3, 1), 1, (1, 0))
    double = ("branch3x3dbl_1", (n, 448, 1)), ("branch3x3dbl_2", (448, 384, 3, 1, 1))
    return Block(
        (None, ("branch1x1", (n, 320, 1))),
        (None, ("branch3x3_1", (n, 384, 1)), ("branch3x3_2a branch3x3_2b", *fork)),
        (None, *double, ("branch3x3dbl_3a branch3x3dbl_3b", *fork)),
        (pool, ("branch_pool", (n, 192, 1))),
    )


class Torchs(torch.nn.Module):
    def __init__(self):
        super().__init__()
        shrinking = (
            ("branch3x3dbl_1", (288, 64, 1)),
            ("branch3x3dbl_2", (64, 96, 3, 1, 1)),
            ("branch3x3dbl_3", (96, 96, 3, 2)),
        )
        last = (
            ("branch7x7x3_1", (768, 192, 1)),
            ("branch7x7x3_2", (192, 192, (1, 7), 1, (0, 3))),
            ("branch7x7x3_3", (192, 192, (7, 1), 1, (3, 0))),
            ("branch7x7x3_4", (192, 192, 3, 2)),
        )
        self.parts = {
            "Conv2d_1a_3x3": Layer(3, 32, 3, 2),
            "Conv2d_2a_3x3": Layer(32, 32, 3),
            "Conv2d_2b_3x3": Layer(32, 64, 3, 1, 1),
            "first": shrunk,
            "Conv2d_3b_1x1": Layer(64, 80, 1),
            "Conv2d_4a_3x3": Layer(80, 192, 3),
            "second": shrunk,
            "Mixed_5b": grid_35(192, 32),
            "Mixed_5c": grid_35(256, 64),
            "Mixed_5d": grid_35(288, 64),
            "Mixed_6a": Block((None, ("branch3x3", (288, 384, 3, 2))), (None, *shrinking), (shrunk,)),
            "Mixed_6b": grid_17(128),
            "Mixed_6c": grid_17(160),
            "Mixed_6d": grid_17(160),
            "Mixed_6e": grid_17(192),
            "Mixed_7a": Block(
                (None, ("branch3x3_1", (768, 192, 1)), ("branch3x3_2", (192, 320, 3, 2))), (None, *last), (shrunk,)
            ),
            "Mixed_7b": grid_8(1280, mean),
            "Mixed_7c": grid_8(2048, most),
        }
        for name, part in self.parts.items():
            if isinstance(part, torch.nn.Module):
                self.add_module(name, part)
        self.fc = torch.nn.Linear(2048, 1008)

    def forward(self, x):
        for part in self.parts.values():
            x = part(x)
        return x.mean((2, 3))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = Torchs().eval()
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
        if isinstance(module, torch.nn.BatchNorm2d):
            for values, low, high in (
                (module.weight, 0.7, 1.3),
                (module.bias, -0.2, 0.2),
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.7, 1.3),
            ):
                torch.nn.init.uniform_(values, low, high)
    return net


@pytest.fixture(scope="module")
def file(net, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.npz"
    np.savez(path, **{name: value.numpy() for name, value in net.state_dict().items()})
    return path


def test_features_are_those_of_pytorchs_net(net, file):
    params = load_weights(str(file))
    # Of so many numbers, all but those of the classifier and the counts of batches.
    counted = sum(p.numel() for name, p in net.state_dict().items() if not name.startswith("fc") and p.dim())
    assert sum(x.size for x in jax.tree.leaves(params)) == counted == 21_785_568 + 2 * 17_216
    images = np.random.default_rng(0).uniform(-1, 1, (1, 107, 123, 3)).astype(np.float32)
    found = jax.jit(Inception().apply)({"params": params}, images)
    with torch.no_grad():
        expected = net(torch.tensor(images.transpose(0, 3, 1, 2))).numpy()
    assert found.shape == (1, 2048) and expected.std() > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * expected.std())


@pytest.mark.parametrize("shape", [(2, 32, 32, 3), (1, 28, 28, 1), (1, 310, 400, 3)])
def test_resizing_is_pytorchs(shape):
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    whole = torch.tensor(images / np.float32(255)).permute(0, 3, 1, 2).expand(-1, 3, -1, -1)
    expected = 2 * functional.interpolate(whole, size=(299, 299), mode="bilinear", align_corners=False) - 1
    np.testing.assert_allclose(resize(images), expected.permute(0, 2, 3, 1), atol=1e-5)


class TwoLayers(nn.Module):
    """The first and the last layer of `Inception`, as if it had no others: of all of them, each file is traced and
    read for seconds."""

    @nn.compact
    def __call__(self, images):
        return inception.conv(inception.conv(images, "Conv2d_1a_3x3", 32, 3, 3, 2), "Mixed_7c.branch_pool", 192)


def test_a_file_that_does_not_fit_is_a_mistake(monkeypatch, tmp_path):
    monkeypatch.setattr(inception, "Inception", TwoLayers)
    shapes = jax.eval_shape(TwoLayers().init, jax.random.key(0), np.zeros((1, 9, 9, 3), np.float32))["params"]
    whole = {f"{layer}.{leaf}": np.ones(x.shape, x.dtype) for layer in shapes for leaf, x in shapes[layer].items()}
    file, other = tmp_path / "whole.npz", tmp_path / "other.npz"
    np.savez(file, **whole)

    def refused(message, **changes):
        np.savez(other, **{name: x for name, x in {**whole, **changes}.items() if x is not None})
        with pytest.raises(UserError, match=f"inception: .*{message}.*research/evaluation/inception.py"):
            load_extractor(str(other))

    refused("holds no Mixed_7c.branch_pool.bn.running_var", **{"Mixed_7c.branch_pool.bn.running_var": None})
    refused(r"is float64 \(3,\), not floats \(32,\)", **{"Conv2d_1a_3x3.bn.bias": np.zeros(3)})
    refused("is int64", **{"Conv2d_1a_3x3.bn.bias": np.zeros(32, np.int64)})
    refused("can't be read", **{"Conv2d_1a_3x3.bn.bias": np.array([{}] * 32, object)})
    for content in (b"", b"no weights", file.read_bytes()[: 10**4]):
        other.write_bytes(content)
        with pytest.raises(UserError, match=r"can't be read as an .npz file"):
            load_extractor(str(other))
    with other.open("wb") as one:
        np.save(one, np.zeros(3))
    with pytest.raises(UserError, match=r"can't be read as an .npz file"):
        load_extractor(str(other))
    torch.save({}, other)
    with pytest.raises(UserError, match="holds no Conv2d_1a_3x3"):
        load_extractor(str(other))
    with pytest.raises(UserError, match="No such file"):
        load_extractor(str(tmp_path / "nowhere.npz"))
    assert load_extractor(str(file)).sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_report_compares_samples_and_test_images_with_training_images(monkeypatch, tmp_path):
    rows = lambda images: images[:, :2].reshape(len(images), -1).astype(np.float32)[:, :5]
    monkeypatch.setattr(inception, "load_extractor", lambda path: FeatureExtractor(rows, "beef" * 16))
    monkeypatch.setattr(inception, "FEATURES", 5)
    changes = {"inception": "inception.npz", "num_samples": 300, "sample_metrics_every": 6}
    experiment = dataclasses.replace(EXPERIMENTS["gan"], generator=DenseGenerator((8,)), **changes)
    feeds = experiment.feeds()
    state = jax.jit(experiment.build().init)(jax.random.key(0))
    *_, report = experiment.reports(None)
    values = report.run(state, Split("test", feeds.test), tmp_path)
    arrays = experiment.data.load()
    train, test = rows(arrays.train_images), rows(arrays.test_images)
    samples = to_uint8(experiment.samples(state, *latent_inputs(3, 300, 4, 10)))
    assert values["inception_fid"] == pytest.approx(fid(rows(samples), train), rel=0.02)
    assert values["inception_fid_of_test_images"] == pytest.approx(fid(test, train))
    written = json.loads((tmp_path / "inception.json").read_text())
    assert written["sha256"] == "beef" * 16 and written["inception_fid"] == values["inception_fid"]
    # During training the test images are left alone; `run.metric` can name the FID.
    during = report.run(state, Split("validation", feeds.validation), tmp_path)
    assert during == {"inception_fid": values["inception_fid"]}
    assert (report.every, report.metrics) == (6, ("inception_fid",))
    monkeypatch.setattr(inception, "FEATURES", 300)
    with pytest.raises(UserError, match="num_samples=300 are too few for FID on 300 features: give 301 or more"):
        experiment.reports(None)
    monkeypatch.setattr(inception, "FEATURES", 400)
    with pytest.raises(UserError, match="359 test images are too few"):
        dataclasses.replace(experiment, num_samples=500).reports(None)
