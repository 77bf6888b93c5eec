"""Train a config: python -m experiments.train NAME [options]; NAME --help lists them all."""

import sys

from rich.console import Console
from rich.table import Table

from research import config
from research.experiment import Failure, Mistake
from research.run import Interrupted, train


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0, 1 for what went wrong, 2 for what was typed, 128 + n for a signal."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    if not arguments or arguments[0].startswith("-"):
        print(__doc__)
        for name in config.names():
            print(f"  {name:20} {config.header(name).splitlines()[0]}")
        return 0 if arguments else 2
    name, *rest = arguments
    try:
        result = train(name, config.parse(name, rest))
    except Mistake as mistake:
        console.print(f"[red]mistake:[/red] {mistake}")
        return 2
    except Failure as failure:
        console.print(f"[red]failed:[/red] {failure}")
        return 1
    except Interrupted as interrupted:
        console.print(str(interrupted))
        return 128 + interrupted.number
    show(name, result)
    return 0


def show(name: str, result: dict) -> None:
    """Prints a run's summary as a table."""
    table = Table(title=f"{name}: test, {result['state']} State, step {result['step']}", title_justify="left")
    for column in ("metric", "mean", "spread", "each", "published"):
        table.add_column(column)
    for metric, value in result["test"].items():
        each = " ".join(number(x) for x in value["each"]) if len(value["each"]) > 1 else ""
        published = number(result["published"].get(metric))
        table.add_row(metric, number(value["mean"]), number(value["spread"]), each, published)
    Console().print(table)
    print(f"{result['seconds']:.1f} s, {result['steps_per_second']:.4g} steps/s, {result['device']}")


def number(value: float | None) -> str:
    """A value as people read it."""
    return "" if value is None else f"{value:.4g}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
