"""Train configs and set what comes out beside what was published: python -m experiments.reproduce [NAME ...]."""

import sys
from pathlib import Path
from typing import Any

import tyro

from experiments.console import headlines, markdown, status
from research.core.console import console
from research.core.experiment import Experiment
from research.core.files import failing, replacing
from research.training import config
from research.training.run import train

COLUMNS = ("config", "metric", "test", "published", "seeds", "steps", "seconds", "steps/s", "device", "command")


def main(arguments: list[str]) -> int:
    """Returns the exit status, see `console.status`; 1 where a config failed."""
    return status(
        lambda: tyro.cli(reproduce, args=arguments, prog="python -m experiments.reproduce", description=__doc__)
    )


def reproduce(
    names: tyro.conf.Positional[tuple[str, ...]] = (),
    seeds: int | None = None,
    runs: Path = Path("runs"),
    output: Path | None = None,
) -> int:
    """Trains configs in turn, each in RUNS/NAME; goes on with runs that were begun, and leaves finished ones alone.

    Returns the exit status.

    Args:
        names: of the configs (default: all there are)
        seeds: so many of each, see experiments.train
        runs: where the runs are kept
        output: where the table goes (default: RUNS/RESULTS.md)
    """
    output = output or runs / "RESULTS.md"
    how = [] if seeds is None else ["--seeds", str(seeds)]
    # All are parsed before the first is trained: a wrong name is told now, not hours later.
    commands = {
        name: config.parse(name, [*how, "--workdir", str(runs / name)]) for name in names or tuple(config.names())
    }
    table: list[tuple[str, ...]] = []
    failed = False
    for name, command in commands.items():
        console.rule(name)
        shell = " ".join(["python -m experiments.train", name, *how])
        found: dict[str, Any] = {}
        code = _survived(name, command, found)
        if code >= 128:
            return code
        failed |= code > 0
        table += rows(name, command.config, found, shell)
        with failing("write", output), replacing(output) as temporary:
            temporary.write_text(markdown(COLUMNS, table))
    print(markdown(COLUMNS, table), end="")
    return int(failed)


def rows(name: str, experiment: Experiment, result: dict[str, Any], command: str) -> list[tuple[str, ...]]:
    """A run's rows of the table, of `COLUMNS`; `result` is its summary, empty where it failed."""
    if not result:
        return [(name, experiment.run.metric, "failed", *("" for _ in COLUMNS[4:]), command)]
    speed = (f"{result['seconds']:.0f}", f"{result['steps_per_second']:.3g}", result["device"])
    return [
        (name, metric, value, published, str(len(result["seeds"])), str(result["step"]), *speed, f"`{command}`")
        for metric, value, published in headlines(result, experiment.run.metric)
    ]


def _survived(name: str, command: config.Command[Experiment], found: dict[str, Any]) -> int:
    """Trains into `found`, and returns the exit status that training alone would have."""
    try:
        return status(lambda: found.update(train(name, command)))
    except Exception:  # a crash of one is no reason to leave out the others
        console.print_exception()
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
