"""Sweeps whose programs are jobs of submitit."""

import fcntl
import json
import os
import re
import signal
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments import jobs, sweep
from research.core.errors import UserError
from research.training import locks, workdir
from research.training.log import read
from research.training.signals import Interrupted

TINY = (
    "--net.widths 4 --net.depth 1 --steps 60 --run.steps-per-dispatch 5 --run.evaluate-every 10 --run.save-every 10 "
    "--over optimizer.learning-rate 1e-4 1e-2 --over data.batch 16 32 --seeds 2"
)
NAMES = ("data.batch=16", "data.batch=32")


def swept(directory: Path, *more: str) -> int:
    return sweep.main(["digits_cnn", "--workdir", str(directory), *TINY.split(), *more])


def rows(directory: Path) -> list[dict]:
    return json.loads((directory / "sweep.json").read_text())


def lines(directory: Path) -> list[list[dict]]:
    """The lines of each metrics.jsonl, readings under `time` aside."""
    return [[{k: v for k, v in line.items() if k != "time"} for line in read(directory / name)] for name in NAMES]


def table(printed: str) -> str:
    return "\n".join(line for line in printed.splitlines() if re.search("[│┃┏└]", line))


@pytest.fixture(scope="module")
def here(tmp_path_factory, without_pictures):
    """The sweep of this process; jobs draw pictures."""
    directory = tmp_path_factory.mktemp("here") / "sweep"
    assert swept(directory) == 0
    return directory


@pytest.fixture
def jobs_like_this(monkeypatch):
    """Jobs that compile what this process does."""
    pytest.importorskip("submitit", reason="submitit is in the extras jobs and dev")
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "8")
    monkeypatch.setenv("JAX_DEFAULT_MATMUL_PRECISION", "highest")


def signalled(directory: Path, name: str, number: int) -> threading.Thread:
    """A thread that sends a signal to the job of `name`, once it has saved something."""

    def run():
        until = time.monotonic() + 300
        saved = lambda: any(x.stem.isdecimal() for x in (directory / name / "checkpoints").glob("*.json"))
        while not saved() and time.monotonic() < until:
            time.sleep(0.05)
        controller = json.loads((directory / "jobs.json").read_text())[name]["id"]
        (process,) = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
        os.kill(int(process), number)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_jobs_give_the_results_of_one_process(here, jobs_like_this, tmp_path, capsys):
    """To the bit, though one job is told that its time is up, and another is killed: each resumes from its workdir."""
    directory = tmp_path / "sweep"
    known = lambda: json.loads((directory / "jobs.json").read_text())
    log = lambda name: directory / "jobs" / f"{known()[name]['id']}_0_log.out"
    first, second = NAMES
    threads = [signalled(directory, first, signal.SIGUSR2), signalled(directory, second, signal.SIGKILL)]
    assert swept(directory, "--submit", "local") == 1
    for thread in threads:
        thread.join()
    # The job whose time was up was queued again, and ended.
    assert re.search(r"resumed at step \d+ of 60", log(first).read_text())
    # The killed one is named; the results of the other stay, and are shown.
    said, before = capsys.readouterr(), known()
    assert f"1 of 2 jobs ended unfinished: {second}, see {log(second)}; the same command submits" in said.err
    assert log(second).exists() and "data.batch" in said.out
    assert rows(directory) == [row for row in rows(here) if row["data.batch"] == "16"]

    assert swept(directory, "--submit", "local") == 0
    assert known()[first] == before[first] and known()[second] != before[second]
    assert re.search(r"resumed at step \d+ of 60", log(second).read_text())
    assert rows(directory) == rows(here) and lines(directory) == lines(here)
    assert (directory / "sweep.png").exists()

    # With nothing left to do, the command with jobs prints what the one without them prints.
    printed = table(capsys.readouterr().out)
    assert swept(here) == 0 and table(capsys.readouterr().out) == printed
    before = known()
    assert swept(directory, "--submit", "local") == 0 and table(capsys.readouterr().out) == printed
    assert known() == before


SLURM = {
    "sbatch": """
        echo >> "$STATE/submitted"
        id=$(wc -l < "$STATE/submitted")
        touch "$STATE/$id.running"
        (
            export SLURM_JOB_ID=$id
            bash "$1"
            status=$?
            while rm "$STATE/$id.requeued"; do bash "$1"; status=$?; done
            echo $status > "$STATE/$id.running"
            mv "$STATE/$id.running" "$STATE/$id.ended"
        ) > /dev/null 2>&1 &
        echo "Submitted batch job $id"
    """,
    "srun": """
        shift; output=$2; shift 2
        output=${output/\\%j/$SLURM_JOB_ID}
        exec "$@" >> "${output/\\%t/0}" 2>&1
    """,
    "scontrol": 'touch "$STATE/$2.requeued"',
    "sacct": """
        echo "JobID|State|NodeList"
        cd "$STATE"
        for job in *.running; do [ -e "$job" ] && echo "${job%.*}|RUNNING|here"; done
        for job in *.ended; do [ -e "$job" ] && echo "${job%.*}|FAILED|here"; done
        true
    """,
}
"""A Slurm of shell scripts: jobs start at once, and each is a file of the folder STATE."""

SCRIPT = """
import os, signal
from pathlib import Path
from research.training.signals import on_signal

def main(arguments):
    directory = Path(arguments[0])
    directory.mkdir(parents=True, exist_ok=True)
    first = not (directory / "begun").exists()
    (directory / "begun").touch()
    if directory.name == "fails":
        print("a reason")
        return 1
    if directory.name == "early" and first:
        os.kill(os.getpid(), signal.SIGUSR2)
        raise AssertionError("it was queued again")
    asked = []
    with on_signal(asked.append, lambda: ""):
        if directory.name == "late" and first:
            os.kill(os.getpid(), signal.SIGUSR2)
    if asked:
        return 128 + asked[0]
    (directory / "done").touch()
    return 0
"""


def test_jobs_of_slurm_are_found_again_queued_again_and_named_where_they_fail(tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason="submitit is in the extras jobs and dev")
    for folder in ("bin", "state"):
        (tmp_path / folder).mkdir()
    for name, text in SLURM.items():
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{textwrap.dedent(text)}")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "script.py").write_text(SCRIPT)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("STATE", str(tmp_path / "state"))
    monkeypatch.setattr(jobs, "DELAY", 0.0)
    directory, names = tmp_path / "sweep", ("plain", "early", "late", "fails")
    directory.mkdir()
    calls = {name: jobs.Call("script", (str(directory / name),)) for name in names}
    finished = lambda name: (directory / name / "done").exists()
    finish = lambda: jobs.finish(calls, finished, directory, "slurm", jobs.JobOptions())
    jobs.check_installed("slurm")

    failed = finish()
    known = json.loads((directory / "jobs.json").read_text())
    assert failed == {"fails": directory / "jobs" / f"{known['fails']['id']}_0_log.out"}
    assert "a reason" in failed["fails"].read_text()
    status = lambda name: tmp_path / "state" / f"{known[name]['id']}.ended"
    while not all(status(name).exists() for name in names):
        time.sleep(0.01)
    assert [int(status(name).read_text()) for name in names] == [0, 0, 0, 1]
    queued_again = [name for name in names if "Requeued job" in log_of(directory, known[name]["id"])]
    assert queued_again == ["early", "late"]
    # A job that runs is not submitted twice; one that has ended unfinished is submitted again.
    (tmp_path / "state" / "99.running").touch()
    (directory / "jobs.json").write_text(json.dumps(known | {"slow": {"cluster": "slurm", "id": "99"}}))
    calls["slow"] = jobs.Call("script", (str(directory / "slow"),))
    (directory / "slow").mkdir()
    timer = threading.Timer(4, (directory / "slow" / "done").touch)
    timer.start()
    assert finish().keys() == {"fails"}
    assert not timer.is_alive()
    now = json.loads((directory / "jobs.json").read_text())
    assert now["slow"]["id"] == "99" and now["fails"] != known["fails"]


def log_of(directory: Path, job: str) -> str:
    return (directory / "jobs" / f"{job}_0_log.out").read_text()


def test_the_sbatch_script_asks_for_what_was_said(tmp_path, monkeypatch):
    submitit = pytest.importorskip("submitit", reason="submitit is in the extras jobs and dev")
    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", classmethod(lambda _: 2))  # as where there is srun
    options = jobs.JobOptions(partition="gpu", timeout_min=90, gpus_per_node=2, cpus_per_task=8, mem_gb=32)
    script = lambda options: jobs.executor(tmp_path, "slurm", options, "mine")._executor._make_submission_file_text(
        "the command", "0"
    )
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", script(options), re.MULTILINE))
    expected = {
        "partition": "gpu",
        "time": "90",
        "gpus-per-node": "2",
        "cpus-per-task": "8",
        "mem": "32GB",
        "nodes": "1",
        "job-name": "mine",
        "signal": "USR2@120",
        "requeue": "",
    }
    assert {name: asked.get(name) for name in expected} == expected
    assert script(options).rstrip().endswith("the command")
    few = script(jobs.JobOptions())
    assert "--time=240" in few and not re.search("--(partition|gpus|cpus|mem)", few)


def test_a_run_that_is_no_job_and_ends_unfinished_is_named(tmp_path, monkeypatch):
    """An ordinary sweep has its workdir at first."""
    pytest.importorskip("submitit", reason="submitit is in the extras jobs and dev")
    locked = iter([True, False])
    monkeypatch.setattr(locks, "in_use", lambda directory: next(locked))
    calls = {"a": jobs.Call("script", ())}
    assert jobs.finish(calls, lambda name: False, tmp_path, "local", jobs.JobOptions()) == {"a": tmp_path / "a"}


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "null", '{"all": 5}', '{"all": {"cluster": "x", "id": "1"}}', '{"all": {"cluster": "local"}}'),
        "[" * 200_000,
    ],
    ids=lambda text: text[:40],
)
def test_a_damaged_record_of_jobs_says_what_to_do(tmp_path, text):
    pytest.importorskip("submitit", reason="submitit is in the extras jobs and dev")
    record = tmp_path / "jobs.json"
    record.write_text(text)
    with pytest.raises(UserError, match=f"{record} is damaged: see that no job of it runs, then delete it"):
        jobs.finish({"all": jobs.Call("script", ())}, lambda name: False, tmp_path, "local", jobs.JobOptions())


def test_waiting_for_jobs_ends_without_a_claim_that_they_were_saved(tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason="submitit is in the extras jobs and dev")
    monkeypatch.setattr(locks, "in_use", lambda directory: True)
    monkeypatch.setattr(time, "sleep", lambda _: signal.raise_signal(signal.SIGINT))
    with pytest.raises(Interrupted) as stopped:
        jobs.finish({"a": jobs.Call("script", ())}, lambda name: False, tmp_path, "local", jobs.JobOptions())
    assert str(stopped.value) == "stopped by SIGINT; the same command finds the jobs that run, and submits the others"


def test_a_workdir_is_in_use_while_it_is_locked(tmp_path):
    assert not locks.in_use(tmp_path / "none")
    with (tmp_path / ".lock").open("w") as lock:
        assert not locks.in_use(tmp_path)
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert locks.in_use(tmp_path)
    assert not locks.in_use(tmp_path)


def test_a_look_at_a_lock_stops_no_run(tmp_path, monkeypatch):
    """A process that looks whether a directory is in use holds its lock for a moment."""
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with monkeypatch.context() as patch:
            patch.setattr(locks, "time", SimpleNamespace(sleep=lambda _: fcntl.flock(lock, fcntl.LOCK_UN)))
            with locks.locked(tmp_path):
                assert locks.in_use(tmp_path)
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is training in"), locks.locked(tmp_path):
            pass


def test_a_run_is_finished_when_it_has_all_steps(here):
    command = sweep.programs("digits_cnn", *sweep.split(TINY.split()), here)[0].command
    steps = lambda n: replace(command, config=replace(command.config, run=replace(command.config.run, steps=n)))
    assert workdir.finished(here / NAMES[0], steps(60))
    assert not workdir.finished(here / NAMES[0], steps(120)) and not workdir.finished(here / "none", steps(60))


def test_a_part_of_a_sweep_is_all_combinations_of_fewer_values():
    over = [("a", [1, 2, 3]), ("b", [4, 5])]
    assert sweep.parts(over, None) == sweep.parts(over, 6) == [over]
    assert sweep.parts(over, 4) == sweep.parts(over, 5) == [[("a", [1, 2]), ("b", [4, 5])], [("a", [3]), ("b", [4, 5])]]
    assert sweep.parts(over, 1) == [[("a", [a]), ("b", [b])] for a in (1, 2, 3) for b in (4, 5)]
    assert sweep.parts([], 1) == [[]]


def test_programs_of_few_settings_have_a_workdir_each(tmp_path):
    over = {"learning_rate": ["1e-4", "3e-4", "1e-3"], "data.batch": ["16", "32"]}
    found = sweep.programs("digits_cnn", over, ["--settings-per-program", "2"], tmp_path)
    first, last = "optimizer.learning_rate=1e-4..3e-4", "optimizer.learning_rate=1e-3"
    assert [one.name for one in found] == [f"data.batch={n},{part}" for n in (16, 32) for part in (first, last)]
    assert all(one.command.workdir == tmp_path / one.name for one in found)
    assert found[0].command.over == (("optimizer.learning_rate", (1e-4, 3e-4)),)
    assert found[3].settings == [{"data.batch": "32", "optimizer.learning_rate": "1e-3"}]
    whole = sweep.programs("digits_cnn", over, [], tmp_path)
    assert [one.name for one in whole] == ["data.batch=16", "data.batch=32"]
    assert [s for one in whole for s in one.settings] == [s for one in found for s in one.settings]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--submit local", "--submit needs the package submitit: pip install -e .[jobs]"),
        ("--submit slurm", "--submit needs the package submitit: pip install -e .[jobs]"),
        ("--submit local --overwrite", "--submit and --overwrite don't go together"),
        ("--submit local --job.timeout-min 1", "job.timeout_min must be at least 5"),
        ("--processes 2 --coordinator host:1 --process 0", "a sweep trains in one process: leave out --processes"),
        ("--settings-per-program 0", "--settings-per-program must be at least 1"),
    ],
)
def test_mistakes_end_before_anything_is_built(more, message, tmp_path, capsys, monkeypatch):
    def traced(*_):
        raise AssertionError("it was built")

    monkeypatch.setitem(sys.modules, "submitit", None)
    monkeypatch.setattr(sweep, "_traceable", traced)
    try:
        status = swept(tmp_path / "sweep", *more.split())
    except SystemExit as stopped:  # by the parser of the command line
        status = stopped.code
    assert status == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "sweep").exists()


def test_slurm_needs_sbatch(monkeypatch, tmp_path):
    pytest.importorskip("submitit", reason="submitit is in the extras jobs and dev")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no sbatch here"):
        jobs.check_installed("slurm")
