"""Runs in a bucket of Google Cloud Storage, reached by the same libraries as the real one."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from digits import tiny
from printed import said

import research
from experiments import compare, evaluate, export, plot, sweep
from experiments.train import main
from research.core import bucket
from research.core.bucket import located
from research.core.errors import RunError
from research.core.files import entries, files_under
from research.training import config, log, own_files
from research.training.processes import ProcessGroup

if importlib.util.find_spec("gcsfs") is None:
    pytest.skip('gcsfs is not installed: pip install -e ".[gcs]"', allow_module_level=True)

from storage_server import StorageServer

STEPS = tiny(8)


@pytest.fixture(scope="module")
def server():
    with StorageServer() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
def storage(server):
    """The server with an empty bucket."""
    server.objects.clear()
    server.requests.clear()
    server.refuse = lambda method, name: None
    yield server
    server.refuse = lambda method, name: None


@pytest.fixture(scope="module")
def local(tmp_path_factory, without_pictures):
    """The same run, never stopped, on the disk."""
    directory = tmp_path_factory.mktemp("local") / "run"
    assert main(["digits_cnn", *STEPS, "--workdir", str(directory)]) == 0
    return directory


def train(directory, *more):
    return main(["digits_cnn", *STEPS, "--workdir", str(directory), *more])


def state(directory):
    tree = research.load(directory)[2]
    return [np.asarray(x) for x in jax.tree.leaves(tree._replace(key=jax.random.key_data(tree.key)))]


def lines(directory):
    return [{name: x for name, x in line.items() if name != "time"} for line in log.read(directory)]


def result(directory):
    return json.loads((bucket.located(directory) / "summary.json").read_text())["test"]


def assert_same(directory, other):
    events = list((bucket.located(directory) / "tensorboard").glob("events.*"))
    assert len(events) == 1, "those of the process that was stopped are replaced"
    assert lines(directory) == lines(other) and result(directory) == result(other)
    for a, b in zip(state(directory), state(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_run_in_a_bucket_is_that_on_a_disk(storage, local, tmp_path, monkeypatch, capsys, without_pictures):
    monkeypatch.chdir(tmp_path)
    assert train("gs://bucket/a/run") == 0
    assert_same("gs://bucket/a/run", local)
    shown = {path.name for path in local.iterdir()} - {".lock", "checkpoints", "history", "tensorboard"}
    assert shown <= set(storage.under("a/run/"))
    assert sum(name.startswith("tensorboard/events") for name in storage.under("a/run/")) == 1
    manifests = [name for name in storage.under("a/run/checkpoints/") if name.endswith(".json")]
    assert manifests == [path.name for path in sorted((local / "checkpoints").glob("*.json"))]
    assert not list(tmp_path.iterdir()), "nothing is left on the disk"
    assert "/tmp" not in said(capsys)
    assert [name for method, name in storage.requests if method == "POST"][-1] == "a/run/summary.json"

    for read in (evaluate, export):
        assert read.main(["gs://bucket/a/run"]) == 0
    assert "export/export.json" in storage.under("a/run/")
    assert plot.main(["gs://bucket/a/run", str(local), "--output", "curves.png"]) == 0
    assert compare.main(["gs://bucket/a/run", "--against", str(local), "--output", "compare.png"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"curves.png", "compare.png"}
    before = dict(storage.objects)
    assert train("gs://bucket/a/run") == 0 and "already finished" in said(capsys)
    assert storage.objects == before


def start(directory, *more, devices="8"):
    """The run in a process of its own, which compiles what this one does."""
    command = [sys.executable, "-m", "experiments.train", "digits_cnn", *STEPS, "--workdir", directory, *more]
    alike = {"JAX_NUM_CPU_DEVICES": devices, "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env={**os.environ, **alike}, **pipes)


@pytest.mark.parametrize(
    ("uploaded", "time", "left"),
    [
        ("metrics.jsonl", 2, ["2.json"]),  # step 4 is complete, and does not count
        ("checkpoints/4/default/d/", 1, ["2.json"]),
        ("checkpoints/2.json", 1, []),
        ("summary.json", 1, ["4.json", "6.json", "8.json"]),
    ],
)
def test_killed_while_it_uploads(storage, local, uploaded, time, left, without_pictures):
    """The process is killed once it has sent an object for the nth time, which is not stored."""
    count = [0]

    def kill(method, name):
        if process.poll() is None and method == "POST" and name.startswith(f"run/{uploaded}"):
            count[0] += 1
            if count[0] == time:
                process.kill()
                return 403
        return None

    process = start("gs://bucket/run")
    storage.refuse = kill
    output, _ = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, output
    assert [name for name in storage.under("run/checkpoints/") if name.endswith(".json")] == left
    assert train("gs://bucket/run") == 0
    assert_same("gs://bucket/run", local)


def test_stopped_by_a_signal_it_uploads_and_resumes(storage, local, without_pictures):
    def stop(method, name):
        if method == "POST" and name.endswith("/2.json"):
            process.terminate()

    process = start("gs://bucket/run")
    storage.refuse = stop
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM and "the same command resumes" in output
    storage.refuse = lambda method, name: None
    last = max(int(name[:-5]) for name in storage.under("run/checkpoints/") if name.endswith(".json"))
    assert lines("gs://bucket/run") == [line for line in lines(local) if line["step"] <= last]
    assert train("gs://bucket/run") == 0
    assert_same("gs://bucket/run", local)


def test_what_others_write_is_seen(storage):
    directory = bucket.located("gs://bucket/run")
    assert entries(directory) == files_under(directory) == []
    for names in (["a"], ["a", "b"]):
        storage.put(f"run/{names[-1]}", b"")
        assert [path.name for path in entries(directory)] == files_under(directory) == names


@pytest.fixture
def stopped(storage, local, capsys):
    """The run, of which checkpoints 4 and 6 are left, in the bucket."""
    for path in local.rglob("*"):
        if path.is_file() and path.name not in (".lock", "summary.json", "8.json") and "8" not in path.parts:
            storage.put(f"run/{path.relative_to(local)}", path.read_bytes())
    left = [int(name[:-5]) for name in storage.under("run/checkpoints/") if name.endswith(".json")]
    assert len(left) > 1
    return left


def test_what_a_film_is_made_of_is_copied(storage, stopped):
    storage.put("run/history/00000004/samples.png", b"png")
    command = config.parse("digits_cnn", STEPS)
    with own_files.shared(located("gs://bucket/run"), "digits_cnn", command, ProcessGroup()) as files:
        assert (files.directory / "history" / "00000004" / "samples.png").read_bytes() == b"png"
    assert storage.under("run/history/") == ["00000004/samples.png"]


def flip(content):
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("damage", ["flipped", "missing", "manifest"])
def test_a_damaged_checkpoint_is_not_used(storage, local, stopped, damage, capsys, without_pictures):
    *_, before, newest = stopped
    name = max((name for name in storage.objects if f"/{newest}/default/" in name), key=lambda x: "/d/" in x)
    if damage == "manifest":
        name = f"run/checkpoints/{newest}.json"
    if damage == "missing":
        del storage.objects[name]
    else:
        storage.put(name, flip(storage.objects[name].content[:-1]))
    assert train("gs://bucket/run") == 0
    text = said(capsys)
    assert f"checkpoint gs://bucket/run/checkpoints/{newest} is damaged" in text
    assert f"gs://bucket/run: resumed at step {before}" in text
    assert_same("gs://bucket/run", local)


def test_what_can_not_be_read_is_not_damaged(storage, stopped, capsys):
    """A newer checkpoint is neither passed over nor deleted because the bucket can't be reached."""
    objects = dict(storage.objects)
    for part in ("/default/", ".json"):
        storage.refuse = lambda method, name, part=part: 403 if f"{stopped[-1]}{part}" in name else None
        assert train("gs://bucket/run") == 1
        text = said(capsys)
        assert "could not read gs://bucket/run/checkpoints" in text and "permission is denied" in text
        with pytest.raises(RunError, match="permission is denied"):
            research.load("gs://bucket/run")
    assert storage.objects.keys() == objects.keys()


def test_a_failed_upload_ends_the_run(storage, local, capsys, without_pictures):
    count = iter(range(100))
    refused = lambda method, name: 403 if (method, name) == ("POST", "run/metrics.jsonl") and next(count) else None
    storage.refuse = refused
    assert train("gs://bucket/run") == 1
    text = said(capsys)
    assert "could not save step" in text and "permission is denied" in text and "Traceback" not in text
    storage.refuse = lambda method, name: None
    assert train("gs://bucket/run") == 0
    assert_same("gs://bucket/run", local)


@pytest.mark.parametrize(
    ("status", "directory", "message"),
    [
        (None, "gs://missing/run", "the bucket of gs://missing/run can't be used: there is no such bucket"),
        (403, "gs://bucket/run", "the bucket of gs://bucket/run can't be used: permission is denied"),
        (401, "gs://bucket/run", "the bucket of gs://bucket/run can't be used: there are no valid credentials"),
    ],
)
def test_a_bucket_that_can_not_be_used(storage, status, directory, message, capsys, caplog):
    storage.refuse = lambda method, name: status
    assert train(directory) == 1
    text = said(capsys)
    assert text.startswith(f"error: {message}") and "Traceback" not in text
    assert evaluate.main([directory]) in (1, 2)
    text = said(capsys)
    assert text.startswith("error: ") and "Traceback" not in text
    assert not storage.objects and not [record for record in caplog.records if record.name == "gcsfs"]


def test_other_runs_from_one_in_a_bucket(storage, stopped, local, tmp_path, monkeypatch, capsys, without_pictures):
    """To extend, to overwrite, to start from."""
    assert train("gs://bucket/run") == 0
    assert train("gs://bucket/run", "--run.seed", "1") == 2 and "was made by another config" in said(capsys)
    assert train("gs://bucket/run", "--steps", "10") == 0 and train(local.parent / "long", "--steps", "10") == 0
    assert "summary_8.json" in storage.under("run/") and lines("gs://bucket/run")[-1]["step"] == 10

    arguments = ("--init-from", "gs://bucket/run", "--run.seed", "3")
    assert train("gs://bucket/tuned", *arguments) == 0
    monkeypatch.chdir(tmp_path)
    assert train("gs://bucket/tuned", *arguments) == 0 and "already finished" in said(capsys)

    assert train("gs://bucket/run", "--overwrite") == 0
    assert "summary_8.json" not in storage.under("run/")
    assert_same("gs://bucket/run", local)


def test_a_directory_that_holds_something_else(storage, capsys):
    storage.put("run/photo.png", b"")
    assert train("gs://bucket/run", "--overwrite") == 2
    assert "gs://bucket/run holds something other than a run" in said(capsys)
    assert storage.under("run/") == ["photo.png"]


def test_two_processes_train_in_a_bucket(storage, local, capsys):
    """They stop together, and go on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        at = f"127.0.0.1:{listener.getsockname()[1]}"

    def pair():
        each = ["--data.feed", "host", "--processes", "2", "--coordinator", at, "--process"]
        return [start("gs://bucket/run", *each, str(i), devices="2") for i in range(2)]

    def stop(method, name):
        if method == "POST" and name.endswith("/4.json"):
            processes[1].terminate()

    processes = pair()
    storage.refuse = stop
    for process in processes:
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 128 + signal.SIGTERM, output
    storage.refuse = lambda method, name: None
    found = json.loads(storage.objects["run/checkpoints/4.json"].content)["manifest"]["files"]
    assert all(any(f"ocdbt.process_{n}/" in name for name in found) for n in range(2)), "each hashed what it wrote"
    outputs = []
    for process in pair():
        outputs.append(process.communicate(timeout=240)[0])
        assert process.returncode == 0, outputs
    assert "gs://bucket/run: resumed at step" in outputs[0] and "s in this bucket" in outputs[0]
    for one, two in zip(lines("gs://bucket/run"), lines(local), strict=True):
        assert one.pop("split") == two.pop("split") and two == pytest.approx(one, rel=1e-3, abs=1e-3)
    assert not [name for name in storage.objects if "/." in name]


@pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="submitit is not installed")
def test_jobs_need_a_disk(storage, capsys):
    sweep_of = ["digits_cnn", "--over", "optimizer.learning-rate", "1e-3", "--workdir", "gs://bucket/sweep"]
    assert sweep.main([*sweep_of, "--submit", "local"]) == 2
    assert "not gs://bucket/sweep" in said(capsys) and not storage.objects
