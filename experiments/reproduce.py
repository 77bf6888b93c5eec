"""Train configs and compare their results with the published ones: python -m experiments.reproduce [NAME ...]."""

import sys
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments.console import check_output, headlines, markdown, number, script, status
from research.core.console import console
from research.core.experiment import Experiment
from research.core.files import failing, replacing
from research.training import config
from research.training.run import train

COLUMNS = ("config", "metric", "test", "published", "seeds", "steps", "seconds", "steps/s", "device", "command")


def reproduce(
    names: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="[NAME ...]", help_behavior_hint="(default: all configs)"),
    ] = (),
    seeds: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: one seed)")] = None,
    runs: config.Directory = Path("runs"),
    output: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: RUNS/RESULTS.md)")
    ] = None,
) -> int:
    """Train configs one after another, each in RUNS/NAME, and write a table of their results.

    Unfinished runs are resumed; finished ones are not trained again. Returns the exit status.

    Args:
        names: names of the configs
        seeds: number of seeds to train of each config
        runs: directory that holds the directories of the runs
        output: file for the table
    """
    check_output(output)
    output = output or runs / "RESULTS.md"
    how = [] if seeds is None else ["--seeds", str(seeds)]
    # All are parsed before the first is trained, so that a wrong name is reported at once.
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
    """The rows of the table, with `COLUMNS`, for a run; `result` is its summary, empty where it failed."""
    if not result:
        return [(name, experiment.run.metric, "failed", *("" for _ in COLUMNS[4:]), command)]
    speed = (f"{result['seconds']:.0f}", number(result["steps_per_second"]), result["device"])
    return [
        (name, metric, value, published, str(len(result["seeds"])), str(result["step"]), *speed, f"`{command}`")
        for metric, value, published in headlines(result, experiment.run.metric)
    ]


def _survived(name: str, command: config.Command[Experiment], found: dict[str, Any]) -> int:
    """Train, put the summary into `found`, and return the exit status that training alone would have."""
    try:
        return status(lambda: found.update(train(name, command)))
    except Exception:  # the other configs are still trained
        console.print_exception()
        return 1


main = script("reproduce", __doc__, reproduce)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
