"""docs/results.md and README.md: their tables are made from docs/results/*.json, and their commands can be typed."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest
import tyro

from experiments import benchmark, compress, results, transfer
from research.core.errors import UserError
from research.training import config

RECORDS = results.records(results.ROOT / "docs" / "results")
TRAINED = [record for record in RECORDS if "runs" in record]
TEXTS = [page.read_text() for page in results.PAGES]
TRAIN = "python -m experiments.train "


def run(**test):
    return {"test": {name: {"each": each} for name, each in test.items()}, "reports": {}, "seeds": [0], "seconds": 30.0}


def test_the_tables_are_those_that_the_command_writes():
    made = results.tables(RECORDS)
    for text in TEXTS:
        assert results.with_tables(text, made) == text, "run python -m experiments.results"
    markers = [name for text in TEXTS for name in re.findall(r"<!-- table (\S+) -->", text)]
    assert sorted(markers) == sorted(made)


def test_tables_take_the_place_of_old_ones():
    text = "a\n<!-- table x -->\n\nold\n\n<!-- end -->\nb\n<!-- table y -->\n<!-- end -->\n"
    expected = "a\n<!-- table x -->\n\n1\n\n<!-- end -->\nb\n<!-- table y -->\n\n2\n\n<!-- end -->\n"
    assert results.with_tables(text, {"x": "1\n", "y": "2\n"}) == expected
    assert results.with_tables(expected, {"x": "1\n", "y": "2\n"}) == expected
    with pytest.raises(UserError, match=r"no table 'y': .*x"):
        results.with_tables(text, {"x": ""})


def test_values_by_hand():
    assert results.value_of("accuracy", [run(accuracy=[0.5])]) == "0.5"
    assert results.value_of("accuracy", [run(accuracy=[0.1, 0.2, 0.3])]) == "0.2 ± 0.1 (0.1 to 0.3)"
    assert results.value_of("accuracy", [run(accuracy=[1.0]), run(accuracy=[2.0])]) == "1.5 ± 0.71 (1 to 2)"
    assert results.value_of("accuracy", [run(accuracy=[1.0]), run(accuracy=[1.0])]) == "1"
    assert results.value_of("fid", [run() | {"reports": {"fid": x}} for x in (2.0, 4.0)]) == "3 ± 1.4 (2 to 4)"
    # A report of a program of several seeds has a number of each.
    assert results.value_of("fid", [run() | {"reports": {"fid": x}} for x in ([1.0, 2.0], 3.0)]) == "2 ± 1 (1 to 3)"
    assert results.value_of("accuracy", [run(accuracy=[0.1, None, 0.3])]) == "0.2 ± 0.14 (0.1 to 0.3); 1 diverged"
    assert results.value_of("accuracy", [run(accuracy=[None, None])]) == "all 2 diverged"
    assert results.value_of("loss", [{"test": {"loss": {"mean": 1.949, "spread": 0.009}}}]) == "1.949 ± 0.009"


def test_configs_without_a_figure():
    record = {
        "about": {"first": ["python -m experiments.train a"], "command": "python -m experiments.train b --seeds 2"}
    }
    assert results.untrained([record], ["a", "aa", "b", "c"]) == "`aa`, `c`\n"


def test_a_training_result_by_hand():
    published = {"value": 0.9, "spread": 0.01, "source": "Someone 2020"}
    figures = [
        {"metric": "accuracy", "label": "test accuracy", "published": published},
        {"metric": "loss", "label": "nats"},
    ]
    about = {"family": "CNN", "data": "digits", "figures": figures, "cores": 2}
    record = {"name": "net", "about": about, "runs": [run(accuracy=[0.5], loss=[2.0])] * 2}
    assert list(results.training(record)) == [
        (
            "CNN",
            "digits",
            "[`net`](results/net.json)",
            "test accuracy",
            "0.5",
            "2",
            "0.9 ± 0.01, Someone 2020",
            "30 s a run, 2 cores",
        ),
        ("", "", "", "nats", "2", "", "", ""),
    ]
    long = {**run(), "seconds": 3600.0}
    assert results.time({"cores": 1}, [long]) == "60 min, 1 core" and results.time({"cores": 1}, [{}]) == ""


def test_a_benchmark_by_hand(monkeypatch):
    monkeypatch.setattr(benchmark, "device", lambda: "abacus")
    figures = {"ours": [10.0, 30.0, 20.0], "theirs": [10.0, 10.0, 5.0]}
    record = benchmark.record(benchmark.Options("cnn", rounds=3), figures)
    assert record["about"]["command"] == "python -m experiments.benchmark cnn --rounds 3"
    assert record["about"]["machine"].startswith("abacus") and record["unit"] == "images/s"
    assert [(row["name"], row["median"], row["least"], row["most"], row["ratio"]) for row in record["contenders"]] == [
        ("ours", 20.0, 10.0, 30.0, 1.0),
        ("theirs", 10.0, 5.0, 10.0, 3.0),  # the median of 1, 3 and 4, not 20/10
    ]
    assert [row[1:] for row in results.speed(record)] == [
        ("ours", "20", "images/s", "1.00"),
        ("theirs", "10", "images/s", "3.00"),
    ]
    few = benchmark.record(benchmark.Options("solved"), {"ours": [1234.56], "theirs": [1.23456]})
    assert [row[2] for row in results.speed(few)] == ["1,235", "1.235"]


def test_a_command_has_the_options_that_were_given():
    options = transfer.Options(images=(2, 5), seeds=1, output=Path("x.json"), tuning="--smoothing 0.1")
    command = results.command_of("transfer", options)
    assert command == "python -m experiments.transfer --images 2 5 --seeds=1 '--tuning=--smoothing 0.1'"
    assert tyro.cli(transfer.Options, args=shlex.split(command)[3:]) == dataclasses.replace(options, output=None)
    assert results.command_of("transfer", transfer.Options()) == "python -m experiments.transfer"
    command = results.command_of("compress", compress.Options(Path("runs/a b"), rounds=3))
    assert command == "python -m experiments.compress 'runs/a b' --rounds=3"


def commands():
    """The arguments of `experiments.train` in the files of results and in both pages."""
    lines = [line for record in TRAINED for line in [*record["about"].get("first", ()), record["about"]["command"]]]
    lines += [line for text in TEXTS for line in re.findall(rf"{re.escape(TRAIN)}\w.*", text)]
    return sorted({line.partition("#")[0].removeprefix(TRAIN).strip() for line in lines})


def test_speeds_by_dtype_by_hand():
    one = {"unit": "images", "speed": 1000.0, "utilisation": 0.1234, "memory": 2**20, "compile_seconds": 3.2}
    other = {**one, "speed": 2500.0, "utilisation": 0.25}
    (_, row) = results.dtype_rows({"net": {"float32": one, "bfloat16": other}})
    assert row == ("`net`", "images/s", "1,000", "2,500", "2.50", "12.3%, 25.0%", "1.00 MiB, 1.00 MiB", "3, 3")
    (_, row) = results.dtype_rows({"net": {"float32": {**one, "utilisation": None}, "bfloat16": other}})
    assert row[5] == "unknown, 25.0%"


@pytest.mark.parametrize("command", commands())
def test_commands_can_be_typed(command):
    name, *arguments = command.split()
    if arguments != ["--help"]:
        config.parse(name, arguments)


@pytest.mark.parametrize("record", TRAINED, ids=lambda record: record["name"])
def test_published_figures_are_those_of_the_configs(record):
    known = dict(config.load(record["about"]["command"].removeprefix(TRAIN).split()[0]).run.published)
    cited = {f["metric"]: f["published"]["value"] for f in record["about"]["figures"] if "published" in f}
    assert {metric: value for metric, value in known.items() if metric in cited} == {
        metric: value for metric, value in cited.items() if metric in known
    }
