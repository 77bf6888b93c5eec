"""LSTM and Transformer: layers against NumPy and PyTorch, generation against the nets themselves."""

import dataclasses
import itertools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from nets import with_keys

from research.core.errors import UserError
from research.core.losses import criterion_loss, criterion_metrics, cross_entropy, tokens
from research.core.modules import Dropout, network, random_bytes
from research.core.special_tokens import BOS, EOS, PAD
from research.core.state import Batch, State
from research.evaluation.decoding import Sampling, beam_search, filter_logits, sample, sample_token
from research.learners.masked import Masked, mask_tokens
from research.nets import attention, bag, lstm, recurrence, transformer
from research.nets.cnn import CNN
from research.nets.sequence import Memory, pool
from research.nets.transformer import Stack

SMALL = Stack(layers=2, width=16, heads=4)
REMAT = "none", "dots", "full"
LANGUAGE_MODEL = transformer.LanguageModel | lstm.LanguageModel
CHUNKED = [
    transformer.LanguageModel(Stack(layers=1, width=8, heads=2, dropout=0.3), tied=False, context=12, outputs=50),
    lstm.LanguageModel(layers=1, width=8, dropout=0.3, outputs=50),
    lstm.Translator(width=8, dropout=0.3, outputs=50),
]


def params_of(net, *inputs, scale=3.0):
    """Random parameters, large enough for every token to matter, biases too."""
    shapes = jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]
    random = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.asarray(scale * 0.1 * random.normal(size=x.shape), jnp.float32), shapes)


def drawn(key, *shape):
    return np.random.default_rng(key).normal(size=shape).astype(np.float32)


def words(key, batch=3, time=12, low=5, high=50):
    return jnp.asarray(np.random.default_rng(key).integers(low, high, (batch, time)), jnp.int32)


def test_lstm_against_numpy():
    """The recurrence, one number at a time."""
    width, time, batch = 3, 5, 2
    layer = lstm.Layer(width)
    x = drawn(0, time, batch, 4)
    params = params_of(layer, x, None)
    found, (hidden, cell) = jax.jit(layer.apply)({"params": params}, x, None)
    w, r, b = (np.asarray(params[name], np.float64) for name in ("kernel", "recurrent_kernel", "bias"))
    sigmoid = lambda z: 1 / (1 + np.exp(-z))
    for n in range(batch):
        h, c = np.zeros(width), np.zeros(width)
        for t in range(time):
            i, f, g, o = np.split(x[t, n] @ w + h @ r + b, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            np.testing.assert_allclose(found[t, n], h, atol=1e-5)
        np.testing.assert_allclose(hidden[n], h, atol=1e-5)
        np.testing.assert_allclose(cell[n], c, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_gradient_of_the_recurrence(masked):
    """The gradient written by hand, against that of the same scan by JAX."""
    arguments = [drawn(k, *shape) for k, shape in enumerate([(6, 2, 12), (3, 12), (2, 3), (2, 3)])]
    mask = jnp.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]], jnp.float32).T[:, :, None] if masked else None
    weights = drawn(4, 6, 2, 3)

    def loss(f, gates, kernel, hidden, cell):
        outputs, h, c = f(gates, kernel, hidden, cell, mask)
        return (outputs * weights).sum() + (h * weights[0]).sum() + (c * weights[1]).sum()

    plain = lambda *a: (lambda hs, last, _: (hs, *last))(*recurrence._run(*a))
    gradients = lambda f: jax.grad(lambda *a: loss(f, *a), (0, 1, 2, 3))
    mine, theirs = jax.jit(lambda *a: (gradients(recurrence.recur)(*a), gradients(plain)(*a)))(*arguments)
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("layers, bidirectional", [(2, False), (2, True)])
def test_lstm_against_pytorch(layers, bidirectional):
    torch = pytest.importorskip("torch", reason="PyTorch, the reference, is not installed")
    x = drawn(0, 3, 7, 5)
    net = lstm.LSTM(layers, 8, bidirectional)
    params = params_of(net, x)
    lengths = jnp.array([7, 4, 1])
    mask = jnp.arange(7) < lengths[:, None]
    found, carry = jax.jit(net.apply)({"params": params}, x, mask)

    theirs = torch.nn.LSTM(5, 8 // (1 + bidirectional), layers, batch_first=True, bidirectional=bidirectional)
    with torch.no_grad():
        for n, direction in itertools.product(range(layers), range(1 + bidirectional)):
            ours = params[f"Layer_{n * (1 + bidirectional) + direction}"]
            suffix = f"_l{n}{'_reverse' if direction else ''}"
            values = {"weight_ih": ours["kernel"].T, "weight_hh": ours["recurrent_kernel"].T, "bias_ih": ours["bias"]}
            for name, value in values.items():
                getattr(theirs, name + suffix).copy_(torch.from_numpy(np.array(value)))
            getattr(theirs, f"bias_hh{suffix}").zero_()
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        torch.from_numpy(np.array(x)), torch.tensor(lengths.tolist()), batch_first=True
    )
    packed, (hidden, cell) = theirs(packed)
    expected, _ = torch.nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)
    there = np.asarray(mask)[:, :, None]
    np.testing.assert_allclose(found * there, expected.detach().numpy() * there, atol=1e-5)
    for ours, last in ((carry.hidden, hidden), (carry.cell, cell)):
        last = last.detach().numpy().reshape(layers, 1 + bidirectional, 3, -1)
        np.testing.assert_allclose(ours, last.transpose(2, 0, 1, 3).reshape(3, layers, 8), atol=1e-5)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: lstm.LSTM(0, 8), r"net\.layers must be at least 1, not 0"),
        (lambda: lstm.LSTM(1, 0), r"net\.width must be at least 1, not 0"),
        (lambda: lstm.LSTM(1, 7, bidirectional=True), r"net\.width must be even, half of it for each direction, not 7"),
        (lambda: Stack(width=7, heads=1, positions="sinusoidal"), "sinusoidal positions need an even width, not 7"),
        (lambda: Masked(share=1.5), r"share is a fraction above 0 and at most 1, not 1\.5"),
        (lambda: Masked(share=0.0), r"share is a fraction above 0 and at most 1, not 0\.0"),
    ],
)
def test_sizes_that_cannot_be(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_attention_against_numpy():
    """Softmax of scaled products, head by head, each token of those before it; grouped keys and values."""
    stack = Stack(layers=1, width=12, heads=6, num_kv_heads=2)
    x = drawn(0, 2, 5, 12)
    net = transformer.Attention(stack, causal=True)
    seen = transformer.AttentionInputs(jnp.arange(5)[None], None, None)
    params = params_of(net, x, seen, None)
    found, _ = jax.jit(net.apply)({"params": params}, x, seen, None)
    assert params["qkv"]["kernel"].shape == (12, 2, 5, 2)
    kernel, bias = (np.asarray(params["qkv"][n], np.float64) for n in ("kernel", "bias"))
    for n in range(2):
        y = np.einsum("ti,igdf->tgdf", np.asarray(x[n], np.float64), kernel) + bias
        heads = []
        for head in range(6):
            group = head // 3
            q, k, v = y[:, group, head % 3], y[:, group, 3], y[:, group, 4]
            rows = []
            for t in range(5):
                weights = np.exp(q[t] @ k[: t + 1].T / np.sqrt(2))
                rows.append(weights @ v[: t + 1] / weights.sum())
            heads.append(np.stack(rows))
        expected = np.concatenate(heads, -1) @ np.asarray(params["out"]["kernel"]) + np.asarray(params["out"]["bias"])
        np.testing.assert_allclose(found[n], expected, atol=1e-5)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_encoder_and_decoder_layers_against_pytorch(norm):
    torch = pytest.importorskip("torch", reason="PyTorch, the reference, is not installed")
    stack = Stack(layers=1, width=16, heads=4, activation="relu", norm=norm)
    x, memory = (drawn(n, 3, 6, 16) for n in range(2))
    mask = jnp.arange(6) < jnp.array([[6], [4], [2]])
    block = transformer.Block(stack, causal=True, train=False)
    seen = transformer.AttentionInputs(jnp.arange(6)[None], None, Memory(memory, mask))
    params = params_of(block, x, seen, None)
    found, _ = jax.jit(block.apply)({"params": params}, x, seen, None)

    theirs = torch.nn.TransformerDecoderLayer(
        16, 4, 64, dropout=0.0, batch_first=True, norm_first=norm == "pre", activation="relu"
    )
    cross = params["cross"]
    parts_first = lambda x: np.moveaxis(np.asarray(x), -2, -3).reshape(*x.shape[:-3], -1)  # [..., 4, 3, 4] -> [..., 48]
    joined = lambda name: parts_first(np.concatenate([cross["q"][name], cross["kv"][name]], -2))
    values = {
        "self_attn.in_proj_weight": parts_first(params["attention"]["qkv"]["kernel"]).T,
        "self_attn.in_proj_bias": parts_first(params["attention"]["qkv"]["bias"]),
        "self_attn.out_proj.weight": np.asarray(params["attention"]["out"]["kernel"]).T,
        "self_attn.out_proj.bias": params["attention"]["out"]["bias"],
        "multihead_attn.in_proj_weight": joined("kernel").T,
        "multihead_attn.in_proj_bias": joined("bias"),
        "multihead_attn.out_proj.weight": np.asarray(cross["out"]["kernel"]).T,
        "multihead_attn.out_proj.bias": cross["out"]["bias"],
    }
    for n, name in enumerate(("up", "down")):
        dense = params["FeedForward_0"][name]
        values |= {f"linear{n + 1}.weight": np.asarray(dense["kernel"]).T, f"linear{n + 1}.bias": dense["bias"]}
    for n in range(3):
        layer = params[f"LayerNorm_{n}"]
        values |= {f"norm{n + 1}.weight": layer["scale"], f"norm{n + 1}.bias": layer["bias"]}
    tensor = lambda x: torch.from_numpy(np.array(x))
    theirs.load_state_dict({name: tensor(value) for name, value in values.items()})
    theirs.eval()
    causal = torch.nn.Transformer.generate_square_subsequent_mask(6)
    expected = theirs(tensor(x), tensor(memory), tgt_mask=causal, memory_key_padding_mask=tensor(~mask))
    np.testing.assert_allclose(found, expected.detach().numpy(), atol=2e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_language_model_and_its_gradients_against_pytorch(bias):
    torch = pytest.importorskip("torch", reason="PyTorch, the reference, is not installed")
    from experiments import baselines

    stack = Stack(layers=2, width=16, heads=4, bias=bias)
    net = transformer.LanguageModel(stack, context=12, outputs=50)
    inputs, targets = words(0, high=50), words(1, high=50)
    params = params_of(net, inputs, scale=2.0)

    def loss(params):
        return tokens(-1)(net.apply({"params": params}, inputs), targets, jnp.ones(3))[0].value

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    theirs = baselines.LanguageModel(stack, 12, 50)
    baselines.copy({"/".join(k): v for k, v in flatten_dict(params).items()}, theirs)
    tensor = lambda x: torch.from_numpy(np.array(x)).long()
    logits = theirs(tensor(inputs))
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tensor(targets).flatten())
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    flat = {"/".join(k): v for k, v in flatten_dict(gradient).items()}
    for name, value in baselines.gradients(theirs).items():
        np.testing.assert_allclose(flat[name], value, atol=1e-5, rtol=1e-4, err_msg=name)


def test_rotary_products_depend_on_the_distance_alone():
    q, k = drawn(0, 2, 1, 1, 1, 8)
    rotary = jax.jit(attention.rotary)
    product = lambda i, j: float((rotary(q, jnp.array([[i]])) * rotary(k, jnp.array([[j]]))).sum())
    assert product(3, 1) == pytest.approx(product(9, 7), abs=1e-5)
    assert abs(product(3, 1) - product(3, 2)) > 1e-3
    np.testing.assert_allclose(rotary(q, jnp.array([[0]])), q)


def test_padding_changes_nothing():
    text = words(0, batch=2, time=6)
    padded = jnp.pad(text, ((0, 0), (0, 5)), constant_values=PAD)
    nets = (
        transformer.Classifier(SMALL, vocabulary=50, context=11, outputs=3),
        lstm.Classifier(width=8, embedding=8, bigram_buckets=16, vocabulary=50, outputs=3),
    )
    for net in nets:
        params, apply = {"params": params_of(net, padded)}, jax.jit(net.apply)
        np.testing.assert_allclose(apply(params, text), apply(params, padded), atol=1e-5)
    nothing = pool(jnp.ones((1, 3, 2)), jnp.zeros((1, 3), bool))
    np.testing.assert_array_equal(nothing, np.zeros((1, 4)))


def test_a_bag_by_hand_and_beside_the_lstm():
    text, table = jnp.array([[7, 4, 7, PAD]]), 2**10
    net = bag.Bag(table, 6, word_dropout=0.5, vocabulary=50, outputs=3)
    params = params_of(net, text)
    params["bigrams"]["embedding"] = drawn(1, table, 6)
    rows = jax.jit(bag.bigram_rows, static_argnums=1)
    found = np.asarray(rows(text, table))[0]
    assert len(set(found[:3])) == 3  # (7, 4), (4, 7), (7, end): the order counts
    assert rows(jnp.array([[9, 7, 4, PAD]]), table)[0, 1] == found[0]  # the place doesn't
    total = params["words"]["embedding"][np.array([7, 4, 7])].sum(0) + params["bigrams"]["embedding"][found[:3]].sum(0)
    expected = total / np.sqrt(3) @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(jax.jit(net.apply)({"params": params}, text)[0], expected, rtol=1e-5, atol=1e-6)

    both = lstm.Classifier(width=8, embedding=6, bigram_buckets=table, vocabulary=50, outputs=3)
    alone = lstm.Classifier(width=8, embedding=6, vocabulary=50, outputs=3)
    tree = {"params": params_of(both, text)}
    of_bag = jax.jit(bag.Bag(table, vocabulary=50, outputs=3).apply)({"params": tree["params"]["bag"]}, text)
    without = {"params": {name: tree["params"][name] for name in ("encoder", "head")}}
    beside = jax.jit(both.apply)(tree, text)
    np.testing.assert_allclose(beside, (jax.jit(alone.apply)(without, text) + of_bag) / 2, atol=1e-6)
    training = lambda tree: both.apply(tree, text, train=True, rngs={"dropout": jax.random.key(0)})
    assert jax.eval_shape(training, tree).shape == (1, 2, 3)


@pytest.mark.parametrize(
    ("masked", "classifier"),
    [
        (
            transformer.MaskedModel(SMALL, vocabulary=50, context=11, outputs=30),
            transformer.Classifier(SMALL, vocabulary=50, context=11, outputs=3),
        ),
        (
            lstm.MaskedModel(width=8, embedding=6, vocabulary=50, outputs=30),
            lstm.Classifier(width=8, embedding=6, vocabulary=50, outputs=3),
        ),
    ],
    ids=["transformer", "lstm"],
)
def test_a_masked_model_pre_trains_the_classifiers_encoder(masked, classifier):
    text, places = words(0, batch=2, time=6), jnp.array([[4, 1], [0, 5]])
    params = params_of(masked, (text, places))
    own, shapes = params_of(classifier, text), lambda tree: jax.tree.map(jnp.shape, tree)
    assert params.keys() & own.keys() == {"encoder"}
    assert shapes(params["encoder"]) == shapes(own["encoder"])
    read = jax.jit(lambda text, places: masked.apply({"params": params}, (text, places)))
    logits = read(text, places)
    assert logits.shape == (2, 2, 30)
    np.testing.assert_allclose(logits, read(text, places[:, ::-1])[:, ::-1], atol=1e-6)
    padded = jnp.pad(text, ((0, 0), (0, 5)), constant_values=PAD)
    np.testing.assert_allclose(logits, read(padded, places), atol=1e-5)


TRANSLATORS = [
    transformer.Translator(Stack(layers=1, width=16, heads=4), context=20, outputs=50),
    lstm.Translator(layers=2, width=16, outputs=50),
    lstm.Translator(layers=1, width=16, attention="bahdanau", outputs=50),
]
LANGUAGE_MODELS = [  # the first one has several layers, each with a cache of its own
    transformer.LanguageModel(SMALL, context=20, outputs=50),
    transformer.LanguageModel(
        Stack(layers=1, width=16, heads=4, num_kv_heads=2, positions="rotary", activation="swiglu"),
        tied=False, context=20, outputs=50,
    ),
    transformer.LanguageModel(Stack(layers=1, width=16, heads=2, positions="sinusoidal", norm="post"),
                              context=20, outputs=50),
    lstm.LanguageModel(width=16, embedding=8, outputs=50),
]  # fmt: skip


@pytest.mark.parametrize("net", LANGUAGE_MODELS + TRANSLATORS, ids=lambda net: type(net).__module__[14:])
def test_cache_changes_nothing(net):
    """Token by token, in pieces, and all at once: the same logits."""
    target = words(1, time=16)
    translates = "Translator" in type(net).__name__
    source = words(2).at[0, 7:].set(PAD)
    inputs = (source, target) if translates else target
    params = {"params": params_of(net, inputs)}

    @jax.jit
    def both(params):
        """The logits all at once, those in pieces, and the last carry."""
        carry, parts = net.apply(params, source, 20, method="start"), []
        for start, stop in ((0, 5), (5, 6), (6, 16)):
            logits, carry = net.apply(params, target[:, start:stop], carry, method="extend")
            parts.append(logits)
        return net.apply(params, inputs), jnp.concatenate(parts, 1), carry

    whole, pieces, carry = both(params)
    np.testing.assert_allclose(pieces, whole, atol=2e-5)
    assert all(leaf.shape[0] == 3 for leaf in jax.tree.leaves(carry))
    assert float(whole.std()) > 0.1  # the logits say something


def test_layers_compiled_one_by_one_or_as_a_loop_and_rematerialised():
    text, loop = words(0), Stack(layers=3, width=16, heads=4, scan_unroll=1)
    stacks = dataclasses.replace(loop, scan_unroll=3), *(dataclasses.replace(loop, remat=x) for x in REMAT)
    found, temporaries = [], []
    for stack in stacks:
        net = transformer.LanguageModel(stack, context=12, outputs=50)
        params = params_of(net, text)
        loss = lambda p, net=net: cross_entropy(net.apply({"params": p}, text), text).sum()
        program = jax.jit(jax.value_and_grad(loss)).lower(params).compile()
        found.append(program(params))
        temporaries.append(program.memory_analysis().temp_size_in_bytes)
    for other in found[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found[0], other)
    none, dots, full = temporaries[1:]
    assert none > 1.3 * dots and dots > 1.3 * full


@pytest.mark.parametrize("net", CHUNKED, ids=lambda net: f"{type(net).__module__[14:]}-{type(net).__name__}")
def test_loss_in_chunks_is_the_whole_loss(net):
    """The value, its gradient and the metrics, with dropout, masks, ignored tokens and a last chunk that is shorter."""
    target = words(1, time=13).at[:, 9].set(-1)
    text = target[:, :-1].clip(0) if isinstance(net, LANGUAGE_MODEL) else (words(0), target[:, :-1].clip(0))
    batch = Batch(jnp.arange(3), jnp.array([1.0, 1.0, 0.0]), text, target[:, 1:])
    criterion = tokens(-1, smoothing=0.1, lengths=np.arange(50))
    params, keys = params_of(net, text), jax.random.split(jax.random.key(3), 3)
    state = State(jnp.int32(0), jax.random.key(0), {"net": params}, {}, {}, ())

    def of(chunk):
        def total(params):
            value, aux = criterion_loss(network(net), "net", criterion, chunk)(params, state, batch, keys)
            return value.total, (value, dict(aux.metrics))

        evaluation = criterion_metrics(network(net), "net", criterion, state, batch, chunk)
        return jax.grad(total, has_aux=True)(params), evaluation

    traced = [jax.jit(of, static_argnums=0).trace(chunk) for chunk in (None, 5)]
    whole, chunked = (program.lower().compile()() for program in traced)
    assert float(whole[0][1][0].count) == 2 * 11
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), whole, chunked)
    for program, time in zip(traced, (12, 5), strict=True):
        shapes = re.findall(r"\[([\d,]*),50\]", str(program.jaxpr))
        assert max(math.prod(map(int, shape.split(","))) for shape in shapes) == 3 * time


def test_sampling_by_greed_follows_the_net():
    net = LANGUAGE_MODELS[0]
    prompt = words(0, time=4)
    params = params_of(net, prompt)
    found = sample(network(net).apply, (params, {}), prompt, jax.random.key(0), 8, Sampling(temperature=0))
    logits = jax.jit(lambda text: net.apply({"params": params}, text))
    text = jnp.pad(prompt, ((0, 0), (0, 8)))  # what comes after a place can't be seen from it
    for k in range(4, 12):
        text = text.at[:, k].set(logits(text)[:, k - 1].argmax(-1))
    np.testing.assert_array_equal(found, text[:, 4:])
    with pytest.raises(UserError, match="21 tokens are more than the net's context of 20"):
        sample(network(net).apply, (params, {}), prompt, jax.random.key(0), 17, Sampling())


def test_what_may_be_drawn():
    logits = jnp.log(jnp.array([[0.1, 0.4, 0.3, 0.2], [0.97, 0.01, 0.01, 0.01]]))
    kept = lambda **how: np.isfinite(filter_logits(logits, **{"top_k": 0, "top_p": 1.0} | how)).tolist()
    assert kept(top_k=2)[0] == [False, True, True, False]
    assert kept(top_p=0.69) == [[False, True, True, False], [True, False, False, False]]
    assert kept(top_p=0.01) == [[False, True, False, False], [True, False, False, False]]
    assert kept(top_k=9, top_p=1.0)[0] == [True] * 4
    draw = jax.jit(jax.vmap(lambda k: sample_token(k, logits, Sampling(0.5))))
    shares = np.bincount(draw(jax.random.split(jax.random.key(0), 4000))[:, 0], minlength=4) / 4000
    np.testing.assert_allclose(shares, np.array([1, 16, 9, 4]) / 30, atol=0.03)  # squares of the probabilities


def table_apply(params, collections, *inputs, method):
    """A net that is a table of log-probabilities: a token depends on the one before alone."""
    if method == "start":
        return jnp.zeros(inputs[0].shape[0]), collections
    tokens, carry = inputs
    return (params[tokens], carry), collections


def test_beam_search_finds_the_best():
    """Against every sequence there is; and the greedy one is worse, so that a search is needed."""
    length, size, penalty = 4, 6, 0.7
    logits = np.random.default_rng(1).normal(size=(size, size)) * 2
    logits[:, [PAD, BOS]] = -20.0
    table = np.asarray(jax.nn.log_softmax(jnp.asarray(logits)))
    best = []
    for n in range(1, length + 1):
        for words in itertools.product([t for t in range(3, size)], repeat=n - 1):
            path = (BOS, *words, EOS)
            score = sum(table[a, b] for a, b in itertools.pairwise(path))
            best.append((score / ((5 + n) / 6) ** penalty, (*words, EOS, *[PAD] * (length - n))))
    best.sort(reverse=True)
    found, scores = beam_search(table_apply, (table, {}), jnp.zeros((2, 3), jnp.int32), length, 27, penalty)
    for n in range(3):
        np.testing.assert_allclose(scores[:, n], best[n][0], atol=1e-5)
        assert tuple(found[0, n].tolist()) == best[n][1] == tuple(found[1, n].tolist())


def test_tokens_criterion_by_hand():
    logits = jnp.log(jnp.array([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]] * 2))
    targets = jnp.array([[0, 2, -1], [1, 1, 1]])
    loss, metrics = jax.jit(tokens(-1, lengths=np.array([1, 2, 4])))(logits, targets, jnp.array([1.0, 0.0]))
    nats = -np.log(0.5) - np.log(0.1)
    assert (float(loss.total), float(loss.count)) == (pytest.approx(nats, rel=1e-5), 2)
    assert float(metrics["accuracy"].value) == 0.5
    assert float(metrics["bits_per_character"].value) == pytest.approx(nats / np.log(2) / 5, rel=1e-5)
    smooth = cross_entropy(logits[0, 0], jnp.array(0), 0.3)
    expected = -(0.8 * np.log(0.5) + 0.1 * np.log(0.25) + 0.1 * np.log(0.25))
    assert float(smooth) == pytest.approx(expected, rel=1e-5)


def test_hidden_tokens():
    text = jnp.concatenate([words(0, 1, 30)[0], jnp.zeros(10, jnp.int32)])
    keys = jax.random.split(jax.random.key(0), 500)
    masked = jax.jit(jax.vmap(mask_tokens, (0, None, None, None, None)), static_argnums=(2, 3))
    hidden, places, truth = masked(keys, text, 8, 50, 50)
    chosen = np.asarray(truth) != PAD
    assert set(chosen.sum(1).tolist()) == {6}  # 8 of 40, of the 30 that are there
    np.testing.assert_array_equal(np.asarray(truth)[chosen], np.asarray(text)[np.asarray(places)][chosen])
    shown = np.take_along_axis(np.asarray(hidden), np.asarray(places), 1)[chosen]
    assert abs((shown == 4).mean() - 0.8) < 0.03
    assert abs((shown == np.asarray(truth)[chosen]).mean() - 0.1 - 0.1 / 45) < 0.03
    assert ((np.asarray(hidden) != np.asarray(text)).sum(1) <= 6).all()
    frequent = masked(keys, text, 8, 50, 20)[2]
    assert set(np.unique(frequent)) == {PAD, *(int(token) for token in text if PAD < token < 20)}


def test_dropout():
    x = jnp.ones((4, 50, 37))
    layer = Dropout(0.3)
    dropped = np.asarray(layer.apply({}, x, True, rngs={"dropout": jax.random.key(0)}))
    assert abs((dropped == 0).mean() - 0.3) < 0.02
    np.testing.assert_allclose(np.unique(dropped), [0, 256 / (256 - 77)])
    np.testing.assert_array_equal(layer.apply({}, x, False), x)
    for rate, kept in ((0.001, 255 / 256), (0.9995, 1 / 256)):  # the least and the largest 256th
        rare = np.asarray(Dropout(rate).apply({}, x, True, rngs={"dropout": jax.random.key(0)})) != 0
        assert 0 < abs((rare).mean() - kept) < 0.002
    words = Dropout(0.5, shared=(2,)).apply({}, x, True, rngs={"dropout": jax.random.key(0)})
    assert ((np.asarray(words) == 0).all(2) == (np.asarray(words) == 0).any(2)).all()
    found = np.asarray(random_bytes(jax.random.key(1), (99, 101)))
    assert found.dtype == np.uint8
    counts = np.bincount(found.ravel(), minlength=256)
    assert ((counts - 39) ** 2 / 39).sum() < 340  # chi-squared of 255 degrees of freedom: once in 3,000 times


@pytest.mark.parametrize("given", [True, False], ids=["keys", "no keys"])
def test_dropout_of_an_example_depends_on_its_key_alone(given):
    x, keys = jnp.ones((5, 6, 7)), jax.random.split(jax.random.key(1), 6)
    layer = Dropout(0.5, batch_axis=1)

    def masks(x, keys):
        rngs = {"dropout": jax.random.key(0)}
        return np.asarray(layer.apply({}, x, True, keys if given else None, rngs=rngs) == 0).swapaxes(0, 1)

    whole = masks(x, keys)
    assert len({mask.tobytes() for mask in whole}) == 6
    assert abs(whole.mean() - 0.5) < 0.15
    np.testing.assert_array_equal(masks(x[:, :2], keys[:2]), whole[:2])
    if given:
        order = jnp.array([4, 2, 5, 0, 1, 3])
        np.testing.assert_array_equal(masks(x, keys[order]), whole[order])
        with pytest.raises(ValueError, match="6 examples was given keys of shape"):
            masks(x, keys[:3])


DROPPED = [
    CNN(widths=(4,), depth=1, norm=False, hidden=6, dropout=0.5, outputs=3),
    transformer.LanguageModel(Stack(layers=3, width=16, heads=4, dropout=0.3, scan_unroll=1, remat="full"),
                              context=12, outputs=50),
    transformer.Classifier(Stack(layers=1, width=16, heads=4), dropout=0.5, vocabulary=50, context=12, outputs=3),
    transformer.Translator(Stack(layers=1, width=16, heads=4, dropout=0.3), context=12, outputs=50),
    lstm.LanguageModel(width=8, embedding=6, dropout=0.3, outputs=50),
    lstm.Classifier(layers=2, width=8, embedding=6, word_dropout=0.3, dropout=0.3, bigram_buckets=16, bag_dropout=0.3,
                    vocabulary=50, outputs=3),
    lstm.MaskedModel(layers=2, width=8, embedding=6, dropout=0.3, vocabulary=50, outputs=30),
    lstm.Translator(layers=2, width=8, dropout=0.3, outputs=50),
    lstm.Translator(layers=2, width=8, attention="bahdanau", dropout=0.3, outputs=50),
]  # fmt: skip


@pytest.mark.parametrize("net", DROPPED, ids=lambda net: f"{type(net).__module__[14:]}-{type(net).__name__}")
def test_dropout_of_every_net_is_keyed_by_example(net):
    """The outputs of a permuted batch, its keys permuted likewise, are the permuted outputs."""
    batch, keys = words(0, batch=4), jax.random.split(jax.random.key(2), 4)
    match type(net).__name__:
        case "CNN":
            batch = drawn(0, 4, 6, 6, 2)
        case "Translator":
            batch = batch, words(1, batch=4)
        case "MaskedModel":
            batch = batch, jnp.tile(jnp.arange(3), (4, 1))
    params, order = params_of(net, batch), jnp.array([2, 0, 1, 3])

    @jax.jit
    def run(inputs, keys):
        with with_keys(keys):
            return net.apply({"params": params}, inputs, train=True, rngs={"dropout": jax.random.key(0)})

    found = run(batch, keys)
    np.testing.assert_allclose(run(jax.tree.map(lambda x: x[order], batch), keys[order]), found[order], atol=1e-5)
    assert float(jnp.abs(run(batch, keys[order]) - found).max()) > 1e-3


def test_layers_drop_apart():
    """Two layers given the same keys, and the layers of a scan."""

    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x, keys):
            drop = Dropout(0.5)
            first, second = drop(x, True, keys), drop(x, True, keys)
            other = Dropout(0.5)(x, True, keys)
            twice = Scanned()(jnp.stack([x, x]), keys)
            return jnp.stack([first, second, other, *twice])

    class Body(nn.Module):
        @nn.compact
        def __call__(self, carry, x, keys):
            return carry, Dropout(0.5)(x, True, keys)

    class Scanned(nn.Module):
        @nn.compact
        def __call__(self, xs, keys):
            body = nn.scan(Body, split_rngs={"dropout": True}, in_axes=(0, nn.broadcast))
            return body()((), xs, keys)[1]

    x, keys = jnp.ones((3, 40)), jax.random.split(jax.random.key(0), 3)
    apply = jax.jit(lambda x, keys: Twice().apply({}, x, keys, rngs={"dropout": jax.random.key(1)}))
    masks = np.asarray(apply(x, keys) == 0)
    for a, b in itertools.combinations(masks, 2):
        assert 0.2 < (a == b).mean() < 0.8
