"""Train a config with many values of its fields: python -m experiments.sweep NAME --over FIELD VALUE VALUE ..."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.console import measured, number, status
from research.core.console import say
from research.core.errors import UserError, nearest
from research.core.experiment import Experiment
from research.core.files import write_json
from research.evaluation import plots, statistics
from research.training import config, log
from research.training.run import build, train

ABOUT = f"""{__doc__}

  --over FIELD VALUE VALUE ...   the values to train with; several --over: every combination of them
  --seeds N                      seeds of each setting (default: 1)
  --workdir DIR                  directory of the sweep (default: runs/NAME_sweep)

Numbers that change no shapes are trained in one compiled program, all settings at once; others one after another. The
same command resumes. Other options are those of experiments.train; for these and all fields:
python -m experiments.train NAME --help"""


def main(arguments: list[str]) -> int:
    """Return the exit status, see `console.status`."""
    if not arguments or arguments[0].startswith("-") or "--help" in arguments:
        print(ABOUT)
        return 0 if arguments else 2
    return status(lambda: sweep(*arguments))


class Result(NamedTuple):
    """What came out with one setting.

    setting  the values as they were typed, by field
    scores   f64[seeds], NaN where one has diverged
    history  the lines of metrics.jsonl, of its seeds alone
    """

    setting: dict[str, str]
    scores: np.ndarray
    history: list[dict[str, Any]]


def sweep(name: str, *arguments: str) -> None:
    """Trains every setting, prints them as a table, and draws them; see `ABOUT`."""
    over, rest = split(arguments)
    command = config.parse(name, rest, script="sweep")
    command = replace(command, seeds=command.seeds or 1)
    directory = command.workdir or Path("runs") / f"{name}_sweep"
    over = {_path(command.config, field): texts for field, texts in over.items()}
    # Each value goes through the command line's parser, which checks it.
    with_one = lambda field, text: config.parse(name, [*rest, f"--{field}", text], script="sweep").config
    values = {field: [config.leaves(with_one(field, text))[field] for text in over[field]] for field in over}
    together = {field for field in over if _traceable(command.config, field, values[field])}
    if alone := over.keys() - together:
        say(f"one after another: {', '.join(sorted(alone))}; at once: {', '.join(sorted(together)) or 'nothing'}")

    results: list[Result] = []
    settings = lambda chosen: config.settings([(field, over[field]) for field in over if chosen(field)])
    for outer in settings(lambda field: field not in together):
        options = [option for field, text in outer.items() for option in (f"--{field}", text)]
        workdir = directory / (",".join(f"{field}={text}" for field, text in outer.items()) or "all")
        one = replace(
            config.parse(name, [*rest, *options], script="sweep"),
            seeds=command.seeds,
            workdir=workdir,
            over=tuple((field, tuple(values[field])) for field in over if field in together),
        )
        result, history, metric = train(name, one), log.read(workdir), command.config.run.metric
        scores = np.array([np.nan if x is None else x for x in measured(result)[metric]["each"]], float)
        for k, setting in enumerate(settings(lambda field: field in together)):
            seeds = slice(k * command.seeds, (k + 1) * command.seeds)
            results.append(Result({**outer, **setting}, scores[seeds], [_seeds_of(line, seeds) for line in history]))
    _report(results, command.config, directory)


def split(arguments: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The values after each --over FIELD, by field, and the other arguments. Raises UserError where there are none."""
    over: dict[str, list[str]] = {}
    rest: list[str] = []
    into: list[str] = rest
    for argument in arguments:
        if argument == "--over":
            into = []
        elif argument.startswith("--"):
            rest.append(argument)
            into = rest
        elif into is rest or into:
            into.append(argument)
        else:
            into = over.setdefault(argument.replace("-", "_"), [argument])
    over = {field: texts[1:] for field, texts in over.items()}
    if not over or not all(over.values()):
        raise UserError("name a field and its values: --over optimizer.learning-rate 1e-4 3e-4")
    if twice := [field for field, texts in over.items() if len(set(texts)) < len(texts)]:
        raise UserError(f"--over {twice[0]} has a value twice")
    return over, rest


def _path(experiment: Experiment, field: str) -> str:
    """The dotted name of a field that is given as on the command line. Raises UserError where there is none."""
    known = config.leaves(experiment)
    if field in known:
        return field
    ends = [path for path in known if path.endswith(f".{field}")]
    if len(ends) != 1:
        raise UserError(f"--over: there is no field {field!r}: {nearest(field, known, ends)}")
    return ends[0]


def _traceable(experiment: Experiment, path: str, values: Sequence[Any]) -> bool:
    """Whether one compiled program can hold all these values: numbers that decide no shape and no branch."""
    if not all(isinstance(value, float) for value in values):
        return False
    learner, keys = build(experiment, 1, ((path, tuple(values[:1])),))
    try:
        jax.eval_shape(learner.step, jax.eval_shape(learner.init, keys), experiment.feeds().train.batch_at(0))
    except (TypeError, jax.errors.JAXTypeError):  # it decides something while the program is made
        return False
    return True


def _seeds_of(line: dict[str, Any], seeds: slice) -> dict[str, Any]:
    """A line of metrics.jsonl, of some of its seeds alone."""
    return {name: value[seeds] if isinstance(value, list) else value for name, value in line.items()}


def _report(results: Sequence[Result], experiment: Experiment, directory: Path) -> None:
    """Prints the settings from the best to the worst, and writes sweep.json and sweep.png."""
    run = experiment.run
    sign: Callable[[float], float] = (lambda x: -x) if run.mode == "max" else (lambda x: x)
    mean = lambda one: float(np.nanmean(one.scores)) if not np.isnan(one.scores).all() else np.nan
    ordered = sorted(results, key=lambda one: (np.isnan(mean(one)), sign(mean(one))))
    fields = list(ordered[0].setting)
    table = Table(*fields, run.metric, "95 % interval", "diverged", title=f"{run.metric} on test data, the best first")
    rows = []
    for one in ordered:
        known = one.scores[~np.isnan(one.scores)]
        low, high = statistics.interval(statistics.mean, known[:, None]) if len(known) > 1 else (None, None)
        ends = [None if x is None else float(x) for x in (low, high)]
        shown = "" if ends[0] is None else f"[{number(ends[0])}, {number(ends[1])}]"
        middle = None if np.isnan(mean(one)) else mean(one)
        lost = int(np.isnan(one.scores).sum())
        table.add_row(*one.setting.values(), number(middle), shown, str(lost) if lost else "")
        rows.append({**one.setting, run.metric: middle, "interval": ends, "each": log.plain(one.scores.tolist())})
    Console().print(table)
    write_json(directory / "sweep.json", rows)
    label = lambda one: ", ".join(f"{field.rpartition('.')[2]} {text}" for field, text in one.setting.items())
    plots.curves({label(one): one.history for one in results}, directory / "sweep.png")
    print(directory / "sweep.png")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
