"""What needs no compiler: names of devices, facts of programs as text, what fits, and made-up data."""

import dataclasses
import math
import shutil

import jax
import jax.numpy as jnp
import pytest

from experiments import compile, compiled, results
from research.core.errors import UserError
from research.core.layout import mesh_shape
from research.data import made_up
from research.data.images import Images
from research.data.text import Text
from research.training import aot, config, fit
from research.training.aot import Collective, collectives
from research.training.hardware import KINDS, PEAKS
from research.training.topology import Name, Topology, cloud_names, parse, target_config


@pytest.mark.parametrize(
    "name, kind, shape",
    [
        ("v5e:2x4", "v5e", "2x4"),
        ("v5litepod-16", "v5e", "4x4"),
        ("v5e-16", "v5e", "4x4"),
        ("v5p-128", "v5p", "4x4x4"),  # 128 cores
        ("v4-32", "v4", "2x2x4"),
        ("v6e-8", "v6e", "2x4"),
        ("h100", "h100", "1"),
        ("h100:8", "h100", "8"),
        ("a100-40:2", "a100-40", "2"),
    ],
)
def test_names(name, kind, shape):
    assert parse(name) == Name(kind, shape)


@pytest.mark.parametrize(
    "name, near",
    [("a100", "a100-80"), ("v5p-130", "v5p-128"), ("h1000", "h100"), ("v6e:", "v6e:4x4"), ("h100:0", "h100:8")],
)
def test_a_wrong_name_has_the_nearest(name, near, capsys):
    with pytest.raises(UserError, match=near):
        parse(name)
    assert compile.main(["digits_cnn", "--topology", name]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_facts_of_devices():
    for kind, device in KINDS.items():
        assert (device.card is None) == (len(device.slices) > 0) == (cloud_names(kind) != [])
        chips = [math.prod(map(int, shape.split("x"))) for shape in device.slices]
        assert chips == sorted(set(chips))
        assert device.memory > 2**33 and device.bandwidth > 1e11 and device.bfloat16 > 1e14 and device.source
        assert all(PEAKS[name] == device.bfloat16 for name in device.names)
        if device.card:
            assert f"device_memory_size: {device.memory}" in target_config(device)


HLO = """
ENTRY main {
  %a = f32[8,4]{1,0:T(8,128)} all-reduce(%x), channel_id=1
  %b = (bf16[3]{0}, pred[5]{0}) all-reduce(%y, %z), channel_id=2
  %c = (f32[2]{0}, f32[16]{0:T(256)}) all-gather-start(%v), channel_id=3
  %d = f32[16]{0} all-gather-done(%c)
  %d.1 = f32[16]{0} all-gather(%v), channel_id=3
  ROOT %e = s32[] collective-permute(%w)
}
"""


def test_collectives_have_the_bytes_of_their_results():
    assert collectives(HLO) == {
        "all-reduce": Collective(2, 128 + 6 + 5),
        "all-gather": Collective(1, 64),
        "collective-permute": Collective(1, 4),
    }


@pytest.mark.parametrize("most, unit, start", [(1000, 8, 64), (24, 8, 64), (7, 8, 64), (4096, 1, 1), (100, 4, 100)])
def test_the_largest_batch_that_fits(most, unit, start):
    tried = []
    found = fit.largest(lambda size: tried.append(size) or size <= most, unit, start, 2**31)
    best = most // unit * unit
    assert best - max(unit, best // 8) <= found <= best and found % unit == 0
    assert len(tried) <= 18 and all(size % unit == 0 for size in tried)


@pytest.mark.parametrize("examples, start, best", [(1003, 64, 1000), (50, 64, 48), (7, 64, 0)])
def test_the_largest_batch_is_no_more_than_there_are_examples(examples, start, best):
    tried = []
    assert fit.largest(lambda size: tried.append(size) or True, 8, start, examples) == best
    assert max(tried, default=0) == best and len(tried) == len(set(tried))


def test_what_ends_the_search_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(compile, "_tried", lambda *_: True)
    said = compile._largest("digits_cnn", (), Topology("v5e:2x4", [None] * 8, 2**34), tmp_path)
    assert said.endswith(
        "--data.batch 1288 --data.evaluation-batch 1288 (161 a device; there are 1294 training examples)"
    )
    monkeypatch.setattr(compile, "_tried", lambda *_: None)
    said = compile._largest("digits_cnn", (), Topology("v5e:2x4", [None] * 8, 2**34), tmp_path)
    assert said == "no batch fits: the smallest, for 8 devices, is 8"


def test_alternatives_begin_with_what_changes_least():
    options = [" ".join(each) for each in fit.alternatives(config.load("gpt2"), 4, "replicated", "jit")]
    assert options[:2] == ["--shard fsdp", "--net.stack.remat full"], "gpt2 has dots"
    assert "--net.stack.remat full --update.grad-accum-steps 2" in options
    stdlib = [" ".join(each) for each in fit.alternatives(config.load("stdlib_transformer"), 1, "replicated", "jit")]
    assert stdlib[:2] == ["--net.stack.remat dots", "--net.stack.remat full"]
    assert options[-1].endswith("--data.batch 4 --data.evaluation-batch 4")
    for each in fit.alternatives(config.load("cartpole_dqn"), 1, "replicated", "jit"):
        config.parse("cartpole_dqn", each, compile.Command, "compile")


def test_options_are_replaced():
    before = ["--topology", "v5e:2x4", "--data.batch=64", "--quick", "--net.stack.remat", "none", "--fit"]
    options = ["--net.stack.remat", "full", "--data.batch", "32"]
    assert fit.replaced(before, options) == ["--topology", "v5e:2x4", *options]


def test_data_is_made_up_where_it_is_not_here(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for name, expected in (("digits_cnn", False), ("cartpole_dqn", False), ("shakespeare_lstm", True)):
        assert made_up.available(config.load(name), tmp_path)[1] == expected
    names = {getattr(config.load(name), "data", Text()).name for name in config.names()}
    assert names - {"digits", "stdlib", "tokens.npy"} == set(made_up.SIZES)
    tokens, _ = made_up.available(config.load("gpt2"), tmp_path)
    assert tokens.data.spec().classes == 50304 and tokens.feeds().train.batch_at(0).inputs.shape == (8, 1024)
    images, _ = made_up.available(config.load("cifar10_resnet20"), tmp_path)
    assert images.data.spec().shape == (32, 32, 3) and len(images.data.load().train_images) == 50_000

    @dataclasses.dataclass(frozen=True)
    class Own(Images):
        side: int = 3

    own = dataclasses.replace(config.load("cifar10_resnet20"), data=Own(name="cifar10", side=5))
    found = made_up.available(own, tmp_path)[0].data
    assert isinstance(found, Own) and found.side == 5 and found.spec().shape == (32, 32, 3)
    unknown = dataclasses.replace(config.load("cifar10_resnet20"), data=Images(name="cifer10"))
    with pytest.raises(UserError, match="cifer10"):
        made_up.available(unknown, tmp_path)


def test_sizes_are_raised_to_what_the_devices_divide():
    assert compiled.divided(config.load("horse2zebra_cyclegan"), 8).data.batch == 8
    assert compiled.divided(config.load("mnist_cnn"), 1) == config.load("mnist_cnn")
    for name in config.names():
        raised = compiled.divided(config.load(name), 8)
        assert (raised.data.batch if hasattr(raised, "data") else raised.num_envs) % 8 == 0, name


def test_a_cell_is_older_where_the_code_of_its_programs_has_changed(tmp_path, monkeypatch):
    shutil.copytree(compiled.ROOT / "research", tmp_path / "research", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(compiled.ROOT / "configs", tmp_path / "configs", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(compiled, "ROOT", tmp_path)

    def changed(file: str, line: str) -> list[str]:
        names = ("mnist_cnn", "cartpole_ppo", "breakout_dqn")
        before = [compiled.digest(name) for name in names]
        (tmp_path / file).write_text(f"{(tmp_path / file).read_text()}\n{line}\n")
        for cached in (compiled.imported, compiled._code):
            cached.cache_clear()
        return [name for name, old in zip(names, before, strict=True) if compiled.digest(name) != old]

    assert changed("configs/mnist_cnn.py", "x = 1") == ["mnist_cnn"]
    assert changed("research/learners/ppo.py", "x = 1") == ["cartpole_ppo"]
    assert changed("research/rl/vector.py", "x = 1") == ["cartpole_ppo", "breakout_dqn"]
    assert changed("research/core/placement.py", "x = 1") == ["mnist_cnn", "cartpole_ppo", "breakout_dqn"]
    assert changed("research/training/dispatch.py", "x = 1") == ["mnist_cnn", "cartpole_ppo", "breakout_dqn"]
    assert changed("research/evaluation/plots.py", "x = 1") == changed("configs/gpt2.py", "x = 1") == []
    assert changed("research/core/placement.py", "# x") == []


def test_a_cell_of_the_table():
    cell = {"memory": 2**30, "fits": True, "collectives": {"all-reduce": [2, 2**20]}, "seconds": 3.4, "effort": "quick"}
    shown = lambda cell, **more: results.program({**cell, "code": "new", **more}, "new")
    assert shown(cell) == shown(cell, bound=None) == "1.00 GiB; 2 all-reduce (1.00 MiB); 3 s, quick"
    assert shown(cell, fits=False, effort="full").startswith("1.00 GiB, does not fit; 2 all-")
    assert shown(cell, bound=0.128) == "1.00 GiB; 2 all-reduce (1.00 MiB); 0.13 s a step at the peak; 3 s, quick"
    assert shown(cell, code="old").endswith("3 s, quick; by older code")
    assert results.program(None, "new") == "not run"
    assert shown({"failed": "crashed: a|b"}) == "crashed: a/b"


@pytest.mark.parametrize("devices", compiled.LARGE_TOPOLOGIES.values())
def test_large_transformers_are_command_lines(devices):
    rows = compiled.transformers(devices)
    assert len(rows) == 9
    for row, (name, *arguments) in rows.items():
        command = config.parse(name, arguments, compile.Command, "compile")
        net, data = command.config.net, command.config.data
        assert data.batch == devices and math.prod(mesh_shape(command.mesh or f"data={devices}").values()) == devices
        if command.shard != "replicated" or devices == 256:
            continue
        model = net.clone(context=data.context, outputs=data.vocabulary)
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
        count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        published = {"1B": 1.24e9, "8B": 8.03e9, "30B": 32.5e9}  # Llama's have RMSNorm, and none of our few biases
        assert abs(count / published[row.split()[0]] - 1) < 0.005


def test_the_bound_is_the_work_at_the_peak():
    facts = aot.Compiled(256, 0, 0, 0, {}, 256 * 197e12 * 0.25, 1.0, "")
    assert aot.bound(facts, Topology("v5e:16x16", [], 2**34)) == pytest.approx(0.25)


def test_a_bound_that_is_not_known_is_not_shown(capsys):
    for flops, shown in ((197e12, True), (math.nan, False)):
        facts = aot.Compiled(1, 0, 0, 0, {}, flops, 1.0, "")
        compile.show("a", Topology("v5e:1x1", [], 2**34), facts)
        said = capsys.readouterr().out
        assert ("a step at the peak" in said) is shown and "nan" not in said


def test_a_crash_is_a_cell(monkeypatch):
    assert compiled.compiled(["no_such_config"], 60, True)["failed"].startswith("crashed: ")
    assert compiled.compiled(["digits_cnn"], 0, True)["failed"] == "more than 0 s"
