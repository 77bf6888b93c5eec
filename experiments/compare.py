"""Compare two sets of runs, with intervals: python -m experiments.compare RUN ... --against RUN ..."""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from experiments import scores
from experiments.console import check_picture, measured, number, print_table, script
from research.core.errors import UserError
from research.core.files import read_json
from research.evaluation import plots, statistics
from research.training import workdir
from research.training.config import Directory

Directories = Annotated[tuple[Directory, ...], tyro.conf.arg(metavar="DIR [DIR ...]")]


def compare(
    runs: Annotated[Directories, tyro.conf.Positional],
    against: Directories,
    metric: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None,
    mode: Literal["max", "min"] | None = None,
    reference: Annotated[Path | None, tyro.conf.arg(metavar="FILE.json")] = None,
    output: Annotated[Path, tyro.conf.arg(metavar="FILE.png")] = Path("compare.png"),
) -> None:
    """Print and draw how the finished runs compare with others, by the interquartile mean and its likes.

    Runs of several directories of one environment (or one data set) are seeds of one task; of several environments, or
    of one with other parameters, tasks. Both sets need the same tasks. A seed that has diverged has the worst score of
    its task.

    Args:
        runs: directories of finished runs
        against: directories of finished runs to compare them with
        metric: test metric to compare by; by default run.metric of the first run
        mode: whether the metric is maximised or minimised; by default run.mode of the first run, which holds for its
            run.metric alone: another metric needs this option
        reference: JSON of {task: {"random": score of a random agent, "reach": score to reach}}, as docs/scores.json;
            scores are normalised by it, so that the random agent's is 0, the one to reach 1, and a larger one is
            better. Several tasks need it
        output: file of the picture, which ends in .png
    """
    check_picture(output)
    if not runs or not against:
        raise UserError("name runs, and those to compare them with: RUN ... --against RUN ...")
    run = _about(runs[0])["config"]["run"]
    metric = metric or run["metric"]
    if mode is None and metric != run["metric"]:
        raise UserError(f"say whether {metric} is maximised or minimised: give --mode max or --mode min")
    scales = {} if reference is None else _reference(reference)
    ours, theirs = _scores(runs, metric, scales), _scores(against, metric, scales)
    if ours.keys() != theirs.keys():
        raise UserError(f"the tasks differ: {', '.join(ours)} and, against them, {', '.join(theirs)}")
    if len(ours) > 1 and not scales:
        raise UserError(f"there are {len(ours)} tasks, whose scores have different units: give --reference")
    minimised = (mode or run["mode"]) == "min" and not scales  # what is normalised is maximised
    both = _filled([_matrix(ours), _matrix(theirs)], [*ours], np.nanmax if minimised else np.nanmin)
    label = f"normalised {metric}" if scales else metric
    show(both, label, minimised, bool(scales))
    _draw(both, label, minimised, output)
    print(output)


def show(found: Sequence[np.ndarray], metric: str, minimised: bool, normalised: bool) -> None:
    """Prints the aggregates of both sets, [runs, tasks] each, with their intervals."""
    aggregates: dict[str, statistics.Aggregate] = {
        "interquartile mean": statistics.iqm,
        "mean": statistics.mean,
        **({"median": statistics.median} if found[0].shape[1] > 1 else {}),
        **({"optimality gap": statistics.optimality_gap} if normalised else {}),
    }
    intervals = "" if all(len(x) == 1 for x in found) else ", with 95 % bootstrap intervals"
    ordered = found[::-1] if minimised else found
    rows = [
        ("number of runs", *(str(x.size) for x in found)),
        *((name, *(_with_interval(aggregate, x) for x in found)) for name, aggregate in aggregates.items()),
        ("probability of improvement", _with_interval(statistics.probability_of_improvement, *ordered), ""),
    ]
    print_table(("", "runs", "against"), rows, f"{metric}{intervals}")
    if min(map(len, found)) == 1:
        print("There is no interval of one run a task: train more seeds.")


def _with_interval(aggregate: Any, *scores: np.ndarray) -> str:
    """The aggregate and its interval as text; without an interval where any of `scores` is of one run a task."""
    value = number(float(aggregate(*scores)))
    if any(len(x) == 1 for x in scores):
        return value
    low, high = statistics.interval(aggregate, *scores)
    return f"{value} [{number(float(low))}, {number(float(high))}]"


def _draw(scores: Sequence[np.ndarray], metric: str, minimised: bool, path: Path) -> None:
    """Draws the share of runs above each score, of a minimised metric below it."""
    every = np.concatenate([x.ravel() for x in scores])
    margin = 0.03 * (np.ptp(every) or abs(every[0]) or 1)
    thresholds, sign = np.linspace(every.min() - margin, every.max() + margin, 201), -1 if minimised else 1
    profiles = {}
    for label, x in zip(("runs", "against"), scores, strict=True):
        share = partial(statistics.profile, thresholds=sign * thresholds)
        profiles[label] = (share(sign * x), statistics.interval(share, sign * x))
    plots.profiles(thresholds, profiles, metric, "below" if minimised else "above", path)


def _about(directory: Path) -> dict[str, Any]:
    """The content of config.json. Raises UserError where it is that of a sweep."""
    about = workdir.run_in(directory)
    if about.get("over"):
        raise UserError(f"{directory} holds settings of a sweep, not seeds of one: train the one to compare by itself")
    return about


def _reference(path: Path) -> dict[str, tuple[float, float]]:
    """The score of a random agent and the score to reach, by task. Raises UserError where the file has others."""
    content = read_json(path)
    try:
        found = {task: (float(score["random"]), float(score["reach"])) for task, score in content.items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f'--reference: {path} is not of the form {{task: {{"random": 0.0, "reach": 1.0}}}}') from None
    for task, (low, high) in found.items():
        if low == high:
            raise UserError(f"--reference: of {task} the random score and the score to reach are both {number(low)}")
    return found


def _scores(
    directories: Sequence[Path], metric: str, scales: Mapping[str, tuple[float, float]]
) -> dict[str, list[float]]:
    """The scores of all seeds by task, which is an environment or a data set."""
    found: dict[str, list[float]] = {}
    where = [workdir.resolved(directory) for directory in directories]
    for directory, path in zip(directories, where, strict=True):
        if where.count(path) > 1:
            raise UserError(f"{directory} is named twice: its seeds would count as so many more")
        about = _about(directory)
        if not (directory / "summary.json").exists():
            raise UserError(f"{directory} is not finished: the command that began it goes on with it")
        test = measured(workdir.summary(directory))
        if metric not in test:
            raise UserError(f"{directory} has no test metric {metric!r}: it has {', '.join(test)}")
        if len(test[metric]["each"]) < (about["seeds"] or 1):
            raise UserError(f"{metric} of {directory} is of its first seed alone: choose a metric of every seed")
        environment = about["config"].get("environment")
        task = scores.task(environment) if environment else _data(about["config"]["data"])
        each = [np.nan if x is None else x for x in test[metric]["each"]]
        if scales:
            if task not in scales:
                raise UserError(f"--reference has no scores of {task}: it has {', '.join(scales)}")
            low, high = scales[task]
            each = [(x - low) / (high - low) for x in each]
        found.setdefault(task, []).extend(each)
    return dict(sorted(found.items()))


def _data(data: Mapping[str, Any]) -> str:
    """The data of a run in words: its name, and its classes where they are some of them."""
    classes = data.get("classes")
    return f"{data['name']} of classes {', '.join(map(str, classes))}" if classes else data["name"]


def _matrix(scores: Mapping[str, Sequence[float]]) -> np.ndarray:
    """[runs, tasks]. Raises UserError where tasks have different numbers of runs."""
    counts = {task: len(each) for task, each in scores.items()}
    if len(set(counts.values())) > 1:
        raise UserError(f"each task needs as many runs: there are {counts}")
    return np.array(list(scores.values()), float).T


def _filled(scores: Sequence[np.ndarray], tasks: Sequence[str], worst: Any) -> list[np.ndarray]:
    """The scores with the worst one of each task where there is none. Raises UserError where a task has none at all."""
    every = np.concatenate(scores)
    for task, column in zip(tasks, every.T, strict=True):
        if np.isnan(column).all():
            raise UserError(f"all runs of {task} have diverged: there is no score to compare")
    of_task = worst(every, axis=0)
    return [np.where(np.isnan(x), of_task, x) for x in scores]


main = script("compare", __doc__, compare)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
