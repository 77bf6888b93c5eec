"""What is checked before and during training: the contract of a learner, finite numbers, adversaries that move."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from research.core.console import warn
from research.core.errors import RunError, UserError
from research.core.experiment import Experiment, Report, multiples
from research.core.metrics import Metric, Metrics, computed
from research.core.placement import Place
from research.core.state import Batch, Learner, State

STILL = 5
"""So many steps, or more, tell whether anything moves."""


def check_divisible(experiment: Experiment, where: Place) -> None:
    """Raises UserError, which names the nearest sizes that fit, unless the devices of `where` divide the experiment's
    batches and environments."""
    if odd := _indivisible(experiment, where.size):
        raise UserError(f"the {where.size} devices do not divide {odd}: choose these, or run on fewer devices")


def usable_devices(experiment: Experiment, devices: list[jax.Device]) -> list[jax.Device]:
    """As many of the devices as divide the experiment's batches and environments; warns where they are not all."""
    count = max(n for n in range(1, len(devices) + 1) if not _indivisible(experiment, n))
    if count < len(devices):
        odd = _indivisible(experiment, len(devices))
        warn(f"{len(devices)} devices do not divide {odd}: {count} of them are used")
    return devices[:count]


def _indivisible(experiment: Experiment, devices: int) -> str:
    """The sizes that so many devices do not divide, with the nearest ones that they do; "" where they divide all."""
    odd = {field: size for field, size in experiment.divisible().items() if size % devices}
    parts = experiment.update.grad_accum_steps
    said = ", ".join(f"{field}={size} (the nearest: {multiples(size, devices)})" for field, size in odd.items())
    return f"{said}, where a batch is one of {parts} microbatches" if odd and parts > 1 else said


def check_dtype(experiment: Experiment, platform: str) -> None:
    """Raises UserError where the devices of `platform`, such as "tpu", do not compute in the experiment's dtype."""
    if platform == "tpu" and experiment.update.dtype == "float16":
        raise UserError("TPUs do not compute in float16: choose --dtype bfloat16")


def check_contract(
    learner: Learner,
    key: jax.Array,
    train: Batch,
    validation: Batch,
    experiment: Experiment,
    reports: Iterable[Report] = (),
) -> State:
    """The State's shapes, `jax.eval_shape(learner.init, key)`. Raises RunError, naming the rule, where one is broken.

    The rules: `step` keeps the State's structure, shapes, dtypes and weak types, and advances its clock by means of
    `state.learner`; it and `evaluate` give metrics by name; the names of `experiment.adversaries` have their metrics.

    Raises UserError unless `run.metric`, which "best" goes by, is a metric of `evaluate` or a number of those `reports`
    that have an interval.
    """

    def broken(rule: str) -> RunError:
        return RunError(f"{type(experiment).__name__} breaks the contract of a learner: {rule}")

    state = jax.eval_shape(learner.init, key)
    if not isinstance(state, State):
        raise broken(f"init is to return a State, not {type(state).__name__}")
    after, metrics = jax.eval_shape(learner.step, state, train)
    before_leaves, after_leaves = jax.tree.leaves_with_path(state), jax.tree.leaves_with_path(after)
    names = lambda leaves: [jax.tree_util.keystr(path) for path, _ in leaves]
    if names(before_leaves) != names(after_leaves):
        differ = sorted(set(names(before_leaves)) ^ set(names(after_leaves)))
        raise broken(f"step is to keep the State's structure; it does not for {', '.join(differ[:3]) or 'its order'}")
    for (path, x), (_, y) in zip(before_leaves, after_leaves, strict=True):
        facts = [f"{z.dtype.name}{list(z.shape)}{' (weak)' if z.weak_type else ''}" for z in (x, y)]
        if facts[0] != facts[1]:
            name = jax.tree_util.keystr(path)
            raise broken(f"step is to keep shapes and dtypes; State{name} is {facts[0]} before and {facts[1]} after")
    evaluated = jax.eval_shape(learner.evaluate, state, validation)
    for what, values in (("step", metrics), ("evaluate", evaluated)):
        if not isinstance(values, dict):
            raise broken(f"the metrics of {what} are to be a dict by name, not {type(values).__name__}")
        for name, value in values.items():
            if not isinstance(value, Metric):
                array = isinstance(value, jax.ShapeDtypeStruct)
                kind = f"the metric {name!r} of {what} is {'an array' if array else type(value).__name__}"
                raise broken(f"{kind}: make it one that adds up, such as `mean(values, mask)`")
    for name in experiment.adversaries:
        missing = {f"{name}_loss", f"{name}_gradient_norm"} - set(metrics)
        if missing:
            raise broken(f"it names {name!r} among its adversaries, and step gives no {min(missing)}")
    intervals = {name: report.every for report in reports for name in report.metrics}
    numbers = {*computed(jax.tree.map(lambda x: np.zeros(x.shape), evaluated))}
    numbers |= {name for name, every in intervals.items() if every is not None}
    metric = experiment.run.metric
    if metric in intervals and metric not in numbers:
        raise UserError(f"--run.metric {metric} is computed once, at the end: give the interval of its report too")
    if metric not in numbers:
        raise UserError(f"there is no metric {metric!r}: set --run.metric to one of {', '.join(sorted(numbers))}")
    return state


def check_finite(metrics: Metrics, before: int, left: Callable[[], str]) -> None:
    """Raises RunError if a metric of some step, [steps] or [steps, seeds], is not finite; with seeds, if of all.

    A seed that diverges is null in the logs, and the others go on. Metrics of updates that float16 has skipped are
    finite, but for an overflow at a loss scale of 1, which no smaller scale can mend.

    before: the steps done before these; left: says which checkpoints there are
    """
    rank = min(np.ndim(x) for x in jax.tree.leaves(metrics))
    whole = lambda x: np.isfinite(x).all(tuple(range(rank, np.ndim(x))))
    finite = {name: np.all([whole(x) for x in jax.tree.leaves(m)], axis=0) for name, m in metrics.items()}
    fine = np.all(list(finite.values()), axis=0)
    if fine.ndim == 2:
        fine = np.any(fine, axis=1)
    if fine.all():
        return
    step = int(np.argmin(fine))
    names = [name for name, good in finite.items() if not np.all(good[step])]
    if any(name.endswith("gradient_norm") and name.replace("gradient_norm", "loss_scale") in metrics for name in names):
        raise RunError(
            f"gradients overflowed float16 at step {before + step + 1}, at a loss scale of 1, which is the smallest. "
            f"{left()}. Try --dtype bfloat16 or float32, a lower learning rate or --update.clip 1"
        )
    raise RunError(
        f"{' and '.join(names)} became NaN or infinite at step {before + step + 1}. {left()}. Try a lower learning "
        "rate or --update.clip 1; --debug, in another --workdir, shows where it comes from"
    )


def check_moving(metrics: Metrics, adversaries: Sequence[str], before: int, left: Callable[[], str]) -> None:
    """Raises RunError if nets that play against each other have all stopped: saturated, or dead.

    NAME of `adversaries` has if its NAME_loss, [steps] or [steps, seeds], is the same at all steps, although each has
    other data, or if its NAME_gradient_norm is 0 at all of them; with seeds, at all seeds. Fewer than `STILL` steps
    can't tell.

    before: the steps done before these; left: says which checkpoints there are
    """
    if not adversaries:
        return
    steps = len(jax.tree.leaves(metrics[f"{adversaries[0]}_loss"])[0])
    if steps >= STILL and np.all([_stopped(name, metrics) for name in adversaries]):
        raise RunError(
            f"{' and '.join(adversaries)} have stopped: from step {before + 1} to {before + steps} their losses stood "
            f"still, or had no gradient. {left()}. "
            "Try lower learning rates or, where the config has them, another --loss, --r1 or --gradient-penalty, or "
            "--discriminator.spectral"
        )


def _stopped(name: str, metrics: Metrics) -> Any:
    """Whether a net has, [] or [seeds]; where nothing was counted, it has not, and where it diverged, it has."""
    total, count = (np.asarray(x, np.float64) for x in jax.tree.leaves(metrics[f"{name}_loss"]))
    with np.errstate(invalid="ignore", divide="ignore"):
        loss = total / count
        moved = np.ptp(loss, 0) > 1e-6 * np.abs(loss).max(0)
    norm = jax.tree.leaves(metrics[f"{name}_gradient_norm"])[0]
    return (~moved | (np.asarray(norm) == 0).all(0)) & (count > 0).all(0)
