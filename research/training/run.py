"""The one host loop: dispatches of steps, evaluation, logs, checkpoints. It knows no families."""

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from research.core.bucket import located
from research.core.console import say, warn
from research.core.errors import UserError
from research.core.experiment import Experiment, Feeds, Report, Split
from research.core.files import write_json
from research.core.layout import Layout, make_mesh
from research.core.metrics import Numbers, plain
from research.core.placement import Place, place
from research.core.state import Learner, State
from research.core.transformations import per_seed, per_setting
from research.evaluation.curves import learning_curves
from research.training import checkpoint, config, log, own_files, provenance, workdir
from research.training.checks import check_contract, check_divisible, check_dtype, usable_devices
from research.training.dispatch import dispatches
from research.training.evaluate import Evaluator, best, diverged, exhausted, known, score, scores, summary
from research.training.flops import peak
from research.training.init_from import init_from
from research.training.processes import ProcessGroup, joined
from research.training.profiling import profiled
from research.training.program_cache import keep_programs
from research.training.reader import MetricsReader
from research.training.signals import Interrupted, on_signal
from research.training.weights_and_biases import check_installed

LARGE = 2**30
"""Bytes of a checkpoint from which on a run says how long it takes to save."""


def train(name: str, command: config.Command[Experiment]) -> dict[str, Any]:
    """Trains the config called `name`, or goes on where it was left, and returns the content of summary.json.

    Raises UserError and RunError, whose texts say what to do, and Interrupted when it was asked to stop.
    """
    directory = located(command.workdir or Path("runs") / name)
    if command.init_from is not None:
        source = located(command.init_from)  # this and what follows raise before anything is written
        if command.overwrite:
            workdir.check_source(source, directory)
        elif not workdir.saved(directory):  # else its weights are the run's own
            workdir.run_in(source)
    if command.log.wandb:
        check_installed()
    with (
        joined(command.processes, command.coordinator, command.process) as group,
        jax.disable_jit(command.debug),
        jax.debug_nans(command.debug),
        ExitStack() as stack,
    ):
        keep_programs(jax.default_backend(), group.size)
        checked = prepare(command, directory, group) if command.overwrite else None  # before the old run is deleted
        files = stack.enter_context(own_files.shared(directory, name, command, group))
        done = files.directory / "summary.json"
        if done.exists():
            result = workdir.summary(directory)
            say(f"{directory} is already finished: these are its results; --overwrite trains anew")
            options = {"--profile": command.profile, "--log.wandb": command.log.wandb}
            if asked := [option for option, given in options.items() if given]:
                warn(f"nothing was trained: {' and '.join(asked)} had nothing to do")
            return result
        job = (checked or prepare(command, directory, group))._replace(files=files)
        step, state = begin(job)
        step, state = loop(job, step, state)
        return finish(job, step, state)


def load(directory: Path | str) -> tuple[Experiment, Learner, State]:
    """The config, learner and evaluated State (see Run.checkpoint_for_test) of a run; it reads, never writes.

    Of a run of several seeds, State and learner have their axis. Raises UserError where there is no such run.
    """
    directory = located(directory)
    about = workdir.run_in(directory)
    over = config.as_over(about)
    try:
        experiment = config.from_json(about["name"], about["config"])
        config.check_over(experiment, over)
    except UserError as error:
        raise UserError(
            f"{directory / 'config.json'} does not fit this version of samestep ({error}): restore it, or use the "
            "version that the run was made with"
        ) from None
    learner, key = build(experiment, about["seeds"], over)
    best = experiment.run.checkpoint_for_test == "best"
    found = checkpoint.restore(directory / "checkpoints", jax.eval_shape(learner.init, key), warn, best)
    if found is None:
        raise UserError(f"{directory} holds no checkpoint yet")
    return experiment, learner, found[1]


def build(experiment: Experiment, seeds: int | None, over: config.Over = ()) -> tuple[Learner, jax.Array]:
    """The learner and its root key; of several seeds, both for all of them; of a sweep, of all settings' seeds."""
    seed = experiment.run.seed
    if seeds is None:
        return experiment.build(), jax.random.key(seed)
    keys = jax.vmap(jax.random.key)(jnp.arange(seed, seed + seeds))
    if not over:
        return per_seed(experiment.build()), keys
    settings = config.settings(over)
    values = {name: np.repeat(np.array([setting[name] for setting in settings], np.float32), seeds) for name, _ in over}
    learner = per_setting(lambda one: config.with_values(experiment, one).build(), values)
    return learner, jnp.tile(keys, len(settings))


def layout(command: config.Command[Experiment]) -> Layout:
    """How the run lies over the devices. Raises UserError where the command asks for what they are not."""
    devices = jax.devices()
    if command.mesh is None and command.place == "jit" and command.processes is None:
        devices = usable_devices(command.config, devices)
    mesh = make_mesh(devices, command.mesh)
    parts = mesh.shape["seed"]
    seeds = (command.seeds or 1) * len(config.settings(command.over))
    if parts > 1 and (command.seeds is None or seeds % parts):
        have = "there is one seed" if command.seeds is None else f"there are {seeds}"
        raise UserError(f"--mesh {command.mesh} shares the seeds among {parts}, and {have}: give --seeds {parts}")
    return Layout(mesh, command.shard, command.seeds is not None, tensor_axes=command.config.tensor_axes())


class Job(NamedTuple):
    """What stays the same during a run.

    files        where the run's files are written, except checkpoints
    checkpoints  directory of the checkpoints
    group        the processes that train
    key          the root key, or keys with several seeds
    abstract     the State's shapes
    data         a hash of the first examples
    """

    command: config.Command[Experiment]
    files: own_files.Files
    checkpoints: Path
    group: ProcessGroup
    experiment: Experiment
    learner: Learner
    key: jax.Array
    abstract: State
    data: str
    where: Place
    feeds: Feeds
    reports: tuple[Report, ...]
    evaluate: Evaluator

    @property
    def directory(self) -> Path:
        """Where this process reads and writes the run's files."""
        return self.files.directory

    @property
    def run_directory(self) -> Path:
        """The directory of the run."""
        return self.checkpoints.parent


def prepare(command: config.Command[Experiment], directory: Path, group: ProcessGroup) -> Job:
    """Builds what the run in `directory` needs and checks that it fits together; nothing is compiled or written.

    Its files are those of `directory`; see `own_files.shared` for where a process keeps them.
    """
    experiment = command.config
    check_dtype(experiment, jax.default_backend())
    where = place(command.place, layout(command), experiment.update.grad_accum_steps)
    check_divisible(experiment, where)
    for warning in experiment.warnings():
        warn(warning)
    feeds = experiment.feeds()
    reports = tuple(experiment.reports(load))
    learner, key = build(experiment, command.seeds, command.over)
    batch, validation = feeds.train.batch_at(0), feeds.validation[0]
    job = Job(
        command=command,
        files=own_files.Files(directory),
        checkpoints=directory / "checkpoints",
        group=group,
        experiment=experiment,
        learner=learner,
        key=key,
        abstract=check_contract(learner, key, batch, validation, experiment, reports),
        data=provenance.data((batch, validation)),
        where=where,
        feeds=feeds,
        reports=reports,
        evaluate=Evaluator(learner, where),
    )
    if command.overwrite and command.init_from is not None:  # does it fit? Tried before the old run is deleted
        initial(job, where.put(job.abstract), command.init_from, warn=lambda line: None)
    return job


def begin(job: Job) -> tuple[int, State]:
    """The step and State that the run starts from: its newest checkpoint, or new ones."""
    workdir.keep(job.directory, job.feeds.kept, job.run_directory)
    workdir.check_data(job.directory, job.data, job.run_directory)
    found = checkpoint.restore(job.checkpoints, job.where.put(job.abstract), warn, group=job.group)
    step, state = found or (0, job.where.init(job.learner.init, job.key))
    if found is not None:
        say(f"{job.run_directory}: resumed at step {step} of {job.experiment.run.steps}")
        workdir.moved(job.directory, job.command, job.run_directory)
    elif job.command.init_from is not None:
        state = initial(job, state, job.command.init_from, warn)
    elif still := sorted(state.params.keys() - state.opt_state.keys()):
        warn(f"nothing trains {', '.join(still)}, and without --init-from DIR its weights are random")
    provenance.check_deterministic()
    log.cut(job.directory, step)
    check_history(job, step)
    return step, job.where.put(state)


def check_history(job: Job, step: int) -> None:
    """Warns where metrics.jsonl lacks lines up to `step`, which the run resumes from. Raises UserError where their
    scores decide which checkpoint is evaluated, or when the run stops."""
    run = job.experiment.run
    intervals = {"train": run.steps_per_dispatch, "validation": run.evaluate_every}
    logged = {(line["split"], line["step"]) for line in log.read(job.directory)}
    due = [(split, at) for split, every in intervals.items() for at in range(every, step + 1, every)]
    missing = sorted(at for split, at in due if (split, at) not in logged)
    if not missing:
        return
    lacks = f"{job.run_directory / log.METRICS} lacks lines of steps {missing[0]} to {missing[-1]}"
    if run.by_scores:
        raise UserError(f"{lacks}, whose scores decide how the run goes on: restore it, or train anew with --overwrite")
    warn(f"{lacks}: curves and times leave these steps out")


def initial(job: Job, state: State, directory: Path, warn: Callable[[str], None]) -> State:
    """The first State, with weights of the run in `directory`. Raises UserError where they don't fit it."""
    source, paths = located(directory), job.command.init_paths
    remedy = f"--init-from, or its tokenizer by --data.tokenizer-from {directory}"
    workdir.check_kept(source, job.feeds.kept, remedy)
    from_best, repeated = workdir.evaluates_best(source), workdir.repeated(source, job.command)
    return init_from(source / "checkpoints", state, warn, from_best, job.group, paths, repeated)


def loop(job: Job, step: int, state: State) -> tuple[int, State]:
    """Trains from `step` on to the end, or until an early stop; logs, evaluates and saves on the way.

    The metrics of a dispatch are read once the next one was started, but before its State is evaluated or saved.

    Raises Interrupted after a signal, once the State is saved; RunError where training can't go on.
    """
    run, directory = job.experiment.run, job.directory
    found = scores(log.read(directory), run)
    saved = checkpoint.Checkpoints(job.checkpoints, run.keep, step, job.group, job.files.upload)
    lines, bar, asked = _log(job), log.Progress(run.steps, step), list[int]()
    units_per_step = job.experiment.units_per_step(job.feeds.train.batch)
    reader = MetricsReader(job.experiment, step, units_per_step, peak(job.where.devices), lines, bar, saved.described)

    def stop_signal() -> int | None:
        """The signal that any process of the run has received."""
        told = job.group.all_gather("signals", str(asked[0]) if asked else None)
        return next((int(number) for number in told.values()), None)

    signals = on_signal(asked.append, lambda: f"the compiled call after step {reader.step}")
    ahead = dispatches(job.learner, job.where, job.feeds.train, run.steps_per_dispatch, step, run.steps)
    intervals = [run.evaluate_every, run.save_every, *(report.every for report in job.reports if report.every)]
    with saved, lines, bar, signals, ahead as advance, ExitStack() as stack:
        if job.group.size > 1 or checkpoint.total_bytes(state) >= LARGE:
            say(saved.cost(state))
        if job.command.profile:
            advance = stack.enter_context(profiled(advance, directory / "profile"))
        while step < run.steps and not exhausted(found, run):
            state, dispatched = advance(state)
            reader.add(dispatched)
            step += run.steps_per_dispatch
            stop = stop_signal()
            if step < run.steps and all(step % every for every in intervals) and stop is None:
                continue
            reader.flush()
            values = validate(job, step, state)
            stop = stop_signal() if stop is None else stop
            if values:
                lines.line(step, "validation", values)
                bar.say("validation", values)
            if run.metric in values:
                found.append(score(values, run))
            new_best = run.metric in values and best(found, run) == len(found) - 1
            due = step % run.save_every == 0 or step == run.steps or exhausted(found, run) or stop is not None
            if due or new_best:
                lines.flush()
                saved.save(step, state, new_best)
            if stop is not None:
                saved.wait()
                raise Interrupted(stop)
        saved.wait()
        if (stop := stop_signal()) is not None:  # it came during the last save
            raise Interrupted(stop)
    return step, state


def _log(job: Job) -> log.Log:
    return log.Log(job.directory, job.command.log.wandb and job.group.primary)


def validate(job: Job, step: int, state: State) -> Numbers:
    """The validation metrics and the numbers of reports that are due after a step, by name."""
    run, directory = job.experiment.run, job.directory / "history" / f"{step:08}"
    due = lambda every: step % every == 0 or step == run.steps
    values = job.evaluate(state, job.feeds.validation) if due(run.evaluate_every) else {}
    reports = [report for report in job.reports if report.every is not None and due(report.every)]
    split = Split("validation", job.feeds.validation)
    values = plain(values | reported(reports, lambda: report_state(job, state), split, directory, run.metric))
    return json.loads(job.group.broadcast("validation", json.dumps(values)))


def report_state(job: Job, state: State) -> State:
    """The State for reports: each of several processes has its weights on its own devices."""
    return state if job.group.size == 1 else job.where.own(state)


def finish(job: Job, step: int, state: State) -> dict[str, Any]:
    """Evaluates the State on the test data, once; makes the reports and pictures; writes summary.json."""
    run, directory = job.experiment.run, job.directory
    pictures = lambda: {path: path.stat().st_mtime_ns for path in sorted(directory.glob("*.png"))}
    before = pictures()  # of a run that was extended, or of other scripts

    def stop(number: int) -> None:
        raise Interrupted(number)

    with on_signal(stop, lambda: f"the evaluation of step {step}"):
        if run.checkpoint_for_test == "best":
            there = job.where.put(job.abstract)
            step, state = checkpoint.restore(job.checkpoints, there, warn, True, job.group) or (step, state)
        test = summary(job.evaluate(state, job.feeds.test))
        numbers = reported(job.reports, lambda: report_state(job, state), Split("test", job.feeds.test), directory)
        history, settings = log.read(directory), config.settings(job.command.over)
        result = {
            "test": test,
            **({"reports": numbers} if numbers else {}),
            "state": run.checkpoint_for_test,
            "step": step,
            # As `per_setting` has them: all seeds of the first setting of a sweep, then those of the next.
            "seeds": list(range(run.seed, run.seed + (job.command.seeds or 1))) * len(settings),
            **({"settings": settings} if job.command.over else {}),
            "seconds": sum(line["time"]["seconds"] for line in history if line["split"] == "train"),
            "steps_per_second": log.steps_per_second(history),
            "time": log.timing(history),
            "device": provenance.device(job.where.devices),
            "published": dict(run.published),
        }
        learning_curves({directory.name: history}, directory / "curves.png")
        with _log(job) as lines:
            for picture, written in pictures().items():
                if written != before.get(picture):
                    lines.picture(step, picture)
        write_json(directory / "summary.json", result)
        return result


def reported(
    reports: Sequence[Report], get_state: Callable[[], State], split: Split, directory: Path, needed: str | None = None
) -> Numbers:
    """The numbers of the reports on the State that `get_state` gives; their files are in `directory`.

    A report that fails, as where the weights don't fit, is passed over with a warning, unless it gives the number
    `needed`. Of a seed that has diverged the numbers are None.
    """
    numbers: Numbers = {}
    state: State | None = None
    for report in reports:
        try:
            state = get_state() if state is None else state
            directory.mkdir(parents=True, exist_ok=True)
            found = plain(report.run(state, split, directory))
            numbers |= known(found, list(diverged(state))) if state.key.ndim else found
        except Exception as error:  # a picture that can't be drawn must not cost the run its summary
            if needed in report.metrics:
                raise
            warn(f"a report failed: {type(error).__name__}: {error}")
    return numbers
