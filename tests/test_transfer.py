"""Images of some classes, and the experiment that fine-tunes on them."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from printed import said

from experiments import results, transfer
from research.core.errors import UserError
from research.core.patterns import matching
from research.data import images
from research.data.few_labels import FewLabels
from research.data.images import Images
from research.training import config


class Numbered(Images):
    """Images that say their class and number, of four classes; 4, 5, 6 and 7 of them to train on."""

    def arrays(self):
        labels = np.repeat(np.arange(4), [4, 5, 6, 7]).astype(np.int32)
        order = np.random.default_rng(0).permutation(len(labels))
        pixels = np.stack([labels, np.arange(len(labels))], -1).astype(np.uint8)[:, None, None]
        return images.Arrays(pixels[order], labels[order], pixels, labels, ("a", "b", "c", "d"))


def test_classes_are_renumbered_and_none_is_lost():
    data = Numbered(classes=(3, 1)).load()
    assert data.names == ("d", "b")
    for pixels, labels in ((data.train_images, data.train_labels), (data.test_images, data.test_labels)):
        assert np.bincount(labels).tolist() == [7, 5] and labels.dtype == np.int32
        np.testing.assert_array_equal(pixels[:, 0, 0, 0], np.array([3, 1])[labels])
        assert sorted(pixels[:, 0, 0, 1]) == [4, 5, 6, 7, 8, *range(15, 22)]
    assert Numbered(classes=(3, 1)).spec().classes == 2
    limited = Numbered(classes=(3, 1), limit=9).load()
    assert len(limited.train_labels) == 9, "of the classes that were asked for"
    np.testing.assert_array_equal(limited.train_images, data.train_images[:9])
    with pytest.raises(UserError, match=r"data\.classes: there is no class 4, only 0 to 3"):
        Numbered(classes=(0, 4)).load()
    with pytest.raises(UserError, match=r"data\.classes names a class twice: 1 1"):
        Numbered(classes=(1, 1)).load()


def test_the_last_five_digits_in_equal_numbers():
    feed = FewLabels(name="digits", labels=20, batch=20, validation=0.1, classes=(5, 6, 7, 8, 9)).feeds().train
    batch = feed.batch_at(0)
    assert np.bincount(batch.targets).tolist() == [4] * 5
    whole = Images(name="digits").load()
    for pixels, label in zip(np.asarray(batch.inputs), np.asarray(batch.targets), strict=True):
        found = whole.train_labels[(whole.train_images == pixels).all((1, 2, 3))]
        assert set(found) == {label + 5}
    limited = Images(name="digits", classes=(9,), limit=5).load()
    assert len(limited.train_labels) == 5


def test_all_but_the_head_is_frozen():
    net = config.load(transfer.TUNED).net.clone(outputs=5)
    params = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    frozen = matching(params, transfer.WAYS["head only"].options[1:])
    assert not any(jax.tree.leaves(frozen.pop("head"))) and all(jax.tree.leaves(frozen))


def test_each_way_has_the_rate_that_is_best_on_validation_data(tmp_path, monkeypatch):
    """With runs whose accuracies hang on rate, seed and images; what is best on test data does not count."""
    asked, checked = [], []

    def train(name, command):
        asked.append((name, command))
        if name == transfer.PRETRAINED:
            return {"test": {"accuracy": {"mean": 0.9}}}
        experiment = command.config
        assert experiment.data.draw == experiment.run.seed
        rate, seed = experiment.optimizer.learning_rate, experiment.run.seed
        command.workdir.mkdir(parents=True, exist_ok=True)
        line = {"step": 1, "split": "validation", "accuracy": 0.5 + rate, "time": {"unix": 0.0}}
        (command.workdir / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        accuracy = experiment.data.labels / 100 - rate + seed / 1000
        return {"test": {"accuracy": {"mean": accuracy}}, "reports": {}, "seconds": 2.0}

    monkeypatch.setattr(transfer, "train", train)
    monkeypatch.setattr(FewLabels, "feeds", lambda data: checked.append((data.labels, data.draw, len(asked))))
    options = ["--directory", str(tmp_path), "--images", "2", "5", "--seeds", "3", "--tuning=--run.save-every 20"]
    assert transfer.main(options) == 0
    found = json.loads((tmp_path / "transfer.json").read_text())["transfer"]
    assert list(found) == list(transfer.WAYS)
    for name, way in transfer.WAYS.items():
        for count in (2, 5):
            cell = found[name][str(count)]
            assert cell["learning_rate"] == max(way.rates)
            np.testing.assert_allclose(cell["accuracy"], count * 5 / 100 - max(way.rates) + np.arange(3) / 1000)
    assert (tmp_path / "transfer.png").stat().st_size > 10_000
    assert asked[0][1].workdir == tmp_path / "pretrained"
    assert checked == [(labels, draw, 0) for labels in (10, 25) for draw in range(3)], "before the first training"
    for name, command in asked[1:]:
        assert name == transfer.TUNED and command.config.run.save_every == 20
        scratch = "from_scratch" in str(command.workdir)
        assert command.init_from == (None if scratch else tmp_path / "pretrained")
        assert command.init_paths == (() if scratch else ("!net/head/*",))
        assert bool(command.config.update.freeze) == ("head_only" in str(command.workdir))
    directories = {command.workdir for _, command in asked}
    assert len(directories) == 1 + 3 * 2 * 4, "two rates of the first seed, and two more seeds"


def test_what_can_not_be_trained_is_said_before_the_pre_training(tmp_path, monkeypatch, capsys):
    started = []
    monkeypatch.setattr(transfer, "train", lambda *command: started.append(command))
    monkeypatch.setattr(images, "arrays", lambda *_: images.read("digits", None))
    options = ["--directory", str(tmp_path), "--seeds", "1", "--images"]
    for more, error in (
        (["20", "--tuning=--smoothing 2"], "smoothing must be between 0 and 1"),
        (["20", "1000"], "1000 labelled images of each class are more than the"),
    ):
        assert transfer.main([*options, *more]) == 2 and started == []
        assert error in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("name", ["pretraining", "tuning"])
def test_an_open_quotation_is_refused(name):
    with pytest.raises(UserError, match=f"--{name}: No closing quotation"):
        transfer.Options(**{name: '--steps "3'})


def test_the_table_by_hand():
    cell = lambda *each: {"accuracy": list(each)}
    record = {
        "about": {"command": "python -m experiments.transfer", "date": "2026-01-02"},
        "transfer": {"whole": {"2": cell(0.5, 0.7), "5": cell(0.8)}, "head only": {"2": cell(0.25), "5": cell(0.5)}},
    }
    lines = [line for line in results.transfer(record).splitlines() if line.startswith("| ")]
    assert [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines[2:]] == [
        ["2", "0.600 (0.500, 0.700)", "0.250 (0.250)"],
        ["5", "0.800 (0.800)", "0.500 (0.500)"],
    ]


@pytest.mark.parametrize(
    "option",
    [
        "--tuning=--data.labels 5",
        "--tuning=--optimizer.name sgd --freeze=stem/*",
        "--pretraining=--workdir runs/x",
        "--pretraining=--data.classes 0 1",
    ],
)
def test_what_the_script_compares_is_not_set_besides(option, capsys):
    with pytest.raises(SystemExit, match="2"):
        transfer.main([option])
    assert re.search(r"--(tuning|pretraining): this script sets --\S+ itself: leave it out", said(capsys))
