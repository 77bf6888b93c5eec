"""Export a trained run as StableHLO programs: python -m experiments.export DIR. See docs/export.md."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from experiments.console import print_table, script
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


def export(options: Options) -> None:
    """Exports the run, and prints the programs. Raises RunError where one differs from the run."""
    output = options.output or options.directory / "export"
    show(output, export_run(options.directory, output, options.platforms))


def show(output: Path, programs: list[Written]) -> None:
    """Print a table of the programs."""
    title = f"{output}: programs for {', '.join(programs[0].program.platforms)}"
    rows = []
    for path, program, difference, size in programs:
        sizes = [str(aval.shape[0]) for aval in program.in_avals if path.stem != "step"]
        batch = sizes[0].replace("batch", "any") if sizes else "as in training"
        rows.append((path.name, f"{size / 2**20:.2f}", batch, f"{difference:.1e}"))
    print_table(("program", "MiB", "batch", "largest difference"), rows, title)


main = script("export", __doc__, Options, export)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
