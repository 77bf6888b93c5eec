"""Meshes and layouts: what lies where, from the first State to one that is read back on other devices."""

import dataclasses
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from digits import tiny
from flax.traverse_util import unflatten_dict
from jax.sharding import PartitionSpec as P
from learners import EXPERIMENTS

from experiments.train import main
from research.core.devices import AXIS, axis_if_bound
from research.core.errors import UserError
from research.core.experiment import Split
from research.core.layout import FSDP_MIN_SIZE, Layout, make_mesh, mesh_shape
from research.core.metrics import Mean
from research.core.placement import place
from research.core.state import State
from research.core.transformations import first_seed
from research.nets.transformer import LanguageModel, Stack
from research.training import checkpoint, config
from research.training.run import layout, load

pytestmark = pytest.mark.usefixtures("without_pictures")


def devices_and_mesh(text: str):
    count = math.prod(mesh_shape(text).values())
    return make_mesh(jax.devices()[:count], text)


def test_the_shape_of_a_mesh():
    assert mesh_shape("data=4, replica=2") == {"replica": 2, "seed": 1, "data": 4, "model": 1}
    mesh = make_mesh(jax.devices(), "data=2,seed=2,replica=2")
    assert dict(mesh.shape) == {"replica": 2, "seed": 2, "data": 2, "model": 1}
    np.testing.assert_array_equal(np.vectorize(lambda d: d.id)(mesh.devices), np.arange(8).reshape(2, 2, 2, 1))
    assert dict(make_mesh(jax.devices()[:3]).shape) == {"replica": 1, "seed": 1, "data": 3, "model": 1}


def test_a_process_has_a_state_on_its_own_devices():
    """Of one process, all; large leaves are split over them, by "model" before or not; two: experiments.places."""
    weights = {"a": jnp.arange(64.0).reshape(8, 8), "b": jnp.arange(3.0)}
    state = State(jnp.int32(5), jax.random.key(1), weights, {}, {}, ())
    for mesh, shard, split in (
        ("replica=2,data=4", "fsdp", 8),
        ("data=4,model=2", "tensor", 8),
        ("data=8", "replicated", 64),
    ):
        there = place("jit", Layout(make_mesh(jax.devices(), mesh), shard, min_size=64, tensor_axes={"a": -1}))
        own = there.own(there.put(state))
        assert {part.data.size for part in own.params["a"].addressable_shards} == {split}
        assert own.params["b"].sharding.is_fully_replicated and own.step == 5
        jax.tree.map(np.testing.assert_array_equal, own.params, weights)
        assert jax.random.key_data(own.key).tolist() == jax.random.key_data(state.key).tolist()


@pytest.mark.parametrize(
    "text", ["", "data", "data=0", "data=x", "data=-2", "batch=8", "tensor=2", "data=2,data=4", "data=8,"]
)
def test_a_mesh_that_is_none(text):
    with pytest.raises(
        UserError, match="expected sizes of some of replica, seed, data, model, such as replica=2,data=4"
    ):
        mesh_shape(text)


@pytest.mark.parametrize("text", ["data=4", "data=16", "replica=2,data=8"])
def test_a_mesh_of_another_number_of_devices(text):
    count = math.prod(mesh_shape(text).values())
    with pytest.raises(UserError, match=f"--mesh {text} is a mesh of {count} devices, and there are 8"):
        make_mesh(jax.devices(), text)


def test_fsdp_splits_large_leaves_along_their_largest_axis_that_the_devices_divide():
    shapes = {
        "kernel": ((6, 512, 2048), P(None, None, "data")),
        "odd": ((512, 2049), P("data")),
        "equal": ((512, 512), P("data")),
        "undivided": ((1001, 1003), P()),
        "small": ((8, FSDP_MIN_SIZE // 8 - 8), P()),
        "just": ((8, FSDP_MIN_SIZE // 8), P(None, "data")),
        "scalar": ((), P()),
    }
    mesh = make_mesh(jax.devices(), "replica=2,data=4")
    arrays = {name: jax.ShapeDtypeStruct(shape, "float32") for name, (shape, _) in shapes.items()}
    world = {"replay": jax.ShapeDtypeStruct((8, 64), "float32")}
    state = State(jnp.int32(0), jax.random.key(0), {"net": arrays}, {"net": arrays}, {"average": arrays}, world)
    expected = {name: spec for name, (_, spec) in shapes.items()}
    specs = lambda tree: jax.tree.map(lambda sharding: sharding.spec, tree)
    found = Layout(mesh, "fsdp").state(state)
    assert [specs(part) for part in found[2:5]] == [{"net": expected}, {"net": expected}, {"average": expected}]
    assert specs(found.world) == {"replay": P(("replica", "data"))} and specs((found.step, found.key)) == (P(), P())
    assert set(jax.tree.leaves(specs(Layout(mesh).state(state)[:5]), is_leaf=lambda x: isinstance(x, P))) == {P()}


def test_tensor_splits_the_axes_of_the_table_and_large_leaves_over_data_besides():
    """With two groups of heads, an odd number of hidden features, and moments and parts named as their parameter."""
    shapes = {
        "layers/attention/qkv/kernel": ((3, 64, 2, 6, 8), P(None, "data", "model")),
        "layers/attention/qkv/bias": ((3, 2, 6, 8), P(None, "model")),
        "layers/attention/out/kernel": ((3, 64, 64), P(None, "model", "data")),
        "layers/cross/kv/kernel": ((3, 64, 2, 2, 8), P(None, "data", "model")),
        "layers/FeedForward_0/gate_up/kernel": ((3, 64, 2, 96), P(None, "data", None, "model")),
        "layers/FeedForward_0/down/kernel": ((3, 95, 64), P(None, None, "data")),
        "layers/LayerNorm_0/scale": ((3, 64), P()),
        "embedding/tokens/embedding": ((100, 64), P("model", "data")),
        "embedding/positions/embedding": ((100, 64), P("data")),
        "head/kernel": ((64, 101), P("data")),
        "Dense_0/bias": ((64,), P()),
    }
    net = unflatten_dict({tuple(k.split("/")): jax.ShapeDtypeStruct(s, "float32") for k, (s, _) in shapes.items()})
    q = {"qkv": {"kernel": (jax.ShapeDtypeStruct((64, 2, 4, 8), "float32"),)}}
    state = State(jnp.int32(0), jax.random.key(0), {"net": net}, {"net": (optax.EmptyState(), (net, q))}, {}, ())
    how = Layout(devices_and_mesh("data=4,model=2"), "tensor", min_size=2**10, tensor_axes=LanguageModel.tensor_axes)
    expected = unflatten_dict({tuple(name.split("/")): spec for name, (_, spec) in shapes.items()})
    found = jax.tree.map(lambda sharding: sharding.spec, how.state(state))
    assert found.params == {"net": expected}
    assert found.opt_state["net"][1] == (expected, {"qkv": {"kernel": (P("data", "model"),)}})


def test_tensor_adds_up_each_matrix_pair_once_and_gathers_no_weight_over_model():
    """Of a loop over layers: the sums forward, backward and of the gradients, by what they are over."""
    net = LanguageModel(Stack(layers=3, width=16, heads=4, num_kv_heads=2, activation="swiglu", scan_unroll=1))
    program = hlo("transformer", "data=1,model=2", "tensor", net=net, loss_chunk=None)
    assert "all-gather" not in re.findall(r'(\S+)\(.*op_name="[^"]*/layers/', program)
    sums = re.findall(r' all-reduce(?:-start)?\(.*op_name="([^"]*/layers/[^"]*)"', program)
    forward = sorted(name.split("/")[-2] for name in sums if "transpose" not in name)
    backward = sorted(name.split("/")[-2] for name in sums if "transpose" in name)
    assert (forward, backward) == (["down", "out"], ["gate_up", "qkv"])


def test_with_seeds_their_axis_comes_first():
    mesh = make_mesh(jax.devices(), "seed=2,data=4")
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, "float32")
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 6))
    state = State(shape(), keys, {"net": shape(6, 512, 64)}, {"net": shape(6)}, {}, shape(6, 8))
    found = Layout(mesh, "fsdp", seeds=True).state(state)
    specs = jax.tree.map(lambda sharding: sharding.spec, found)
    assert specs.step == P() and specs.key == P("seed") and specs.opt_state == {"net": P("seed")}
    assert specs.params == {"net": P("seed", "data")} and specs.world == P("seed", ("replica", "data"))


@pytest.mark.parametrize("name", ["cnn", "dqn", "gan"])
def test_a_state_is_born_and_read_back_in_its_place(name, tmp_path):
    """Each device has its part alone, also of another mesh; the numbers are those of one device."""
    learner, key = EXPERIMENTS[name].build(), jax.random.key(3)
    plain = jax.jit(learner.init)(key)
    at = lambda mesh: place("jit", Layout(devices_and_mesh(mesh), "fsdp", min_size=1))
    born = at("data=8").init(learner.init, key)
    bytes_of = lambda state: sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state.params))
    whole = bytes_of(plain)
    assert bytes_of(born) < whole / 3
    with checkpoint.Checkpoints(tmp_path, 2, 0) as saved:
        saved.save(1, born)
    for mesh in ("data=8", "replica=2,data=4", "data=1"):
        _, read = checkpoint.restore(tmp_path, at(mesh).put(jax.eval_shape(learner.init, key)))
        for (path, x), y, z in zip(
            jax.tree.leaves_with_path(read), jax.tree.leaves(plain), jax.tree.leaves(at(mesh).put(plain)), strict=True
        ):
            assert x.size == 0 or x.sharding == z.sharding, jax.tree_util.keystr(path)
            data = jax.random.key_data if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else lambda x: x
            np.testing.assert_allclose(data(x), data(y), 1e-6, 1e-7, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("name", ["transformer", "translator"])
def test_reports_of_split_weights_leave_them_where_they_are(name, tmp_path):
    experiment = EXPERIMENTS[name]
    feeds, found = experiment.feeds(), []
    there = place("jit", Layout(make_mesh(jax.devices()), "fsdp", False, 1))
    whole = jax.jit(experiment.build().init)(jax.random.key(0))
    for state in (whole, there.put(whole)):
        directory = tmp_path / str(len(found))
        directory.mkdir()
        (report,) = experiment.reports(load)
        numbers = report.run(state, Split("test", feeds.test), directory)
        found.append((numbers, {file.name: file.read_text() for file in directory.glob("*.txt")}))
    assert found[0] == found[1] and found[0][1]
    read = first_seed(state)
    assert not read.opt_state and read.params is state.params
    assert not all(x.is_fully_replicated for x in jax.tree.leaves(read.params))


def hlo(name: str, mesh: str, shard: str = "replicated", **changes) -> str:
    experiment = dataclasses.replace(EXPERIMENTS[name], **changes)
    where = place("jit", Layout(devices_and_mesh(mesh), shard, min_size=1, tensor_axes=experiment.tensor_axes()))
    learner, batch = experiment.build(), experiment.feeds().train.batch_at(0)
    state = where.put(jax.eval_shape(learner.init, jax.random.key(0)))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    return where.train(learner.step, 0).lower(state, where.put_data(shapes, 0)).compile().as_text()


def collectives(program: str) -> set[str]:
    return set(re.findall(r" (all-\w+|collective-\w+|reduce-scatter)(?:-start)?\(", program))


def test_fsdp_gathers_weights_and_replicas_do_not():
    assert collectives(hlo("lstm", "data=4")) == {"all-reduce"}
    assert "all-gather" in collectives(hlo("lstm", "data=4", "fsdp"))


def test_mapped_places_split_the_batch_alone():
    for how in (Layout(devices_and_mesh("replica=2,data=4")), Layout(devices_and_mesh("data=8"), "fsdp")):
        for name in ("pmap", "shard_map"):
            with pytest.raises(UserError, match=f"--place {name} splits the batch alone"):
                place(name, how)


@pytest.mark.parametrize(
    "mesh, shard, microbatches, mapped",
    [
        ("data=8", "replicated", 2, True),
        ("data=8", "replicated", 1, False),
        ("data=1", "replicated", 2, False),
        ("data=8", "fsdp", 2, False),
        ("replica=2,data=4", "replicated", 2, False),
    ],
)
def test_gradients_of_microbatches_are_summed_once_where_the_batch_alone_is_split(mesh, shard, microbatches, mapped):
    """By the program of `shard_map`: test_laws.py shows that it computes the same."""
    bound = []

    def step(state, data):
        bound.append(axis_if_bound())
        return state, {"loss": Mean(data.sum(), jnp.float32(data.size))}

    state = State(jnp.int32(0), jax.random.key(0), {}, {}, {}, ())
    there = place("jit", Layout(devices_and_mesh(mesh), shard), microbatches)
    there.train(step, 0)(there.put(state), there.put_data(jnp.ones(8), 0))
    assert bound == [AXIS if mapped else None]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--mesh", "data=16"], "--mesh data=16 is a mesh of 16 devices, and there are 8"),
        (["--mesh", "seed=8"], "--mesh seed=8 shares the seeds among 8, and there is one seed: give --seeds 8"),
        (["--mesh", "seed=8", "--seeds", "4"], "shares the seeds among 8, and there are 4: give --seeds 8"),
        (["--mesh", "data=8", "--data.batch", "20"], "the 8 devices do not divide data.batch=20"),
        (["--place", "pmap", "--shard", "fsdp"], "--place pmap splits the batch alone"),
        (["--shard", "tensor"], "--shard tensor: the net has no table of the axes to split; choose --shard fsdp"),
        (["--mesh", "data=4,model=2"], "the axis model, which splits weights by --shard tensor alone"),
        (["--mesh", "data=4,model=2", "--shard", "fsdp"], "the axis model, which splits weights by --shard tensor"),
    ],
)
def test_what_the_devices_can_not_do(options, message, tmp_path, capsys):
    assert main(["digits_cnn", *tiny(6), "--workdir", str(tmp_path / "run"), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_seed_has_a_device_of_its_own():
    command = config.parse("digits_cnn", ["--seeds", "8", "--mesh", "seed=8"])
    assert layout(command).mesh.shape["seed"] == 8 and layout(command).seeds


def test_a_run_goes_on_with_other_devices(tmp_path, capsys):
    """Begun on a mesh of 8 by FSDP, ended on two replicas: the curve of the run on one kind of mesh."""
    options = [*tiny(12), "--optimizer.name", "sgd", "--optimizer.schedule", "constant"]
    run = lambda to, *more: main(["digits_cnn", "--workdir", str(tmp_path / to), *options, *more])
    lines = lambda to: [json.loads(line) for line in (tmp_path / to / "metrics.jsonl").read_text().splitlines()]
    assert run("whole") == 0
    assert run("moved", "--steps", "6", "--shard", "fsdp", "--mesh", "data=8") == 0
    capsys.readouterr()
    assert run("moved", "--mesh", "replica=2,data=4") == 0
    said = capsys.readouterr()
    said = said.out + said.err
    assert said.count("Restored on another topology") == 1
    losses = [[line["loss"] for line in lines(to) if line["split"] == "train"] for to in ("whole", "moved")]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    a, b = (jax.tree.leaves(load(tmp_path / to)[2].params) for to in ("whole", "moved"))
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5)
