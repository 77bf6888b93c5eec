"""Export a trained run as StableHLO programs: python -m experiments.export DIR. See docs/export.md."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from experiments.console import status
from research.training.config import Directory
from research.training.export import Platform, Written, export_run


@dataclass(frozen=True)
class Options:
    """The options of `experiments.export`.

    Attributes:
        directory: directory of the run
        output: directory to write to; by default the folder "export" of the run
        platforms: platforms that the programs run on, among them that of this machine, where they are checked
    """

    directory: Annotated[Directory, tyro.conf.Positional]
    output: Annotated[Directory | None, tyro.conf.arg(help_behavior_hint="")] = None
    platforms: tuple[Platform, ...] = ("cpu", "cuda", "tpu")


def main(arguments: list[str]) -> int:
    """Return the exit status, see `console.status`; 1 where a program differs from the run."""
    return status(lambda: _export(arguments))


def _export(arguments: list[str]) -> None:
    options = tyro.cli(Options, args=arguments, prog="python -m experiments.export", description=__doc__)
    output = options.output or options.directory / "export"
    show(output, export_run(options.directory, output, options.platforms))


def show(output: Path, programs: list[Written]) -> None:
    """Print a table of the programs."""
    title = f"{output}: programs for {', '.join(programs[0].program.platforms)}"
    table = Table("program", "MiB", "batch", "largest difference", title=title, title_justify="left")
    for path, program, difference, size in programs:
        sizes = [str(aval.shape[0]) for aval in program.in_avals if path.stem != "step"]
        batch = sizes[0].replace("batch", "any") if sizes else "as in training"
        table.add_row(path.name, f"{size / 2**20:.2f}", batch, f"{difference:.1e}")
    Console(markup=False).print(table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
