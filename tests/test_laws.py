"""The laws of the abstraction, over every learner there is."""

import dataclasses
import functools
import itertools
import math
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learners import EXPERIMENTS, KINDS

from research.core.errors import UserError
from research.core.layout import Layout, make_mesh, mesh_shape
from research.core.metrics import Mean
from research.core.placement import place
from research.core.transformations import per_seed, scan_steps, with_feed
from research.core.update import Dtype, LossScale
from research.data.feed import prefetched

KEY = 20
TENSOR = ("transformer", "translator")
"""Learners whose nets have every entry of the table of tensor shardings."""
N, STEPS, PARTS = 4, 20, 2
ALONE = ("one", False)
"""On one device, one seed. What is cached has no defaults: with them, f(x) and f(x, default) would be two calls."""
MESHES = {
    "fsdp": ("replica=2,data=4", "fsdp"),
    "tensor": ("data=4,model=2", "tensor"),
    "seed": ("seed=3", "replicated"),
}


@functools.cache
def made(name: str, seeded: bool):
    """(learner, feeds) of an experiment; seeds of those that are not `KINDS` take their batches in parts."""
    experiment = EXPERIMENTS[name]
    if not seeded:
        return experiment.build(), experiment.feeds()
    return per_seed((experiment if name in KINDS else in_parts(name)).build()), made(name, False)[1]


def in_parts(name: str):
    """The experiment, which takes its batches in parts; whole where the net has batch statistics, which would be those
    of a part."""
    experiment = EXPERIMENTS[name]
    if any("batch_stats" in own for own in start(name).collections.values()):
        return experiment
    update = dataclasses.replace(experiment.update, grad_accum_steps=PARTS)
    return dataclasses.replace(experiment, update=update)


@functools.cache
def batches(name: str):
    """step -> its batch, from one program where the feed is resident."""
    feed = made(name, False)[1].train
    return jax.jit(feed.batch_at) if feed.resident else feed.batch_at


def start(name: str, seeded: bool = False):
    """The first State; every place takes it, and `test_endomorphism` sees that each would make one of its kind."""
    if seeded and name in KINDS:
        return jax.jit(made(name, True)[0].init)(jax.vmap(jax.random.key)(jnp.arange(KEY, KEY + 3)))
    init = jax.jit(made(name, False)[0].init)
    if not seeded:
        return init(jax.random.key(KEY))
    each = [init(jax.random.key(KEY + n)) for n in range(3)]
    return jax.jit(lambda *each: jax.tree.map(lambda *x: jnp.stack(x), *each))(*each)._replace(step=each[0].step)


def at(where: str, seeded: bool = False, tensor_axes=None):
    """A place: "one" device, or all eight of them by "jit" (one global program), "pmap", "shard_map" or "fsdp", in two
    replicas, or "tensor"; "four" of them by shard_map; "seed": the three seeds over three devices."""
    if where == "one":
        return place("jit", Layout(make_mesh(jax.devices()[:1]), seeds=seeded))
    if where == "four":
        return place("shard_map", Layout(make_mesh(jax.devices()[:4]), seeds=seeded))
    if where in MESHES:
        mesh, shard = MESHES[where]
        devices = jax.devices()[: math.prod(mesh_shape(mesh).values())]
        return place("jit", Layout(make_mesh(devices, mesh), shard, seeded, 1, tensor_axes or {}))
    return place(where, Layout(make_mesh(jax.devices()), seeds=seeded))


@functools.cache
def scanned(name: str, where: str, seeded: bool):
    """(N steps over stacked batches, compiled for a place; by trace, the types of the State after each traced step)."""
    target, traces = at(where, seeded, EXPERIMENTS[name].tensor_axes()), []
    learner = made(name, seeded)[0]

    def steps(state, fed):
        types: list = []

        def step(state, batch):
            after, metrics = learner.step(state, batch)
            types.append(jax.tree.map(jax.typeof, after))
            return after, metrics

        traces.append(types)
        return scan_steps(step, N)(state, fed)

    return target.train(steps, 1), traces


def data(name: str, target, begin: int = 0, padded: bool = False):
    """The batches that `scanned` takes for its N steps from step `begin` on."""
    found = [batches(name)(begin + k) for k in range(N)]
    return target.put_data(stacked([ending_in_padding(batch) for batch in found] if padded else found), 1)


def ending_in_padding(batch):
    """A batch of eleven examples; one without leaves, of a learner that makes its own data, as it is."""
    if not jax.tree.leaves(batch):
        return batch
    return batch._replace(mask=(np.arange(batch.mask.size) < 11).astype(np.float32))


@functools.cache
def run(name: str, where: str, seeded: bool, padded: bool):
    """(state, metrics, evaluation) after N scanned steps at a place, on the host; `padded`: of padded batches."""
    target = at(where, seeded, EXPERIMENTS[name].tensor_axes())
    steps, fed = scanned(name, where, seeded)[0], data(name, target, padded=padded)
    state, metrics = steps(target.put(start(name, seeded)), fed)
    return host(state), host(metrics), host(evaluation(name, where, seeded)(state))


@functools.cache
def evaluation(name: str, where: str, seeded: bool):
    """State -> metrics of the first validation batch, compiled for a place."""
    target = at(where, seeded, EXPERIMENTS[name].tensor_axes())
    learner, feeds = made(name, seeded)
    evaluate = target.evaluate(learner.evaluate, 0)
    return lambda state: evaluate(state, target.put_data(feeds.validation[0], 0))


@functools.cache
def blocks(name: str):
    """The first steps of `STEPS // N` blocks of N steps whose batches have the shapes of the first: of one program."""
    shapes = lambda begin: jax.tree.map(np.shape, batches(name)(begin))
    alike = (begin for begin in itertools.count(0, N) if shapes(begin) == shapes(0))
    return list(itertools.islice(alike, STEPS // N))


@pytest.fixture(scope="module", params=EXPERIMENTS)
def name(request):
    """Of a learner: a fixture, and no mark, so that pytest runs all tests of one learner before those of the next."""
    return request.param


@pytest.fixture(scope="module", autouse=True)
def released(name):
    """After the tests of one learner, its compiled programs are dropped: they would add up to gigabytes."""
    yield
    for cached in (made, batches, blocks, scanned, run, evaluation, losses):
        cached.cache_clear()
    jax.clear_caches()


def host(tree):
    """The tree as NumPy arrays; keys by their data."""
    data = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    return jax.tree.map(lambda x: np.asarray(data(x)), tree)


def stacked(trees):
    """Trees as one, on the host, with an axis in front."""
    return jax.tree.map(lambda *x: np.stack(x), *map(host, trees))


def value(mean):
    """A mean on the host, and 0 where nothing was counted."""
    return mean.total / np.where(mean.count == 0, 1, mean.count)


def assert_close(a, b, rtol=2e-4, atol=2e-5):
    jax.tree.map_with_path(
        lambda path, x, y: np.testing.assert_allclose(x, y, rtol, atol, err_msg=jax.tree_util.keystr(path)), a, b
    )


def assert_same(a, b):
    jax.tree.map_with_path(
        lambda path, x, y: np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path)), a, b
    )


def test_endomorphism(name):
    """By the first trace of the step: a scan makes weak types strong, and traces it again."""
    run(name, *ALONE, True)
    before, after = start(name), scanned(name, *ALONE)[1][0][0]
    assert jax.tree.structure(before) == jax.tree.structure(after)
    for (path, x), y in zip(jax.tree.leaves_with_path(before), jax.tree.leaves(after), strict=True):
        facts = [(z.shape, z.dtype, z.weak_type) for z in (x.aval, y)]
        assert facts[0] == facts[1], jax.tree_util.keystr(path)


def test_step_counts_and_learning_moves(name):
    before = host(start(name))
    after, metrics, _ = run(name, *ALONE, False)
    assert after.step == N and before.step == 0
    assert_same(before.key, after.key)
    for own, params in before.params.items():
        leaves = zip(*map(jax.tree.leaves, (params, after.params[own])), strict=True)
        assert all(np.array_equal(x, y) != (own in before.opt_state) for x, y in leaves), own
    norms = [value(x)[-1] for key, x in metrics.items() if key.endswith("gradient_norm")]
    assert norms and min(norms) > 0


def test_scan_is_loop_and_microbatches_are_batches(name):
    """Steps one by one, each in microbatches, equal a scan of whole ones, with batches that end in padding."""
    if name not in KINDS:
        pytest.skip("compiled for one State of each kind; test_seeds has microbatches and padding of the others")
    step, state, metrics = jax.jit(in_parts(name).build().step), start(name), []
    for k in range(N):
        state, new = step(state, ending_in_padding(batches(name)(k)))
        metrics.append(new)
    scanned_state, scanned_metrics, _ = run(name, *ALONE, True)
    assert_close(host(state), scanned_state)
    assert_close(stacked(metrics), scanned_metrics)


def test_streamed_is_resident(name):
    """The batches are the same, and so is what one learner of them makes of a feed on the device."""
    if not hasattr(getattr(EXPERIMENTS[name], "data", None), "feed"):
        pytest.skip("its data live in one place alone")
    stream = dataclasses.replace(EXPERIMENTS[name], data=dataclasses.replace(EXPERIMENTS[name].data, feed="host"))
    target = place("shard_map")
    with prefetched(stream.feeds().train, 0, N, N, target.put_rows) as chunks:
        chunk = next(chunks)
    assert_same(host(chunk), stacked([batches(name)(k) for k in range(N)]))
    if name in KINDS:
        learner, feeds = made(name, False)
        assert feeds.train.resident
        steps = target.train(lambda state, feed: scan_steps(with_feed(learner.step, feed), N)(state, None), None)
        state, metrics = steps(target.put(start(name)), target.put_data(feeds.train, None))
        assert_close(host(state), run(name, *ALONE, False)[0])
        assert_close(host(metrics), run(name, "shard_map", False, False)[1])


def test_traced_once_donated_and_without_transfers(name):
    target = at("one")
    (steps, traces), fed = scanned(name, *ALONE), data(name, target)
    state = target.put(start(name))
    with jax.transfer_guard("disallow"):
        for _ in range(3):
            given = state
            state, _ = steps(state, fed)
            kept = [p for p, x in jax.tree.leaves_with_path(given) if not x.is_deleted()]
            assert not kept, f"not donated: {kept}"
    assert len(traces) == 1


def test_resume_is_exact(name):
    """2 x 4 steps with a copy of the State in between equal 8 steps, to the bit; see test_resume.py for processes."""
    steps, target = scanned(name, *ALONE)[0], at("one")
    state, other = target.put(start(name)), target.put(start(name))
    for begin in blocks(name)[:2]:
        state, _ = steps(target.put(jax.device_get(state)), data(name, target, begin))
    for begin in blocks(name)[:2]:
        other, _ = steps(other, data(name, target, begin))
    assert_same(host(state), host(other))


def means(metrics):
    """The values of those metrics that are means; the others may be counted on each device."""
    return {key: value(m) for key, m in metrics.items() if isinstance(m, Mean)}


def test_seeds(name):
    """Three seeds in one program are three runs: on one device, or by microbatches on four, of which two have nothing
    but padding."""
    single, metrics, judged = run(name, *ALONE, True)
    where, compared = ("one", lambda metrics: metrics) if name in KINDS else ("four", means)
    many_states, many_metrics, many_judged = run(name, where, True, True)
    first = jax.tree.map(lambda x: x[0], many_states._replace(step=None))
    assert many_states.step == N
    assert_close(first, single._replace(step=None))
    assert_close(compared(jax.tree.map(lambda x: x[:, 0], many_metrics)), compared(metrics))
    assert_close(compared(jax.tree.map(lambda x: x[0], many_judged)), compared(judged))
    for leaf in jax.tree.leaves(many_states.params):
        assert not np.array_equal(leaf[0], leaf[1]) or not leaf[0].any()


@pytest.mark.parametrize(
    "where, seeded",
    [(where, False) for where in ("jit", "pmap", "shard_map", "fsdp", "tensor")]
    + [(where, True) for where in ("shard_map", "jit", "seed")],
)
def test_placement(name, where, seeded):
    if not (name in KINDS or (where == "tensor" and name in TENSOR)):
        pytest.skip("compiled for one State of each kind; test_seeds has the others on four devices")
    if where == "tensor" and not EXPERIMENTS[name].tensor_axes():
        with pytest.raises(UserError, match="--shard tensor: the net has no table"):
            at(where)
        return
    one, one_metrics, one_judged = run(name, "one", seeded, True)
    eight, eight_metrics, eight_judged = run(name, where, seeded, True)
    assert_close(eight, one)
    assert_close(means(eight_metrics), means(one_metrics))
    assert_close(means(eight_judged), means(one_judged))


DISTANCE = {"bfloat16": 0.1, "float16": 0.01}


@functools.cache
def losses(name: str, dtype: str):
    """The losses of 20 steps in `dtype` by name, [steps], and the evaluation after them."""
    experiment = EXPERIMENTS[name]
    if dtype == "float32":
        learner, steps = made(name, False)[0], scanned(name, *ALONE)[0]
    else:
        learner = dataclasses.replace(experiment, update=dataclasses.replace(experiment.update, dtype=dtype)).build()
        steps = jax.jit(scan_steps(learner.step, N))
    target = at("one")
    state, metrics = start(name), []
    if dtype == "float16":  # a loss scale at which no update is skipped, so that the same ones are compared
        scale = LossScale(jnp.float32(64), jnp.int32(0), jnp.int32(0))
        state = state._replace(opt_state={key: x._replace(scale=scale) for key, x in state.opt_state.items()})
    state = target.put(state)
    for begin in blocks(name):
        state, found = steps(state, data(name, target, begin))
        metrics.append(host(found))
    metrics = jax.tree.map(lambda *x: np.concatenate(x), *metrics)
    if dtype == "float32":
        judged = host(evaluation(name, *ALONE)(state))
    else:
        judged = host(jax.jit(learner.evaluate)(state, made(name, False)[1].validation[0]))
    leaves = jax.tree.leaves((state, metrics, judged))
    assert {x.dtype.name for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)} == {"float32"}
    assert not any(x.total.any() for key, x in metrics.items() if key.endswith("skipped_updates"))
    values = lambda found: {key: value(m) for key, m in found.items() if key.endswith("loss")}
    return values(metrics), values(judged)


@pytest.mark.parametrize("dtype", get_args(Dtype)[1:])
def test_precision(name, dtype):
    """In 16 bits, 20 steps train and evaluate; the last losses are within `DISTANCE` of float32's, relative to 1.

    Nets that play against each other go round in circles, so the mean of all their losses is compared, within four
    times as much. A learner that makes its own data is compared by its first updates: later, it has acted otherwise.
    """
    experiment = EXPERIMENTS[name]
    if dtype not in experiment.dtypes:
        with pytest.raises(UserError, match=f"does not train in {dtype}: choose --dtype float32 or bfloat16"):
            losses(name, dtype)
        return
    if dtype == "float16" and name not in KINDS + TENSOR:
        pytest.skip("compiled for one State of each kind, and attention: bfloat16's programs, with a scaled loss")
    (full, full_judged), (half, half_judged) = losses(name, "float32"), losses(name, dtype)
    compared = slice(None) if experiment.adversaries else slice(-5, None) if hasattr(experiment, "data") else slice(6)
    distance = 4 * DISTANCE[dtype] if experiment.adversaries else DISTANCE[dtype]
    for key in full:
        a, b = full[key][compared].mean(), half[key][compared].mean()
        assert abs(a - b) <= distance * max(abs(a), 1), key
        assert not np.array_equal(full[key], half[key]), f"it did not compute in {dtype}"
    for key in full_judged:
        assert np.isfinite(half_judged[key])
        if not experiment.adversaries:
            assert abs(full_judged[key] - half_judged[key]) <= distance * max(abs(full_judged[key]), 1), key
