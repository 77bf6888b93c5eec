"""Training in float32 beside bfloat16, on this machine's devices: python -m experiments.dtypes [NAME ...] [options].

Each config trains a few dispatches in either dtype, on made-up data where its own isn't here. All programs are compiled
first, several at once; then they run one after another. What counts is the median of the dispatches.
"""

import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro

from experiments.console import check_output, markdown, script, thousands
from experiments.results import dtype_rows, provenance
from research.core.console import say
from research.core.errors import UserError
from research.core.experiment import Experiment
from research.core.files import write_json
from research.core.placement import Place, place
from research.core.update import Dtype
from research.data import made_up
from research.training import aot, config
from research.training.checks import check_dtype
from research.training.flops import peak
from research.training.run import layout

CONFIGS = (
    "mnist_cnn",
    "cifar10_resnet18",
    "shakespeare_lstm",
    "shakespeare_transformer",
    "imdb_transformer",
    "multi30k_transformer",
    "gpt2",
    "mnist_wgan_gp",
    "cifar10_gan",
    "cartpole_dqn",
    "breakout_pqn",
    "cartpole_ppo",
)
"""At least one of each family."""


class Program(NamedTuple):
    """A config's training in one dtype, compiled.

    where    as many of the devices as training uses
    flops    of a dispatch
    seconds  compiling took
    """

    experiment: Experiment
    where: Place
    compiled: jax.stages.Compiled
    flops: float
    seconds: float


def compare(
    names: tyro.conf.Positional[tuple[str, ...]] = CONFIGS,
    rounds: int = 5,
    workers: int = os.cpu_count() or 1,
    output: Path | None = None,
) -> None:
    """Prints the table.

    Args:
        names: configs
        rounds: dispatches that are timed, after a first one that is not
        workers: programs that are compiled at the same time
        output: JSON file that the figures are written to, for `experiments.results`
    """
    for option, value in (("rounds", rounds), ("workers", workers)):
        if value < 1:
            raise UserError(f"--{option} must be at least 1, not {value}")
    check_output(output)
    dtypes: tuple[Dtype, ...] = ("float32", "bfloat16")
    cells = [(name, dtype) for name in dict.fromkeys(names) for dtype in dtypes]
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(workers) as pool:
        programs = pool.map(lambda cell: compiled(cell[0], cell[1], directory), cells)
        found: dict[str, dict[str, Any]] = {}
        for (name, dtype), program in zip(cells, list(programs), strict=True):
            found.setdefault(name, {})[dtype] = timed(program, rounds)
            say(f"{name} {dtype}: {thousands(found[name][dtype]['speed'])} {found[name][dtype]['unit']}/s")
    header, *rows = dtype_rows(found)
    print(markdown(header, rows), end="")
    if output is not None:
        command = " ".join(["python -m experiments.dtypes", *(names if names != CONFIGS else ())])
        about = provenance(f"{command} --rounds {rounds}", jax.devices()[0].device_kind)
        write_json(output, {"about": about, "dtypes": found})


def compiled(name: str, dtype: Dtype, directory: str) -> Program:
    """The training of a config in `dtype`, for the devices that are here; files of made-up data are in `directory`."""
    experiment = config.load(name)
    experiment = replace(experiment, update=replace(experiment.update, dtype=dtype))
    check_dtype(experiment, jax.default_backend())
    experiment, _ = made_up.available(experiment, Path(tempfile.mkdtemp(dir=directory)))
    where = place("jit", layout(config.Command(experiment)), experiment.update.grad_accum_steps)
    traced = aot.trace(experiment, where, experiment.run.steps_per_dispatch)
    lowered, began = traced.lower(), time.monotonic()
    return Program(experiment, where, lowered.compile(), aot.flops(traced.jaxpr), time.monotonic() - began)


def timed(program: Program, rounds: int) -> dict[str, Any]:
    """Units/s by unit, utilisation, bytes and seconds of a program, its first dispatch left out."""
    experiment, where, steps = program.experiment, program.where, program.experiment.run.steps_per_dispatch
    feed = experiment.feeds().train
    state = where.init(experiment.build().init, jax.random.key(0))
    if feed.resident:
        data = where.put_data(feed, None)
    else:
        batches = [feed.batch_at(step) for step in range(steps)]
        data = where.put_data(jax.tree.map(lambda *leaves: np.stack(leaves), *batches), 1)
    seconds = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        state, _ = jax.block_until_ready(program.compiled(state, data))
        seconds.append(time.perf_counter() - began)
    median, most = statistics.median(seconds[1:]), peak(where.devices)
    units = experiment.units_per_step(feed.batch)
    unit, count = list(units.items())[-1]
    return {
        "unit": unit,
        "speed": steps * count / median,
        "least": steps * count / max(seconds[1:]),
        "most": steps * count / min(seconds[1:]),
        "utilisation": program.flops / median / most if most and np.isfinite(program.flops) else None,
        "memory": sum(aot.needed(program.compiled)),
        "compile_seconds": round(program.seconds, 1),
    }


main = script("dtypes", __doc__, compare)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
