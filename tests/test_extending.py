"""The examples of docs/extending.md, in a copy of the packages: they train, and the laws hold of them."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text()
BLOCKS = dict(re.findall(r"```python\n# (\S+\.py)\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = {name: line for line, name in re.findall(r"```\n(python -m experiments\.train (\w+))\n```", PAGE)}
CONFIGS = [Path(name).stem for name in BLOCKS if name.startswith("configs/")]


@pytest.fixture(scope="module")
def overlay(tmp_path_factory) -> Path:
    """The packages and the tests of laws, with the page's files among them."""
    directory = tmp_path_factory.mktemp("overlay")
    for package in ("research", "configs", "experiments"):
        shutil.copytree(ROOT / package, directory / package, ignore=shutil.ignore_patterns("__pycache__"))
    (directory / "tests").mkdir()
    shutil.copy(ROOT / "pyproject.toml", directory)
    for name in ("conftest", "digits", "learners", "printed", "test_export", "test_laws", "test_sources"):
        shutil.copy(ROOT / "tests" / f"{name}.py", directory / "tests")
    for name, code in BLOCKS.items():
        path = directory / name
        assert not path.exists(), f"{name} is there already"
        path.write_text(code)
    return directory


SCRIPT = """
import json, sys
from experiments.train import main
for arguments in json.loads(sys.argv[1]):
    try:
        status = main(arguments)
    except SystemExit as stop:  # --help
        status = stop.code
    assert not status, arguments
"""


def python(overlay: Path, *arguments: str) -> str:
    """What Python prints, run in the overlay."""
    environment = {**os.environ, "PYTHONPATH": str(overlay), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=overlay, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def said(overlay) -> str:
    """What the page's commands print, each with --help and then for real; in one process, to import but once."""
    lines = [COMMANDS[name].split()[3:] for name in CONFIGS]  # after `python -m experiments.train`
    return python(overlay, "-c", SCRIPT, json.dumps([[*line, "--help"] for line in lines] + lines))


@pytest.fixture
def trained(overlay, said):
    """name -> (lines of metrics.jsonl by split, the test metrics)"""

    def read(name: str) -> tuple[dict[str, list[dict]], dict[str, float]]:
        directory = overlay / "runs" / name
        lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        test = json.loads((directory / "summary.json").read_text())["test"]
        splits = {split: [line for line in lines if line["split"] == split] for split in ("train", "validation")}
        return splits, {metric: value["mean"] for metric, value in test.items()}

    return read


def test_the_page_is_whole():
    assert list(COMMANDS) == CONFIGS
    assert len(BLOCKS) == PAGE.count("```python\n") == 2 * len(CONFIGS) + 1  # a report more
    for name in CONFIGS:
        assert COMMANDS[name] in BLOCKS[f"configs/{name}.py"]


def test_help_lists_the_new_fields(said):
    for option in (
        "--net.patch",
        "--noise",
        "--encoder.widths",
        "--data.side",
        "--environment.max-steps",
        "--gae-lambda",
    ):
        assert option in said, option


def test_a_net(trained):
    lines, test = trained("digits_mixer")
    assert lines["train"][-1]["loss"] < 0.3 * lines["train"][0]["loss"]
    assert test["accuracy"] > 0.9


def test_a_learner(trained):
    lines, test = trained("digits_denoise")
    # Always to answer with the mean image costs the variance of the pixels, 0.07.
    assert lines["train"][-1]["autoencoder_loss"] < 0.5 * lines["train"][0]["autoencoder_loss"]
    assert test["autoencoder_loss"] < 0.03 and test["accuracy"] > 0.85


def test_a_report(overlay, trained):
    lines, _ = trained("digits_denoise")
    directory = overlay / "runs" / "digits_denoise"
    psnr = [line["psnr"] for line in lines["validation"]]
    assert len(psnr) == 5 and psnr[-1] > psnr[0] + 1
    for picture in (directory / "restorations.png", directory / "history" / "00000100" / "restorations.png"):
        assert imread(picture).std() > 0.01


def test_a_data_source(trained):
    lines, test = trained("stripes_cnn")
    assert [line["step"] for line in lines["validation"]] == [100, 200]
    assert test["accuracy"] > 0.95


def test_an_environment(trained):
    _, test = trained("corridor_dqn")
    assert test["return"] == 1.0 and test["length"] == 4.0  # the shortest way to the large reward


def test_a_reinforcement_learner(trained):
    lines, test = trained("corridor_a2c")
    assert lines["train"][0]["length"] > 5 and lines["train"][0]["return"] < 0.99  # the first 20 steps still explore
    assert test["return"] == 1.0 and test["length"] == 4.0


def test_the_laws(overlay):
    laws = "endomorphism or seeds or (precision and bfloat16)"
    which = f"(({laws} or lowered) and (denoise or a2c)) or (tiny_setting and Stripes)"
    files = "tests/test_laws.py", "tests/test_export.py", "tests/test_sources.py"
    said = python(overlay, "-m", "pytest", "-p", "no:cacheprovider", *files, "-k", which)
    assert re.search(r"\d+ passed", said) and not re.search(r"skipped|failed", said), said
