import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from research.core.errors import RunError, UserError
from research.core.state import State
from research.training import checkpoint
from research.training.checkpoint import Checkpoints, restore
from research.training.init_from import init_from

TX = optax.adam(1e-3)


def make(key, scale=1.0):
    weights = scale * jax.random.normal(key, (4, 3))
    params = {"dense": {"kernel": weights, "half": weights.astype(jnp.bfloat16)}, "none": jnp.zeros((0, 2))}
    world = {
        "frames": jnp.arange(16, dtype=jnp.uint8).reshape(8, 2),
        "keys": jax.random.split(key, 8),
        "n": jnp.arange(8),
    }
    collections = {"batch_stats": {"mean": scale * jnp.ones(3)}, "done": jnp.array([True, False])}
    return State(jnp.int32(0), key, params, TX.init(params), collections, world)


ABSTRACT = jax.eval_shape(lambda: make(jax.random.key(7)))


@jax.jit
def at(step):
    """The State of a step, another one for each."""
    return make(jax.random.key(7), 1.0 + step)._replace(step=jnp.int32(step))


def bits(x):
    return np.asarray(jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape and bits(x).tobytes() == bits(y).tobytes()


def saved(directory, *steps, keep=2):
    with Checkpoints(directory, keep, 0) as checkpoints:
        for step in steps:
            checkpoints.save(step, at(step))
    return Path(directory)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Steps 100 and 200; not to be changed."""
    return saved(tmp_path_factory.mktemp("two"), 100, 200)


@pytest.fixture
def copy(two, tmp_path):
    return Path(shutil.copytree(two, tmp_path / "copy"))


def files(directory):
    return {p.relative_to(directory): p.stat().st_mtime_ns for p in directory.rglob("*")}


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_round_trip_is_bit_identical_and_donation_safe(tmp_path, impl):
    key = jax.random.key(3, impl=impl)
    state, kept = jax.jit(make)(key), jax.jit(make)(key)
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1 if x.dtype == jnp.float32 else x, s), donate_argnums=0)
    with Checkpoints(tmp_path, 2, 0) as checkpoints:
        checkpoints.save(1, state)
        for _ in range(3):
            state = step(state)
    found = restore(tmp_path, jax.eval_shape(make, key))
    assert found is not None and found[0] == 1
    assert_same(found[1], kept)
    assert_same(step(jax.device_put(found[1])), step(kept))


def test_nothing_saved_is_none(tmp_path):
    assert restore(tmp_path, ABSTRACT) is None
    assert restore(tmp_path / "missing", ABSTRACT) is None


def test_the_newest_is_the_best_where_none_was_marked(tmp_path):
    assert restore(saved(tmp_path, 1, 2), ABSTRACT, best=True)[0] == 2


def test_restore_only_reads(two):
    before = files(two)
    assert restore(two, ABSTRACT)[0] == 200
    init_from(two, at(0))
    assert files(two) == before


def test_rotation_keeps_the_newest_and_the_best(tmp_path):
    with Checkpoints(tmp_path, 3, 0) as checkpoints:
        for step in range(1, 9):
            checkpoints.save(step, at(step), best=step in (1, 2))
        assert checkpoints.steps() == [2, 6, 7, 8]
    assert_same(restore(tmp_path, ABSTRACT, best=True)[1], at(2))
    assert_same(restore(tmp_path, ABSTRACT)[1], at(8))
    with Checkpoints(tmp_path, 2, 8) as checkpoints:
        checkpoints.save(9, at(9))
        checkpoints.save(10, at(10))
        assert checkpoints.steps() == [2, 9, 10]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def damages(directory):
    step = directory / "200"
    found = [p for p in sorted(step.rglob("*")) if p.is_file()]
    yield from ((f"flip {p.relative_to(step)}", lambda p=p: flip(p)) for p in found)
    largest = max(found, key=lambda p: p.stat().st_size)
    yield "truncated", lambda: os.truncate(largest, largest.stat().st_size // 2)
    yield "missing manifest", (step / "default" / "manifest.ocdbt").unlink
    yield "no checksum", (directory / "200.json").unlink
    yield "flip checksum", lambda: flip(directory / "200.json")
    yield "empty checksum", lambda: os.truncate(directory / "200.json", 0)
    yield "no json", lambda: (directory / "200.json").write_text("[1, 2]")


def test_a_damaged_step_is_told_in_one_line_and_the_one_before_used(two, tmp_path):
    for i, (name, _) in enumerate(damages(two)):
        copy = Path(shutil.copytree(two, tmp_path / str(i)))
        [*damages(copy)][i][1]()
        told = []
        step, state = restore(copy, ABSTRACT, told.append)
        assert step == 100, name
        assert_same(state, at(100))
        assert len(told) == 1 and "\n" not in told[0], name
        what = "not complete (it has no checksum: it is being saved" if name == "no checksum" else "damaged ("
        assert f"{copy / '200'} is {what}" in told[0] and "using step 100 instead" in told[0]


@pytest.mark.parametrize(
    "change",
    [
        *("/dev/zero", "../100.json", "a\0b", "\ud800", "default", ""),
        *({"files": files} for files in (5, ["a"], None)),
        *({"leaves": leaves} for leaves in (5, ["a"], {"step": 5}, {"step": {}})),
        *({"best": best} for best in (5, None, "yes")),
    ],
    ids=repr,
)
def test_a_manifest_that_no_run_has_written_is_damaged(copy, change):
    """Its digest is right: someone else has made it."""
    path, told = copy / "200.json", []
    sums = {"files": {change: checkpoint._sum(copy / "100.json")}} if isinstance(change, str) else change
    content = json.loads(path.read_text())["manifest"] | sums
    path.write_text(json.dumps({"sha256": checkpoint._digest(content), "manifest": content}))
    assert restore(copy, ABSTRACT, told.append)[0] == 100
    assert len(told) == 1 and f"{copy / '200'} is damaged (" in told[0]


@pytest.mark.parametrize("kind", ["directory", "device", "deep"])
def test_what_is_no_file_is_damaged_and_replaced(copy, kind):
    path, told = copy / ("200/_CHECKPOINT_METADATA" if kind == "device" else "200.json"), []
    path.unlink()
    if kind == "directory":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.write_text("[" * 200_000)
    step, _ = restore(copy, ABSTRACT, told.append)
    assert step == 100 and "is damaged (" in told[0]
    with Checkpoints(copy, 2, step) as checkpoints:
        checkpoints.save(200, at(200))
    assert restore(copy, ABSTRACT, pytest.fail)[0] == 200


@pytest.mark.parametrize(
    "error", [RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), MemoryError(), OSError(24, "many")]
)
def test_what_can_not_be_loaded_is_not_damaged(copy, monkeypatch, error):
    def fails(self, path, *_, **__):
        assert "200" in path.parts, "none before it is used"
        raise error

    before, told = files(copy), []
    monkeypatch.setattr(checkpoint.ocp.Checkpointer, "restore", fails)
    with pytest.raises(
        RunError, match=rf"could not read {copy / '200'} \({type(error).__name__}: .*as they were written"
    ):
        restore(copy, ABSTRACT, told.append)
    assert files(copy) == before and not told


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("what", ["_sum", "_digest"])
def test_what_can_not_be_hashed_is_not_damaged(copy, monkeypatch, number, what):
    def fails(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(checkpoint, what, fails)
    why = "permission is denied" if number == errno.EACCES else os.strerror(number)
    with pytest.raises(RunError, match=f"could not read {copy}: .*{why}"):
        restore(copy, ABSTRACT, pytest.fail)


def test_the_best_where_checksums_are_damaged(tmp_path):
    """Where none is known to be the best, the newest that is undamaged is; a damaged best one is not replaced."""
    with Checkpoints(tmp_path, 3, 0) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, at(step))
    (tmp_path / "3.json").write_text("{")
    told = []
    assert restore(tmp_path, ABSTRACT, told.append, best=True)[0] == 2
    assert f"checkpoint {tmp_path / '3'} is damaged" in told[0]
    assert told[1:] == [f"no checkpoint in {tmp_path} is marked as the best: the newest is taken, step 2"]
    with Checkpoints(tmp_path, 3, 2) as checkpoints:
        checkpoints.save(3, at(3), best=True)
        checkpoints.save(4, at(4))
    flip(tmp_path / "3" / "_CHECKPOINT_METADATA")
    with pytest.raises(RunError, match=r"no best checkpoint .* \(step 3: _CHECKPOINT_METADATA"):
        restore(tmp_path, ABSTRACT, told.append, best=True)


def test_a_damaged_step_is_saved_anew(copy):
    flip(next((copy / "200" / "default" / "d").iterdir()))
    step, _ = restore(copy, ABSTRACT, lambda _: None)
    with Checkpoints(copy, 2, step) as checkpoints:
        checkpoints.save(200, at(200))
    told = []
    assert restore(copy, ABSTRACT, told.append)[0] == 200 and not told


def test_all_damaged_is_one_clear_failure(copy):
    for step in (100, 200):
        flip(copy / str(step) / "_CHECKPOINT_METADATA")
    with pytest.raises(RunError, match=r"step 200: _CHECKPOINT_METADATA.*step 100.*--overwrite"):
        restore(copy, ABSTRACT)
    for step in (100, 200):
        (copy / f"{step}.json").unlink()
    with pytest.raises(RunError, match=r"no checksum"):
        restore(copy, ABSTRACT)


def test_a_foreign_checkpoint_is_a_mistake_that_names_leaves(two, capfd):
    dense = ABSTRACT.params["dense"]
    other = ABSTRACT._replace(params={**ABSTRACT.params, "dense": {"bias": dense["kernel"], "half": dense["half"]}})
    with pytest.raises(UserError, match=r"params/dense/bias is not there; params/dense/kernel is there only\)"):
        restore(two, other)
    half = jax.ShapeDtypeStruct((4, 3), jnp.float32)
    other = ABSTRACT._replace(params={**ABSTRACT.params, "dense": {**dense, "half": half}})
    with pytest.raises(UserError, match=r"params/dense/half is bfloat16\[4,3\] there, float32\[4,3\] here"):
        restore(two, other)
    with pytest.raises(UserError, match=r"key is key<fry>\[\] there, key<rbg>\[\] here"):
        restore(two, ABSTRACT._replace(key=jax.eval_shape(lambda: jax.random.key(0, impl="rbg"))))
    assert capfd.readouterr() == ("", "")


def test_init_from_takes_params_and_the_collections_that_match(two):
    fresh = at(5)
    changed = fresh._replace(
        collections={"batch_stats": {"mean": jnp.zeros(9)}, "done": jnp.array([False, False]), "x": ()}
    )
    found = init_from(two, changed)
    assert_same(found.params, at(200).params)
    assert_same(found.collections["done"], at(200).collections["done"])
    assert_same(found.collections["batch_stats"], changed.collections["batch_stats"])
    assert_same(found._replace(params=(), collections={}), changed._replace(params=(), collections={}))
    told = []
    head = fresh._replace(params={"dense": {"kernel": jnp.zeros((4, 3))}, "head": jnp.ones(2)})
    found = init_from(two, head, told.append)
    assert_same(found.params, {"dense": {"kernel": at(200).params["dense"]["kernel"]}, "head": jnp.ones(2)})
    assert len(told) == 1 and "does not have params/head: they start afresh" in told[0]
    with pytest.raises(UserError, match=r"params/dense/kernel is float32\[4,3\] there, float32\[4,5\] here"):
        init_from(two, fresh._replace(params={"dense": {"kernel": jnp.zeros((4, 5))}}))
    with pytest.raises(UserError, match="has none of these parameters: params/other"):
        init_from(two, fresh._replace(params={"other": jnp.zeros(2)}))
    with pytest.raises(UserError, match=r"no checkpoint"):
        init_from(two / "missing", fresh)


def test_init_from_repeats_a_run_of_one_seed(two):
    """What is not taken stays that of each seed."""
    seeds = jax.vmap(make)(jax.random.split(jax.random.key(1), 3))._replace(step=jnp.int32(0))
    seeds = seeds._replace(params={**seeds.params, "head": jnp.arange(6.0).reshape(3, 2)})
    found, one = init_from(two, seeds, lambda _: None, repeated=True), at(200)
    repeat = lambda tree: jax.tree.map(lambda x: jnp.stack([x] * 3), tree)
    assert_same(found.params, {**repeat(one.params), "head": seeds.params["head"]})
    assert_same(found.collections, repeat(one.collections))
    assert_same(found._replace(params=(), collections={}), seeds._replace(params=(), collections={}))


def test_init_from_takes_the_parameters_of_the_patterns(two):
    zeros = jnp.zeros_like(at(200).params["dense"]["kernel"])
    here, taken = at(5)._replace(params={"dense": {"kernel": zeros}, "head": jnp.ones(2)}), at(200).params["dense"]
    for paths, kernel in ((["dense/*"], taken["kernel"]), (["!head"], taken["kernel"])):
        told = []
        found = init_from(two, here, told.append, paths=paths)
        assert_same(found.params, {"dense": {"kernel": kernel}, "head": jnp.ones(2)})
        assert told == [told[0]] and "gives params/dense/kernel; --init-paths leaves params/head" in told[0]
    other_head = here._replace(params={"dense": {"kernel": jnp.zeros((4, 5))}, "head": jnp.ones(2)})
    with pytest.raises(UserError, match=r"has none of these parameters"):
        init_from(two, other_head, paths=["head"])
    with pytest.raises(UserError, match=r"--init-paths: no parameter matches 'dens/\*'"):
        init_from(two, here, paths=["dens/*"])


def test_init_from_patterns_see_through_other_layers_and_other_nets(tmp_path):
    """A target net of which the other run has layers that are not here, and that is of the second of two nets."""

    def make(scale, head):
        critic = {"body": jnp.full(3, scale), head: jnp.full(2, scale)}
        params = {"actor": {"body": jnp.full(3, scale)}, "critic": critic}
        return State(jnp.int32(0), jax.random.key(0), params, {}, {"target": critic}, ())

    with Checkpoints(tmp_path, 2, 0) as checkpoints:
        checkpoints.save(1, make(1.0, "values"))
    found = init_from(tmp_path, make(0.0, "value"), lambda _: None, paths=["critic/body"])
    assert_same(found.collections["target"], {"body": jnp.ones(3), "value": jnp.zeros(2)})
    assert_same(found.params["actor"], {"body": jnp.zeros(3)})


def test_init_from_takes_statistics_and_target_nets_by_the_same_patterns(tmp_path):
    """A layer that is not taken starts with its own statistics and its own target; what has no path is taken."""

    def make(scale, head):
        params = {"q": {"body": jnp.full(3, scale), "head": jnp.full(head, scale)}}
        statistics = {"body": {"mean": jnp.full(3, scale)}, "head": {"mean": jnp.full(head, scale)}}
        collections = {"q": {"batch_stats": statistics}, "target": params["q"], "seen": jnp.full(1, scale)}
        return State(jnp.int32(0), jax.random.key(0), params, {}, collections, ())

    with Checkpoints(tmp_path, 2, 0) as checkpoints:
        checkpoints.save(1, make(1.0, 2))
    for head in (2, 5):
        for paths in (["!q/head*"], ["q/body*"]):
            found = init_from(tmp_path, make(0.0, head), lambda _: None, paths=paths)
            taken, fresh, collections = jnp.ones(3), jnp.zeros(head), found.collections
            assert_same(found.params, {"q": {"body": taken, "head": fresh}})
            assert_same(collections["q"]["batch_stats"], {"body": {"mean": taken}, "head": {"mean": fresh}})
            assert_same(collections["target"], {"body": taken, "head": fresh})
            assert_same(collections["seen"], jnp.ones(1))


def test_init_from_tells_of_collections_that_start_afresh(tmp_path):
    """But for a target net, a copy of its net: it starts as what was taken for that."""

    def make(scale, **collections):
        return State(jnp.int32(0), jax.random.key(0), {"q": {"body": jnp.full(3, scale)}}, {}, collections, ())

    with Checkpoints(tmp_path, 2, 0) as checkpoints:
        checkpoints.save(1, make(1.0, seen=jnp.ones(1)))
    told = []
    found = init_from(
        tmp_path, make(0.0, target={"body": jnp.zeros(3)}, seen=jnp.zeros(2), mean=jnp.zeros(1)), told.append
    )
    assert_same(found.collections, {"target": {"body": jnp.ones(3)}, "seen": jnp.zeros(2), "mean": jnp.zeros(1)})
    says = "does not have collections/{}, or has it of other shapes: it starts afresh"
    assert all(line.endswith(says.format(name)) for line, name in zip(told, ("seen", "mean"), strict=True))


def test_init_from_takes_averages_where_there_are_any_and_the_best_where_it_is_asked_to(tmp_path):
    def averaged(step, names):
        average = {name: jax.tree.map(lambda x: x + 1, at(step).params[name]) for name in names}
        return at(step)._replace(collections={"average": average})

    with Checkpoints(tmp_path, 2, 0) as checkpoints:
        checkpoints.save(100, averaged(100, ["dense"]), best=True)
        checkpoints.save(200, averaged(200, ["dense"]))
    for best, step in ((False, 200), (True, 100)):
        expected = averaged(step, ["dense"]).collections["average"] | {"none": at(step).params["none"]}
        for here in (at(5), averaged(5, ["dense", "none"]), averaged(5, ["none"])):
            found = init_from(tmp_path, here, best=best)
            assert_same(found.params, expected)
            for name, average in found.collections.get("average", {}).items():
                assert_same(average, expected[name])
            leaves = [x for x in jax.tree.leaves((found.params, found.collections)) if isinstance(x, np.ndarray)]
            assert len({x.ctypes.data for x in leaves if x.size}) == len([x for x in leaves if x.size])
    with pytest.raises(UserError, match=r"collections/average/dense/kernel is float32\[4,3\] there, float32\[2\] here"):
        other = at(5)._replace(collections={"average": {"dense": {"kernel": jnp.zeros(2)}}})
        init_from(tmp_path, other)


def test_init_from_takes_parameters_as_averages_where_there_are_no_averages(two):
    here = at(5)._replace(collections={"average": at(5).params})
    found = init_from(two, here, best=True)  # none is marked as the best: the newest
    assert_same(found.params, at(200).params)
    assert_same(found.collections["average"], at(200).params)


def test_a_sharded_state_comes_back_on_the_host(tmp_path):
    mesh = Mesh(np.array(jax.devices()), ("devices",))
    everywhere, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("devices"))
    state = at(1)
    state = State(*(jax.device_put(x, everywhere) for x in state[:5]), world=jax.device_put(state.world, split))
    assert len(jax.tree.leaves(state.world)[0].sharding.device_set) == 8
    with Checkpoints(tmp_path, 2, 0) as checkpoints:
        checkpoints.save(1, state)
    _, found = restore(tmp_path, ABSTRACT)
    assert_same(found, at(1))
    assert isinstance(found.world["frames"], np.ndarray)


def test_the_cost_of_a_checkpoint(tmp_path, monkeypatch):
    """A replica is not counted, a replay is, and the slowest process's seconds are said."""
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("replica", "data"))
    split = jax.device_put(jnp.zeros((1024, 512)), NamedSharding(mesh, PartitionSpec("data")))  # 2 MiB
    state = State(jnp.int32(0), jax.random.key(0), {"net": split}, {}, {}, jnp.zeros((4, 2**18), jnp.uint8))
    assert checkpoint.total_bytes(state) == checkpoint.own_bytes(state) == 3 * 2**20 + 4 + 8
    with Checkpoints(tmp_path, 2, 0) as checkpoints:
        assert 2**20 < checkpoint._speed(tmp_path, 2**20) < 2**40 and not list(tmp_path.iterdir())
        monkeypatch.setattr(checkpoint, "_speed", lambda _: 2**19)
        assert checkpoints.cost(state).startswith("A checkpoint has 3.00 MiB, which takes at least 6 s on this disk: ")


def test_leftovers_of_killed_saves_go(copy):
    (copy / "300.orbax-checkpoint-tmp" / "default").mkdir(parents=True)
    (copy / ".300.tmp.json").write_text("{")
    (copy / "250").mkdir()
    (copy / "150.json").write_text("{}")
    told = []
    assert restore(copy, ABSTRACT, told.append)[0] == 200
    assert len(told) == 1 and "250" in told[0]
    with Checkpoints(copy, 2, 200):
        pass
    assert sorted(p.name for p in copy.iterdir()) == ["100", "100.json", "200", "200.json"]


SAVER = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from test_checkpoint import *

def die(*_):
    os._exit(9)

def save(moment):
    print(os.getpid(), flush=True)
    step, _ = restore(sys.argv[1], ABSTRACT) or (0, None)
    with Checkpoints(sys.argv[1], 2, step) as checkpoints:
        while True:
            step += 1
            checkpoints.save(step, at(step), best=step % 5 == 1)
            checkpoints.wait()
            print(step, flush=True)
            if moment and step > 2:
                setattr(os if moment == "replace" else shutil if moment == "rmtree" else checkpoint, moment, die)

for line in sys.stdin:  # each in a process of its own, made before JAX is used and has threads
    if not (child := os.fork()):
        save(line.strip())
    os.waitpid(child, 0)
    print("dead", flush=True)
"""


def test_a_process_killed_at_any_moment_leaves_its_newest_save(tmp_path):
    here = Path(__file__).parent
    code = SAVER.format(root=str(here.parent), tests=str(here))
    wait, last = random.Random(0), 0
    pipe = subprocess.PIPE
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore::RuntimeWarning", "-c", code, tmp_path], stdin=pipe, stdout=pipe, text=True
    )
    for moment in ("", "_sum", "_write_manifest", "", "replace", "_rotate", "rmtree", ""):
        server.stdin.write(f"{moment}\n")
        server.stdin.flush()
        child, done = int(server.stdout.readline()), [last]
        for line in server.stdout:
            if line == "dead\n":
                break
            done.append(int(line))
            if not moment and len(done) == 2:
                time.sleep(0.3 * wait.random())
                os.kill(child, signal.SIGKILL)
        last = max(done)
        told = []
        step, state = restore(tmp_path, ABSTRACT, told.append)
        assert last <= step <= last + 1 and step >= 1, moment
        assert_same(state, at(step))
        best, state = restore(tmp_path, ABSTRACT, told.append, best=True)
        assert best % 5 == 1 and step - best <= 5, moment
        assert_same(state, at(best))
        assert step == 1 or len(checkpoint._steps(tmp_path)[0]) >= 2
        assert len(told) <= 2
    server.stdin.close()
    assert server.wait() == 0 and last > 8


def test_a_directory_that_cannot_be_made_is_a_failure(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "checkpoints"):
        with pytest.raises(RunError, match=rf"could not save to {path}.*choose another place"), Checkpoints(path, 2, 0):
            pass


@pytest.mark.parametrize(("number", "says"), [(errno.ENOSPC, "disk is full"), (errno.EROFS, "the disk is read-only")])
def test_errors_in_the_background_are_failures(copy, monkeypatch, number, says):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    told = rf"could not save step 300 in {copy}.*200 is its newest.*{says}"
    with pytest.raises(RunError, match=told), Checkpoints(copy, 2, 200) as checkpoints:
        monkeypatch.setattr(checkpoint, "_write_manifest", fail)
        checkpoints.save(300, at(300))
        checkpoints.wait()
    monkeypatch.undo()
    assert restore(copy, ABSTRACT, lambda _: None)[0] == 200


@pytest.fixture
def small_disk(tmp_path):
    path = tmp_path / "small"
    path.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", path], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("no file system can be mounted here")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_is_one_clear_failure(small_disk, capfd, caplog):
    saved(small_disk / "checkpoints", 1)
    (small_disk / "filler").write_bytes(bytes(small_disk.stat().st_blksize * 200))
    big = at(2)._replace(world=jax.random.bits(jax.random.key(0), (1000, 100)))
    told = r"could not save step 2 in .*step 1 is its newest.*disk is full"
    for _ in range(2):
        with pytest.raises(RunError, match=told), Checkpoints(small_disk / "checkpoints", 2, 1) as checkpoints:
            checkpoints.save(2, big)
        assert sorted(p.name for p in (small_disk / "checkpoints").iterdir()) == ["1", "1.json"]
    assert restore(small_disk / "checkpoints", ABSTRACT)[0] == 1
    assert capfd.readouterr() == ("", "") and not caplog.records  # of orbax's own 500 lines, none
