"""Plot the learning curves of runs side by side: python -m experiments.plot DIR ... [--output FILE.png]."""

import sys
from pathlib import Path
from typing import Annotated

import tyro

from experiments.console import check_picture, script
from research.core.console import warn
from research.core.errors import UserError
from research.evaluation.curves import learning_curves
from research.training import log, workdir
from research.training.config import Directory


def curves(
    directories: Annotated[tuple[Directory, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DIR [DIR ...]")],
    output: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path("curves.png"),
) -> None:
    """Plot the curves of all these runs, finished or not, in one picture.

    Args:
        directories: directories of the runs
        output: file of the picture, which ends in .png
    """
    if not directories:
        raise UserError("name the directory of at least one run: python -m experiments.plot DIR ...")
    check_picture(output)
    for directory in directories:
        workdir.run_in(directory)
    names = [directory.resolve().name for directory in directories]
    labels = names if len(set(names)) == len(names) else [str(directory) for directory in directories]
    runs = {label: log.read(directory) for label, directory in zip(labels, directories, strict=True)}
    if not any(runs.values()):
        raise UserError(f"there is nothing to plot yet in {', '.join(map(str, directories))}")
    for label, lines in runs.items():
        if not lines:
            warn(f"there is nothing to plot yet in {label}")
    runs = {label: lines for label, lines in runs.items() if lines}
    learning_curves(runs, output)
    print(output)


main = script("plot", __doc__, curves)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
