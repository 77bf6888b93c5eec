"""The contract of the command line, and one clear message for each kind of bad input."""

import dataclasses
import errno
import json
import shutil
import typing

import jax
import numpy as np
import pytest
import tyro
from learners import classify, dqn

import research
from experiments.train import main
from research.core.errors import Failure, Mistake
from research.training import checkpoint, config

TINY = ["--net.widths", "4", "--net.depth", "1", "--steps", "4", "--run.chunk", "2", "--run.evaluate-every", "2"]
TINY += ["--run.save-every", "2", "--data.batch", "8"]


def run(capsys, *arguments: str) -> tuple[int, str]:
    """(status, everything said)"""
    try:
        status = main(list(arguments))
    except SystemExit as stop:
        status = stop.code
    said = capsys.readouterr()
    return status, " ".join((said.out + said.err).split())


def filled(value, prefix=""):
    """The dotted names of what `build` fills in, which is no option."""
    found = set()
    for field in config.fields(value):
        hint = typing.get_type_hints(type(value), include_extras=True)[field.name]
        if tyro.conf.Suppress in getattr(hint, "__metadata__", ()):
            found.add(f"{prefix}{field.name}")
        elif dataclasses.is_dataclass(getattr(value, field.name)):
            found |= filled(getattr(value, field.name), f"{prefix}{field.name}.")
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished") / "digits"
    assert main(["digits_cnn", "--workdir", str(workdir), *TINY]) == 0
    return workdir


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "digits")


@pytest.mark.parametrize("name", config.names())
def test_every_config_builds_and_its_help_lists_every_field(name, capsys):
    status, said = run(capsys, name, "--help")
    assert status == 0
    for field in config.leaves(config.load(name)):
        option = f"--{field.replace('_', '-')}"
        assert option in said.replace("-│", "") or field in filled(config.load(name)), option
    assert "python -m experiments.train" in config.header(name)


@pytest.mark.parametrize("name", config.names())
def test_json_and_back(name):
    value = config.load(name)
    changed = dataclasses.replace(
        value, run=dataclasses.replace(value.run, seed=3, patience=2, published=(("x", 1.5),))
    )
    assert config.from_json(name, json.loads(json.dumps(config.to_json(changed)))) == changed
    assert config.differences(value, config.to_json(value)) == []
    assert any(d.startswith("run.seed: 3 there, 0 now") for d in config.differences(value, config.to_json(changed)))


def test_a_run_leaves_what_was_promised(finished):
    names = {path.name for path in finished.iterdir()}
    assert {"config.json", "metrics.jsonl", "summary.json", "checkpoints", "curves.png", "tensorboard"} <= names
    summary = json.loads((finished / "summary.json").read_text())
    assert set(summary["test"]["accuracy"]) == {"mean", "spread", "each"}
    assert summary["state"] == "last" and summary["seconds"] > 0 and summary["steps_per_second"] > 0
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [(x["step"], x["split"]) for x in lines] == [
        (2, "train"),
        (2, "validation"),
        (4, "train"),
        (4, "validation"),
    ]
    assert {"loss", "accuracy", "gradient_norm", "learning_rate", "time"} <= set(lines[0])
    about = json.loads((finished / "config.json").read_text())
    assert about["name"] == "digits_cnn" and about["versions"]["jax"] and about["config"]["data"]["batch"] == 8


def test_load_gives_config_learner_and_state(finished):
    experiment, learner, state = research.load(finished)
    assert experiment.net.widths == (4,) and state.step == 4
    metrics = learner.evaluate(state, experiment.feeds().test[0])
    assert 0 <= metrics["accuracy"].value <= 1 and metrics["accuracy"].count == 359


def test_seeds_are_reported_each_and_the_first_is_the_single_run(finished, tmp_path, capsys):
    status, _ = run(capsys, "digits_cnn", "--workdir", str(tmp_path / "s"), "--seeds", "2", *TINY)
    assert status == 0
    test = json.loads((tmp_path / "s" / "summary.json").read_text())["test"]["loss"]
    single = json.loads((finished / "summary.json").read_text())["test"]["loss"]
    assert test["each"][0] == pytest.approx(single["mean"], rel=1e-4) and test["each"][0] != test["each"][1]
    assert test["spread"] > 0 and test["mean"] == pytest.approx(sum(test["each"]) / 2)
    _, _, state = research.load(tmp_path / "s")
    assert state.params["Dense_0"]["bias"].shape == (2, 10)


def test_patience_stops_and_best_is_judged(tmp_path, capsys):
    arguments = ["--run.patience", "1", "--run.final", "best", "--optimizer.learning-rate", "0"]
    status, _ = run(capsys, "digits_cnn", "--workdir", str(tmp_path / "p"), *TINY, "--steps", "20", *arguments)
    summary = json.loads((tmp_path / "p" / "summary.json").read_text())
    # With a learning rate of 0, batch statistics alone move: the second evaluation may be better, not many after it.
    assert status == 0 and summary["state"] == "best"
    lines = [json.loads(x) for x in (tmp_path / "p" / "metrics.jsonl").read_text().splitlines()]
    accuracies = [x["accuracy"] for x in lines if x["split"] == "validation"]
    best = 2 * (1 + accuracies.index(max(accuracies)))
    assert summary["step"] == best and len(accuracies) == best // 2 + 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["digit_cnn"], "did you mean digits_cnn"),
        (["digits_cnn", "--net.width", "3"], "--net.widths"),
        (["digits_cnn", "--steps", "ten"], "--steps"),
        (["digits_cnn", "--optimizer.name", "adam"], "adamw"),
        (["digits_cnn", "--steps", "0"], "run.steps must be at least 1"),
        (["digits_cnn", "--data.batch", "-1"], "data.batch"),
        (["digits_cnn", "--seeds", "0"], "--seeds must be at least 1"),
        (["digits_cnn", "--run.evaluate-every", "70"], "the nearest are 50 or 100"),
        (["digits_cnn", "--run.keep", "1"], "run.keep must be at least 2"),
        (["digits_cnn", "--descent.micro", "3"], "descent.micro=3 does not divide data.batch=64"),
        (["digits_cnn", "--net.widths", "0"], "net.widths"),
        (["digits_cnn", "--run.metric", "acuracy", *TINY], "accuracy"),
        (["digits_cnn", "--data.name", "mnits"], "did you mean mnist?"),
        (["mnist_cnn", "--data.dir", "nowhere"], "--data.name digits needs nothing"),
        (["digits_cnn", "--place", "pmap", "--data.batch", "12"], "data.batch"),
        (["cartpole_dqn", "--environment.name", "CartPole-v9"], "CartPole-v1"),
        (["cartpole_dqn", "--batch", "61"], "batch=61 is not a multiple of num_envs=10: the nearest are 60 or 70"),
        (["digits_cnn", "--init-from", "nowhere", *TINY], "nowhere"),
    ],
)
def test_what_is_typed_wrong(arguments, says, capsys, tmp_path):
    status, said = run(capsys, *arguments, "--workdir", str(tmp_path / "run"))
    assert status == 2, said
    assert says in said and "Traceback" not in said


def test_another_config_is_refused_naming_the_field(copy, capsys):
    status, said = run(capsys, "digits_cnn", "--workdir", str(copy), *TINY, "--seed", "5")
    assert status == 2 and "run.seed: 0 there, 5 now" in said and "--overwrite" in said
    status, said = run(capsys, "cartpole_dqn", "--workdir", str(copy))
    assert status == 2 and "digits_cnn" in said
    assert (copy / "summary.json").exists()
    status, said = run(capsys, "digits_cnn", "--workdir", str(copy), *TINY, "--seed", "5", "--overwrite")
    assert status == 0 and json.loads((copy / "config.json").read_text())["config"]["run"]["seed"] == 5


def test_another_version_or_something_else_is_refused(copy, capsys, tmp_path):
    about = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**about, "format": 99}))
    status, said = run(capsys, "digits_cnn", "--workdir", str(copy), *TINY)
    assert status == 2 and "another version" in said
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("dear")
    status, said = run(capsys, "digits_cnn", "--workdir", str(tmp_path / "home"), *TINY, "--overwrite")
    assert status == 2 and "something else" in said and (tmp_path / "home" / "thesis.txt").exists()


def test_damaged_config_json(copy):
    about = json.loads((copy / "config.json").read_text())
    about["config"]["net"]["widths"] = ["__import__('os')"]
    (copy / "config.json").write_text(json.dumps(about))
    with pytest.raises(Mistake, match="widths"):
        research.load(copy)


def test_a_damaged_newest_checkpoint_falls_back(copy, capsys):
    (copy / "summary.json").unlink()
    victim = max((copy / "checkpoints" / "4").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    status, said = run(capsys, "digits_cnn", "--workdir", str(copy), *TINY)
    assert status == 0 and said.count("is damaged (") == 1


def test_divergence_stops_and_keeps_the_last_good_checkpoint(tmp_path, capsys):
    arguments = [*TINY, "--steps", "200", "--optimizer.name", "sgd", "--optimizer.learning-rate", "1e30"]
    status, said = run(capsys, "digits_cnn", "--workdir", str(tmp_path / "n"), *arguments)
    assert status == 1 and "NaN or infinite at step" in said and "loss" in said and "--descent.clip" in said
    lines = [json.loads(line) for line in (tmp_path / "n" / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) for line in lines)


def test_debug_stops_at_the_operation_that_makes_a_nan(tmp_path):
    arguments = ["--augment.shift", "0", "--data.batch", "2", "--optimizer.name", "sgd"]
    arguments += ["--optimizer.learning-rate", "1e30", "--steps", "4", "--debug"]
    with pytest.raises(FloatingPointError, match="nan"):
        main(["digits_cnn", "--workdir", str(tmp_path / "n"), *TINY, *arguments])
    assert not jax.config.jax_disable_jit and not jax.config.jax_debug_nans


def test_a_full_disk_says_so(monkeypatch, tmp_path, capsys):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write_manifest", full)
    status, said = run(capsys, "digits_cnn", "--workdir", str(tmp_path / "f"), *TINY)
    assert status == 1 and "the disk is full" in said


def test_a_file_in_the_workdirs_place(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    status, said = run(capsys, "digits_cnn", "--workdir", str(tmp_path / "file"), *TINY)
    assert status == 1 and "--workdir" in said


def test_build_has_no_branch_on_floats():
    """A sweep may vmap `build` over any float field."""
    import jax.numpy as jnp

    def trained(rate, smoothing):
        experiment = classify()
        optimizer = dataclasses.replace(experiment.optimizer, learning_rate=rate)
        learner = dataclasses.replace(experiment, optimizer=optimizer, smoothing=smoothing).build()
        state, _ = learner.step(learner.init(jax.random.key(0)), experiment.feeds().train.batch_at(0))
        return state.params["Dense_0"]["bias"]

    rates, smoothings = jnp.array([0.01, 0.1]), jnp.array([0.0, 0.2])
    both = jax.jit(jax.vmap(trained))(rates, smoothings)
    np.testing.assert_allclose(both[1], jax.jit(trained)(0.1, 0.2), rtol=1e-4, atol=1e-6)
    played = jax.eval_shape(lambda gamma: dqn(gamma=gamma).build().init(jax.random.key(0)), 0.9)
    assert played.step.shape == ()


def test_failures_are_no_mistakes():
    assert not issubclass(Failure, Mistake) and not issubclass(Mistake, Failure)
