"""The contract of the command line, and one clear message for each kind of bad input."""

import dataclasses
import errno
import json
import shutil
import typing
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import printed
import pytest
import tyro
from digits import TINY
from learners import EXPERIMENTS

import research
from experiments import compare, evaluate, plot, sweep, train
from experiments import compile as compile_for
from experiments.train import main
from research.core.errors import RunError, UserError
from research.core.pruning import Pruning
from research.core.state import Learner, State
from research.core.update import UpdateConfig
from research.learners.classify import Classify
from research.training import checkpoint, config, locks, log, provenance, workdir
from research.training import run as training
from research.training.checks import usable_devices
from research.training.processes import ProcessGroup

pytestmark = pytest.mark.usefixtures("without_pictures")

DEEP = "[" * 200_000
"""JSON whose nesting is too deep to be read."""


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
def finished(tmp_path_factory, without_pictures):
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
    assert config.differences(value, config.to_json(value)) == {}
    assert config.differences(value, config.to_json(changed))["run.seed"] == (3, 0)


def test_a_run_from_before_a_field_was_there_has_its_default():
    now, before = config.load("mnist_cnn"), config.to_json(config.load("mnist_cnn"))
    del before["update"]["pruning"], before["mixing"]["mixup"]
    assert config.differences(now, before) == {} and config.from_json("mnist_cnn", before) == now
    pruned = dataclasses.replace(now, update=UpdateConfig(pruning=Pruning(sparsity=0.9)))
    assert config.differences(pruned, before) == {"update.pruning.sparsity": (None, 0.9)}
    with pytest.raises(UserError, match=r"there is no field update\.prunning"):
        config.differences(now, before | {"update": before["update"] | {"prunning": None}})
    with pytest.raises(UserError, match="update has fields, and is None there"):
        config.differences(now, before | {"update": None})


def test_a_run_leaves_what_was_promised(finished):
    names = {path.name for path in finished.iterdir()}
    assert {"config.json", "metrics.jsonl", "summary.json", "checkpoints", "tensorboard"} <= names
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
    assert lines[0]["time"]["steps_per_second"] is None  # it includes compiling
    assert lines[2]["time"]["steps_per_second"] == summary["steps_per_second"]
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
    assert state.params["net"]["head"]["bias"].shape == (2, 10)


def test_patience_stops_and_best_is_judged(tmp_path, capsys):
    arguments = ["--run.patience", "1", "--run.checkpoint-for-test", "best", "--optimizer.learning-rate", "0"]
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
        (["digits_cnn", "--update.clip", "-1", *TINY], "update.clip must be above 0"),
        (["digits_cnn", "--update.clip", "inf", *TINY], "update.clip must be finite, not inf"),
        (
            ["digits_cnn", "--optimizer.learning-rate", "-1", *TINY],
            "optimizer.learning_rate must be at least 0, not -1.0",
        ),
        (["digits_cnn", "--update.rates", "*", "-1", *TINY], "update.rates must be at least 0, not -1.0 for '*'"),
        (
            ["digits_cnn", "--optimizer.name", "sgd", "--optimizer.decays", "*", "-1", *TINY],
            "optimizer.decays must be at least 0, not -1.0 for '*'",
        ),
        (["digits_cnn", "--optimizer.b1", "1", *TINY], "optimizer.b1 must be below 1"),
        (["digits_cnn", "--optimizer.halve-at", "0.5", "1.5", *TINY], "optimizer.halve_at must be between 0 and 1"),
        (["digits_cnn", "--augment.noise", "-1", *TINY], "augment.noise must be at least 0"),
        (["digits_cnn", "--mixing.mixup", "0", *TINY], "mixing.mixup must be more than 0, or None for none"),
        *(
            ([name, "--smoothing", "2"], "smoothing must be between 0 and 1")
            for name in ("digits_cnn", "imdb_lstm", "multi30k_transformer")
        ),
        (["multi30k_lstm", "--length-penalty", "-1"], "length_penalty must be at least 0, not -1"),
        (["digits_cnn", "--net.dropout", "1.5", *TINY], "a dropout rate must be at least 0 and below 1, not 1.5"),
        (["digits_cnn", "--data.name", "./digits", *TINY], "a data set of TensorFlow Datasets is expected, not a path"),
        (
            ["digits_cnn", "--seed", "99999999999999999999", *TINY],
            "run.seed must be between -2147483648 and 2147483647",
        ),
        (["digits_cnn", "--seed", "2147483647", "--seeds", "2", *TINY], "--seeds 2: the last seed is 2147483648"),
        (["digits_cnn", "--update.grad-accum-steps", "3"], "update.grad_accum_steps=3 does not divide data.batch"),
        (["digits_cnn", "--net.widths", "0"], "net.widths"),
        (["digits_cnn", "--net.hidden", "-1", *TINY], "hidden of CNN must be at least 0, not -1"),
        (["digits_vit", "--net.stack.mlp-dim", "-1"], "stack.mlp_dim must be at least 1, not -1"),
        (["cartpole_dqn", "--net.widths", "16", "0"], "widths of MLP must be at least 1, not (16, 0)"),
        (["digits_cnn", "--run.metric", "acuracy", "--run.mode", "max", *TINY], "one of accuracy"),
        (["digits_cnn", "--run.metric", "mistakes", "--run.mode", "min", *TINY], "there is no metric 'mistakes': set"),
        (
            ["digits_cnn", "--run.metric", "loss"],
            "loss is maximised or minimised: give --run.mode max or --run.mode min",
        ),
        (["digits_cnn", "--data.name", "mnits"], "did you mean mnist?"),
        (
            ["digits_cnn", "--data.limit", "1"],
            "1 training examples are too few to hold some out: give more",
        ),
        (["mnist_cnn", "--data.dir", "nowhere"], "--data.name digits needs nothing"),
        (["digits_cnn", "--place", "pmap", "--data.batch", "12"], "data.batch=12 (the nearest: 8 or 16): choose"),
        (["cartpole_dqn", "--environment.name", "CartPole-v9"], "CartPole-v1"),
        (["cartpole_dqn", "--batch", "61"], "batch=61 is not a multiple of num_envs=8: the nearest are 56 or 64"),
        (["digits_cnn", "--init-from", "nowhere", *TINY], "nowhere"),
    ],
)
def test_what_is_typed_wrong(arguments, says, capsys, tmp_path):
    status, said = run(capsys, *arguments, "--workdir", str(tmp_path / "run"))
    assert status == 2, said
    assert says in said and "Traceback" not in said
    assert "--init-from" not in arguments or not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("learner", "field", "value", "allowed"),
    [
        ("dqn", "gamma", 99.0, "between 0 and 1"),
        ("dqn", "epsilon_start", -1.0, "between 0 and 1"),
        ("drqn", "epsilon_end", 3.0, "between 0 and 1"),
        ("pqn", "epsilon_fraction", float("nan"), "between 0 and 1"),
        ("pqn", "q_lambda", -0.1, "between 0 and 1"),
        ("dqn", "tau", 5.0, "between 0 and 1"),
        ("dqn", "learning_starts", -5, "at least 0"),
        ("drqn", "burn_in", -1, "at least 0"),
        ("rainbow", "importance_exponent", -3.0, "between 0 and 1"),
        ("rainbow", "priority_exponent", -1.0, "at least 0"),
        ("ppo", "gae_lambda", 7.0, "between 0 and 1"),
        ("ppo", "clip_epsilon", -1.0, "at least 0"),
        ("ppo", "value_clip", -1.0, "at least 0"),
        ("simclr", "temperature", 0.0, "at least 0.001"),
        ("segment", "dice", -1.0, "at least 0"),
        ("restore", "adversarial", -0.01, "at least 0"),
        ("detector", "overlap", 60.0, "between 0 and 1"),
        ("detector", "least_score", -0.05, "between 0 and 1"),
        ("gan", "gradient_penalty", -10.0, "at least 0"),
        ("cyclegan", "identity", -5.0, "at least 0"),
        *((name, "average", 2.0, "between 0 and 1") for name, x in EXPERIMENTS.items() if hasattr(x, "average")),
        *((name, at, 0, "at least 1") for name, x in EXPERIMENTS.items() for at in vars(x) if at.endswith("_every")),
    ],
)
def test_numbers_out_of_range_are_refused(learner, field, value, allowed):
    with pytest.raises(UserError, match=f"^{field} must be {allowed}, not {value}$"):
        dataclasses.replace(EXPERIMENTS[learner], **{field: value})


def test_a_run_that_ends_before_it_learns_is_warned_of(capsys, tmp_path):
    """10,240 frames of 128 a step fill 80 steps, and the last of them learns. The wrong metric ends the run early."""
    small = (
        "--run.steps-per-dispatch",
        "1",
        "--run.metric",
        "retrun",
        "--run.mode=max",
        "--workdir",
        str(tmp_path / "run"),
    )
    for steps, warned in (("79", True), ("80", False)):
        status, said = run(capsys, "cartpole_dqn", "--steps", steps, *small)
        assert status == 2 and "retrun" in said
        assert ("warning: nothing is learned in 79 steps, since the first 79 only fill the replay" in said) == warned


def test_another_config_is_refused_naming_the_field(copy, capsys):
    status, said = run(capsys, "digits_cnn", "--workdir", str(copy), *TINY, "--seed", "5")
    assert status == 2 and "run.seed: 0 there, 5 now" in said and "--overwrite" in said
    status, said = run(capsys, "cartpole_dqn", "--workdir", str(copy))
    assert status == 2 and "digits_cnn" in said
    assert (copy / "summary.json").exists()
    assert owned(copy, *TINY, "--seed", "5", "--overwrite")["config"]["run"]["seed"] == 5


def test_another_version_is_refused_in_one_line_and_may_be_overwritten(copy, capsys):
    about = json.loads((copy / "config.json").read_text())
    for version in (1, 99):
        (copy / "config.json").write_text(json.dumps({**about, "format": version}))
        with pytest.raises(UserError) as refused:
            research.load(copy)
        why = str(refused.value)
        assert f"(format {version}; this version has {workdir.FORMAT})" in why and "\n" not in why
        status, said = run(capsys, "digits_cnn", "--workdir", str(copy), *TINY)
        assert status == 2 and why in said
    with workdir.owned(copy, "digits_cnn", config.parse("digits_cnn", [*TINY, "--overwrite"])):
        assert sorted(path.name for path in copy.iterdir()) == [".lock", "config.json"]
    assert json.loads((copy / "config.json").read_text())["format"] == workdir.FORMAT


@pytest.mark.parametrize("there", [{"thesis.txt": "dear"}, {"config.json": '{"model_type": "bert"}', "a.txt": "dear"}])
def test_a_directory_of_something_else_is_left_alone(there, capsys, tmp_path):
    for name, text in there.items():
        (tmp_path / name).write_text(text)
    status, said = run(capsys, "digits_cnn", "--workdir", str(tmp_path), *TINY, "--overwrite")
    assert status == 2 and "choose another --workdir" in said
    assert {p.name: p.read_text() for p in tmp_path.iterdir() if p.name != ".lock"} == there


@pytest.mark.parametrize(
    ("directory", "why"),
    [
        ("gs://bucket/run", 'gs://bucket/run needs the package gcsfs: pip install -e ".[gcs]"'),
        ("gs://bucket", "gs://bucket names no directory in a bucket: give gs://BUCKET/DIRECTORY"),
        ("s3://bucket/run", "s3://bucket/run is neither a local directory nor one in a bucket of Google Cloud Storage"),
    ],
)
def test_a_bucket_that_can_not_be_reached_is_no_directory(directory, why, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    status, said = run(capsys, "digits_cnn", "--workdir", directory, *TINY)
    assert status == 2 and why in said and "\n" not in said
    status, said = run(capsys, "digits_cnn", "--init-from", directory, *TINY)
    assert status == 2 and why in said and "\n" not in said
    for script in (evaluate, plot):
        assert script.main([directory]) == 2 and why in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def owned(directory, *arguments, name="digits_cnn"):
    """Claims the directory for this command, and returns its config.json."""
    with workdir.owned(directory, name, config.parse(name, list(arguments))):
        return workdir.about(directory)


def begun(directory, command):
    """The State that the run of this command starts from."""
    with workdir.owned(directory, "digits_cnn", command):
        return training.begin(training.prepare(command, directory, ProcessGroup()))[1]


def test_init_from_starts_from_what_the_other_run_evaluates(tmp_path, capsys):
    """That is the average at its best checkpoint, here the first one: its later steps make it worse."""
    rates = ["--optimizer.name", "sgd", "--optimizer.learning-rate", "10", "--optimizer.schedule", "constant"]
    options = [
        *TINY,
        "--average",
        "0.5",
        "--run.checkpoint-for-test",
        "best",
        "--run.metric",
        "loss",
        "--run.mode",
        "min",
        *rates,
    ]
    assert run(capsys, "digits_cnn", "--workdir", str(tmp_path / "a"), *options)[0] == 0
    _, _, state = research.load(tmp_path / "a")
    assert json.loads((tmp_path / "a" / "summary.json").read_text())["step"] == 2
    found = begun(tmp_path / "b", config.parse("digits_cnn", [*TINY, "--init-from", str(tmp_path / "a")]))
    jax.tree.map(np.testing.assert_array_equal, found.params, state.collections["average"])


class Taught(Classify):
    """With a net that no optimizer moves."""

    def build(self) -> Learner:
        plain = super().build()

        def init(key: jax.Array) -> State:
            state = plain.init(key)
            return state._replace(params=state.params | {"teacher": {"kernel": jax.random.normal(key, (2,))}})

        return plain._replace(init=init)


def test_a_net_that_nothing_trains_is_given_by_init_from_or_warned_of(tmp_path, capsys):
    plain = config.parse("digits_cnn", [*TINY, "--steps", "2"]).config
    experiment = Taught(**{field.name: getattr(plain, field.name) for field in config.fields(plain)})
    a = begun(tmp_path / "a", config.Command(experiment))
    warning = "nothing trains teacher, and without --init-from DIR its weights are random"
    assert warning in " ".join(capsys.readouterr().err.split())
    seeded = dataclasses.replace(experiment, run=dataclasses.replace(experiment.run, seed=1))
    with checkpoint.Checkpoints(tmp_path / "a" / "checkpoints", 2, 0) as checkpoints:
        checkpoints.save(2, a)
    b = begun(tmp_path / "b", config.Command(seeded, init_from=tmp_path / "a"))
    assert "nothing trains" not in capsys.readouterr().err
    np.testing.assert_array_equal(a.params["teacher"]["kernel"], b.params["teacher"]["kernel"])


def test_a_metric_of_ones_own_has_a_mode_and_is_read_again():
    """A config.json has both, of which the mode may be the config's own."""
    parsed = config.parse("digits_cnn", ["--run.metric", "speed", "--run.mode=max"]).config
    assert (parsed.run.metric, parsed.run.mode) == ("speed", "max")
    assert config.from_json("digits_cnn", config.to_json(parsed)) == parsed
    assert config.parse("digits_cnn", ["--run.metric", "accuracy"]).config == config.load("digits_cnn")


def test_a_refused_command_does_not_claim_the_directory(tmp_path, capsys):
    status, said = run(capsys, "cartpole_dqn", "--workdir", str(tmp_path), "--environment.name", "Cartpole-v1")
    assert status == 2 and "did you mean CartPole-v1" in said
    assert owned(tmp_path, name="cartpole_dqn")["config"]["environment"]["name"] == "CartPole-v1"
    (tmp_path / "checkpoints" / "100.orbax-checkpoint-tmp").mkdir(parents=True)  # of a killed first save
    assert owned(tmp_path, "--seed", "3")["config"]["run"]["seed"] == 3
    for first in ("one", "two"):
        workdir.keep(tmp_path, {"tokenizer.json": first})  # nothing was trained with the one before
        assert (tmp_path / "tokenizer.json").read_text() == first
    for part in ("checkpoints/100", "checkpoints/100.json", "summary.json"):
        directory = tmp_path / "saved" / part.replace("/", "")
        owned(directory)
        workdir.keep(directory, {"tokenizer.json": "one"})
        (directory / part).parent.mkdir(exist_ok=True)
        (directory / part).write_text("")
        with pytest.raises(UserError, match=r"run\.seed: 0 there, 3 now"):
            owned(directory, "--seed", "3")
        with pytest.raises(UserError, match="is not the tokenizer"):
            workdir.keep(directory, {"tokenizer.json": "two"})


def test_another_init_from_is_refused_once_there_is_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    owned(Path("run"), "--init-from", "a")
    assert owned(Path("run"), "--init-from", "b")["init_from"] == "b"
    Path("run", "checkpoints").mkdir()
    Path("run", "checkpoints", "100.json").write_text("")
    for arguments, now in ((["--init-from", "c"], "c"), ([], "None")):
        with pytest.raises(UserError, match=rf"init_from: b there, {now} now"):
            owned(Path("run"), *arguments)
    assert owned(Path("run"), "--init-from", str(tmp_path / "b"))["init_from"] == "b"


def test_a_finished_run_says_so_and_whether_the_code_has_changed(copy, capsys):
    status, said = run(capsys, "digits_cnn", "--workdir", str(copy), *TINY)
    assert status == 0 and f"{copy} is already finished" in said and "--overwrite trains anew" in said
    assert "nothing was trained" not in said
    status, said = run(capsys, "digits_cnn", "--workdir", str(copy), *TINY, "--profile")
    assert status == 0 and "warning: nothing was trained: --profile had nothing to do" in said
    assert "has changed" not in said
    about = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**about, "code": "0" * 16}))
    status, said = run(capsys, "digits_cnn", "--workdir", str(copy), *TINY)
    assert status == 0 and f"warning: the code in research/ has changed since {copy} was started" in said


def test_other_data_than_before_is_told(copy, capsys):
    about = workdir.run_in(copy)
    feeds = config.from_json(about["name"], about["config"]).feeds()
    batch, validation = feeds.train.batch_at(0), feeds.validation[0]
    data = provenance.data((batch, validation))
    assert about["data"] == data == provenance.data((batch, validation))
    assert data != provenance.data((batch._replace(targets=batch.targets + 1), validation))
    workdir.check_data(copy, data, copy)
    assert capsys.readouterr().err == ""
    workdir.check_data(copy, "0" * 16, copy)
    said = " ".join(capsys.readouterr().err.split())
    assert f"warning: the data of {copy} has changed since it was started" in said
    assert workdir.run_in(copy) == about
    shutil.rmtree(copy / "checkpoints")
    (copy / "summary.json").unlink()
    workdir.check_data(copy, "1" * 16, copy)
    assert workdir.run_in(copy)["data"] == "1" * 16 and capsys.readouterr().err == ""


def test_the_hash_of_the_code(tmp_path):
    (tmp_path / "core").mkdir()
    for name, text in (("core/a.py", "1"), ("b.py", "2"), ("c.txt", "3")):
        (tmp_path / name).write_text(text)
    first = provenance.code(tmp_path)
    (tmp_path / "c.txt").write_text("4")
    assert provenance.code(tmp_path) == first
    changed = []
    for name, text in (("core/a.py", "12"), ("b.py", ""), ("d.py", "")):
        (tmp_path / name).write_text(text)
        changed.append(provenance.code(tmp_path))
    assert len({first, *changed}) == 4
    assert provenance.code() == provenance.code() != first


@pytest.mark.parametrize(
    ("flags", "deterministic"),
    [
        (None, False),
        ("--xla_gpu_deterministic_ops=true", True),
        ("--xla_cpu_multi_thread_eigen=false --xla_gpu_deterministic_ops", True),
        ("--xla_gpu_deterministic_ops=true --xla_gpu_deterministic_ops=false", False),
        ("--xla_gpu_deterministic_ops_too=true", False),
    ],
)
def test_deterministic_operations_are_recorded_and_their_lack_is_told_on_a_gpu(
    flags, deterministic, monkeypatch, tmp_path, capsys
):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    if flags is not None:
        monkeypatch.setenv("XLA_FLAGS", flags)
    about = owned(tmp_path)
    assert about["deterministic_ops"] is deterministic and about["xla_flags"] == (flags or "")
    provenance.check_deterministic()
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(platform="gpu")])
    provenance.check_deterministic()
    assert ("--xla_gpu_deterministic_ops=true" in capsys.readouterr().err) is not deterministic


def test_more_steps_extend_a_run_and_give_what_the_longer_run_gives(tmp_path, capsys):
    options = [*TINY, "--optimizer.schedule", "constant"]
    arguments = ["digits_cnn", "--workdir", str(tmp_path / "a"), *options]
    assert run(capsys, *arguments)[0] == 0
    status, said = run(capsys, *arguments, "--steps", "8")
    assert status == 0 and f"{tmp_path / 'a'}: extended from 4 to 8 steps" in said and "resumed at step 4 of 8" in said
    assert "warning" not in said
    assert run(capsys, "digits_cnn", "--workdir", str(tmp_path / "b"), *options, "--steps", "8")[0] == 0
    (first, _, one), (second, _, other) = research.load(tmp_path / "a"), research.load(tmp_path / "b")
    assert first == second and one.step == 8
    jax.tree.map(np.testing.assert_array_equal, one._replace(key=0), other._replace(key=0))
    summary = {name: json.loads((tmp_path / name).read_text()) for name in ("a/summary.json", "b/summary.json")}
    assert summary["a/summary.json"]["test"] == summary["b/summary.json"]["test"]
    assert json.loads((tmp_path / "a" / "summary_4.json").read_text())["step"] == 4
    assert json.loads((tmp_path / "a" / "config.json").read_text())["extended_from"] == [4]
    status, said = run(capsys, *arguments, "--steps", "8", "--run.save-every", "4")  # which changes no result
    assert status == 0 and "already finished" in said


def test_what_an_extension_changes_is_told_and_what_is_none_is_refused(copy, capsys):
    options = [*TINY, "--steps", "8"]
    with pytest.raises(
        UserError, match=r"run\.steps: 4 there, 8 now; .*data\.batch|data\.batch.*; run\.steps: 4 there"
    ):
        owned(copy, *options, "--data.batch", "16")
    with pytest.raises(UserError, match=r"run\.steps: 4 there, 2 now"):
        owned(copy, *TINY, "--steps", "2")
    with pytest.raises(UserError, match="seeds: None there, 2 now"):
        owned(copy, *options, "--seeds", "2")
    assert (copy / "summary.json").exists()
    assert owned(copy, *options)["config"]["run"]["steps"] == 8 and not (copy / "summary.json").exists()
    said = " ".join(capsys.readouterr().err.split())
    assert "extended from 4 to 8 steps" in said
    assert "warning: schedules are now computed for 8 steps (optimizer.schedule=one_cycle)" in said
    assert config.scheduled(config.load("cartpole_dqn")) == ["optimizer.schedule=linear", "epsilon_fraction=0.3"]


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("digits_cnn", ["--optimizer.lookahead.every", "2"], ["optimizer.lookahead.every=2"]),
        ("digits_cnn", ["--optimizer.lookahead.power", "0"], []),
        ("mnist_ddpm", [], []),
        ("cartpole_dqn", ["--epsilon-start", "0.05"], []),
        ("cartpole_dqn", ["--priority-exponent", "0.5"], ["epsilon_fraction=0.3", "importance_exponent=0.4"]),
    ],
)
def test_lookahead_and_importance_weights_are_scheduled(name, arguments, expected):
    assert config.scheduled(config.parse(name, ["--optimizer.schedule", "constant", *arguments]).config) == expected


def test_an_evaluation_that_the_longer_run_does_not_have_is_told(copy, capsys):
    """That of the last step, where the steps are no multiple of the interval."""
    lines = log.read(copy)
    assert [line["step"] for line in lines if line["split"] == "validation"] == [2, 4]
    told = "step 4 was evaluated as the last one: this counts for the best step"
    for kept in (lines, [line | {"step": 3} if line["step"] == 2 else line for line in lines]):
        (copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
        owned(copy, *TINY, "--steps", "8")
        assert (told in " ".join(capsys.readouterr().err.split())) == (kept is not lines)
        about = json.loads((copy / "config.json").read_text())
        about["config"]["run"]["steps"] = 4
        (copy / "config.json").write_text(json.dumps(about))


def test_overwriting_reports_what_it_can_not_delete(copy):
    shutil.move(copy / "checkpoints", copy.with_name("elsewhere"))
    (copy / "checkpoints").symlink_to(copy.with_name("elsewhere"))
    with pytest.raises(RunError, match=f"could not write to {copy}: .* symbolic link"):
        owned(copy, *TINY, "--overwrite")
    assert workdir.run_in(copy)["name"] == "digits_cnn"


@pytest.mark.parametrize("command", [train, compile_for, sweep])
def test_options_before_the_name_are_a_mistake(command, capsys):
    assert command.main(["--seeds", "3", "digits_cnn"]) == 2
    assert f"error: NAME comes first: python -m {command.__name__} NAME --seeds 3 digits_cnn" in capsys.readouterr().err
    assert command.main(["--help"]) == 0 and command.main([]) == 2
    assert capsys.readouterr().out


def test_a_command_that_is_refused_overwrites_nothing(copy, capsys):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    other = shutil.copytree(copy, copy.with_name("other"))
    refused = {
        f"--init-from {other} --net.widths 6": "holds something else",
        "--run.metric acuracy --run.mode max": "there is no metric 'acuracy'",
        f"--init-from {copy}": f"--overwrite would delete {copy}, which --init-from names: choose another --workdir",
        f"--init-from {copy.parent}/none": f"{copy.parent}/none holds no run",
    }
    for arguments, why in refused.items():
        command = ["digits_cnn", "--workdir", str(copy), *TINY, *arguments.split(), "--overwrite"]
        status, said = run(capsys, *command)
        assert status == 2 and why in said
        assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("done", [3, 5])
def test_an_extension_that_fails_leaves_the_run_as_it_was(copy, capsys, monkeypatch, done):
    """Unless the longer run has saved something, be it before the steps that the shorter one was to have: then it goes
    on from there."""
    shutil.rmtree(copy / "checkpoints" / "4")
    before = {name: (copy / name).read_bytes() for name in ("config.json", "summary.json")}
    saved: list[int] = []

    def fails(*_):
        for step in saved:
            (copy / "checkpoints" / f"{step}").mkdir()
        raise UserError("the data is gone")

    monkeypatch.setattr(research.training.run, "prepare", fails)
    status, said = run(capsys, "digits_cnn", "--workdir", str(copy), *TINY, "--steps", "8")
    assert status == 2 and "the data is gone" in said
    assert {name: (copy / name).read_bytes() for name in before} == before and not (copy / "summary_4.json").exists()
    saved.append(done)
    assert run(capsys, "digits_cnn", "--workdir", str(copy), *TINY, "--steps", "8")[0] == 2
    assert workdir.run_in(copy)["config"]["run"]["steps"] == 8 and not (copy / "summary.json").exists()


def test_an_extension_that_fails_before_it_saves_leaves_the_metrics_as_they_were(copy, capsys, monkeypatch):
    def fails(*_):
        raise RunError("the disk is full")

    steps = lambda: {e.step for path in (copy / "tensorboard").iterdir() for e in log._events(path)}
    metrics, before = (copy / "metrics.jsonl").read_bytes(), steps()
    monkeypatch.setattr(checkpoint.Checkpoints, "save", fails)
    status, said = run(capsys, "digits_cnn", "--workdir", str(copy), *TINY, "--steps", "8")
    assert status == 1 and "error: the disk is full" in said
    assert (copy / "metrics.jsonl").read_bytes() == metrics and steps() == before == {0, 2, 4}


def test_a_run_without_its_metrics_ends(copy, capsys):
    for name in ("summary.json", "metrics.jsonl"):
        (copy / name).unlink()
    status, said = run(capsys, "digits_cnn", "--workdir", str(copy), *TINY)
    assert status == 0 and "0.0 s, no steps/s" in said
    assert (
        f"warning: {copy / 'metrics.jsonl'} lacks lines of steps 2 to 4: curves and times leave these steps out" in said
    )
    assert json.loads((copy / "summary.json").read_text())["steps_per_second"] is None


@pytest.mark.parametrize("lost", ["train", "validation"])
def test_a_run_that_goes_by_its_scores_needs_them(copy, capsys, lost):
    """Else another step than the best one would be evaluated."""
    about = json.loads((copy / "config.json").read_text())
    about["config"]["run"]["checkpoint_for_test"] = "best"
    (copy / "config.json").write_text(json.dumps(about))
    (copy / "summary.json").unlink()
    command = ("digits_cnn", "--workdir", str(copy), *TINY, "--run.checkpoint-for-test", "best")
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_text("".join(line for line in lines if f'"{lost}"' not in line))
    status, said = run(capsys, *command)
    assert status == 2 and "lacks lines of steps" in said and "whose scores decide how the run goes on" in said
    assert not (copy / "summary.json").exists()
    (copy / "metrics.jsonl").write_text("".join(lines))
    assert run(capsys, *command)[0] == 0


@pytest.mark.parametrize("name", ["lr[0.1]", "a\udcff"])
def test_a_name_that_checkpoints_can_not_be_read_from_is_refused(tmp_path, capsys, name):
    """orbax takes it for a pattern, or can't encode it, and would say so once all was trained."""
    status, said = run(capsys, "digits_cnn", "--workdir", str(tmp_path / name / "run"), *TINY)
    assert status == 2 and "choose a --workdir without [, in UTF-8" in said and not list(tmp_path.iterdir())


@pytest.mark.parametrize("there", ["link", "file"])
def test_checkpoints_that_are_elsewhere_are_not_taken_for_none(copy, capsys, there):
    """The disk that a link leads to may not be mounted: the run is not begun anew, nor is another one."""
    shutil.move(copy / "checkpoints", copy.parent / "kept")
    (copy / "summary.json").unlink()
    before = {name: (copy / name).read_bytes() for name in ("config.json", "metrics.jsonl")}
    if there == "link":
        (copy / "checkpoints").symlink_to(copy.parent / "unmounted")
    else:
        (copy / "checkpoints").write_text("kept elsewhere")
    for more in ((), ("--optimizer.learning-rate", "1")):
        status, said = run(capsys, "digits_cnn", "--workdir", str(copy), *TINY, *more)
        assert status == 2 and "is no directory, or a link to nothing: restore it" in said
    assert {name: (copy / name).read_bytes() for name in before} == before


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_disk_without_locks_is_warned_of(tmp_path, capsys, monkeypatch, number):
    def flock(*_):
        raise OSError(number, "no locks")

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    assert owned(tmp_path)["name"] == "digits_cnn" and not locks.in_use(tmp_path)
    assert f"warning: this disk has no locks: see to it that no other process trains in {tmp_path}" in " ".join(
        capsys.readouterr().err.split()
    )


@pytest.mark.parametrize("field", ["optimizer.rate", "optimizer.name", "optimizer.learning_rate.real", "build"])
def test_a_sweep_over_what_is_no_number_of_its_config_is_not_loaded(copy, field):
    about = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**about, "seeds": 1, "over": [[field, [0.1, 0.2]]]}))
    with pytest.raises(UserError, match=f"config.json does not fit this version of samestep .it varies {field}, which"):
        research.load(copy)
    config.check_over(config.load("digits_cnn"), (("optimizer.learning_rate", (0.1,)), ("update.clip", (1.0, 2.0))))


def test_seeds_start_from_a_run_without_seeds_and_others_have_as_many(copy, capsys):
    command = lambda *options: config.parse("digits_cnn", [*TINY, *options])
    assert not workdir.repeated(copy, command())
    state = begun(copy.parent / "two", command("--seeds", "2", "--init-from", str(copy)))
    one = research.load(copy)[2]
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, np.stack([y, y])), state.params, one.params)
    about = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**about, "seeds": 3}))
    assert not workdir.repeated(copy, command("--seeds", "3"))
    for options, asked in ((["--seeds", "2"], "2"), ([], "one without --seeds")):
        with pytest.raises(UserError, match=f"has 3 seeds, and this command asks for {asked}: give --seeds 3, or"):
            workdir.repeated(copy, command(*options))


def test_another_tokenizer_says_what_to_choose_another_of(copy):
    (copy / "tokenizer.json").write_text("one")
    texts = {"tokenizer.json": "two"}
    with pytest.raises(UserError, match=r"or another run$"):
        workdir.check_kept(copy, texts)
    with pytest.raises(UserError, match=r"or another --init-from$"):
        workdir.check_kept(copy, texts, "--init-from")
    with pytest.raises(UserError, match=r"or another --workdir$"):
        workdir.keep(copy, texts)


@pytest.mark.parametrize(
    "damage",
    [
        *({"test": test} for test in (5, {"loss": 1}, {"loss": {"mean": 1, "spread": None, "each": 5}})),
        *({"state": None}, {"step": "4"}, {"published": []}, {"seconds": None}, {"reports": 5}),
        *("{", "{}", "[]", "null", DEEP),
    ],
    ids=lambda damage: str(damage)[:40],
)
def test_a_damaged_summary_is_said_in_one_line(copy, capsys, damage):
    path = copy / "summary.json"
    path.write_text(damage if isinstance(damage, str) else json.dumps(json.loads(path.read_text()) | damage))
    status, said = run(capsys, "digits_cnn", "--workdir", str(copy), *TINY)
    remedy = "delete it, and the command that began the run makes it anew"
    assert status == 2 and said == f"error: {path} is damaged: {remedy}"


def test_a_damaged_summary_is_made_anew_once_it_is_deleted(copy, capsys):
    path = copy / "summary.json"
    test = workdir.summary(copy)["test"]
    path.write_text("{}")
    other = str(shutil.copytree(copy, copy.parent / "other"))
    for script, options in ((evaluate, []), (compare, ["--against", other])):
        assert script.main([str(copy), *options]) == 2 and f"{path} is damaged: delete it" in printed.said(capsys)
    path.unlink()
    assert run(capsys, "digits_cnn", "--workdir", str(copy), *TINY)[0] == 0 and workdir.summary(copy)["test"] == test


def test_published_results_are_those_of_the_configs_data():
    published = lambda *arguments: config.parse("mnist_cnn", list(arguments)).config.run.published
    assert published("--net.widths", "8") == config.load("mnist_cnn").run.published != ()
    assert published("--data.name", "digits") == ()


@pytest.mark.parametrize(
    ("arguments", "same"),
    [
        (("--environment.reward-scale", "0.1"), True),
        (("--environment.time-limit", "20"), False),
        (("--environment.sticky-actions", "0.25"), False),
        (("--environment.params", "gravity", "0"), False),
    ],
)
def test_published_results_are_those_of_the_configs_environment(arguments, same):
    """As it is reported of: rewards are scaled in training alone."""
    published = config.parse("cartpole_ppo", list(arguments)).config.run.published
    assert published == (config.load("cartpole_ppo").run.published if same else ())


@pytest.mark.parametrize("steps", [4, 6])
def test_a_run_that_stopped_early_is_not_extended(copy, steps):
    """It may have stopped at what was its last step."""
    options = [*TINY, "--run.patience", "1", "--steps"]
    command = config.parse("digits_cnn", [*options, f"{steps}"])
    (copy / "config.json").write_text(json.dumps(workdir._describe("digits_cnn", command)))
    lines = [{"step": step, "split": "validation", "accuracy": 1 / step, "time": {"unix": 0.0}} for step in (2, 4)]
    (copy / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    with pytest.raises(UserError, match=rf"stopped early, at step 4 of {steps}, by --run\.patience"):
        owned(copy, *options, "8")
    assert (copy / "summary.json").exists()


def test_a_run_that_was_killed_as_it_began_starts_again(tmp_path):
    (tmp_path / ".config.tmp.json").write_text("{")
    assert owned(tmp_path)["name"] == "digits_cnn"
    (tmp_path / "config.json").unlink()
    (tmp_path / "notes.md").write_text("mine")
    with pytest.raises(UserError, match="holds something other than a run"):
        owned(tmp_path)


def test_damaged_config_json(copy):
    about = json.loads((copy / "config.json").read_text())
    about["config"]["net"]["widths"] = ["__import__('os')"]
    (copy / "config.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="widths"):
        research.load(copy)


@pytest.mark.parametrize(
    "damage",
    [
        *({"name": name} for name in (5, None)),
        *({"config": config} for config in (None, {}, {"run": {"steps": "abc"}}, {"run": {"steps": {}}})),
        *({"seeds": seeds} for seeds in ("3", [1], 0, -1, 2.0, True, 2**31)),
        *({"over": over} for over in (5, None, ["ab"], [["optimizer.learning_rate", []]], [["a", ["b"]]])),
        *({"init_from": 5}, {"init_paths": 5}, {"code": 5}, {"topology": 5}, {"extended_from": 5}),
        *("init_from", "code", DEEP),
    ],
    ids=lambda damage: str(damage)[:40],
)
def test_a_config_json_that_no_run_has_written_is_said_in_one_line(copy, capsys, damage):
    path = copy / "config.json"
    about = json.loads(path.read_text())
    left = {name: value for name, value in about.items() if name != damage}
    path.write_text(damage if damage == DEEP else json.dumps(left if isinstance(damage, str) else about | damage))
    status, said = run(capsys, "digits_cnn", "--workdir", str(copy), *TINY)
    assert status == 2 and said.startswith(f"error: {path} ") and "choose another --workdir" in said
    for read in (research.load, workdir.evaluates_best):
        with pytest.raises(UserError, match=rf"{path} (was not written by a run, or is damaged|can't be read \()"):
            read(copy)


def test_a_run_whose_config_is_older_is_gone_by_where_none_is_built(copy, capsys):
    """`--init-from` and `compare` read what they need, also where its config is no longer there."""
    about = json.loads((copy / "config.json").read_text())
    del about["config"]["run"]["checkpoint_for_test"]
    about["name"] = "gone"
    (copy / "config.json").write_text(json.dumps(about))
    assert not workdir.evaluates_best(copy)
    shutil.copytree(copy, copy.parent / "other")
    output = ["--output", str(copy.parent / "compare.png")]
    assert compare.main([str(copy), "--against", str(copy.parent / "other"), *output]) == 0
    about |= {"name": "digits_cnn", "config": about["config"] | {"update": None}}
    (copy / "config.json").write_text(json.dumps(about))
    message = rf"{copy / 'config.json'} does not fit this version of samestep \(.*\): restore it, or use the version"
    with pytest.raises(UserError, match=message):
        research.load(copy)


def test_a_damaged_newest_checkpoint_falls_back(copy, capsys):
    (copy / "summary.json").unlink()
    victim = max((copy / "checkpoints" / "4").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    status, said = run(capsys, "digits_cnn", "--workdir", str(copy), *TINY)
    assert status == 0 and said.count("is damaged (") == 1 and f"{copy}: resumed at step 2 of 4" in said


def test_divergence_stops_and_keeps_the_last_good_checkpoint(tmp_path, capsys):
    arguments = [*TINY, "--steps", "200", "--optimizer.name", "sgd", "--optimizer.learning-rate", "1e30"]
    status, said = run(capsys, "digits_cnn", "--workdir", str(tmp_path / "n"), *arguments)
    assert status == 1 and "NaN or infinite at step" in said and "loss" in said and "--update.clip" in said
    lines = [json.loads(line) for line in (tmp_path / "n" / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) for line in lines)


def test_debug_stops_at_the_operation_that_makes_a_nan(tmp_path):
    arguments = ["--augment.shift", "0", "--net.no-norm", "--data.batch", "2", "--optimizer.name", "sgd"]
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
    assert status == 1 and "choose another directory" in said


def test_build_has_no_branch_on_floats():
    """A sweep may vmap `build` over any float field."""
    import jax.numpy as jnp

    def trained(rate, smoothing):
        experiment = EXPERIMENTS["cnn"]
        optimizer = dataclasses.replace(experiment.optimizer, learning_rate=rate)
        learner = dataclasses.replace(experiment, optimizer=optimizer, smoothing=smoothing).build()
        state, _ = learner.step(learner.init(jax.random.key(0)), experiment.feeds().train.batch_at(0))
        return state.params["net"]["head"]["bias"]

    rates, smoothings = jnp.array([0.01, 0.1]), jnp.array([0.0, 0.2])
    both = jax.jit(jax.vmap(trained))(rates, smoothings)
    np.testing.assert_allclose(both[1], jax.jit(trained)(0.1, 0.2), rtol=1e-4, atol=1e-6)
    played = jax.eval_shape(
        lambda gamma: dataclasses.replace(EXPERIMENTS["dqn"], gamma=gamma).build().init(jax.random.key(0)), 0.9
    )
    assert played.step.shape == ()


def test_run_errors_are_no_user_errors():
    assert not issubclass(RunError, UserError) and not issubclass(UserError, RunError)


def test_as_many_devices_are_used_as_divide_the_sizes(capsys):
    devices, experiment = jax.devices(), EXPERIMENTS["dqn"]
    assert usable_devices(experiment, devices) == devices
    assert "warning" not in capsys.readouterr().err
    odd = dataclasses.replace(experiment, num_envs=6, batch=30, buffer_size=6 * 16)
    assert usable_devices(odd, devices) == devices[:2]  # they divide 6 and, of the episodes, 16
    said = " ".join(capsys.readouterr().err.split())
    assert "8 devices do not divide num_envs=6 (the nearest: 8), batch=30 (the nearest: 24 or 32): 2 of" in said
