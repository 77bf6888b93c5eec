"""Attacks and corruptions of images, and adversarial training."""

import dataclasses
import itertools
import json
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learners import EXPERIMENTS

from experiments import attack as script
from experiments.runs import first_images
from experiments.train import main
from research.core.errors import UserError
from research.core.losses import classification
from research.core.modules import network
from research.core.state import Batch, State, example_keys
from research.core.update import UpdateConfig
from research.data.feed import EvalBatches
from research.evaluation.attacks import Attack, projected_gradient, square_search, strongest
from research.evaluation.corruptions import CORRUPTIONS, corrupted
from research.learners.classify import Classify
from research.learners.robust import AdversarialTraining, divergence, trades_loss
from research.nets.cnn import CNN

IMAGES = np.random.default_rng(0).uniform(size=(3, 4, 5, 2)).astype(np.float32)
KEYS = example_keys(jax.random.key(1), jnp.arange(3))


def test_projected_gradient_by_hand(rng):
    """The loss is sum(w x**2) / 2, whose gradient is w x: steps in NumPy from the same random start."""
    w = rng.normal(size=IMAGES.shape[1:]).astype(np.float32)
    loss = lambda x: (w * x**2).sum((1, 2, 3)) / 2
    attacked = jax.jit(lambda attack, **how: projected_gradient(attack, loss, IMAGES, KEYS, **how), static_argnums=0)
    found = attacked(Attack(steps=3, radius=0.2, step_size=0.07))
    start = jax.vmap(lambda key: jax.random.uniform(key, IMAGES.shape[1:], minval=-1, maxval=1))(KEYS)
    start = np.asarray(start)
    x = np.clip(IMAGES + 0.2 * start, 0, 1)
    for _ in range(3):
        x = np.clip(np.clip(x + np.float32(0.07) * np.sign(w * x), IMAGES - 0.2, IMAGES + 0.2), 0, 1)
    np.testing.assert_allclose(found, x, atol=1e-6)
    # By default 2.5 radius / steps: two steps take each pixel from anywhere in the box to its end.
    ends = np.clip(IMAGES + 0.2 * np.sign(w), 0, 1)
    inside = (IMAGES > 0.21) & (IMAGES < 0.79)  # a pixel at 0 has no gradient here
    found = attacked(Attack(steps=2, radius=0.2))
    np.testing.assert_allclose(np.asarray(found)[inside], ends[inside], atol=1e-6)
    # Half the radius, half the step.
    half = attacked(Attack(steps=2, radius=0.2), radius=0.1)
    assert np.abs(half - IMAGES).max() <= 0.1 + 1e-6


def test_the_search_without_gradients_stays_in_the_box_and_raises_the_loss(rng):
    w = rng.normal(size=IMAGES.shape[1:]).astype(np.float32)
    loss = lambda x: (w * x).sum((1, 2, 3))
    found = np.asarray(square_search(0.1, 400, loss, IMAGES, KEYS))
    assert np.abs(found - IMAGES).max() <= 0.1 + 1e-6 and found.min() >= 0 and found.max() <= 1
    best = loss(np.clip(IMAGES + 0.1 * np.sign(w), 0, 1)) - loss(IMAGES)
    gain = np.asarray(loss(found) - loss(IMAGES))
    assert (gain > 0.8 * best).all() and (gain <= best + 1e-5).all()


def test_an_image_withstands_if_it_withstands_every_restart():
    """A classifier that is right where the first pixel is above a threshold; the attack is its random start alone."""
    index, attack, right = jnp.arange(16), Attack(steps=0, radius=0.2), lambda x: x[:, 0, 0, 0] > 0.5
    images = np.full((16, 1, 1, 1), 0.55, np.float32)
    loss = lambda x: x.sum((1, 2, 3))
    each = [np.asarray(strongest(attack, loss, right, images, index, n)) for n in (1, 2, 3, 32)]
    assert all((after <= before).all() for before, after in itertools.pairwise(each))
    assert each[0].any() and not each[-1].any()
    # It does not withstand an attack that happens to mend a mistake.
    assert not np.asarray(strongest(attack, loss, right, images - 0.1, index, 1)).any()


def test_trades_by_hand():
    net = network(CNN(widths=(2,), depth=1, norm=False, outputs=3))
    params, own = jax.jit(net.init)(jax.random.key(0), IMAGES)
    state = State(jnp.int32(0), jax.random.key(0), {"net": params}, {}, {"net": own}, ())
    other, labels, mask = IMAGES[::-1], np.array([0, 2, 1]), np.array([1.0, 1.0, 0.0], np.float32)
    batch = Batch(jnp.arange(3), mask, (IMAGES, other), labels)
    value, aux = jax.jit(trades_loss(net, 6.0, classification()))(params, state, batch, KEYS)
    apply = jax.jit(lambda x: jax.nn.softmax(net.apply(params, own, x)[0]))
    p, q = (np.asarray(apply(x), np.float64) for x in (IMAGES, other))
    expected = [-np.log(p[n, labels[n]]) + 6 * (p[n] * np.log(p[n] / q[n])).sum() for n in range(2)]
    assert float(value.value) == pytest.approx(np.mean(expected), rel=1e-5)
    assert float(aux.metrics["divergence"].value) == pytest.approx(
        np.mean((p[:2] * np.log(p[:2] / q[:2])).sum(1)), rel=1e-4
    )
    assert float(aux.metrics["accuracy"].value) == np.mean(p[:2].argmax(1) == labels[:2])
    assert divergence(jnp.log(jnp.array([[0.5, 0.5]])), jnp.log(jnp.array([[0.25, 0.75]])))[0] == pytest.approx(
        0.5 * np.log(2) + 0.5 * np.log(2 / 3)
    )


def test_the_radius_grows_over_the_ramp():
    config = AdversarialTraining(steps=1, radius=0.4, ramp=4)
    assert [float(config.radius_at(jnp.int32(n))) for n in (0, 1, 3, 9)] == pytest.approx([0.1, 0.2, 0.4, 0.4])
    assert float(AdversarialTraining(steps=1, radius=0.4).radius_at(jnp.int32(0))) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"radius": -0.1}, "radius must be"),
        ({"steps": -1}, "steps"),
        ({"ramp": -1}, "ramp"),
        ({"trades": 6.0}, r"adversarial\.trades .*: give --adversarial\.steps"),
    ],
)
def test_what_is_refused(options, said):
    with pytest.raises(UserError, match=said):
        AdversarialTraining(**options)


def test_corruptions_change_images_more_by_severity_and_keep_their_range():
    ramp = np.linspace(0.2, 0.8, 16, dtype=np.float32)
    images = np.stack([np.broadcast_to(ramp[:, None, None], (16, 16, 3)), np.full((16, 16, 3), 0.5)]).astype(np.float32)
    images[0, ::4, ::4] = 0.9
    keys = example_keys(jax.random.key(0), jnp.arange(2))
    for corruption in CORRUPTIONS:
        change = jax.jit(partial(corrupted, corruption))
        each = [np.asarray(change(keys, images, jnp.int32(level))) for level in range(5)]
        distances = [np.sqrt(((x - images) ** 2).mean()) for x in each]
        assert all(x.min() >= 0 and x.max() <= 1 for x in each)
        assert 0 < distances[0] < distances[2] < distances[4], (corruption.__name__, distances)
    blurred, flat = CORRUPTIONS[4](keys[0], images[1], jnp.int32(4)), CORRUPTIONS[5](keys[0], images[1], jnp.int32(4))
    np.testing.assert_allclose(blurred, images[1], atol=1e-6)
    np.testing.assert_allclose(flat, images[1], atol=1e-6)


def test_a_run_is_trained_and_attacked(tmp_path, capsys, without_pictures):
    """Digits, with and without adversarial training: under attack the first keeps more of its accuracy."""
    options = [
        "--steps",
        "200",
        "--run.steps-per-dispatch",
        "50",
        "--run.evaluate-every",
        "200",
        "--run.save-every",
        "200",
    ]
    options += ["--data.batch", "64", "--net.widths", "8", "--net.depth", "1", "--optimizer.schedule", "constant"]
    found = {}
    for name, more in (("plain", []), ("robust", ["--adversarial.steps", "3", "--adversarial.radius", "0.15"])):
        directory = tmp_path / name
        assert main(["digits_cnn", "--workdir", str(directory), *options, *more]) == 0
        asked = ["--steps", "5", "--radius", "0.15", "--queries", "50", "--curves", "60", "--restarts", "2"]
        asked += ["--step-size", "0.06"]
        assert script.main([str(directory), *asked]) == 0
        found[name] = json.loads((directory / "attack.json").read_text())
    plain, robust = found["plain"], found["robust"]
    assert plain["accuracy"] > 0.9 and robust["attacked_accuracy"] > plain["attacked_accuracy"] + 0.1
    assert robust["attacked_accuracy"] <= robust["accuracy"]
    assert robust["by_radius"]["0.0"] >= robust["by_radius"]["0.15"]
    assert robust["searched_accuracy_of_these"] >= robust["attacked_accuracy_of_these"]
    logged = [json.loads(line) for line in (tmp_path / "robust" / "metrics.jsonl").read_text().splitlines()]
    assert 0 < logged[-1]["attacked_accuracy"] <= logged[-1]["accuracy"]
    # The curve by radius goes through the attack that was asked for; by steps it is another one, which is named.
    for each in found.values():
        assert each["by_radius"]["0.15"] == each["attacked_accuracy_of_these"]
        assert each["about"]["by_steps"] == {"step_size": "2.5 radius / steps", "restarts": 1}
        assert each["about"]["by_corruption"] == "severities 1 to 5 of CIFAR-10-C"
    assert script.main([str(tmp_path / "nothing")]) == 2
    assert "holds no run" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["radius", "step_size"])
@pytest.mark.parametrize("value", ["nan", "1.5", "-0.1"])
def test_a_change_of_a_pixel_is_within_its_range(option, value, capsys):
    with pytest.raises(SystemExit, match="2"):
        script.main(["runs/x", f"--{option}={value}"])
    assert f"{option} must be between 0 and 1, not {value}" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("option", ["radius", "step_size"])
def test_an_attack_that_changes_nothing_is_refused(option, capsys):
    with pytest.raises(SystemExit, match="2"):
        script.main(["runs/x", f"--{option}=0"])
    assert f"{option} must be above 0" in " ".join(capsys.readouterr().err.split())


def test_the_first_images_are_read_once_and_counted():
    read = []

    def batch(n, mask):
        read.append(n)
        return Batch(np.arange(4) + 4 * n, np.array(mask), np.zeros((4, 1)), np.zeros(4, int))

    masks = [1, 0, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]
    test = EvalBatches([partial(batch, n, mask) for n, mask in enumerate(masks)])
    index = lambda limit: np.concatenate([each.index[counted] for each, counted in first_images(test, limit)]).tolist()
    assert index(3) == [0, 2, 3] and read == [0]
    assert index(4) == [0, 2, 3, 4] and read == [0, 0, 1]
    assert index(None) == index(100) == [0, 2, 3, 4, 5, 6, 7, 8, 9]


def test_the_share_that_withstands_is_of_the_first_images():
    images = np.arange(6, dtype=np.uint8).reshape(2, 3, 1, 1, 1) * 50
    test = [Batch(np.arange(3), np.array([1, 1, 1 - n]), x, np.zeros(3, int)) for n, x in enumerate(images)]
    brighter = lambda loss, right, images, index, value: images.max((1, 2, 3)) * 255 > value
    logits = lambda images: images.reshape(-1, 1)
    assert script.shares(logits, brighter, [20, 120], test, None) == [4 / 5, 2 / 5]
    assert script.shares(logits, brighter, [20, 120], test, 4) == [3 / 4, 1 / 4]


def test_the_search_finds_what_a_gradient_that_is_rounded_to_0_hides(tmp_path, monkeypatch, without_pictures, rng):
    """A linear classifier whose logits are a thousand times as large is as easy to mislead: a search by values of the
    cross-entropy, which are 0, would leave most images as they are."""
    images, kernel = rng.integers(0, 256, (64, 4, 4, 1)).astype(np.uint8), rng.normal(size=(16, 2)).astype(np.float32)
    logits = lambda images: images.reshape(len(images), -1) @ kernel
    test = [Batch(np.arange(64), np.ones(64), images, np.asarray(logits(images / 255).argmax(1)))]

    def searched(factor):
        classifier = SimpleNamespace(
            update=UpdateConfig(),
            adversarial=AdversarialTraining(),
            feeds=lambda: SimpleNamespace(test=test),
            pixel_logits=lambda state, images: factor * logits(images),
        )
        monkeypatch.setattr(script, "image_classifier", lambda directory: (classifier, None))
        script.attack(script.Options(tmp_path, steps=1, radius=0.1, queries=200))
        return json.loads((tmp_path / "attack.json").read_text())["searched_accuracy_of_these"]

    assert searched(1000) == searched(1) < 0.9


def test_attacks_do_without_float16(tmp_path, monkeypatch):
    """Its least number is 6e-8: of a sure classifier, most derivatives of the loss by the pixels are rounded to 0."""
    config = dataclasses.replace(EXPERIMENTS["cnn"], update=UpdateConfig(dtype="float16"))
    with pytest.raises(UserError, match=r"adversarial\.steps: float16"):
        dataclasses.replace(config, adversarial=AdversarialTraining(steps=1))

    def attacked(experiment):
        raise UserError(f"attacked in {experiment.update.dtype}")

    monkeypatch.setattr(Classify, "feeds", attacked)
    monkeypatch.setattr(script, "image_classifier", lambda directory: (config, None))
    with pytest.raises(UserError, match="attacked in float32"):
        script.attack(script.Options(tmp_path))


def test_trades_trains():
    """A step of TRADES: its divergence is logged. Evaluation attacks the label's loss, as that of any other run: by
    the divergence, which does not know the label, more images would withstand."""
    tiny = EXPERIMENTS["adversarial"]
    attack = dataclasses.replace(tiny.adversarial, steps=5, radius=0.3, ramp=0)
    config = dataclasses.replace(tiny, adversarial=dataclasses.replace(attack, trades=6.0))
    learner, feeds = config.build(), config.feeds()
    state, metrics = jax.jit(learner.step)(jax.jit(learner.init)(jax.random.key(0)), feeds.train.batch_at(0))
    assert 0 < float(metrics["divergence"].value) < float(metrics["loss"].value)
    plain = dataclasses.replace(tiny, adversarial=attack).build()
    found, expected = (jax.jit(each.evaluate)(state, feeds.test[0]) for each in (learner, plain))
    attacked = float(found["attacked_accuracy"].value)
    assert attacked == float(expected["attacked_accuracy"].value) < float(expected["accuracy"].value)
