"""The host loop: when it reads, evaluates and saves; what it measures and how it profiles."""

import gzip
import itertools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from digits import tiny
from learners import EXPERIMENTS

from experiments.train import main
from research.core.experiment import Report, Run
from research.core.layout import Layout, make_mesh
from research.core.metrics import mean
from research.core.placement import place
from research.core.state import Batch, Learner, State
from research.core.transformations import per_seed
from research.training import reader, run
from research.training.dispatch import dispatches
from research.training.evaluate import Evaluator
from research.training.profiling import profiled
from research.training.run import reported

pytestmark = pytest.mark.usefixtures("without_pictures")


def test_metrics_are_read_one_dispatch_late_but_before_an_evaluation_or_a_save(tmp_path, monkeypatch):
    done = []

    def note(owner, name, what, step_of):
        function = getattr(owner, name)

        def noted(*arguments):
            done.append(f"{what} {step_of(*arguments)}")
            return function(*arguments)

        monkeypatch.setattr(owner, name, noted)

    started = itertools.count(2, 2)
    note(reader.MetricsReader, "add", "start", lambda *_: next(started))
    note(reader, "check_finite", "read", lambda _, before, __: before + 2)
    note(run, "validate", "validate", lambda _, step, __: step)
    note(run.checkpoint.Checkpoints, "save", "save", lambda _, step, *__: step)
    every = ["--run.evaluate-every", "6", "--run.save-every", "8", "--profile"]
    assert main(["digits_cnn", "--workdir", str(tmp_path / "run"), *tiny(10), *every]) == 0
    assert list((tmp_path / "run" / "profile").rglob("perfetto_trace.json.gz"))
    assert done == [
        *("start 2", "start 4", "read 2", "start 6", "read 4", "read 6", "validate 6", "save 6"),
        *("start 8", "read 8", "validate 8", "save 8", "start 10", "read 10", "validate 10", "save 10"),
    ]
    lines = [f"{line['split']} {line['step']}" for line in run.log.read(tmp_path / "run")]
    assert lines == ["train 2", "train 4", "train 6", "validation 6", "train 8", "train 10", "validation 10"]


@pytest.mark.parametrize("where", ["jit", "pmap", "shard_map"])
def test_a_seed_that_diverged_has_no_numbers(where):
    """Nor those that are finite: the prediction of outputs that are NaN is the first class."""
    learner, feeds = per_seed(EXPERIMENTS["cnn"].build()), EXPERIMENTS["cnn"].feeds()
    at = place(where, Layout(make_mesh(jax.devices()), seeds=True))
    state = learner.init(jax.vmap(jax.random.key)(jnp.arange(2)))
    broken = state._replace(params=jax.tree.map(lambda x: x.at[1].set(jnp.nan), state.params))
    evaluate = Evaluator(learner, at)
    fine, found = (evaluate(at.put(one), feeds.validation) for one in (state, broken))
    assert fine.keys() == found.keys() == {"accuracy", "loss"} and None not in fine["accuracy"]
    assert found == {name: [each[0], None] for name, each in fine.items()}


def test_reports_have_no_numbers_of_a_seed_that_diverged(tmp_path):
    state = State(jnp.int32(0), jax.random.split(jax.random.key(0)), {"x": jnp.array([[1.0], [jnp.inf]])}, {}, {}, ())
    report = Report(lambda *_: {"mistakes": [3, 0], "together": 0.5})
    assert reported([report], lambda: state, None, tmp_path) == {"mistakes": [3, None], "together": 0.5}


@pytest.mark.parametrize("every", ["2", "8"])
def test_a_state_that_is_not_finite_is_never_saved(tmp_path, capsys, every):
    """Neither where a dispatch is read at once nor where it is read late, after the next one was started."""
    options = ["--optimizer.name", "sgd", "--optimizer.learning-rate", "1e30", "--optimizer.schedule", "constant"]
    intervals = ["--run.save-every", every, "--run.evaluate-every", "8"]
    assert main(["digits_cnn", "--workdir", str(tmp_path / "run"), *tiny(16), *options, *intervals]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "NaN or infinite at step" in said
    step = int(said.split("NaN or infinite at step ")[1].split(".")[0])
    saved = sorted(int(path.stem) for path in (tmp_path / "run" / "checkpoints").glob("*.json"))
    good = [n for n in range(int(every), step, int(every))]
    assert all(n < step for n in saved) and saved == good[-2:], (step, saved)
    lines = [line["step"] for line in run.log.read(tmp_path / "run") if line["split"] == "train"]
    assert lines == list(range(2, step, 2))


def test_weights_are_gathered_for_the_reports_that_are_due_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "reported", lambda reports, shown, *rest: {report: shown() for report in reports} and {})
    state, gathers = State(jnp.int32(0), jax.random.key(0), {}, {}, {}, ()), []
    job = SimpleNamespace(
        experiment=SimpleNamespace(run=Run(steps=400, evaluate_every=100)),
        directory=tmp_path,
        evaluate=lambda state, batches: {"loss": 1.0},
        feeds=SimpleNamespace(validation=[]),
        reports=[Report(lambda state, split, directory: {}, every=200)],
        group=SimpleNamespace(size=2, broadcast=lambda name, text: text),
        where=SimpleNamespace(own=gathers.append),
    )
    for step, expected in ((100, 0), (200, 1), (300, 1), (400, 2)):
        assert run.validate(job, step, state) == {"loss": 1.0} and len(gathers) == expected


def test_each_shape_of_the_data_is_compiled_once_and_its_operations_are_counted():
    """A step adds up x @ x.T; the data of steps 0, 1, 4 and 5 is [2, 3], that of the others [2, 5].

    A constant moves to the device while the step is traced, as a physics engine's tables do; nothing moves later.
    """

    def step(state, batch):
        with jax.ensure_compile_time_eval():
            ones = jnp.add(np.ones(batch.inputs.shape[1], np.float32), np.float32(0))
        product = (batch.inputs * ones) @ batch.inputs.T
        return state._replace(step=state.step + 1, params=state.params + product.sum()), {"loss": mean(product)}

    def batch_at(at, rows):
        assert rows is None, "one process has all rows"
        shape = (2, 3 if at % 4 < 2 else 5)
        return Batch(np.arange(2), np.ones(2, np.float32), np.full(shape, at, np.float32), ())

    where = place("jit", Layout(make_mesh(jax.devices()[:1])))
    feed = SimpleNamespace(resident=False, batch=2, batch_at=batch_at)
    state = where.put(State(jnp.int32(0), jax.random.key(0), jnp.float32(0), {}, {}, ()))
    dispatched = []
    with dispatches(Learner(None, step, None), where, feed, 2, 0, 8) as advance:
        for _ in range(4):
            state, one = advance(state)
            dispatched.append(one)
    assert state.step == 8 and state.params == 4 * (3 * (0 + 1 + 16 + 25) + 5 * (4 + 9 + 36 + 49))
    assert [one.compile_seconds > 0 for one in dispatched] == [True, True, False, False]
    assert [one.flops for one in dispatched] == [2 * 2 * 4 * width for width in (3, 5, 3, 5)]
    assert all(one.data_seconds > 0 for one in dispatched)


def test_what_is_measured(monkeypatch):
    """Five dispatches of four steps. The second begins when the first has ended, the last when it is called."""
    ended = iter([0.0, 10.0, 12.0, 20.0, 25.0, 35.0])  # when the reader is made, then when it has read each dispatch
    monkeypatch.setattr(reader, "time", SimpleNamespace(monotonic=lambda: next(ended)))
    monkeypatch.setattr(reader, "memory", lambda: {"peak_memory_bytes": 5})
    lines, bar = [], SimpleNamespace(update=lambda *_: None, say=lambda *_: None)
    log = SimpleNamespace(line=lambda step, split, values, timing: lines.append((step, timing)))
    one = reader.MetricsReader(EXPERIMENTS["transformer"], 8, {"examples": 32}, 1000.0, log, bar, None)
    metrics = {"loss": mean(jnp.ones(1))}
    for called, waited, compiled in (
        (1.0, 0.5, 6.0),
        (2.0, 0.0, 0.0),
        (11.0, 2.0, 0.0),
        (13.0, 0.0, 1.0),
        (31.0, 1, 0.0),
    ):
        one.add(reader.Dispatched(jax.tree.map(lambda x: x[None], metrics), called, waited, compiled, 400.0))
    one.flush()
    assert [step for step, _ in lines] == [12, 16, 20, 24, 28]
    readings = [timing for _, timing in lines]
    assert [x["seconds"] for x in readings] == [10.0, 2.0, 8.0, 5.0, 10.0]
    # It is not known of the third, during which the host compiled.
    assert [x["steps_per_second"] for x in readings] == [None, 2.0, None, None, 1.0]
    assert readings[4] == {
        **{"seconds": 10.0, "compile_seconds": 0.0, "data_seconds": 1, "peak_memory_bytes": 5},
        **{"steps_per_second": 1.0, "examples_per_second": 32.0, "flops_per_second": 100.0, "utilisation": 0.1},
    }
    assert reader.speeds({"steps": 1, "flops": 100.0}, 5.0, 2000.0) == {
        **{"steps_per_second": 5.0, "flops_per_second": 500.0, "utilisation": 0.25}
    }
    assert "utilisation" not in reader.speeds({"flops": 100.0}, 5.0, None)


def test_what_a_step_trains_on():
    assert EXPERIMENTS["cnn"].units_per_step(32) == {"examples": 32}
    assert EXPERIMENTS["transformer"].units_per_step(32) == {"examples": 32, "tokens": 32 * 8}
    dqn = EXPERIMENTS["dqn"]
    assert dqn.units_per_step(0) == {"frames": dqn.num_envs * dqn.rollout_length}


def test_a_profile_has_the_second_to_fourth_call_and_changes_nothing(tmp_path, capsys, monkeypatch):
    @jax.jit
    def doubled_and_one(x):
        return 2 * x + 1, x

    def called(times, advance):
        x = jnp.int32(3)
        return [x := advance(x)[0] for _ in range(times)]

    for times, traced in ((6, 3), (3, 2)):
        directory = tmp_path / str(times)
        with profiled(doubled_and_one, directory) as advance:
            assert called(times, advance) == called(times, doubled_and_one)
        assert f"{directory} has a trace of {traced} dispatches: open" in " ".join(capsys.readouterr().err.split())
        (xplane,), (perfetto,) = directory.rglob("*.xplane.pb"), directory.rglob("perfetto_trace.json.gz")
        assert xplane.stat().st_size > 0
        with gzip.open(perfetto) as file:
            names = [event.get("name", "") for event in json.load(file)["traceEvents"]]
        assert names.count("dispatch") == traced and "PjitFunction(doubled_and_one)" in names
    with profiled(doubled_and_one, tmp_path / "1") as advance:
        called(1, advance)
    assert "traced nothing" in capsys.readouterr().err and not (tmp_path / "1").exists()

    stop = jax.profiler.stop_trace
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: (stop(), json.loads("?")))
    with profiled(doubled_and_one, tmp_path / "2") as advance:
        assert called(6, advance) == called(6, doubled_and_one)
    assert "warning: could not write the trace" in capsys.readouterr().err
