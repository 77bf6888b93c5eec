"""Shared by the scripts: exit statuses for errors, files of pictures, tables for summaries."""

import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from research.core.console import console
from research.core.errors import RunError, UserError
from research.training.evaluate import summary
from research.training.signals import Interrupted

OUT_OF_MEMORY = (
    "the devices are out of memory: try smaller batches, more --update.grad-accum-steps, fewer seeds or environments, "
    "or --shard fsdp; experiments.compile NAME --fit looks for what fits"
)


def status(action: Callable[[], int | None]) -> int:
    """Run `action` and return the exit status: that of `action` or 0, 1 for a RunError or too little memory, 2 for a
    UserError, 128 + n for signal n. Errors are printed in one message."""
    try:
        return action() or 0
    except UserError as mistake:
        console.print(f"[red]error:[/red] {escape(str(mistake))}")
        return 2
    except RunError as failure:
        console.print(f"[red]error:[/red] {escape(str(failure))}")
        return 1
    except jax.errors.JaxRuntimeError as failure:
        if not any(text in str(failure) for text in ("RESOURCE_EXHAUSTED", "Out of memory")):
            raise
        console.print(f"[red]error:[/red] {OUT_OF_MEMORY} ({escape(str(failure).splitlines()[0])})")
        return 1
    except Interrupted as interrupted:
        console.print(str(interrupted))
        return 128 + interrupted.number
    except KeyboardInterrupt:
        console.print("stopped by SIGINT")
        return 128 + signal.SIGINT


def script(
    name: str,
    about: str | None,
    options: Callable[..., Any],
    action: Callable[[Any], int | None] = lambda result: result,
) -> Callable[[list[str]], int]:
    """The `main` of experiments.NAME: arguments -> the exit status, see `status`.

    about    what --help begins with
    options  a function of the options, or a dataclass of them, which `action` is called with
    """
    parsed = lambda arguments: tyro.cli(
        options, args=arguments, prog=f"python -m experiments.{name}", description=about
    )
    return lambda arguments: status(lambda: action(parsed(arguments)))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> None:
    """Prints a table to standard output; without columns, rows without a header."""
    table = Table(*columns, title=title, title_justify="left", show_header=bool(columns))
    for row in rows:
        table.add_row(*row)
    Console(markup=False).print(table)


def check_picture(output: Path) -> None:
    """Raises UserError where `output` is no file of a picture in a directory that is there."""
    if output.suffix != ".png":
        raise UserError(f"--output must end in .png, not be {output}")
    check_output(output)


def check_output(output: Path | None) -> None:
    """Raises UserError where `output` is a directory or in one that is not there, before anything is measured."""
    if output is None:
        return
    if output.is_dir():
        raise UserError(f"--output {output} is a directory: name a file")
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: there is no directory {output.parent}")


def unnamed(arguments: Sequence[str], command: str, about: Callable[[], object]) -> int | None:
    """The exit status of a command line that does not begin with a NAME, after `about` or what is wrong was printed.

    None where it begins with one. `command` is the name of the module.
    """
    if arguments and not arguments[0].startswith("-"):
        return None
    if not arguments or arguments[0] in ("-h", "--help"):
        about()
        return 0 if arguments else 2
    console.print(f"[red]error:[/red] NAME comes first: python -m {command} NAME {escape(' '.join(arguments))}")
    return 2


def show(title: str, test: Mapping[str, Any], others: Mapping[str, Mapping[str, float | None]]) -> None:
    """Print the test metrics (see `evaluate.summary`) as a table.

    others  further columns by title: values by metric
    """
    rows = [
        (
            metric,
            number(value["mean"]),
            number(value["spread"]),
            " ".join(number(x) for x in value["each"]) if len(value["each"]) > 1 else "",
            *(number(values.get(metric)) for values in others.values()),
        )
        for metric, value in test.items()
    ]
    print_table(("metric", "mean", "spread", "each", *others), rows, title)


def measured(result: Mapping[str, Any]) -> dict[str, Any]:
    """The test metrics of a summary, and the numbers of its reports in the same form."""
    return {**result.get("test", {}), **summary(result.get("reports", {}))}


def headlines(result: Mapping[str, Any], metric: str) -> list[tuple[str, str, str]]:
    """The main results in a summary, as text: (metric, "mean ± spread", published value).

    These are the metrics with a published value, or else `metric` alone, "" where the report that gives it has failed.
    """
    test, published = measured(result), result["published"]
    return [
        (name, spread(test[name]) if name in test else "", number(published.get(name)))
        for name in [*(name for name in published if name in test)] or [metric]
    ]


def spread(value: Mapping[str, Any]) -> str:
    """The mean, and the spread if there is one, as text."""
    return number(value["mean"]) + ("" if value["spread"] is None else f" ± {value['spread']:.2g}")


def number(value: float | None) -> str:
    """A value as text, with four significant digits."""
    return "" if value is None else f"{value:.4g}"


def thousands(value: float) -> str:
    """A value as text: from 100 on a whole number with commas, else with four significant digits."""
    return f"{value:,.0f}" if round(value) >= 100 else number(value)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, with aligned columns."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    lines = [columns, ["-" * width for width in widths], *rows]
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in padded)
