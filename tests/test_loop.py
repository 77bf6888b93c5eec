"""The host loop: when it reads, evaluates and saves; what it measures and how it profiles."""

import itertools

import pytest
from digits import tiny

from experiments.train import main
from research.training import reader, run

pytestmark = pytest.mark.usefixtures("quickly")


def test_metrics_are_read_one_dispatch_late_but_before_an_evaluation_or_a_save(tmp_path, monkeypatch):
    done = []

    def note(owner, name, what, step_of):
        function = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *x: (done.append(f"{what} {step_of(*x)}"), function(*x))[1])

    started = itertools.count(2, 2)
    note(reader.Reader, "add", "start", lambda *_: next(started))
    note(reader, "check_finite", "read", lambda _, before, __: before + 2)
    note(run, "validate", "validate", lambda _, step, __: step)
    note(run.checkpoint.Checkpoints, "save", "save", lambda _, step, __: step)
    every = ["--run.evaluate-every", "6", "--run.save-every", "8"]
    assert main(["digits_cnn", "--workdir", str(tmp_path / "run"), *tiny(10), *every]) == 0
    assert done == [
        *("start 2", "start 4", "read 2", "start 6", "read 4", "read 6", "validate 6"),
        *("start 8", "read 8", "validate 8", "save 8", "start 10", "read 10", "validate 10", "save 10"),
    ]
    lines = [f"{line['split']} {line['step']}" for line in run.log.read(tmp_path / "run")]
    assert lines == ["train 2", "train 4", "train 6", "validation 6", "train 8", "train 10", "validation 10"]


@pytest.mark.parametrize("every", ["2", "8"])
def test_a_state_that_is_not_finite_is_never_saved(tmp_path, capsys, every):
    """Neither where a dispatch is read at once nor where it is read late, after the next one was started."""
    options = ["--optimizer.name", "sgd", "--optimizer.learning-rate", "1e30", "--optimizer.schedule", "constant"]
    intervals = ["--run.save-every", every, "--run.evaluate-every", "8"]
    assert main(["digits_cnn", "--workdir", str(tmp_path / "run"), *tiny(16), *options, *intervals]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "NaN or infinite at step" in said
    step = int(said.split("NaN or infinite at step ")[1].split(".")[0])
    saved = sorted(int(path.stem) for path in (tmp_path / "run" / "checkpoints").glob("*.json"))
    good = [n for n in range(int(every), step, int(every))]
    assert all(n < step for n in saved) and saved == good[-2:], (step, saved)
    lines = [line["step"] for line in run.log.read(tmp_path / "run") if line["split"] == "train"]
    assert lines == list(range(2, step, 2))
