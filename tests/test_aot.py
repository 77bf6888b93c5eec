"""Every learner's training compiles for hardware that is not there, by that hardware's own compiler."""

import dataclasses
import functools
import re
from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from learners import EXPERIMENTS, KINDS
from nets import NETS, name

from research.core.errors import NotInstalled
from research.core.layout import Layout, make_mesh
from research.core.placement import place
from research.core.update import UpdateConfig
from research.learners.replay_learning import OffPolicy, ReplayLearning
from research.nets.cnn import CNN, ResNet
from research.nets.transformer import LanguageModel, Stack
from research.training.aot import collectives, compiled, trace
from research.training.topology import topology

pytestmark = pytest.mark.usefixtures("optimised")  # what is counted is what users get
CHUNK = 2


def clocked(experiment):
    """Conditionals of a step, which hang on the clock: whether it learns yet, whether the target net follows, whether
    other weights are pruned."""
    pruned = experiment.update.pruning.sparsity is not None
    return isinstance(experiment, OffPolicy) + isinstance(experiment, ReplayLearning) + pruned


GATHERED = {"cyclegan": {"all-gather"}, "simclr": {"all-gather"}}
"""What a learner gathers besides: the pool of past images, the same on every device, gets the fakes of all; a view is
compared with those of the whole batch."""


@pytest.fixture(autouse=True, scope="module")
def uncached():
    """These programs can't be read back from the compilation cache: nothing of them is kept there."""
    option = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, option)
    jax.config.update(option, 1e9)
    yield
    jax.config.update(option, before)


@functools.cache
def devices(name: str):
    """The topology; skips where there is no compiler for it."""
    try:
        return topology(name)
    except NotInstalled as reason:
        pytest.skip(str(reason))


PROGRAMS = [
    ("v5e:2x4", "jit", "float32"),
    ("v5e:2x4", "jit", "bfloat16"),
    ("v5e:2x4", "shard_map", "float32"),
    ("h100", "jit", "float32"),
    ("h100", "jit", "bfloat16"),
]


def operations(hlo):
    """How often each operation occurs in a program: {"all-reduce": 2, "convolution": 20, …}."""
    return Counter(re.findall(r"^ *(?:ROOT )?%?[\w.-]+ = .*?[\]})] ([a-z][a-z0-9-]*)\(", hlo, re.MULTILINE))


def convolutions(hlo):
    """How many convolutions are in a program. (To a TPU matrix products are too, but have no window.)"""
    return len(re.findall(r' convolution\(.*window=|custom_call_target="__cudnn\$conv', hlo))


@pytest.mark.parametrize(
    "name, where, how, dtype",
    [(name, *program) for name in EXPERIMENTS for program in PROGRAMS if name in KINDS or "shard_map" not in program],
)
def test_compiles(name, where, how, dtype):
    update = dataclasses.replace(EXPERIMENTS[name].update, dtype=dtype)
    experiment = dataclasses.replace(EXPERIMENTS[name], update=update)
    facts = compiled(experiment, devices(where), how, CHUNK, quick=True)
    assert facts.devices == (8 if where == "v5e:2x4" else 1)
    assert 0 < facts.arguments < facts.memory < devices(where).memory
    assert facts.outputs < 2**16  # metrics: the State takes the place of the one donated
    # Gradients and metrics are summed, and nothing else is gathered: each device keeps its share.
    assert set(facts.collectives) == ({"all-reduce"} | GATHERED.get(name, set()) if facts.devices > 1 else set())
    # The platform's branch of each convolution is chosen by then.
    assert operations(facts.hlo)["conditional"] == clocked(experiment)
    if isinstance(getattr(experiment, "net", None), CNN | ResNet):
        assert convolutions(facts.hlo) > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("where", ["v5e:2x4", "h100"])
@pytest.mark.parametrize("net, inputs", NETS, ids=name)
def test_every_net_compiles(net, inputs, where, dtype):
    """Its gradient, with the quick effort: learners' tiny settings have but some of the nets."""
    program = gradient(net, inputs, 8, where, dtype)
    assert 0 < program.memory_analysis().argument_size_in_bytes < devices(where).memory
    assert set(collectives(program.as_text())) == ({"all-reduce"} if where == "v5e:2x4" else set())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_strided_residual_block_of_few_images_compiles_for_v6e(dtype):
    """Where the sum of its gradients and the norms before it were one fusion, the compiler ran out of stack."""
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    program = gradient(ResNet(widths=(16, 32), blocks=(1, 1), outputs=10), images, 8 * 16, "v6e:2x4", dtype)
    assert convolutions(program.as_text()) > 0


def gradient(net, inputs, batch, where, dtype):
    """The gradient of the mean square of a net's outputs for a batch, compiled with the quick effort."""
    layout = Layout(make_mesh(devices(where).devices))
    cast = lambda tree: jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)
    inputs = jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype), inputs)
    variables = jax.eval_shape(net.init, jax.random.key(0), inputs)

    def loss(params, collections, inputs, key):
        variables = {"params": cast(params), **collections}
        outputs, moved = net.apply(variables, cast(inputs), train=True, mutable=["batch_stats"], rngs={"dropout": key})
        return (outputs.astype("float32") ** 2).mean(), moved

    arguments = (variables.pop("params"), variables, inputs, jax.eval_shape(jax.random.key, 0))
    whole, split = layout.at(), layout.batch(0)
    step = jax.jit(jax.grad(loss, has_aux=True), in_shardings=(whole, whole, split, whole), out_shardings=whole)
    options = {"exec_time_optimization_effort": -1.0}
    if where == "h100":  # without a card, Triton's tiles can't be tuned
        options["xla_gpu_enable_triton_gemm"] = False
    return step.lower(*arguments).compile(compiler_options=options)


def test_an_axis_of_a_mesh_may_be_a_part_of_one_of_the_slice():
    """Here a quarter of a row of chips, which are neighbours."""
    mesh = make_mesh(devices("v5e:16x16").devices, "data=64,model=4").devices
    assert mesh.shape == (1, 1, 64, 4)
    assert all([chip.coords[0] % 4 for chip in group] == [0, 1, 2, 3] for group in mesh.reshape(64, 4))


@pytest.mark.parametrize("where", ["v5e:2x4", "h100"])
def test_the_platform_compiled_for_decides(where):
    """A convolution is one where it is to run, though the CPU that lowers it would make a matrix product of it."""
    resnet = dataclasses.replace(EXPERIMENTS["cnn"], net=ResNet(widths=(4, 8), blocks=(1, 1), shortcut="project"))
    count = lambda devices: (
        trace(resnet, place("jit", Layout(make_mesh(devices))), CHUNK).lower().as_text().count(".convolution(")
    )
    assert count(devices(where).devices) > 0 == count(jax.devices("cpu"))


def test_attention_on_an_h100_is_flash():
    """In bfloat16 by cuDNN, its backward pass too; by XLA in float32, which cuDNN can't. No weight is dropped."""
    experiment = EXPERIMENTS["transformer"]
    stack = dataclasses.replace(experiment.net.stack, width=64, heads=2, attention_dropout=0.0)
    net = experiment.net.clone(stack=stack)
    data = dataclasses.replace(experiment.data, context=64)
    for dtype, expected in (("bfloat16", True), ("float32", False)):
        half = dataclasses.replace(experiment, net=net, data=data, update=UpdateConfig(dtype=dtype))
        hlo = compiled(half, devices("h100"), "jit", CHUNK).hlo
        found = re.findall(r'custom_call_target="__cudnn\$fmha(\w*)"', hlo)
        assert any("Backward" in name for name in found) == expected == bool(found)


def test_a_tensor_parallel_layer_is_summed_twice_forward_and_twice_backward():
    """Over the pairs of the axis model, and no weight or logit is gathered over it."""
    stack = Stack(layers=3, width=256, heads=8, num_kv_heads=4, activation="swiglu", scan_unroll=1)
    experiment = dataclasses.replace(EXPERIMENTS["transformer"], net=LanguageModel(stack))
    hlo = compiled(experiment, devices("v5e:2x4"), "jit", CHUNK, "data=4,model=2", "tensor", quick=True).hlo
    moved = re.findall(r' (all-\w+|reduce-scatter|collective-permute)(?:-start)?\((.*op_name="[^"]*/layers/.*)', hlo)
    over_model = [(kind, re.search(r'op_name="([^"]*)"', rest)[1]) for kind, rest in moved if "[4,2]<=[8]" in rest]
    assert {kind for kind, _ in over_model} == {"all-reduce"}
    forward = sorted(name.split("/")[-2] for _, name in over_model if "transpose" not in name)
    backward = sorted(name.split("/")[-2] for _, name in over_model if "transpose" in name)
    assert (forward, backward) == (["down", "out"], ["gate_up", "qkv"])


def test_gradients_of_microbatches_are_summed_over_the_devices_once():
    """Outside of the loop over the microbatches, whose body needs its batch statistics alone."""
    update = dataclasses.replace(EXPERIMENTS["cnn"].update, grad_accum_steps=4)
    experiment = dataclasses.replace(EXPERIMENTS["cnn"], update=update)
    hlo = compiled(experiment, devices("v5e:2x4"), "jit", CHUNK, quick=True).hlo
    kernel = r"f32\[3,3,1,8\].* all-reduce\("
    (body,) = [part for part in re.split(r"\n(?=%|ENTRY)", hlo) if re.search(kernel, part)]
    assert operations(body)["while"] > 0 and len(re.findall(kernel, hlo)) == 1
