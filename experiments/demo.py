"""Train one config of each family in a few minutes on a CPU, with data that comes with the packages."""

import sys
from pathlib import Path

from experiments.console import headlines, print_table, script
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
"""Configs and their arguments, one of each family."""

RUNS = Path("runs") / "demo"


def demo() -> None:
    """Train `DEMOS` one after another, each in `RUNS`/NAME, and print their results and where the pictures are.

    Unfinished runs are resumed; finished ones are not trained again.
    """
    rows, pictures = [], []
    for at, (name, arguments) in enumerate(DEMOS, 1):
        directory = RUNS / name
        console.print(f"[bold]{at}/{len(DEMOS)} {name}[/bold]: {config.header(name).splitlines()[0]}")
        command = config.parse(name, [*arguments, "--workdir", str(directory)])
        result = train(name, command)
        pictures.append(f"  {directory}/: {' '.join(path.name for path in sorted(directory.glob('*.png')))}")
        found = headlines(result, command.config.run.metric)
        rows += [(name, *headline, f"{result['seconds']:.0f}") for headline in found]
    print_table(("config", "metric", "test", "published", "seconds"), rows)
    print("pictures:", *pictures, sep="\n")


main = script("demo", __doc__, demo)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
