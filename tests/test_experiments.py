"""The scripts: evaluate, plot, reproduce, demo; and the reports that a run leaves."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from digits import TINY
from learners import EXPERIMENTS
from matplotlib.image import imread
from printed import said

import research
from experiments import (
    agree,
    benchmark,
    compiled,
    compress,
    console,
    demo,
    dtypes,
    evaluate,
    places,
    plot,
    reproduce,
    runs,
    scores,
    train,
    transfer,
)
from research.core.errors import RunError
from research.core.experiment import Report, Split
from research.core.state import State
from research.data.feed import EvalBatches
from research.evaluation import images
from research.learners.classify import Classify
from research.training import checkpoint, config, log
from research.training.run import reported


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two seeds."""
    workdir = tmp_path_factory.mktemp("finished") / "digits"
    assert train.main(["digits_cnn", "--workdir", str(workdir), "--seeds", "2", *TINY]) == 0
    return workdir


def files(directory):
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*")}


def test_a_run_stopped_by_a_signal_while_it_is_judged_is_judged_again(tmp_path, monkeypatch, capsys):
    arguments = ["digits_cnn", "--workdir", str(tmp_path), *TINY]
    stop = Report(lambda *_: signal.raise_signal(signal.SIGTERM))
    monkeypatch.setattr(Classify, "reports", lambda *_: [stop])
    assert train.main(arguments) == 128 + signal.SIGTERM
    assert "stopped by SIGTERM and saved; the same command resumes" in said(capsys)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL and not (tmp_path / "summary.json").exists()
    monkeypatch.setattr(Classify, "reports", lambda *_: [])
    assert train.main(arguments) == 0 and (tmp_path / "summary.json").exists()


def test_a_signal_during_the_last_save_stops_the_run_before_it_is_judged(tmp_path, monkeypatch):
    arguments, write = ["digits_cnn", "--workdir", str(tmp_path), *TINY], checkpoint._write_manifest

    def stop(directory, step, manifest):
        write(directory, step, manifest)
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(checkpoint, "_write_manifest", stop)
    assert train.main(arguments) == 128 + signal.SIGTERM
    assert (tmp_path / "checkpoints" / "4.json").exists() and not (tmp_path / "summary.json").exists()


def test_an_interruption_anywhere_is_one_line(capsys):
    def interrupted():
        raise KeyboardInterrupt

    assert console.status(interrupted) == 130 and said(capsys) == "stopped by SIGINT"


def test_too_little_memory_is_one_line(capsys):
    """As the CPU says it; GPUs and TPUs say RESOURCE_EXHAUSTED. Other errors of the runtime are ours to see."""

    def allocated():
        jax.block_until_ready(jax.jit(lambda: jax.numpy.ones((2**20, 2**24)))())

    assert console.status(allocated) == 1
    assert said(capsys).startswith("error: the devices are out of memory: try smaller batches")

    def failed():
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        console.status(failed)


def test_evaluate_uses_the_devices_that_training_does(finished, tmp_path, monkeypatch, capsys):
    """Batches and environments need not be divisible by all devices; another tokenizer is refused."""
    copy = shutil.copytree(finished, tmp_path / "copy")
    about = json.loads((copy / "config.json").read_text())
    about["config"]["data"]["evaluation_batch"] = 7
    (copy / "config.json").write_text(json.dumps(about))
    experiment, learner, state = research.load(copy)
    monkeypatch.setattr(research, "load", lambda _: (experiment, learner, state._replace(world=np.zeros((2, 7)))))
    assert evaluate.main([str(copy)]) == 0 and "warning: loss is" not in said(capsys)
    (copy / "tokenizer.json").write_text("one")
    feeds = experiment.feeds()._replace(kept={"tokenizer.json": "two"})
    monkeypatch.setattr(Classify, "feeds", lambda _: feeds)
    assert evaluate.main([str(copy)]) == 2 and f"{copy / 'tokenizer.json'} is not the tokenizer" in said(capsys)


def test_a_script_for_one_seed_says_which_it_takes(finished, capsys):
    _, state = runs.image_classifier(finished)
    assert state.key.shape == () and f"{finished} has several seeds, of which this is seed 0" in said(capsys)


def test_evaluate_gives_the_figures_of_the_summary_and_writes_nothing(finished, monkeypatch, capsys):
    shown, before = [], files(finished)
    monkeypatch.setattr(evaluate, "show", lambda title, test, others: shown.append((test, others)))
    assert evaluate.main([str(finished)]) == 0
    ((test, others),) = shown
    summary = json.loads((finished / "summary.json").read_text())
    for metric, value in summary["test"].items():
        assert test[metric]["each"] == pytest.approx(value["each"], rel=1e-5)
        assert others["summary.json"][metric] == value["mean"]
    assert files(finished) == before and "warning" not in said(capsys)


def test_evaluate_tells_what_differs_and_what_is_no_run(finished, tmp_path, monkeypatch, capsys):
    (tmp_path / "copy").mkdir()
    for part in ("config.json", "checkpoints"):
        (tmp_path / "copy" / part).symlink_to(finished / part)
    summary = json.loads((finished / "summary.json").read_text())
    summary["test"]["accuracy"]["mean"] = 0.75
    summary["test"]["speed"] = {"mean": 0.5, "spread": None, "each": [0.5]}
    (tmp_path / "copy" / "summary.json").write_text(json.dumps(summary))
    assert evaluate.main([str(tmp_path / "copy")]) == 0
    out = said(capsys)
    assert "warning: accuracy is" in out and "0.75 in" in out and "warning: loss" not in out
    assert "warning: speed is no longer computed; it is 0.5 in" in out and "has not finished" not in out
    (tmp_path / "copy" / "summary.json").unlink()
    assert evaluate.main([str(tmp_path / "copy")]) == 0
    assert "warning: the run has not finished: it has 4 steps" in said(capsys)
    (tmp_path / "file").write_text("")
    for name in ("nowhere", "file"):
        assert evaluate.main([str(tmp_path / name)]) == 2
        assert f"{name} holds no run" in said(capsys)


def test_plot_draws_the_runs_by_name(finished, tmp_path, monkeypatch, capsys):
    (tmp_path / "other").symlink_to(finished)
    drawn = []
    draw = plot.learning_curves
    monkeypatch.setattr(plot, "learning_curves", lambda runs, path: (drawn.append(runs), draw(runs, path)))
    picture = tmp_path / "both.png"
    assert plot.main([str(finished), str(tmp_path / "other"), "--output", str(picture)]) == 0
    # Two directories of one name are told apart by their paths.
    assert list(drawn[0]) == [str(finished), str(tmp_path / "other")]
    assert [line["step"] for line in drawn[0][str(finished)]] == [2, 2, 4, 4]
    assert imread(picture).std() > 0.01


def test_plot_says_what_is_wrong(finished, tmp_path, capsys):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").symlink_to(finished / "config.json")
    for arguments, message in (
        ([], "name the directory of at least one run"),
        ([str(tmp_path)], "holds no run"),
        ([str(tmp_path / "begun")], "nothing to plot yet"),
        ([str(finished), "--output", "curves.pdf"], "must end in .png"),
        ([str(finished), "--output", "nowhere/curves.png"], "there is no directory nowhere"),
    ):
        assert plot.main(arguments) == 2
        assert message in said(capsys)


@pytest.mark.parametrize(
    "script, arguments",
    [
        (agree, ["nothing"]),
        (benchmark, ["pqn"]),
        (compiled, ["mnist_cnn"]),
        (compress, ["nothing"]),
        (dtypes, ["nothing"]),
        (places, ["nothing"]),
        (scores, []),
        (transfer, ["--tuning=--nothing"]),
    ],
)
def test_a_file_in_a_directory_that_is_not_there_is_refused_first(script, arguments, capsys):
    """Before anything is measured, which takes minutes."""
    try:
        status = script.main([*arguments, "--output", "nowhere/found.json"])
    except SystemExit as exited:  # where the options are a class
        status = exited.code
    assert status == 2
    assert "--output nowhere/found.json: there is no directory nowhere" in said(capsys)


def test_an_output_that_is_a_directory_is_refused_first(tmp_path, capsys):
    assert dtypes.main(["nothing", "--output", str(tmp_path)]) == 2
    assert f"--output {tmp_path} is a directory: name a file" in said(capsys)


def test_a_run_without_metrics_is_left_out_of_a_picture(finished, tmp_path, capsys):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").symlink_to(finished / "config.json")
    output = tmp_path / "curves.png"
    assert plot.main([str(finished), str(tmp_path / "begun"), "--output", str(output)]) == 0 and output.exists()
    assert "warning: there is nothing to plot yet in begun" in said(capsys)


def test_transfer_may_write_to_the_directory_that_it_makes(tmp_path):
    directory = tmp_path / "transfer"
    assert transfer.Options(directory=directory, output=directory / "found.json").output


def test_a_result_whose_report_has_failed_has_no_number():
    result = {"test": {"loss": {"mean": 1.0, "spread": None, "each": [1.0]}}, "published": {"bleu": 41.0}}
    assert console.headlines(result, "bleu") == [("bleu", "", "41")]


def test_reproduce_goes_on_after_a_failure_and_writes_the_table(tmp_path, monkeypatch, capsys):
    test = {"accuracy": {"mean": 0.9891, "spread": 0.0012, "each": [0.98, 0.99]}, "loss": {}}
    result = {"test": test, "published": {"accuracy": 0.9905}, "seeds": [0, 1], "step": 400}
    result |= {"seconds": 12.3, "steps_per_second": 45.6, "device": "1 x cpu (x)"}
    trained = []

    def fake(name, command):
        trained.append((name, command.seeds, command.workdir))
        if name == "digits_cnn":
            raise RunError("the disk is [full]")
        if name == "cartpole_dqn":
            raise ZeroDivisionError
        return result

    monkeypatch.setattr(reproduce, "train", fake)
    names = ["digits_cnn", "cartpole_dqn", "mnist_cnn"]
    assert reproduce.main([*names, "--seeds", "2", "--runs", str(tmp_path)]) == 1
    assert trained == [(name, 2, tmp_path / name) for name in names]
    table = (tmp_path / "RESULTS.md").read_text()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert cells[0] == list(reproduce.COLUMNS)
    assert cells[2][:3] == ["digits_cnn", "accuracy", "failed"] and cells[3][:3] == ["cartpole_dqn", "return", "failed"]
    figures = ["mnist_cnn", "accuracy", "0.9891 ± 0.0012", "0.9905", "2", "400", "12", "45.6", "1 x cpu (x)"]
    assert cells[4] == [*figures, "`python -m experiments.train mnist_cnn --seeds 2`"]
    out = said(capsys)
    assert "the disk is [full]" in out and "ZeroDivisionError" in out and " ".join(table.split()) in out
    assert reproduce.main(["mnist_cnn", "--output", str(tmp_path / "mine.md")]) == 0
    assert len((tmp_path / "mine.md").read_text().splitlines()) == 3
    trained.clear()
    assert reproduce.main(["mnist_cnn", "--output", str(tmp_path / "nowhere" / "mine.md")]) == 2
    assert "there is no directory" in said(capsys) and not trained


def test_reproduce_leaves_a_finished_run_alone_and_checks_names_first(finished, tmp_path, monkeypatch, capsys):
    command = config.parse("digits_cnn", ["--seeds", "2", *TINY])
    monkeypatch.setattr(reproduce.config, "parse", lambda name, arguments: _with(command, arguments))
    before = files(finished / "checkpoints")
    (tmp_path / "digits_cnn").symlink_to(finished)
    assert reproduce.main(["digits_cnn", "--runs", str(tmp_path)]) == 0
    summary = json.loads((finished / "summary.json").read_text())
    assert console.number(summary["test"]["accuracy"]["mean"]) in (tmp_path / "RESULTS.md").read_text()
    assert files(finished / "checkpoints") == before
    monkeypatch.undo()
    assert reproduce.main(["digits_cnn", "mnist_cn", "--runs", str(tmp_path / "new")]) == 2
    assert "did you mean mnist_cnn" in said(capsys) and not (tmp_path / "new").exists()


def _with(command, arguments):
    return dataclasses.replace(command, workdir=Path(arguments[arguments.index("--workdir") + 1]))


def test_demo_names_configs_and_closes_with_a_table(finished, tmp_path, monkeypatch, capsys):
    for name, arguments in demo.DEMOS:
        assert config.parse(name, [*arguments]).config == config.load(name) or arguments
    summary = json.loads((finished / "summary.json").read_text())
    (tmp_path / "digits_cnn").symlink_to(finished)
    monkeypatch.setattr(demo, "DEMOS", (("digits_cnn", ("--seeds", "2", *TINY)),))
    monkeypatch.setattr(demo, "RUNS", tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    assert demo.main([]) == 0
    out = said(capsys)
    assert console.spread(summary["test"]["accuracy"]) in out
    assert f"{tmp_path}/digits_cnn/" in out
    for picture in ("confusion.png", "curves.png", "filters.png", "predictions.png"):
        assert picture in out and imread(finished / picture).std() > 0.01


def test_an_extension_logs_the_pictures_that_it_drew(finished, tmp_path):
    """Those of other scripts are of the weights before."""
    copy = Path(shutil.copytree(finished, tmp_path / "copy"))
    shutil.copy(copy / "curves.png", copy / "attack.png")
    assert train.main(["digits_cnn", "--workdir", str(copy), "--seeds", "2", *TINY, "--steps", "8"]) == 0
    found = [event for path in (copy / "tensorboard").iterdir() for event in log._events(path)]
    drawn = lambda step: {v.tag for event in found if event.step == step for v in event.summary.value if v.image.height}
    assert drawn(8) == drawn(4) == {"confusion", "curves", "filters", "predictions"}


def test_mistakes_are_those_that_numpy_counts(finished):
    experiment, _, state = research.load(finished)
    data, net = experiment.feeds().test, experiment.net.clone(outputs=10)
    both = [jax.tree.map(lambda x, n=n: x[n], (state.params["net"], state.collections["net"])) for n in (0, 1)]
    spec, wrong, together = experiment.data.spec(), [0, 0], 0
    for batch in data:
        images = (batch.inputs.astype(np.float32) / 255 - np.float32(spec.mean)) / np.float32(spec.std)
        outputs = [np.asarray(net.apply({"params": params, **statistics}, images)) for params, statistics in both]
        mean = sum(np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in outputs)
        for n, of_seed in enumerate(outputs):
            wrong[n] += sum(of_seed[i].argmax() != batch.targets[i] for i in np.flatnonzero(batch.mask))
        together += sum(mean[i].argmax() == batch.targets[i] for i in np.flatnonzero(batch.mask))
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["reports"]["mistakes"] == wrong and all(wrong)
    count = sum(batch.mask.sum() for batch in data)
    assert summary["reports"]["ensemble_accuracy"] == pytest.approx(together / count)
    assert wrong == [round(count * (1 - accuracy)) for accuracy in summary["test"]["accuracy"]["each"]]


def test_predictions_are_those_with_the_smallest_margins_in_one_pass(tmp_path, monkeypatch, rng):
    pixels, labels = rng.permutation(400).reshape(100, 2, 2, 1), rng.integers(0, 3, 100)
    read, drawn = [], {}

    def examples(places):
        read.append(len(places))
        return pixels[places], labels[places]

    monkeypatch.setattr(
        images.plot, "image_grid", lambda found, captions, *_, **__: drawn.update(images=found, captions=captions)
    )
    logits = lambda state, images: images.reshape(len(images), -1)[:, :3].astype(float)
    state = State(0, jax.random.key(0), {}, {}, {}, ())
    numbers = images.classification(logits, "abc").run(
        state, Split("test", EvalBatches.of(examples, 100, 40)), tmp_path
    )
    outputs = pixels.reshape(100, 4)[:, :3]
    margins = [x[label] - max(np.delete(x, label)) for x, label in zip(outputs, labels, strict=True)]
    chosen = np.argsort(margins, kind="stable")[:48]
    assert read == [40] * 3 and numbers == {"mistakes": np.sum(np.array(margins) < 0)}
    np.testing.assert_array_equal(drawn["images"], pixels[chosen])
    assert drawn["captions"][0] == f"predicted {'abc'[outputs[chosen[0]].argmax()]},\nis {'abc'[labels[chosen[0]]]}"


def test_reports_judge_the_averaged_weights(tmp_path):
    experiment = dataclasses.replace(EXPERIMENTS["cnn"], average=0.9)
    learner, feeds = experiment.build(), experiment.feeds()
    state = jax.jit(learner.init)(jax.random.key(0))
    state = state._replace(params=jax.tree.map(np.zeros_like, state.params))
    evaluate = jax.jit(learner.evaluate)
    judged = [evaluate(state, batch)["accuracy"] for batch in feeds.test]
    report, _ = experiment.reports(None)
    assert report.run(state, Split("test", feeds.test), tmp_path) == {
        "mistakes": sum(round(float(x.count - x.total)) for x in judged)
    }


def test_dtypes_are_measured_on_as_many_devices_as_training_uses(tmp_path, capsys, monkeypatch):
    devices = jax.devices()[:3]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    assert dtypes.compiled("frozenlake_q", "float32", str(tmp_path)).where.devices == 2
    assert "warning: 3 devices do not divide num_envs=" in capsys.readouterr().err


def test_both_dtypes_are_measured_and_written(tmp_path, capsys):
    output = tmp_path / "dtypes.json"
    assert dtypes.main(["frozenlake_q", "--rounds", "2", "--output", str(output)]) == 0
    found = json.loads(output.read_text())
    assert found["about"]["command"] == "python -m experiments.dtypes frozenlake_q --rounds 2"
    each = found["dtypes"]["frozenlake_q"]
    assert list(each) == ["float32", "bfloat16"]
    for cell in each.values():
        assert cell["unit"] == "frames" and cell["utilisation"] is None  # no peak of a CPU is known
        assert 0 < cell["least"] <= cell["speed"] <= cell["most"] and cell["memory"] > 0
    assert "| `frozenlake_q` | frames/s |" in capsys.readouterr().out
    for option in ("rounds", "workers"):
        assert dtypes.main(["frozenlake_q", f"--{option}", "0"]) == 2
        assert f"--{option} must be at least 1, not 0" in said(capsys)


def test_names_with_brackets_are_printed_as_they_are(capsys):
    """Rich would read [red] as a colour."""
    console.show("runs/[red]a", {"[b]": {"mean": 0.5, "spread": None, "each": [0.5]}}, {"[u]": {}})
    out = said(capsys)
    assert "runs/[red]a" in out and "[b]" in out and "[u]" in out


def test_a_script_starts_from_the_command_line(finished):
    command = [sys.executable, "-m", "experiments.evaluate", str(finished)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "120"}, timeout=120)
    assert done.returncode == 0 and "accuracy" in done.stdout and "summary.json" in done.stdout


def test_weights_that_do_not_fit_for_reports_do_not_end_the_run(tmp_path, capsys):
    def shown():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    report = Report(lambda state, split, directory: {"fid": 1.0}, every=1, metrics=("fid",))
    assert reported([report], shown, Split("test", []), tmp_path) == {}
    assert "warning: a report failed: JaxRuntimeError: RESOURCE_EXHAUSTED" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(jax.errors.JaxRuntimeError):
        reported([report], shown, Split("validation", []), tmp_path, "fid")
