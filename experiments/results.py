"""Write the tables of docs/results.md and README.md from docs/results/*.json: python -m experiments.results.

A file of docs/results is one of seven kinds:

    {"about": {...}, "runs": [...]}         training: the summary.json of each run, as it was written
    {"about": {...}, "contenders": [...]}   speed: what `experiments.benchmark --output` writes
    {"about": {...}, "largest_difference"}  agreement with PyTorch: what `experiments.agree --output` writes
    {"about": {...}, "places": {...}}       agreement of places: what `experiments.places --output` writes
    {"about": {...}, "compiled": {...}}     compiled by real compilers: what `experiments.compiled` writes
    {"about": {...}, "dtypes": {...}}       speed by dtype: what `experiments.dtypes --output` writes
    {"about": {...}, "transfer": {...}}     fine-tuning on few images: what `experiments.transfer --output` writes

"about" has the command, the date, the machine and the number of its cores that the run used; where the figures are not
those that the command wrote, also their source. For training it also has the family, the data, the commands to run
first, a note, an accelerator if it used one, and "figures": the metrics to show, each with its label and, where there
is one, the published value with its citation. A file whose "about" has "readme": true is also a line of the
table in README.md.
"""

import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from datetime import date
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from experiments.console import markdown, measured, number, script, thousands
from research.core.console import size
from research.core.errors import UserError
from research.core.files import failing, replacing
from research.training import config

ROOT = Path(__file__).parent.parent
PAGES = (
    *(ROOT / "docs" / f"{name}.md" for name in ("results", "devices", "compile", "precision")),
    ROOT / "README.md",
)
"""The pages that have tables, each between the markers <!-- table NAME --> and <!-- end -->."""

Record = Mapping[str, Any]
"""The content of a file of docs/results."""


def write() -> None:
    """Writes the tables into the pages."""
    found = tables(records(ROOT / "docs" / "results"))
    for page in PAGES:
        with failing("write", page), replacing(page) as temporary:
            temporary.write_text(with_tables(page.read_text(), found))


def provenance(command: str, device: str) -> dict[str, Any]:
    """The "about" of a figure that is measured now, by `command`, on a device with this name."""
    machine = f"{device} ({platform.machine()})"
    return {"command": command, "machine": machine, "cores": os.cpu_count(), "date": date.today().isoformat()}


def command_of(script: str, options: Any) -> str:
    """The command of a script, with those of its options that are not the default ones, but for `output`."""
    parts = [f"python -m experiments.{script}"]
    for field in fields(options):
        value = getattr(options, field.name)
        if field.default is MISSING:
            parts.append(shlex.quote(str(value)))
        elif value != field.default and field.name != "output":
            option = f"--{field.name.replace('_', '-')}"
            parts.append(shlex.join([option, *map(str, value)] if isinstance(value, tuple) else [f"{option}={value}"]))
    return " ".join(parts)


def records(directory: Path) -> list[Record]:
    """The files of `directory`, each with its "name", sorted by family and name."""
    found = [{"name": path.stem, **json.loads(path.read_text())} for path in directory.glob("*.json")]
    return sorted(found, key=lambda record: (record["about"].get("family", ""), record["name"]))


def tables(found: list[Record]) -> dict[str, str]:
    """The tables in Markdown by name: families (for README.md), training, commands, untrained, speed, agreement,
    places, dtypes, transfer, compiled and compiled_large."""
    trained = [record for record in found if "runs" in record]
    return {
        "families": markdown(
            ("family", "data", "config", "metric", "samestep", "published", "time"),
            [family(record) for record in trained if record["about"].get("readme")],
        ),
        "training": markdown(
            ("family", "data", "result", "metric", "samestep", "seeds", "published", "time"),
            [row for record in trained for row in training(record)],
        ),
        "commands": "".join(commands(record) for record in trained),
        "untrained": untrained(trained, config.names()),
        "speed": markdown(
            ("training", "contender", "median", "unit", "ratio"),
            [row for record in found if "contenders" in record for row in speed(record)],
        ),
        "agreement": markdown(
            ("command", "steps", "first loss", "last loss", "largest difference"),
            [agreement(record) for record in found if "largest_difference" in record],
        ),
        "places": "".join(places(record) for record in found if "places" in record),
        "dtypes": "".join(dtypes(record) for record in found if "dtypes" in record),
        "transfer": "".join(transfer(record) for record in found if "transfer" in record),
        "compiled": "",
        "compiled_large": "",
        **{record["name"]: compiled(record) for record in found if "compiled" in record},
    }


def with_tables(text: str, content: Mapping[str, str]) -> str:
    """`text` with each of its tables replaced. Raises UserError for a marker that names no table."""

    def table(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in content:
            raise UserError(f"there is no table {name!r}: the marker must name one of {', '.join(content)}")
        return f"<!-- table {name} -->\n\n{content[name]}\n<!-- end -->"

    return re.sub(r"<!-- table (?P<name>\S+) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)


def training(record: Record) -> Iterator[tuple[str, ...]]:
    """The lines of an experiment, one a figure; what they share stands in the first."""
    about, runs = record["about"], record["runs"]
    for at, figure in enumerate(about["figures"]):
        value, seeds = value_of(figure["metric"], runs), str(sum(len(run["seeds"]) for run in runs))
        if at == 0:
            shared = (about["family"], about["data"], f"[`{record['name']}`](results/{record['name']}.json)")
            yield *shared, figure["label"], value, seeds, published(figure), time(about, runs)
        else:
            yield "", "", "", figure["label"], value, "", published(figure), ""


def family(record: Record) -> tuple[str, ...]:
    """The line of an experiment in README.md: its first figure."""
    about, runs = record["about"], record["runs"]
    figure = about["figures"][0]
    name = f"`{about['command'].split()[3]}`"
    shown = (figure["label"], value_of(figure["metric"], runs), published(figure), time(about, runs))
    return about["family"], about["data"], name, *shown


def commands(record: Record) -> str:
    """An item of a list: the commands of an experiment, and its note."""
    about = record["about"]
    when = f"{about['date']} ({about['source']})" if "source" in about else about["date"]
    lines = "\n".join(f"    {line}" for line in [*about.get("first", ()), about["command"]])
    return f"`{record['name']}`, {when}. {about.get('note', '')}".strip() + f"\n\n{lines}\n\n"


def untrained(trained: list[Record], names: Sequence[str]) -> str:
    """The configs that no command of the experiments trains."""
    lines = [line for record in trained for line in [*record["about"].get("first", ()), record["about"]["command"]]]
    told = {word for line in lines for word in line.split()}
    return ", ".join(f"`{name}`" for name in names if name not in told) + "\n"


def speed(record: Record) -> Iterator[tuple[str, ...]]:
    """The lines of a benchmark, one a contender."""
    for at, contender in enumerate(record["contenders"]):
        ratio = "" if contender["ratio"] is None else f"{contender['ratio']:.2f}"
        shown = (contender["name"], thousands(contender["median"]), record["unit"], ratio)
        yield record["about"]["title"] if at == 0 else "", *shown


def agreement(record: Record) -> tuple[str, ...]:
    """The line of a comparison with PyTorch."""
    losses = (f"{record['first_loss']:.3f}", f"{record['last_loss']:.3f}", f"{record['largest_difference']:.1e}")
    return f"`{record['about']['command']}`", str(record["steps"]), *losses


def places(record: Record) -> str:
    """The table of the places: a line a learner."""
    rows, about = record["places"], record["about"]
    columns = list(next(iter(rows.values())))
    lines = [(f"`{name}`", *(place_cell(found[column]) for column in columns)) for name, found in rows.items()]
    said = f"`{about['command']}`, {record['steps']} steps of SGD, dropout on, {about['date']}."
    return f"{said}\n\n{markdown(('learner', *columns), lines)}"


def place_cell(cell: Record) -> str:
    """A cell of that table: the difference from one device, and the collectives."""
    if not cell:
        return "no table"
    moved = ", ".join(f"{count} {kind}" for kind, count in cell["collectives"].items())
    return f"{cell['difference']:.1e}; {moved}"


def dtypes(record: Record) -> str:
    """The table of speeds in float32 and bfloat16 on a kind of device."""
    about = record["about"]
    header, *rows = dtype_rows(record["dtypes"])
    return f"`{about['command']}`, {about['machine']}, {about['date']}.\n\n{markdown(header, rows)}"


def transfer(record: Record) -> str:
    """The table of fine-tuning: a line for each number of images of a class, and a column for each way."""
    ways, about = record["transfer"], record["about"]
    cell = lambda one: f"{mean(one['accuracy']):.3f} ({', '.join(f'{x:.3f}' for x in one['accuracy'])})"
    sizes = next(iter(ways.values()))
    lines = [(size, *(cell(cells[size]) for cells in ways.values())) for size in sizes]
    return f"`{about['command']}`, {about['date']}.\n\n{markdown(('images of each class', *ways), lines)}"


def dtype_rows(found: Mapping[str, Mapping[str, Record]]) -> list[tuple[str, ...]]:
    """The lines of that table, its header first: `found` has what was measured by config and dtype."""
    columns = ("config", "unit", "float32", "bfloat16", "ratio", "utilisation", "memory", "compile seconds")
    pair = lambda show, each: ", ".join(show(cell) for cell in each)
    rows: list[tuple[str, ...]] = [columns]
    for name, by_dtype in found.items():
        each = by_dtype["float32"], by_dtype["bfloat16"]
        speeds = tuple(f"{cell['speed']:,.0f}" for cell in each)
        ratio = f"{each[1]['speed'] / each[0]['speed']:.2f}"
        used = pair(lambda cell: "unknown" if cell["utilisation"] is None else f"{cell['utilisation']:.1%}", each)
        memory = pair(lambda cell: size(cell["memory"]), each)
        seconds = pair(lambda cell: f"{cell['compile_seconds']:.0f}", each)
        rows.append((f"`{name}`", f"{each[0]['unit']}/s", *speeds, ratio, used, memory, seconds))
    return rows


def compiled(record: Record) -> str:
    """The table of what compiles: a line for each config and dtype, or Transformer and layout, and a column for each
    kind of devices."""
    cells, about = record["compiled"], record["about"]
    columns = list(dict.fromkeys(key.split()[2] for key in sorted(cells)))
    rows = dict.fromkeys(tuple(key.split()[:2]) for key in cells)
    lines = [
        (
            f"`{name}`",
            dtype,
            *(program(cells.get(f"{name} {dtype} {column}"), about["code"][name]) for column in columns),
        )
        for name, dtype in rows
    ]
    said = f"`{about['command']}`, {about['date']}, {about['machine']}."
    return f"{said}\n\n{markdown((*about['rows'], *columns), lines)}"


def program(cell: Record | None, code: str) -> str:
    """A cell of that table; `code`: that of the row's newest cells."""
    if cell is None:
        return "not run"
    older = ["by older code"] if cell["code"] != code else []
    if "failed" in cell:
        return "; ".join([cell["failed"].replace("|", "/"), *older])
    moved = [f"{count} {kind} ({size(total)})" for kind, (count, total) in cell["collectives"].items()]
    seconds = f"{cell['seconds']:.0f} s{', quick' if cell['effort'] == 'quick' else ''}"
    bound = [f"{cell['bound']:.2g} s a step at the peak"] if (cell.get("bound") or 0) >= 0.01 else []
    return "; ".join(
        [size(cell["memory"]) + ("" if cell["fits"] else ", does not fit"), *moved, *bound, seconds, *older]
    )


def value_of(metric: str, runs: list[Record]) -> str:
    """The mean of a metric over all seeds of all runs; where they differ, its sample standard deviation and its range.

    A run's report has one number, or a list of one for each seed, None for those that diverged, which are counted.
    Runs of which only the mean and the spread are known have no range.
    """
    found = [measured(run)[metric] for run in runs]
    if "each" not in (only := found[0]):
        return number(only["mean"]) + (f" ± {only['spread']:.2g}" if "spread" in only else "")
    seeds = [x for one in found for x in one["each"]]
    each = [x for x in seeds if x is not None]
    lost = f"; {len(seeds) - len(each)} diverged" if len(each) < len(seeds) else ""
    if not each:
        return f"all {len(seeds)} diverged"
    least, most = number(min(each)), number(max(each))
    return (least if least == most else f"{number(mean(each))} ± {stdev(each):.2g} ({least} to {most})") + lost


def published(figure: Record) -> str:
    """The published value and where it stands."""
    if (there := figure.get("published")) is None:
        return ""
    around = f" ± {there['spread']}" if "spread" in there else ""
    return f"{there['value']}{around}, {there['source']}"


def time(about: Record, runs: list[Record]) -> str:
    """The seconds of a run, the median of several, and the cores, or the "accelerator", that it used."""
    each = [run["seconds"] for run in runs if "seconds" in run]
    if not each:
        return ""
    seconds = median(each)
    duration = f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
    cores = "1 core" if about["cores"] == 1 else f"{about['cores']} cores"
    return f"{duration}{' a run' if len(runs) > 1 else ''}, {about.get('accelerator', cores)}"


main = script("results", __doc__, write)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
