"""What fits a device: the largest batch, and the nearest choices where a program does not fit."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from research.core.experiment import Experiment
from research.training import config


def largest(fits: Callable[[int], bool], unit: int, start: int, most: int) -> int:
    """The largest multiple of `unit`, up to `most`, for which `fits`: found from `start` on by doubling, then by
    bisection; 0 where there is none. It ends at a sixteenth of the number: each question is a program to compile.
    """
    low, top = 0, most // unit
    high = min(max(1, start // unit), top)
    while low < high and fits(high * unit):
        low, high = high, min(2 * high, top)
    while high - low > max(1, low // 16):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * unit) else (low, middle)
    return low * unit


def batch_options(experiment: Experiment, size: int) -> list[str]:
    """The options that set the batch, and what is evaluated at a time, to `size`; without data, the environments."""
    if hasattr(experiment, "data"):
        return ["--data.batch", str(size), "--data.evaluation-batch", str(size)]
    return ["--num-envs", str(size)]


def batch(experiment: Experiment) -> int:
    """The size that `batch_options` sets."""
    data: Any = getattr(experiment, "data", None)
    return experiment.num_envs if data is None else data.batch  # type: ignore[attr-defined]


def replaced(arguments: Sequence[str], options: Sequence[str]) -> list[str]:
    """The arguments of a command line with these options (name, value, name, …) in place of those of the same names,
    and without --quick and --fit."""
    kept, names, values = list[str](), options[::2], iter(arguments)
    for argument in values:
        if argument in names:
            next(values)
        elif argument not in ("--quick", "--fit") and argument.partition("=")[0] not in names:
            kept.append(argument)
    return [*kept, *options]


def alternatives(experiment: Experiment, devices: int, shard: str, place: str) -> Iterator[list[str]]:
    """Options to add, those that change least first: where the State lies, what is computed again, microbatches,
    smaller batches."""
    split = ["--shard", "fsdp"] if devices > 1 and shard == "replicated" and place == "jit" else []
    if split:
        yield split
    leaves = config.leaves(experiment)
    more = {"none": ("dots", "full"), "dots": ("full",)}.get(leaves.get("net.stack.remat", ""), ())
    remat = [["--net.stack.remat", how] for how in more]
    yield from remat
    most = remat[-1] if remat else []
    size, parts = batch(experiment), experiment.update.grad_accum_steps
    while (parts := 2 * parts) * devices <= size and size % (parts * devices) == 0:
        yield [*most, "--update.grad-accum-steps", str(parts)]
        if split:
            yield [*split, *most, "--update.grad-accum-steps", str(parts)]
    unit = experiment.update.grad_accum_steps * devices
    while (size := size // 2 // unit * unit) >= unit:
        yield [*split, *most, *batch_options(experiment, size)]
