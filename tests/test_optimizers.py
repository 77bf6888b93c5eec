"""Optimizers: the size of their decay, their defaults, and Muon's matrices."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from nets import NETS, name

from research.core.errors import UserError
from research.core.metrics import mean
from research.core.muon import OUTPUTS, labels, matrices
from research.core.optimizers import Optimizer, optimizer
from research.core.state import Batch
from research.core.update import Aux, UpdateConfig, updater
from research.nets.actor_critic import ActorCritic
from research.nets.q import MLP

RATE, DECAY = 0.1, 0.3
PARAMS = {
    "Dense_0": {"kernel": jnp.full((4, 6), 2.0), "bias": jnp.full(6, 2.0)},
    "head": {"kernel": jnp.full((6, 3), 2.0)},
    "Embed_0": {"embedding": jnp.full((5, 4), 2.0)},
}


@pytest.mark.parametrize("name", ["adamw", "sgd", "rmsprop", "adafactor", "lion", "muon"])
def test_size_of_the_decay(name):
    """With gradients of 0 an update multiplies kernels by 1 - rate * decay; the second rate is half of the first."""
    config = Optimizer(
        name=name, learning_rate=RATE, weight_decay=DECAY, schedule="halving", halve_at=(0.1,), momentum=0
    )
    tx, params = optimizer(config, 10), PARAMS
    state = tx.init(params)
    for rate in (RATE, RATE / 2):
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
        after = optax.apply_updates(params, updates)
        for kernel in ("Dense_0", "head"):
            np.testing.assert_allclose(
                after[kernel]["kernel"], params[kernel]["kernel"] * (1 - rate * DECAY), rtol=1e-6
            )
        embedding = params["Embed_0"]["embedding"] * (1 if name == "muon" else 1 - rate * DECAY)
        np.testing.assert_allclose(after["Embed_0"]["embedding"], embedding, rtol=1e-6)
        np.testing.assert_array_equal(after["Dense_0"]["bias"], params["Dense_0"]["bias"])
        params = after


@pytest.mark.parametrize(("name", "b2"), [("adamw", 0.999), ("lion", 0.99)])
def test_default_of_b2(name, b2):
    """After a gradient of 1, the moment that b2 decays is 1 - b2."""
    tx, params = optimizer(Optimizer(name=name), 10), {"kernel": jnp.ones(())}
    _, state = tx.update(params, tx.init(params), params)
    moment = optax.tree.get(state, "nu" if name == "adamw" else "mu")
    assert float(moment["kernel"]) == pytest.approx(1 - b2, rel=1e-4)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lion", "muon"])
def test_first_moment_in_bfloat16(name):
    """One bfloat16 leaf for each parameter, all else in float32; it trains as the first moment in float32 does."""

    def trained(**fields):
        tx, params = optimizer(Optimizer(name=name, learning_rate=0.05, **fields), 10), PARAMS
        state = tx.init(params)
        update = jax.jit(tx.update)
        for _ in range(10):
            updates, state = update(params, state, params)  # the gradient of half the sum of squares
            params = optax.apply_updates(params, updates)
        return params, state

    found, state = trained(mu_dtype="bfloat16")
    dtypes = [x.dtype for x in jax.tree.leaves(state)]
    assert dtypes.count(jnp.bfloat16) == len(jax.tree.leaves(PARAMS))
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.02), found, trained()[0])
    assert all(float(jnp.abs(x).mean()) < 1.97 for x in jax.tree.leaves(found))


@pytest.mark.parametrize("name", ["adafactor", "rmsprop"])
def test_no_first_moment_to_keep_in_bfloat16(name):
    with pytest.raises(UserError, match=f"mu_dtype must be float32 for {name}"):
        Optimizer(name=name, mu_dtype="bfloat16")


def test_rmsprop_is_centred(rng):
    """By the mean square less the squared mean, in float64, as PyTorch's centred RMSProp has it."""
    gradients = rng.normal(1, 0.3, (30, 5))
    tx, w, mean, square = optimizer(Optimizer(name="rmsprop", learning_rate=0.1, eps=0.01), 30), np.ones(5), 0.0, 0.0
    params = {"kernel": jnp.ones(5)}
    state = tx.init(params)
    for gradient in gradients:
        updates, state = tx.update({"kernel": jnp.asarray(gradient, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
        mean, square = 0.95 * mean + 0.05 * gradient, 0.95 * square + 0.05 * gradient**2
        w = w - 0.1 * gradient / (np.sqrt(square - mean**2) + 0.01)
    np.testing.assert_allclose(params["kernel"], w, rtol=1e-5)


def test_rmsprop_of_a_gradient_that_stays_the_same():
    """Its variance decays to 0 and is never below it, where that of a compiled `optax.rmsprop` is."""
    tx, params = optimizer(Optimizer(name="rmsprop", learning_rate=1.0, eps=0.01), 1), jnp.linspace(0.001, 1, 500)
    update = lambda state, _: tx.update(params, state, params)[::-1]
    _, found = jax.jit(lambda state: jax.lax.scan(update, state, None, length=600))(tx.init(params))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[-1], -params / 0.01, rtol=1e-3)


def singular_values(matrix):
    return np.linalg.svd(np.asarray(matrix).reshape(-1, matrix.shape[-1]), compute_uv=False)


def test_muon_orthogonalises_each_matrix_of_a_kernel():
    """A convolution, an LSTM's gates, a stack of fused queries, keys and values, a head each in two groups, SwiGLU."""
    shapes = {
        "Conv_0": {"kernel": (3, 3, 2, 4)},
        "Layer_0": {"kernel": (5, 12), "recurrent_kernel": (3, 12)},
        "layers": {"attention": {"qkv": {"kernel": (2, 6, 2, 3, 2)}}, "gate_up": {"kernel": (2, 6, 2, 8)}},
    }
    leaves, structure = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
    keys = jax.random.split(jax.random.key(0), len(leaves))
    gradient = structure.unflatten([jax.random.normal(k, s) for k, s in zip(keys, leaves, strict=True)])
    tx = optimizer(Optimizer(name="muon", learning_rate=1.0), 10)
    params = jax.tree.map(jnp.zeros_like, gradient)
    updates, _ = jax.jit(tx.update)(gradient, tx.init(params), params)
    qkv, pair = updates["layers"]["attention"]["qkv"]["kernel"], updates["layers"]["gate_up"]["kernel"]
    found = [updates["Conv_0"]["kernel"]]
    found += [part for name in ("kernel", "recurrent_kernel") for part in jnp.split(updates["Layer_0"][name], 4, 1)]
    for layer in range(2):
        found += [qkv[layer, :, :, part].reshape(6, 4) for part in range(3)] + [pair[layer, :, n] for n in range(2)]
    assert len(found) == 1 + 8 + 2 * 5
    for update in found:
        values = singular_values(update)
        assert values.max() / values.min() < 2.2
        # Muon's five steps leave singular values in [0.7, 1.2]; 0.2 is Adam's root mean square.
        size = 0.2 * max(update.size // update.shape[-1], update.shape[-1]) ** 0.5
        assert 0.6 * size < values.min() and values.max() < 1.3 * size


LEFT_TO_ADAM = {
    "CNN": {"stem/kernel", "head/kernel"},
    "ResNet": {"stem/kernel", "head/kernel"},
    "WhitenedCNN": {"stem/kernel", "head/kernel"},
    "BottleneckResNet": {"stem/kernel", "head/kernel"},
    "ViT": {"encoder/stem/kernel", "head/kernel"},
    "MLP": {"stem/kernel", "head/kernel"},
    "MinAtarNet": {"stem/kernel", "head/kernel"},
    "DCGANGenerator": {"stem/Weight_0/kernel", "head/Weight_0/kernel"},
    "DCGANDiscriminator": {"stem/Weight_0/kernel", "head/Weight_0/kernel", "head/Dense_0/Weight_0/kernel"},
    "ResidualGenerator": {"stem/Dense_0/Weight_0/kernel", "head/Weight_0/kernel"},
    "ResidualDiscriminator": {"stem/Weight_0/kernel", "stem_shortcut/Weight_0/kernel",
                              "head/Weight_0/kernel", "head/Dense_0/Weight_0/kernel"},
    "DenseGenerator": {"stem/Weight_0/kernel", "head/Weight_0/kernel"},
    "DenseDiscriminator": {"stem/Weight_0/kernel", "head/Weight_0/kernel", "head/Dense_0/Weight_0/kernel"},
    "CycleGenerator": {"stem/Weight_0/kernel", "head/Weight_0/kernel"},
    "PatchDiscriminator": {"stem/Weight_0/kernel", "head/Weight_0/kernel"},
    "Classifier": {"head/kernel", "bag/head/kernel"},
    "LanguageModel": {"head/kernel"},
    "Translator": {"decoder/score_kernel"},
    "MaskedModel": set(),
}  # fmt: skip


@pytest.mark.parametrize("net, inputs", NETS, ids=name)
def test_muon_leaves_first_and_last_layers_to_adam(net, inputs):
    params = jax.eval_shape(net.init, jax.random.key(0), inputs)["params"]
    left = {"/".join(path) for path, label in flatten_dict(labels(params)).items() if label == "adam"}
    assert {path for path in left if path.endswith("kernel")} <= LEFT_TO_ADAM[type(net).__name__]
    assert all(path in left for path in map("/".join, flatten_dict(params)) if not path.endswith("kernel"))
    first_and_last = {path for path in map("/".join, flatten_dict(params)) if path in LEFT_TO_ADAM[type(net).__name__]}
    assert first_and_last <= left


def test_the_last_layers_of_a_dueling_net_are_adams():
    """With atoms, the value's layer has several columns. The tower of an actor-critic called value is Muon's."""
    init = lambda net: net.init(jax.random.key(0), jnp.zeros((2, 4)))["params"]
    found = labels(init(MLP(widths=(8, 8), atoms=5, dueling=True, outputs=3)))
    assert {key: x["kernel"] for key, x in found.items()} == {
        "stem": "adam",
        "Dense_0": "muon",
        "value": "adam",
        "head": "adam",
    }
    tower = labels(init(ActorCritic(widths=(8, 8), outputs=3)))["value"]
    assert [tower[key]["kernel"] for key in sorted(tower)] == ["muon", "adam", "adam"]


LAYERS = {
    "transformer-LanguageModel": {
        "qkv/kernel": (16, 8, 8),
        "gate_up/kernel": (64, 64),
        "down/kernel": (16,),
    },
    "transformer-Translator": {
        "qkv/kernel": (16, 16, 16),
        "kv/kernel": (16, 16),
        "q/kernel": (16,),
        "up/kernel": (64,),
    },
    "lstm-Translator": {
        "Layer_0/kernel": (8,) * 4,
        "Layer_0/recurrent_kernel": (8,) * 4,
        "decoder/recurrent_kernel": (8,) * 4,
        "context_kernel": (8,) * 4,
        "gates/kernel": (8,) * 4,
        "keys/kernel": (8,),
        "query_kernel": (8,),
    },
}
"""Columns of the matrices of some kernels, of the last net in `NETS` of that name."""


@pytest.mark.parametrize("kind", LAYERS)
def test_fused_kernels_are_several_matrices(kind):
    net, inputs = [(net, inputs) for net, inputs in NETS if name(net) == kind][-1]
    params = flatten_dict(jax.eval_shape(net.init, jax.random.key(0), inputs)["params"])
    kernels = unflatten_dict({path: x for path, x in params.items() if path[-1].endswith("kernel")})
    found = {"/".join(path): parts for path, parts in flatten_dict(jax.eval_shape(matrices, kernels)).items()}
    for suffix, columns in LAYERS[kind].items():
        parts = [part for path, part in found.items() if ("/" + path).endswith("/" + suffix) and "encoder" not in path]
        count = OUTPUTS.get(suffix.removesuffix("/kernel"), 1)
        assert [tuple(math.prod(x.shape[-count:]) for x in part) for part in parts] == [columns] * len(parts) and parts


def test_muons_adam_is_no_nadam():
    """Two updates of a bias, against Adam worked out by hand."""
    tx, params = optimizer(Optimizer(name="muon", learning_rate=0.1), 10), {"bias": jnp.zeros(1)}
    state, m, v, bias = tx.init(params), 0.0, 0.0, 0.0
    for n, gradient in enumerate((1.0, 3.0), 1):
        updates, state = tx.update({"bias": jnp.full(1, gradient)}, state, params)
        params = optax.apply_updates(params, updates)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        bias -= 0.1 * m / (1 - 0.9**n) / (v / (1 - 0.999**n)) ** 0.5
    assert float(params["bias"][0]) == pytest.approx(bias, rel=1e-4)


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_frozen_parameters_stay_and_rates_scale_steps(name):
    """Two updates by a loss whose gradient is 3 everywhere; the norm that is clipped is of what moves alone."""
    params = {"encoder": {"kernel": jnp.ones((2, 2))}, "head": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    batch = Batch(jnp.arange(1), jnp.ones(1), jnp.ones((1, 1)), ())

    def loss(params, state, batch, rng):
        return mean(sum(3 * x.sum() for x in jax.tree.leaves(params))), Aux()

    def trained(**how):
        how = UpdateConfig(clip=1.0, **how)
        init, update = updater(how, {"net": (Optimizer(name=name, learning_rate=0.1, weight_decay=0.1), 2)})
        state = init(jax.random.key(0), {"net": (params, {})})
        for _ in range(2):
            state, aux = update(state, "net", loss, batch)
        return state.params["net"], float(aux.metrics["gradient_norm"].value)

    (plain, norm), (frozen, rest) = trained(), trained(freeze=("encoder/*",))
    assert norm == pytest.approx(3 * 10**0.5) and rest == pytest.approx(3 * 6**0.5)
    np.testing.assert_array_equal(frozen["encoder"]["kernel"], params["encoder"]["kernel"])
    moved = lambda tree: np.abs(np.asarray(tree) - 1).max()
    assert moved(frozen["head"]["kernel"]) > 0.01 and moved(plain["encoder"]["kernel"]) > 0.01
    faster, _ = trained(rates=(("*/bias", 0.5),))
    np.testing.assert_array_equal(faster["encoder"]["kernel"], plain["encoder"]["kernel"])
    assert moved(faster["head"]["bias"]) == pytest.approx(moved(plain["head"]["bias"]) / 2, rel=1e-4)
    with pytest.raises(UserError, match=r"--freeze: no parameter matches 'encoders/\*': did you mean encoder/kernel"):
        trained(freeze=("encoders/*",))
