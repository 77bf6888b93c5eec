"""Evaluate a run on its test data again: python -m experiments.evaluate DIR. Nothing is written."""

import math
import sys
from typing import Annotated

import tyro

import research
from experiments.console import script, show
from research.core.console import warn
from research.core.placement import place
from research.training import config, workdir
from research.training.config import Directory
from research.training.evaluate import Evaluator, summary
from research.training.run import layout


def evaluate(directory: Annotated[Directory, tyro.conf.Positional]) -> None:
    """Print the test metrics of a run, beside those in its summary.json if it has finished.

    Args:
        directory: directory of the run
    """
    experiment, learner, state = research.load(directory)
    about, feeds = workdir.run_in(directory), experiment.feeds()
    workdir.check_kept(directory, feeds.kept)
    trained = config.Command(experiment, seeds=about["seeds"], over=config.as_over(about))
    here = place("jit", layout(trained))
    weights = here.put(state._replace(opt_state={}, world=()))
    test = summary(Evaluator(learner, here)(weights, feeds.test))
    done = directory / "summary.json"
    recorded = {k: v["mean"] for k, v in workdir.summary(directory)["test"].items()} if done.exists() else {}
    if not done.exists():
        warn(f"the run has not finished: it has {experiment.run.steps} steps")
    title = f"{directory}: test metrics of the {experiment.run.checkpoint_for_test} checkpoint, step {int(state.step)}"
    show(title, test, {"published": dict(experiment.run.published), **({"summary.json": recorded} if recorded else {})})
    for metric, value in recorded.items():
        if metric not in test:
            warn(f"{metric} is no longer computed; it is {value} in {done}")
        elif not _same(test[metric]["mean"], value):
            warn(f"{metric} is {test[metric]['mean']} here, {value} in {done}")


def _same(a: float | None, b: float | None) -> bool:
    """Whether two values are equal up to the rounding of another device."""
    return a == b if a is None or b is None else math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-6)


main = script("evaluate", __doc__, evaluate)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
