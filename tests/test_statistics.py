"""The statistics of few runs by hand, and the two scripts that use them."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from learners import EXPERIMENTS
from scipy import stats

from experiments import compare, scores, sweep
from research.core.errors import RunError, UserError
from research.evaluation import statistics
from research.rl.environments import Environment
from research.training import workdir
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
    summary = json.loads((tmp_path / "sweep" / "data.batch=16" / "summary.json").read_text())
    assert summary["seeds"] == [0, 1, 0, 1]  # of each number of the metrics
    assert [setting["optimizer.learning_rate"] for setting in summary["settings"]] == [1e-4, 1e-2]
    assert (tmp_path / "sweep" / "sweep.png").exists()
    assert swept(tmp_path / "sweep") == found

    capsys.readouterr()
    alone, of_sweep = str(tmp_path / "alone"), str(tmp_path / "sweep" / "data.batch=16")
    assert compare.main([alone, "--against", alone, "--output", str(tmp_path / "compare.png")]) == 0
    assert "interquartile mean" in capsys.readouterr().out and (tmp_path / "compare.png").exists()
    assert compare.main([alone, "--against", of_sweep]) == 2
    assert "holds settings of a sweep" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("error", [RunError, UserError, jax.errors.JaxRuntimeError, TypeError])
def test_a_program_that_fails_does_not_end_the_sweep(error, tmp_path, monkeypatch, capsys):
    def train(_, command):
        if command.config.data.batch == 16:
            raise error("loss became NaN\nand more")
        return {"test": {"accuracy": {"each": [0.25, None]}}}

    shown = []
    monkeypatch.setattr(sweep, "train", train)
    monkeypatch.setattr(sweep, "_report", lambda results, *_: shown.extend(results))
    over = ["--over", "data.batch", "16", "32", "--seeds", "2", "--workdir", str(tmp_path)]
    assert sweep.main(["digits_cnn", *over, *TINY.split()]) == 1
    ((setting, scores, _),) = shown
    assert setting == {"data.batch": "32"}
    np.testing.assert_array_equal(scores, [0.25, np.nan])
    told = " ".join(capsys.readouterr().err.split())
    kind = "" if issubclass(error, RunError | UserError) else f"{error.__name__}: "
    assert f"warning: data.batch=16: {kind}loss became NaN" in told
    assert "error: 1 of 2 programs failed: data.batch=16; the same command tries them again" in told


def test_a_program_whose_report_failed_does_not_end_the_sweep(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "train", lambda *_: {"test": {"loss": {"each": [0.5]}}})
    over = ["--over", "data.batch", "16", "32", "--workdir", str(tmp_path)]
    assert sweep.main(["digits_cnn", *over, *TINY.split()]) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "warning: data.batch=16: summary.json has no accuracy: the report that gives it has failed" in told
    assert "2 of 2 programs failed" in told


@pytest.mark.parametrize("own", [["--run.checkpoint-for-test", "best"], ["--run.patience", "3"], []])
def test_settings_with_a_best_step_of_their_own_are_programs_of_their_own(own, tmp_path, capsys):
    over = {"optimizer.learning_rate": ["1e-4", "1e-2"], "data.batch": ["16", "32"]}
    found = sweep.programs("digits_cnn", over, own, tmp_path)
    each = [[rate] for rate in over["optimizer.learning_rate"]] if own else [over["optimizer.learning_rate"]]
    assert [[one["optimizer.learning_rate"] for one in program.settings] for program in found] == each * 2
    assert ("one setting a program: each has a best step" in capsys.readouterr().err) is bool(own)


def test_a_switch_is_varied(tmp_path):
    found = sweep.programs("digits_cnn", {"optimizer.nesterov": ["True", "False"], "net.norm": ["False"]}, [], tmp_path)
    switches = [(one.command.config.optimizer.nesterov, one.command.config.net.norm) for one in found]
    assert switches == [(True, False), (False, False)]
    assert [one.name for one in found] == [f"optimizer.nesterov={on},net.norm=False" for on in (True, False)]


def test_a_program_stays_in_the_directory_of_its_sweep(tmp_path):
    found = sweep.programs("digits_cnn", {"data.name": ["digits", "../../../digits"]}, [], tmp_path)
    assert [one.command.workdir.parent for one in found] == [tmp_path, tmp_path]
    assert [one.name for one in found] == ["data.name=digits", "data.name=..%2F..%2F..%2Fdigits"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "2"], "name a field and its values"),
        (["--over", "optimizer.learning-rat", "1"], "did you mean optimizer.learning_rate"),
        (["--over", "optimizer.learning-rate", "1", "1"], "has a value twice"),
        (
            ["--over", "learning-rate", "1", "--over", "optimizer.learning-rate", "3"],
            "rate has a value twice: give",
        ),
        (["--over", "net.norm", "yes", "no"], "--over net.norm is True or False, not yes"),
    ],
)
def test_mistakes_of_a_sweep_name_the_mend(arguments, message, tmp_path, capsys):
    assert sweep.main(["digits_cnn", *arguments, *TINY.split(), "--workdir", str(tmp_path)]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_values_that_do_not_go_together_are_refused_before_anything_trains(tmp_path, capsys):
    over = ["--over", "update.pruning.sparsity", ".3", ".9", "--update.pruning.initial", ".2"]
    assert len(sweep.programs("digits_cnn", *sweep.split(over), tmp_path)) == 1
    with pytest.raises(SystemExit):
        over = ["--over", "update.pruning.initial", "0", ".4", *over[:4]]
        sweep.programs("digits_cnn", *sweep.split(over), tmp_path)
    assert "initial is 0.4, sparsity 0.3" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("name", "field", "together"),
    [
        ("cnn", "optimizer.learning_rate", True),
        ("cnn", "augment.noise", True),
        ("cnn", "data.validation", False),
        ("detector", "overlap", False),
        ("detector", "radius", True),
        ("diffusion", "eta", False),
    ],
)
def test_what_data_or_reports_alone_read_is_swept_one_after_another(name, field, together):
    """Within one program every setting would have the same."""
    assert sweep._traceable(EXPERIMENTS[name], field, [0.1, 0.3]) == together


def test_a_task_is_an_environment_and_what_differs_from_its_defaults():
    named = lambda environment: scores.task(dataclasses.asdict(environment))
    assert named(Environment("CartPole-v1", reward_scale=0.1, reward_clip=1.0)) == "CartPole-v1"
    road = Environment("highway:Highway", params=(("lanes", 3), ("cars", 30)))
    assert named(road) == "highway:Highway cars=30 lanes=3"
    changed = Environment("Freeway-MinAtar", 2500, (("player_speed", 2),), sticky_actions=0.1, limit_terminates=True)
    assert named(changed) == "Freeway-MinAtar player_speed=2 max_steps=2500 sticky_actions=0.1 limit_terminates=True"
    # Every field of an environment is either a part of its task, or changes rewards in training alone.
    fields = {field.name for field in dataclasses.fields(Environment)}
    known = {"name", "params", "max_steps", "sticky_actions", "frame_stack", "time_limit", "limit_terminates"}
    assert fields == known | {"reward_scale", "reward_clip"}
    # A run that was made before a field was added has no value of it.
    assert scores.task({"name": "CartPole-v1", "params": [], "max_steps": 9}) == "CartPole-v1 max_steps=9"


def test_scores_are_those_of_random_actions(tmp_path, monkeypatch, capsys):
    # Of two actions one gives 1 and the other -1; and the mean of -(a - 0.5)^2, a between -1 and 1, is -1/3 - 1/4.
    assert scores.random_score(Environment("probes:Chosen"), 4000) == pytest.approx(0, abs=0.06)
    assert scores.random_score(Environment("probes:Near"), 4000) == pytest.approx(-7 / 12, abs=0.04)
    monkeypatch.setattr(scores, "environments", lambda: {"CartPole-v1": Environment("CartPole-v1"), "x": Environment()})
    assert scores.main(["--output", str(tmp_path / "scores.json"), "--episodes", "200"]) == 0
    (found,) = [json.loads((tmp_path / "scores.json").read_text())["CartPole-v1"]]
    assert 20 < found["random"] < 26 and found["reach"] == 500  # Gymnasium's documentation has about 22
    assert "x: no score to reach is known" in capsys.readouterr().out
    assert scores.main(["--episodes", "-1"]) == 2 and "at least 1, not -1" in capsys.readouterr().err


def test_the_scores_are_of_all_environments_that_have_one():
    found = json.loads((Path(scores.__file__).parent.parent / "docs" / "scores.json").read_text())
    assert found.keys() == scores.REACH.keys() <= scores.environments().keys()
    assert all(x["reach"] == scores.REACH[task].value > x["random"] for task, x in found.items())


def finished(directory, metrics, config) -> str:
    """The directory of a run of several seeds that ended with these values of its test metrics."""
    directory.mkdir()
    seeds = max(map(len, metrics.values()))
    run = {"steps": 1, "metric": "loss", "mode": "min"} | config.get("run", {})
    about = {"format": workdir.FORMAT, "name": "alike", "seeds": seeds, "init_from": None, "code": ""}
    about["config"] = {**config, "run": run}
    (directory / "config.json").write_text(json.dumps(about))
    measured = {metric: {"mean": None, "spread": None, "each": each} for metric, each in metrics.items()}
    about = {"state": "last", "step": 1, "published": {}, "seconds": 1.0, "steps_per_second": 1.0, "device": ""}
    (directory / "summary.json").write_text(json.dumps({"test": measured, **about}))
    return str(directory)


def test_a_metric_is_compared_in_its_own_direction(tmp_path, capsys):
    """The run's metric is maximised and its loss minimised; a seed that has diverged has the worst loss."""
    run = lambda name, loss: finished(
        tmp_path / name,
        {"loss": loss, "accuracy": [0.5, None]},
        {"run": {"metric": "accuracy", "mode": "max"}, "data": {"name": "alike"}},
    )
    compared = [run("ours", [0.1, 0.2]), "--against", run("theirs", [0.4, None]), "--metric"]
    output = ["--output", str(tmp_path / "compare.png")]
    assert compare.main([*compared, "loss", *output]) == 2
    assert "give --mode max or --mode min" in " ".join(capsys.readouterr().err.split())
    ours = compared[0]
    mistakes = {
        ("--against", ours): "name runs, and those to compare them with",
        (ours, "--against"): "name runs, and those to compare them with",
        (ours, f"{ours}/../ours", "--against", compared[2]): "is named twice",
        (*compared[:3], "--reference", str(tmp_path / "none.json")): "could not read",
    }
    for arguments, message in mistakes.items():
        assert compare.main([*arguments, *output]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    for mode, likely, filled in (("min", "1 ", "0.4 "), ("max", "0.375 ", "0.25 ")):
        assert compare.main([*compared, "loss", "--mode", mode, *output]) == 0
        said = capsys.readouterr().out
        assert re.search(rf"improvement +│ {likely}", said) and re.search(rf" mean +│ 0.15 .*│ {filled}", said), said
    assert compare.main([*compared, "accuracy", *output]) == 0


def test_what_is_normalised_is_maximised(tmp_path, capsys, monkeypatch):
    """A loss of 2.0 by chance and 1.0 to reach: losses of 1.2 and 1.4 are better than 1.8 and one that diverged."""
    drawn = []
    monkeypatch.setattr(compare.plots, "profiles", lambda *arguments: drawn.append(arguments))
    run = lambda name, loss, **more: finished(
        tmp_path / name, {"loss": loss}, {"run": {"metric": "loss", "mode": "min"}, "data": {"name": "alike", **more}}
    )
    ours, theirs = run("ours", [1.2, 1.4]), run("theirs", [1.8, None])
    (tmp_path / "scores.json").write_text('{"alike": {"random": 2.0, "reach": 1.0}}')
    compared = [ours, "--against", theirs, "--output", str(tmp_path / "compare.png")]
    assert compare.main([*compared, "--reference", str(tmp_path / "scores.json")]) == 0
    said = capsys.readouterr().out
    assert re.search(r" mean +│ 0.7 .*│ 0.2 ", said) and re.search(r"improvement +│ 1 ", said), said
    assert "no interval" not in said and "[" in said and said.startswith("normalised loss, with")
    assert compare.main(compared) == 0
    said = capsys.readouterr().out
    assert said.startswith("loss, with")
    assert re.search(r" mean +│ 1.3 .*│ 1.8 ", said) and re.search(r"improvement +│ 1 ", said), said
    # Of the losses themselves it is the share below that is drawn, which grows.
    (_, normalised, *labels, _), (_, plain, *others, _) = drawn
    assert labels == ["normalised loss", "above"] and others == ["loss", "below"]
    assert (normalised["runs"][0][0], normalised["runs"][0][-1]) == (1, 0)
    assert (plain["runs"][0][0], plain["runs"][0][-1], plain["against"][0][0], plain["against"][0][-1]) == (0, 1, 0, 1)
    assert plain["runs"][0][100] == 1 and plain["against"][0][100] == 0  # at 1.5
    # No classes are all of them.
    assert compare.main([run("all", [1.0, 1.0], classes=[]), *compared[1:]]) == 0


def test_one_run_a_task_has_no_interval(tmp_path, capsys):
    config = {"run": {"metric": "loss", "mode": "min"}, "data": {"name": "alike"}}
    one, other, two = (
        finished(tmp_path / str(n), {"loss": losses}, config) for n, losses in enumerate(([1.0], [2.0], [2.0, 3.0]))
    )
    output = ["--output", str(tmp_path / "compare.png")]
    assert compare.main([one, "--against", other, *output]) == 0
    said = capsys.readouterr().out
    assert "[" not in said and "There is no interval of one run a task" in said
    assert re.search(r" mean +│ 1 +│ 2 ", said), said
    assert compare.main([one, "--against", two, *output]) == 0
    said = capsys.readouterr().out
    assert re.search(r" mean +│ 1 +│ 2.5 \[2, 3\]", said) and "There is no interval of one run a task" in said, said
    assert "[" not in next(line for line in said.splitlines() if "probability" in line), "one side has one run"


def test_what_can_not_be_compared_is_said(tmp_path, capsys):
    config = {"run": {"metric": "return", "mode": "max"}, "data": {"name": "alike"}}
    ours, diverged = (finished(tmp_path / name, {"return": [x, x]}, config) for name, x in (("a", 1.0), ("b", None)))
    references = {
        "[1]": "is not of the form",
        '{"alike": 3}': "is not of the form",
        '{"alike": {"random": 0}}': "is not of the form",
        '{"alike": {"random": 2, "reach": 2}}': "of alike the random score and the score to reach are both 2",
    }
    for text, message in references.items():
        (tmp_path / "scores.json").write_text(text)
        assert compare.main([ours, "--against", ours, "--reference", str(tmp_path / "scores.json")]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    first = finished(tmp_path / "first", {"return": [1.0, 2.0], "episode_return": [1.0]}, config)
    assert compare.main([first, "--against", ours, "--metric", "episode_return", "--mode", "max"]) == 2
    assert f"episode_return of {first} is of its first seed alone" in " ".join(capsys.readouterr().err.split())
    assert compare.main([diverged, "--against", diverged]) == 2
    assert "all runs of alike have diverged" in " ".join(capsys.readouterr().err.split())
    few = finished(tmp_path / "few", {"return": [1.0, 1.0]}, config | {"data": {"name": "alike", "classes": [3, 5]}})
    assert compare.main([ours, "--against", few]) == 2
    assert "the tasks differ: alike and, against them, alike of classes 3, 5" in " ".join(
        capsys.readouterr().err.split()
    )


def test_runs_of_several_tasks_are_compared_by_their_scores(tmp_path, capsys):
    def run(name, environment, returns):
        config = {"environment": dataclasses.asdict(environment), "run": {"metric": "return", "mode": "max"}}
        return finished(tmp_path / name, {"return": returns}, config)

    small, large = Environment("CartPole-v1"), Environment("CartPole-v1", max_steps=1000)
    ours = [run("a", small, [60.0, 100.0]), run("b", large, [600.0, 1000.0])]
    theirs = [run("c", small, [20.0, 20.0]), run("d", large, [0.0, 200.0])]
    reference = {
        "CartPole-v1": {"random": 20, "reach": 100},
        "CartPole-v1 max_steps=1000": {"random": 0, "reach": 1000},
    }
    (tmp_path / "scores.json").write_text(json.dumps(reference))
    output = ["--output", str(tmp_path / "compare.png")]
    assert compare.main([*ours, "--against", *theirs, "--reference", str(tmp_path / "scores.json"), *output]) == 0
    said = capsys.readouterr().out
    # Ours are 0.5, 1, 0.6 and 1; theirs 0, 0, 0 and 0.2.
    assert re.search(r"mean +│ 0.775 .*│ 0.05 ", said) and re.search(r"interquartile mean +│ 0.8 ", said), said
    assert compare.main([*ours, "--against", *theirs, *output]) == 2
    assert "2 tasks, whose scores have different units" in " ".join(capsys.readouterr().err.split())


@pytest.mark.filterwarnings("ignore:random_state:FutureWarning")
def test_rliable_says_the_same():
    """Agarwal et al.'s own package, on scores of 7 runs of 3 tasks."""
    library = pytest.importorskip("rliable.library", reason="rliable is in the extra bench")
    metrics = pytest.importorskip("rliable.metrics")
    random = np.random.default_rng(1)
    ours, theirs = random.normal(0.6, 0.3, (7, 3)), random.normal(0.5, 0.3, (7, 3))
    pairs = {
        statistics.mean: metrics.aggregate_mean,
        statistics.median: metrics.aggregate_median,
        statistics.iqm: metrics.aggregate_iqm,
        statistics.optimality_gap: metrics.aggregate_optimality_gap,
    }
    for own, reference in pairs.items():
        np.testing.assert_allclose(own(ours), reference(ours), rtol=1e-12)
        estimate = lambda scores, reference=reference: np.array([reference(scores)])
        draws = np.random.RandomState(0)
        _, intervals = library.get_interval_estimates({"ours": ours}, estimate, reps=4000, random_state=draws)
        # Both are percentiles of resampled runs, by other draws: each end is within a twentieth of the width.
        low, high = intervals["ours"][:, 0]
        np.testing.assert_allclose(statistics.interval(own, ours), [low, high], atol=(high - low) / 20)
    improvement = metrics.probability_of_improvement(ours, theirs)
    np.testing.assert_allclose(statistics.probability_of_improvement(ours, theirs), improvement, rtol=1e-12)
    thresholds = np.linspace(-0.5, 1.5, 21)
    profiles, _ = library.create_performance_profile({"ours": ours}, thresholds, reps=10)
    np.testing.assert_allclose(statistics.profile(ours, thresholds), profiles["ours"], rtol=1e-12)
