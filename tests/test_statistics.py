"""The statistics of few runs by hand, and the two scripts that use them."""

import json

import numpy as np
import pytest
from scipy import stats

from experiments import compare, sweep
from research.evaluation import statistics
from research.training.log import read

SCORES = np.array([[0.0, 1.0], [1.0, 3.0], [2.0, 5.0], [9.0, 7.0]])


def test_aggregates_as_by_hand():
    assert statistics.mean(SCORES) == 3.5
    assert statistics.median(SCORES) == 3.5  # of the tasks' means, 3 and 4
    assert statistics.iqm(SCORES) == np.mean([1, 2, 3, 5]) == stats.trim_mean(SCORES.ravel(), 0.25)
    assert statistics.optimality_gap(SCORES, 4.0) == 4 - np.mean([0, 1, 1, 3, 2, 4, 4, 4])
    np.testing.assert_allclose(statistics.profile(SCORES, np.array([-1, 1, 4, 9])), [1, 5 / 8, 3 / 8, 0])
    # Of ours 0 and 2 against 1, 2 and 2: one better, two ties in six pairs; in the second task all of three are better.
    ours, theirs = np.array([[0.0, 9.0], [2.0, 9.0]]), np.array([[1.0, 0.0], [2.0, 0.0], [2.0, 0.0]])
    np.testing.assert_allclose(statistics.probability_of_improvement(ours, theirs), ((1 + 2 / 2) / 6 + 1) / 2)


def test_an_interval_is_stratified_and_near_that_of_the_normal():
    random = np.random.default_rng(0)
    scores = random.normal(size=(200, 1))
    low, high = statistics.interval(statistics.mean, scores)
    half = 1.96 * scores.std() / np.sqrt(200)
    np.testing.assert_allclose([low, high], [scores.mean() - half, scores.mean() + half], atol=0.02)
    # Tasks without spread have no interval, however far apart they are: runs are drawn within a task.
    low, high = statistics.interval(statistics.mean, np.array([[0.0, 10.0]] * 5))
    assert low == high == 5


TINY = (
    "--net.widths 4 8 --net.depth 1 --steps 20 --run.steps-per-dispatch 5 --run.evaluate-every 10 --run.save-every 10"
)


def swept(directory, *more: str) -> list[dict]:
    over = ["--over", "optimizer.learning-rate", "1e-4", "1e-2", "--over", "data.batch", "16", "32"]
    assert sweep.main(["digits_cnn", *over, "--seeds", "2", "--workdir", str(directory), *TINY.split(), *more]) == 0
    return json.loads((directory / "sweep.json").read_text())


def test_a_sweep_equals_its_runs(tmp_path, capsys, without_pictures):
    """The learning rate within one program, the size of the batch one after another; the same command prints again."""
    from experiments import train

    found = swept(tmp_path / "sweep")
    assert len(found) == 4 and all(len(one["each"]) == 2 for one in found)
    assert [one["accuracy"] for one in found] == sorted((one["accuracy"] for one in found), reverse=True)
    alone = ["--optimizer.learning-rate", "1e-2", "--data.batch", "16", "--run.seed", "1", *TINY.split()]
    assert train.main(["digits_cnn", "--workdir", str(tmp_path / "alone"), *alone]) == 0
    (one,) = (x for x in found if x["optimizer.learning_rate"] == "1e-2" and x["data.batch"] == "16")
    lines = [line for line in read(tmp_path / "sweep" / "data.batch=16") if line["split"] == "train"]
    expected = [line["loss"] for line in read(tmp_path / "alone") if line["split"] == "train"]
    # Of two settings with two seeds each, the last one.
    np.testing.assert_allclose([line["loss"][3] for line in lines], expected, rtol=5e-3)
    test = json.loads((tmp_path / "alone" / "summary.json").read_text())["test"]["accuracy"]["each"][0]
    np.testing.assert_allclose(one["each"][1], test, atol=0.01)
    assert abs(lines[-1]["loss"][0] - lines[-1]["loss"][2]) > 0.02  # the settings differ
    assert (tmp_path / "sweep" / "sweep.png").exists()
    assert swept(tmp_path / "sweep") == found

    capsys.readouterr()
    directories = [str(tmp_path / "sweep" / f"data.batch={n}") for n in (16, 32)]
    arguments = [directories[0], "--against", directories[1], "--output", str(tmp_path / "compare.png")]
    assert compare.main(arguments) == 0
    assert "interquartile mean" in capsys.readouterr().out and (tmp_path / "compare.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "2"], "name a field and its values"),
        (["--over", "optimizer.learning-rat", "1"], "did you mean optimizer.learning_rate"),
        (["--over", "optimizer.learning-rate", "1", "1"], "has a value twice"),
    ],
)
def test_mistakes_of_a_sweep_name_the_mend(arguments, message, tmp_path, capsys):
    assert sweep.main(["digits_cnn", *arguments, "--workdir", str(tmp_path)]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
