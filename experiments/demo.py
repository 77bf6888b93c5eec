"""Each family in a few minutes on a CPU, with data that the packages bring along: python -m experiments.demo."""

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from experiments.console import headlines, status
from research.core.console import console
from research.training import config
from research.training.run import train

DEMOS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("digits_cnn", ()),
    ("cartpole_dqn", ()),
    ("stdlib_lstm", ()),
    ("stdlib_transformer", ()),
    ("digits_gan", ()),
)
"""The config and its arguments, family by family."""

RUNS = Path("runs") / "demo"


def main() -> int:
    """Trains them all, or goes on where that was stopped, and prints a table. Returns the exit status."""
    return status(demo)


def demo() -> None:
    """Trains `DEMOS` in turn, each in `RUNS`/NAME, and prints what came out and where its pictures are."""
    table = Table("config", "metric", "test", "published", "seconds")
    table.add_column("pictures", overflow="fold")
    for at, (name, arguments) in enumerate(DEMOS, 1):
        directory = RUNS / name
        console.print(f"[bold]{at}/{len(DEMOS)} {name}[/bold]: {config.header(name).splitlines()[0]}")
        command = config.parse(name, [*arguments, "--workdir", str(directory)])
        result = train(name, command)
        pictures = f"{directory}/\n" + "\n".join(path.name for path in sorted(directory.glob("*.png")))
        for metric, value, published in headlines(result, command.config.run.metric):
            table.add_row(name, metric, value, published, f"{result['seconds']:.0f}", pictures)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
