"""Exported programs: what models compute, and the training step, as StableHLO."""

import dataclasses
import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from digits import TINY
from learners import EXPERIMENTS
from printed import said

import research
from experiments import export, train
from research.core.errors import RunError
from research.core.experiment import Experiment, Inference
from research.core.state import Batch
from research.training import export as programs
from research.training.leaves import named, plain

PLATFORMS = ("cpu", "cuda", "tpu")

AUTOENCODER = {
    "encoder": ("float32[batch,8,8,1]", "float32[batch,4]"),
    "decoder": ("float32[batch,4]", "float32[batch,8,8,1]"),
}
REPAIR = {"inference": ("float32[batch,8,8,1] float32[batch,8,8,1]", "float32[batch,8,8,1]")}
SIGNATURES = {
    "cnn": {"inference": ("uint8[batch,8,8,1]", "float32[batch,10]")},
    "whitened": {"inference": ("uint8[batch,8,8,1]", "float32[batch,10]")},
    "pruned": {"inference": ("uint8[batch,8,8,1]", "float32[batch,10]")},
    "adversarial": {"inference": ("uint8[batch,8,8,1]", "float32[batch,10]")},
    "large_images": {"inference": ("uint8[batch,16,16,3]", "float32[batch,10]")},
    "segment": {"inference": ("uint8[batch,8,8,1]", "float32[batch,8,8,11]")},
    "detector": {"inference": ("uint8[batch,32,32,3]", "float32[batch,10,6]")},
    "canvas_detector": {"inference": ("uint8[batch,32,32,1]", "float32[batch,10,6]")},
    "restore": REPAIR,
    "restore_adversarial": REPAIR,
    "diffusion": {"inference": ("float32[batch,8,8,1] int32[batch]", "float32[batch,8,8,1]")},
    "cyclegan": {name: ("uint8[batch,8,8,1]", "float32[batch,8,8,1]") for name in ("x_to_y", "y_to_x")},
    "dqn": {"inference": ("float32[batch,4]", "float32[batch,2]")},
    "pqn": {"inference": ("float32[batch,4]", "float32[batch,2]")},
    "rainbow": {"inference": ("float32[batch,4]", "float32[batch,2]")},
    "ppo": {"inference": ("float32[batch,4]", "float32[batch,2]")},
    "ppo_continuous": {"inference": ("float32[batch,1]", "float32[batch,1]")},
    "sac": {"inference": ("float32[batch,1]", "float32[batch,1]")},
    "gan": {"inference": ("float32[batch,4]", "float32[batch,8,8,1]")},
    "wgan_gp": {"inference": ("float32[batch,4] int32[batch]", "float32[batch,8,8,1]")},
    "vae": AUTOENCODER,
    "autoencoder": AUTOENCODER,
    "simclr": {"inference": ("uint8[batch,8,8,1]", "float32[batch,128]")},
    "mae": {"inference": ("uint8[batch,8,8,1]", "float32[batch,8]")},
    "transformer": {"inference": ("int32[batch,8]", "float32[batch,8,51]")},
    "lstm": {"inference": ("int32[batch,8]", "float32[batch,8,51]")},
    "masked": {"inference": ("int32[batch,8]", "float32[batch,8,11]")},
    "sentences": {"inference": ("int32[batch,8]", "float32[batch,2]")},
    "translator": {"inference": ("int32[batch,32]", "int32[batch,32]")},
}


def exported(experiment) -> bool:
    """Whether it says what the trained model computes. A learner that doesn't yet needs no line here."""
    return type(experiment).inference is not Experiment.inference


def test_the_page_has_every_learner_with_an_inference():
    page = (Path(export.__file__).parent.parent / "docs" / "export.md").read_text()
    rows = " ".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))
    found = {type(experiment).__name__ for experiment in EXPERIMENTS.values() if exported(experiment)}
    assert found <= set(re.findall(r"`(\w+)`", rows))


SERVE = """
import json, sys
import jax, numpy as np
from jax import export
program = lambda name: export.deserialize(bytearray(open(name + ".stablehlo", "rb").read()))
logits = program("inference").call(np.load("images.npy"))
state, metrics = program("step").call(dict(np.load("state.npz")), dict(np.load("batch.npz")))
np.savez("served.npz", logits=logits, **state, **metrics)
print([name for name in sys.modules if name.split(".")[0] in ("research", "flax", "optax")])
"""


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_learner_is_lowered_for_every_platform(name):
    """Its inference for batches of any size, and its step on leaves by name."""
    experiment = EXPERIMENTS[name]
    learner, feeds = experiment.build(), experiment.feeds()
    state, batch = jax.eval_shape(learner.init, jax.random.key(0)), feeds.train.batch_at(0)
    examples = lambda state: {
        of: tuple(one.inputs(feeds.validation[0]).values()) for of, one in experiment.inference(state).items()
    }
    found = {}
    for of, arguments in jax.eval_shape(examples, state).items():
        function = lambda state, *inputs, of=of: experiment.inference(state)[of].function(*inputs)
        program = programs.lowered(function, (state, *programs.any_batch(arguments)), PLATFORMS)
        assert program.platforms == PLATFORMS
        signature = lambda avals: " ".join(aval.str_short() for aval in avals)
        found[of] = signature(program.in_avals[-len(arguments) :]), signature(program.out_avals)
    assert found == SIGNATURES.get(name, {})

    leaves = jax.eval_shape(lambda state, batch: (plain(named(state)), named(batch)), state, batch)
    step = programs.lowered(programs.flat_step(learner, state, batch), leaves, PLATFORMS)
    after, metrics = jax.tree.unflatten(step.out_tree, step.out_avals)
    assert {n: (x.shape, x.dtype) for n, x in after.items()} == {n: (x.shape, x.dtype) for n, x in leaves[0].items()}
    assert after["key"].dtype == np.uint32 and any(name.endswith("loss/total") for name in metrics)


def test_each_platform_has_its_own_branch():
    """Convolutions are matrix products on a CPU alone."""
    experiment = EXPERIMENTS["cnn"]
    state = jax.eval_shape(experiment.build().init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.uint8)
    convolutions = lambda *platforms: (
        programs.lowered(experiment.logits, (state, images), platforms).mlir_module().count("stablehlo.convolution")
    )
    assert convolutions("cpu") == 0
    assert convolutions("tpu") == convolutions("cuda") == 1
    assert convolutions(*PLATFORMS) > 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory, without_pictures):
    directory = tmp_path_factory.mktemp("finished") / "digits"
    assert train.main(["digits_cnn", "--workdir", str(directory), *TINY]) == 0
    return directory


def test_exported_programs_run_without_this_package(finished, capsys):
    assert export.main([str(finished)]) == 0
    said_ = said(capsys)
    assert "exporting the last checkpoint, step 4" in said_ and "inference.stablehlo" in said_
    folder = finished / "export"
    experiment, learner, state = research.load(finished)
    feeds = experiment.feeds()
    images, batch = feeds.validation[0].inputs[:7], feeds.train.batch_at(4)
    np.save(folder / "images.npy", images)
    np.savez(folder / "batch.npz", **named(batch))
    environment = {"PATH": "", "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    kept = {name: os.environ[name] for name in ("PYTHONPATH", "XLA_FLAGS") if name in os.environ}
    run = subprocess.run(
        [sys.executable, "-c", SERVE], cwd=folder, env=environment | kept, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout) == (0, "[]\n"), run.stderr
    served = dict(np.load(folder / "served.npz"))
    np.testing.assert_allclose(served["logits"], experiment.logits(state, images), rtol=1e-4, atol=1e-5)
    after, metrics = jax.jit(learner.step)(state, batch)
    for name, leaf in (plain(named(after)) | named(metrics)).items():
        np.testing.assert_allclose(served[name], leaf, rtol=1e-4, atol=1e-5, err_msg=name)
    assert served["step"] == 5

    about = json.loads((folder / "export.json").read_text())
    assert about["step"] == 4 and about["platforms"] == [*PLATFORMS] and about["files"] == ["state.npz"]
    inference, step = about["programs"]["inference"], about["programs"]["step"]
    assert inference["inputs"] == {"images": {"shape": ["batch", 8, 8, 1], "dtype": "uint8"}}
    assert inference["outputs"] == {"logits": {"shape": ["batch", 10], "dtype": "float32"}}
    assert inference["names"] == [*"0123456789"]
    assert step["inputs"]["batch"]["inputs"] == {"shape": [8, 8, 8, 1], "dtype": "uint8"}
    assert {name: tuple(x["shape"]) for name, x in step["inputs"]["state"].items()} == {
        name: leaf.shape for name, leaf in np.load(folder / "state.npz").items()
    }


def test_bad_input_is_one_clear_line(finished, tmp_path, capsys, monkeypatch):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").symlink_to(finished / "config.json")
    (tmp_path / "file").touch()
    monkeypatch.setattr(programs, "write_inference", lambda *_: pytest.fail("nothing is compiled before"))
    for arguments, code, message in (
        ([str(tmp_path / "nowhere")], 2, "holds no run"),
        ([str(tmp_path / "begun")], 2, "holds no checkpoint yet"),
        ([str(finished), "--platforms", "cuda", "tpu"], 2, "--platforms must have cpu"),
        ([str(finished), "--output", str(tmp_path / "file")], 1, "choose another --output"),
        ([str(finished), "--output", str(tmp_path / "file" / "below")], 1, "choose another --output"),
    ):
        assert export.main(arguments) == code
        assert message in said(capsys)


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(tmp_path):
    line = r"could not write .*state.npz: No space left on device; make room"
    with pytest.raises(RunError, match=line), programs.writing(tmp_path / "state.npz") as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not [*tmp_path.iterdir()]


def inference(function) -> Inference:
    return Inference(function, lambda batch: {"x": batch.inputs}, "y", "")


BATCH = Batch((), (), np.arange(6.0, dtype=np.float32).reshape(3, 2), ())


def test_a_program_has_a_batch_of_any_size_where_it_can(tmp_path, capsys):
    path = tmp_path / "f.stablehlo"
    shape = lambda function: (
        programs.write_inference(path, inference(function), BATCH, ("cpu",)).program.in_avals[0].shape
    )
    assert [str(size) for size in shape(lambda x: 2 * x)] == ["batch", "2"]
    assert shape(lambda x: x * (1 if x.shape[0] > 2 else 2)) == (3, 2)
    assert "batches must have 3 examples" in said(capsys)


def test_a_program_that_differs_is_not_written(tmp_path):
    traces = []

    def changes(x):  # with every trace
        traces.append(1)
        return x * (1 + 1e-5 * len(traces))

    with pytest.raises(programs.Differs, match=r"differs from the run by [12]\.0e-05"):
        programs.write_inference(tmp_path / "f.stablehlo", inference(changes), BATCH, ("cpu",))
    assert not [*tmp_path.iterdir()]


def test_the_difference_is_relative_to_the_largest_number():
    assert programs.difference([np.float32([1, 4])], [np.float32([2, 4])]) == 0.25
    assert programs.difference([np.int32([10**9])], [np.int32([10**9 + 1])]) == 1
    assert programs.difference([jnp.bfloat16([2**-20])], [jnp.bfloat16([2**-19])]) == 0.5
    same = np.float32([np.nan, np.inf, 0])
    assert programs.difference([same, ()], [same, ()]) == 0
    assert not programs.difference(np.float32([1, np.nan]), np.float32([1, 2])) <= 1


def test_attention_is_portable():
    """cuDNN's is not, and the learner's State is the same with XLA's."""
    before = EXPERIMENTS["transformer"]
    assert before.net.stack.attention == "flash"
    assert programs.with_xla_attention(before).net.stack == dataclasses.replace(before.net.stack, attention="xla")
    assert programs.with_xla_attention(EXPERIMENTS["lstm"]) is EXPERIMENTS["lstm"]
    autoencoder = programs.with_xla_attention(EXPERIMENTS["mae"]).net
    assert autoencoder.stack.attention == autoencoder.decoder.attention == "xla"


def test_bfloat16_is_float32_outside_of_the_step(tmp_path):
    """NumPy's files have no bfloat16."""
    optimizer = dataclasses.replace(EXPERIMENTS["dqn"].optimizer, mu_dtype="bfloat16")
    learner = dataclasses.replace(EXPERIMENTS["dqn"], optimizer=optimizer).build()
    batch, state = EXPERIMENTS["dqn"].feeds().train.batch_at(0), jax.jit(learner.init)(jax.random.key(0))
    moments = [name for name, leaf in plain(named(state)).items() if leaf.dtype == jnp.bfloat16]
    written = programs.write_step(tmp_path / "step.stablehlo", learner, state, batch, ("cpu",))
    leaves = dict(np.load(tmp_path / "state.npz"))
    after, metrics = written.program.call(leaves, named(batch))
    after, metrics = written.program.call(jax.device_get(after), named(batch))
    assert {tree[name].dtype for tree in (leaves, after) for name in moments} == {np.dtype(np.float32)}
    step = jax.jit(learner.step)
    expected = step(step(state, batch)[0], batch)[0]
    for name, leaf in plain(named(expected)).items():
        np.testing.assert_allclose(after[name], np.asarray(leaf, after[name].dtype), rtol=1e-4, atol=1e-5, err_msg=name)
    jax.tree.map(lambda x: np.testing.assert_array_equal(np.isfinite(x), True), metrics)


def test_a_step_that_only_rounds_otherwise_is_written_with_a_warning(tmp_path, monkeypatch, capsys):
    """Adam magnifies rounding: then the step lowered for the same platforms decides."""
    experiment = EXPERIMENTS["dqn"]
    learner = experiment.build()
    state = jax.jit(learner.init)(jax.random.key(0))
    found, difference = [], programs.difference

    def rounded(outputs, expected):
        found.append(difference(outputs, expected))
        return 1e-3 if len(found) == 1 else found[-1]

    monkeypatch.setattr(programs, "difference", rounded)
    batch = experiment.feeds().train.batch_at(0)
    written = programs.write_step(tmp_path / "step.stablehlo", learner, state, batch, ("cpu",))
    assert len(found) == 2 and found[1] == written.difference <= programs.TOLERANCE and written.path.exists()
    assert "step.stablehlo differs from the run by 1.0e-03, more than 1e-05, by rounding alone" in said(capsys)


@pytest.mark.parametrize("apart", [5e-6, 1e-4])
def test_one_example_may_be_rounded_otherwise_than_a_batch(tmp_path, apart):
    """The run's own function is compiled for each size, and the program for any."""

    def function(x):
        return x * (1 + apart) if x.shape[0] == 1 else x

    inference = Inference(function, lambda batch: {"x": batch.inputs}, "y", "")
    inputs = np.linspace(1, 2, 12, dtype=np.float32).reshape(4, 3)
    write = lambda: programs.write_inference(
        tmp_path / "inference.stablehlo", inference, Batch(np.arange(4), np.ones(4), inputs, None), ("cpu",)
    )
    if apart > programs.TOLERANCE:
        with pytest.raises(programs.Differs, match=r"differs from the run by 1\.0e-04"):
            write()
    else:
        assert 0 < write().difference < 1e-5
