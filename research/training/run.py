"""The one host loop: chunks of steps, evaluation, logs, checkpoints. It knows no families."""

import contextlib
import itertools
import json
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from research.core.console import warn
from research.core.errors import Mistake
from research.core.experiment import Experiment, Feed, Feeds, Numbers, Report, Split
from research.core.placement import Place, place
from research.core.state import Learner, Metrics, State
from research.core.transformations import closed, many, seeds
from research.data.feed import prefetched
from research.evaluation import plots as plot
from research.training import checkpoint, config, log, workdir
from research.training.judge import (
    Evaluator,
    best,
    check_finite,
    check_metric,
    check_moving,
    exhausted,
    merged,
    score,
    summary,
)


class Interrupted(BaseException):
    """A signal asked the run to stop; it has been saved. No `Exception`: those of reports are passed over."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} and saved; the same command resumes")
        self.number = number


def train(name: str, command: config.Command[Experiment]) -> dict[str, Any]:
    """Trains the config called `name`, or goes on where it was left, and returns the content of summary.json.

    Raises Mistake and Failure, whose texts say what to do, and Interrupted when it was asked to stop.
    """
    directory = command.workdir or Path("runs") / name
    with workdir.owned(directory, name, command), jax.disable_jit(command.debug), jax.debug_nans(command.debug):
        done = directory / "summary.json"
        return json.loads(done.read_text()) if done.exists() else _train(command, directory)


def load(directory: Path | str) -> tuple[Experiment, Learner, State]:
    """The config, learner and judged State (see Run.final) of the run kept in `directory`; it reads, never writes.

    Of a run of several seeds, State and learner have their axis. Raises Mistake where there is no such run.
    """
    directory = Path(directory)
    about = workdir.about(directory)
    if about is None:
        raise Mistake(f"{directory} holds no run: it has no config.json")
    experiment = config.from_json(about["name"], about["config"])
    learner, key = _learner(experiment, about["seeds"], None)
    best = experiment.run.final == "best"
    found = checkpoint.restore(directory / "checkpoints", jax.eval_shape(learner.init, key), warn, best)
    if found is None:
        raise Mistake(f"{directory} holds no checkpoint yet")
    return experiment, learner, found[1]


def check_divisible(experiment: Experiment, where: Place) -> None:
    """Raises Mistake unless the devices of `where` divide the experiment's batches and environments."""
    for field, size in experiment.divisible().items():
        if size % where.size:
            raise Mistake(f"the {where.size} devices do not divide {field}={size}: choose a multiple, or --place jit")


def dispatch(learner: Learner, where: Place, feed: Feed, chunk: int) -> jax.stages.Wrapped:
    """(state, data) -> (state, metrics) of `chunk` steps, compiled at its place when first called.

    data: the resident feed itself; of another feed, a chunk's batches, stacked.
    """
    if feed.resident:
        return where.train(lambda s, f: many(closed(learner.step, f, where.axis), chunk)(s, None), None)
    return where.train(many(learner.step, chunk), 1)


def _train(command: config.Command[Experiment], directory: Path) -> dict[str, Any]:
    experiment, run = command.config, command.config.run
    where = place(command.place, seeds=command.seeds is not None)
    check_divisible(experiment, where)
    feeds = experiment.feeds()
    reports = tuple(experiment.reports(load))
    workdir.keep(directory, feeds.kept)
    learner, key = _learner(experiment, command.seeds, where.axis)

    abstract = jax.eval_shape(learner.init, key)
    names = {name for report in reports if report.every is not None for name in report.metrics}
    check_metric(names.union(jax.eval_shape(learner.evaluate, abstract, feeds.validation[0])), run)
    found = checkpoint.restore(directory / "checkpoints", abstract, warn)
    step, state = found or (0, jax.jit(learner.init)(key))
    if found is None and command.init_from is not None:
        workdir.check_kept(command.init_from, feeds.kept)
        state = checkpoint.init_from(command.init_from / "checkpoints", state, warn)
    log.cut(directory, step)
    lines_of_metric = [x for x in log.read(directory) if x["split"] == "validation" and run.metric in x]
    scores = [score(line, run) for line in lines_of_metric]
    state = where.put(state)

    evaluate = Evaluator(learner, where)
    validation = [where.put_data(batch, 0) for batch in feeds.validation]
    saved = checkpoint.Checkpoints(directory / "checkpoints", run.keep, step)
    lines, bar, asked = log.Log(directory), log.Progress(run.steps, step), list[int]()
    with saved, lines, bar, _signals(asked.append), contextlib.ExitStack() as stack:
        advance = stack.enter_context(_chunks(learner, where, feeds.train, run.chunk, step, run.steps))
        begun = time.monotonic()
        while step < run.steps and not exhausted(scores, run):
            started = time.monotonic()
            state, metrics = advance(state)
            metrics = jax.device_get(metrics)
            now = time.monotonic()
            check_finite(metrics, step, directory)
            check_moving(metrics, step, directory)
            step += run.chunk
            last = step == run.steps
            values = merged(metrics)
            lines.line(step, "train", values, {"seconds": now - begun, "steps_per_second": run.chunk / (now - started)})
            begun = now
            bar.update(step)
            bar.say("train", values)

            values = evaluate(state, validation) if step % run.evaluate_every == 0 or last else {}
            due = [report for report in reports if report.every is not None and (step % report.every == 0 or last)]
            split = Split("validation", feeds.validation)
            values |= _reported(due, state, split, directory / "history" / f"{step:08}", run.metric)
            if values:
                lines.line(step, "validation", values)
                bar.say("validation", values)
            if run.metric in values:
                scores.append(score(values, run))
                if best(scores, run) == len(scores) - 1:
                    lines.flush()
                    saved.save_best(step, state)
            if step % run.save_every == 0 or last or exhausted(scores, run) or asked:
                lines.flush()
                saved.save(step, state)
            if asked:
                saved.wait()
                raise Interrupted(asked[0])
        saved.wait()

    def stop(number: int) -> None:
        raise Interrupted(number)

    with _signals(stop):
        if run.final == "best":
            step, state = checkpoint.restore(directory / "checkpoints", abstract, warn, True) or (step, state)
            state = where.put(state)
        return _finish(experiment, command, directory, step, state, evaluate, feeds, reports)


def _finish(
    experiment: Experiment,
    command: config.Command[Experiment],
    directory: Path,
    step: int,
    state: State,
    evaluate: Evaluator,
    feeds: Feeds,
    reports: Sequence[Report],
) -> dict[str, Any]:
    """Judges the State by the test data, once; makes the reports and pictures; writes summary.json."""
    run = experiment.run
    test = summary(evaluate(state, feeds.test))
    numbers = _reported(reports, state, Split("test", feeds.test), directory)
    history = log.read(directory)
    timings = [line["time"] for line in history if line["split"] == "train"]
    seconds = sum(t["seconds"] for t in timings)
    result = {
        "test": test,
        **({"reports": numbers} if numbers else {}),
        "state": run.final,
        "step": step,
        "seeds": list(range(run.seed, run.seed + (command.seeds or 1))),
        "seconds": seconds,
        "steps_per_second": statistics.median(t["steps_per_second"] for t in timings),
        "device": workdir.device(),
        "published": dict(run.published),
    }
    plot.curves({directory.name: history}, directory / "curves.png")
    with log.Log(directory) as lines:
        for picture in sorted(directory.glob("*.png")):
            lines.picture(step, picture)
    log.write_json(directory / "summary.json", result)
    return result


def _reported(
    reports: Sequence[Report], state: State, split: Split, directory: Path, needed: str | None = None
) -> Numbers:
    """The numbers of the reports; their files are in `directory`.

    A report that fails is passed over with a warning, unless it gives the number `needed`.
    """
    numbers: Numbers = {}
    for report in reports:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            numbers |= log.plain(report.run(state, split, directory))
        except Exception as error:  # a picture that can't be drawn must not cost the run its summary
            if needed in report.metrics:
                raise
            warn(f"a report failed: {type(error).__name__}: {error}")
    return numbers


def _learner(experiment: Experiment, n: int | None, axis: str | None) -> tuple[Learner, jax.Array]:
    """The learner, and its root key or keys."""
    learner, seed = experiment.build(axis), experiment.run.seed
    if n is None:
        return learner, jax.random.key(seed)
    return seeds(learner), jax.vmap(jax.random.key)(jnp.arange(seed, seed + n))


@contextlib.contextmanager
def _chunks(
    learner: Learner, where: Place, feed: Feed, chunk: int, start: int, steps: int
) -> Iterator[Callable[[State], tuple[State, Metrics]]]:
    """A function that trains `chunk` steps on. Nothing moves to the device in it but what it asked for beforehand."""
    compiled = dispatch(learner, where, feed, chunk)
    if feed.resident:
        same = itertools.repeat(where.put_data(feed, None))
        batches: AbstractContextManager[Iterator[Any]] = contextlib.nullcontext(same)
    else:
        batches = prefetched(feed, start, steps, chunk, lambda batch: where.put_data(batch, 1))
    with batches as data:

        def advance(state: State) -> tuple[State, Metrics]:
            batch = next(data)
            debugging = jax.config.jax_disable_jit  # type: ignore[attr-defined]
            with jax.transfer_guard("allow" if debugging else "disallow"):
                return compiled(state, batch)

        yield advance


@contextlib.contextmanager
def _signals(answer: Callable[[int], None]) -> Iterator[None]:
    """SIGTERM and SIGINT call `answer` with their number."""
    before = {n: signal.signal(n, lambda number, _: answer(number)) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
