"""Train a config with many values of its fields: python -m experiments.sweep NAME --over FIELD VALUE VALUE ..."""

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import tyro

from experiments import jobs
from experiments.console import measured, number, print_table, status, unnamed
from research.core.bucket import in_bucket, located
from research.core.console import say, warn
from research.core.errors import RunError, UserError, nearest
from research.core.experiment import Experiment
from research.core.files import write_json
from research.core.metrics import plain
from research.evaluation import statistics
from research.evaluation.curves import learning_curves
from research.training import config, log, workdir
from research.training.run import train

T = TypeVar("T")

ABOUT = f"""{__doc__}

  --over FIELD VALUE VALUE ...   the values to train with, of a switch True and False; several --over: every
                                 combination of them
  --seeds N                      seeds of each setting (default: 1)
  --workdir DIR                  directory of the sweep (default: runs/NAME_sweep)
  --settings-per-program N       train at most N settings at once (default: all that can be; one where each has a best
                                 step or an early stop of its own)
  --submit slurm|local           send each program out as a job, and wait for all of them: to Slurm, or as processes of
                                 this machine (needs: pip install -e .[jobs])
  --job.partition NAME, --job.timeout-min N, --job.gpus-per-node N, --job.cpus-per-task N, --job.mem-gb N
                                 what each job asks for (minutes: {jobs.JobOptions.timeout_min} by default)
  --program I                    train only program I, from 0, and print no table: what a job does

Numbers that training or evaluation reads, and that change no shapes, are trained in one compiled program, all settings
at once; others one after another. The reports of such a program (pictures, BLEU, FID) read them as they are without
--over. A program that fails does not end the sweep. The same command resumes, and tries again what has failed; with
--submit it finds the jobs that run and submits those that have ended unfinished. Other options are those of
experiments.train; for these and all fields: python -m experiments.sweep NAME --help"""


@dataclasses.dataclass(frozen=True)
class Command(config.Command[config.Config]):
    """The options of `experiments.sweep` besides --over, and those of `experiments.train`.

    Attributes:
        settings_per_program: train at most this many settings at once, each with all seeds
        program: train only the program of this number, from 0, and print no table
        submit: send each program out as a job, to Slurm or as a process of this machine
        job: what each job asks for
    """

    settings_per_program: int | None = None
    program: int | None = None
    submit: jobs.Cluster | None = None
    job: jobs.JobOptions = dataclasses.field(default_factory=jobs.JobOptions)
    processes: tyro.conf.Suppress[str | None] = None
    coordinator: tyro.conf.Suppress[str | None] = None
    process: tyro.conf.Suppress[int | None] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.settings_per_program is not None and self.settings_per_program < 1:
            raise UserError(f"--settings-per-program must be at least 1, not {self.settings_per_program}")
        if self.submit and self.program is None and self.overwrite:
            raise UserError("--submit and --overwrite don't go together: a job may start more than once")


class Program(NamedTuple):
    """What is trained at once.

    name      of its workdir, in that of the sweep
    command   its config, workdir and fields that vary within it
    settings  of all fields, as they were typed, in the order of the program's axis
    """

    name: str
    command: Command
    settings: list[dict[str, str]]


class Result(NamedTuple):
    """What came out with one setting.

    setting  the values as they were typed, by field
    scores   f64[seeds], NaN where one has diverged
    history  the lines of metrics.jsonl, of its seeds alone
    """

    setting: dict[str, str]
    scores: np.ndarray
    history: list[dict[str, Any]]


def main(arguments: list[str]) -> int:
    """Return the exit status, see `console.status`."""
    if (ended := unnamed(arguments, "experiments.sweep", lambda: print(ABOUT))) is not None:
        return ended
    if "--help" in arguments:
        print(ABOUT)
        return status(lambda: config.parse(arguments[0], ["--help"], Command, "sweep"))
    return status(lambda: sweep(*arguments))


def sweep(name: str, *arguments: str) -> None:
    """Trains every setting, prints them as a table, and draws them; see `ABOUT`."""
    if any(argument.startswith("--processes") for argument in arguments):
        raise UserError("a sweep trains in one process: leave out --processes; --submit sends programs out as jobs")
    over, rest = split(arguments)
    command = config.parse(name, rest, Command, "sweep")
    directory = located(command.workdir or Path("runs") / f"{name}_sweep")
    if command.submit and command.program is None:
        jobs.check_installed(command.submit)
        if in_bucket(directory):
            raise UserError(f"--submit needs a --workdir on a disk that all hosts share, not {directory}")
    found = programs(name, over, rest, directory)
    if command.program is not None:
        if not 0 <= command.program < len(found):
            raise UserError(f"--program is a number from 0 to {len(found) - 1}, not {command.program}")
        train(name, found[command.program].command)
        return
    failed: dict[str, Path] = {}
    if command.submit:
        call = lambda i: jobs.Call("experiments.sweep", (name, *arguments, "--program", str(i)))
        commands = {program.name: program.command for program in found}
        finished = lambda one: workdir.finished(directory / one, commands[one])
        calls = {program.name: call(i) for i, program in enumerate(found)}
        failed = jobs.finish(calls, finished, directory, command.submit, command.job)
    trained, ended = list[Result](), list[str]()
    for program in found:
        if program.name in failed:
            continue
        try:
            trained += results(name, program, directory)
        except Exception as error:  # of whatever kind: the settings that have trained are reported
            kind = "" if isinstance(error, RunError | UserError) else f"{type(error).__name__}: "
            warn(f"{program.name}: {kind}{next(iter(str(error).splitlines()), '')}")
            ended.append(program.name)
    if trained:
        _report(trained, command.config, directory)
    if ended:
        raise RunError(
            f"{len(ended)} of {len(found)} programs failed: {'; '.join(ended)}; the same command tries them again"
        )
    if failed:
        ends = "; ".join(f"{one}, see {log_file}" for one, log_file in failed.items())
        raise RunError(
            f"{len(failed)} of {len(found)} jobs ended unfinished: {ends}; the same command submits them again"
        )


def programs(name: str, over: Mapping[str, Sequence[str]], rest: list[str], directory: Path) -> list[Program]:
    """What a sweep trains, one after another; each setting is in one of them.

    over       the values as they were typed, by field
    rest       the other arguments
    directory  of the sweep
    """
    parse = lambda options: config.parse(name, [*rest, *options], Command, "sweep")
    command = parse([])
    paths = [_path(command.config, field) for field in over]
    if twice := [path for path in paths if paths.count(path) > 1]:
        raise UserError(f"--over {twice[0]} has a value twice: give all values of a field after one --over")
    over = dict(zip(paths, over.values(), strict=True))
    # Each value goes through the command line's parser, which checks it.
    having = lambda setting: parse([x for field, text in setting.items() for x in _option(command.config, field, text)])
    with_one = lambda field, text: having({field: text}).config
    values = {field: [config.leaves(with_one(field, text))[field] for text in over[field]] for field in over}
    together = {field for field in over if _traceable(command.config, field, values[field])}
    if alone := over.keys() - together:
        say(f"one after another: {', '.join(sorted(alone))}; at once: {', '.join(sorted(together)) or 'nothing'}")
    inner = [(field, list(zip(over[field], values[field], strict=True))) for field in over if field in together]
    found = []
    outers = config.settings([(field, over[field]) for field in over if field not in together])
    ones = [having(outer) for outer in outers]
    if len(config.settings(inner)) > 1 and any(one.config.run.by_scores for one in ones):
        say("one setting a program: each has a best step or an early stop of its own (checkpoint_for_test, patience)")
    for outer, one in zip(outers, ones, strict=True):
        for part in parts(inner, 1 if one.config.run.by_scores else command.settings_per_program):
            texts = {field: [text for text, _ in chosen] for field, chosen in part}
            ends = {field: "..".join(dict.fromkeys((texts[field][0], texts[field][-1]))) for field in texts}
            named = outer | {field: ends[field] for field in texts if len(texts[field]) < len(over[field])}
            called = ",".join(f"{field}={text}" for field, text in named.items()).replace("/", "%2F") or "all"
            varied = tuple((field, tuple(value for _, value in chosen)) for field, chosen in part)
            program = dataclasses.replace(one, seeds=command.seeds or 1, workdir=directory / called, over=varied)
            settings = [outer | setting for setting in config.settings(texts.items())]
            for setting in settings:  # together, too, its values must be what the command line takes
                having(setting)
            found.append(Program(called, program, settings))
    return found


def parts(over: Sequence[tuple[str, Sequence[T]]], most: int | None) -> list[list[tuple[str, Sequence[T]]]]:
    """Parts of the combinations of fields' values, in their order. Each is all combinations of fewer values, and has at
    most `most` of them."""
    if not over or most is None:
        return [list(over)]
    (field, values), *others = over
    size = max(1, most // math.prod(len(chosen) for _, chosen in others))
    chunks = [values[i : i + size] for i in range(0, len(values), size)]
    return [[(field, chunk), *part] for chunk in chunks for part in parts(others, most)]


def results(name: str, program: Program, directory: Path) -> list[Result]:
    """What comes out of a program, which is trained where it isn't finished. Raises RunError where it has no score.

    directory  of the sweep
    """
    result, history = train(name, program.command), log.read(directory / program.name)
    found, metric = measured(result), program.command.config.run.metric
    if metric not in found:
        raise RunError(f"summary.json has no {metric}: the report that gives it has failed")
    scores = np.array([np.nan if x is None else x for x in found[metric]["each"]], float)
    n = len(scores) // len(program.settings)
    axis = [slice(k * n, (k + 1) * n) for k in range(len(program.settings))]
    return [
        Result(setting, scores[seeds], [_seeds_of(line, seeds) for line in history])
        for setting, seeds in zip(program.settings, axis, strict=True)
    ]


def split(arguments: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The values after each --over FIELD, by field, and the other arguments. Raises UserError where there are none."""
    over: dict[str, list[str]] = {}
    rest: list[str] = []
    into: list[str] | None = rest  # None where the name of a field comes next
    for argument in arguments:
        if argument == "--over":
            into = None
        elif argument.startswith("--"):
            rest.append(argument)
            into = rest
        elif into is None:
            into = over.setdefault(argument.replace("-", "_"), [])
        else:
            into.append(argument)
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


def _option(experiment: Experiment, field: str, text: str) -> list[str]:
    """The option that gives a field the value that was typed. Raises UserError for a switch that is not True or False,
    which on the command line has no value."""
    if not isinstance(config.leaves(experiment)[field], bool):
        return [f"--{field}", text]
    if text not in ("True", "False"):
        raise UserError(f"--over {field} is True or False, not {text}")
    return config.argument(field, text == "True")


def _traceable(experiment: Experiment, path: str, values: Sequence[Any]) -> bool:
    """Whether one compiled program can hold all these values: numbers that the learner reads, and that decide no shape
    and no branch."""
    if not all(isinstance(value, float) for value in values):
        return False
    feeds = experiment.feeds()
    batch, validation = feeds.train.batch_at(0), feeds.validation[0]

    def computed(value: jax.Array) -> Any:
        learner = config.with_values(experiment, {path: value}).build()
        state = learner.init(jax.random.key(0))
        return learner.step(state, batch), learner.evaluate(state, validation)

    try:
        program = jax.make_jaxpr(computed)(np.float32(values[0])).jaxpr
    except (TypeError, jax.errors.JAXTypeError):  # it decides something while the program is made
        return False
    read = [*program.outvars, *(x for equation in program.eqns for x in equation.invars)]
    return any(x is program.invars[0] for x in read)  # otherwise data or reports alone read it


def _seeds_of(line: dict[str, Any], seeds: slice) -> dict[str, Any]:
    """A line of metrics.jsonl, of some of its seeds alone."""
    return {name: value[seeds] if isinstance(value, list) else value for name, value in line.items()}


def _report(results: Sequence[Result], experiment: Experiment, directory: Path) -> None:
    """Prints the settings from the best to the worst, and writes sweep.json and sweep.png."""
    run = experiment.run
    sign: Callable[[float], float] = (lambda x: -x) if run.mode == "max" else (lambda x: x)
    mean = lambda one: float(np.nanmean(one.scores)) if not np.isnan(one.scores).all() else np.nan
    ordered = sorted(results, key=lambda one: (np.isnan(mean(one)), sign(mean(one))))
    rows, shown = [], []
    for one in ordered:
        known = one.scores[~np.isnan(one.scores)]
        low, high = statistics.interval(statistics.mean, known[:, None]) if len(known) > 1 else (None, None)
        ends = [None if x is None else float(x) for x in (low, high)]
        span = "" if ends[0] is None else f"[{number(ends[0])}, {number(ends[1])}]"
        middle = None if np.isnan(mean(one)) else mean(one)
        lost = int(np.isnan(one.scores).sum())
        shown.append((*one.setting.values(), number(middle), span, str(lost) if lost else ""))
        rows.append({**one.setting, run.metric: middle, "interval": ends, "each": plain(one.scores.tolist())})
    columns = (*ordered[0].setting, run.metric, "95 % interval", "diverged")
    print_table(columns, shown, f"{run.metric} on test data, the best first")
    write_json(directory / "sweep.json", rows)
    label = lambda one: ", ".join(f"{field.rpartition('.')[2]} {text}" for field, text in one.setting.items())
    learning_curves({label(one): one.history for one in results}, directory / "sweep.png")
    print(directory / "sweep.png")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
