"""What holds for every source of data. Sources are the classes with `feeds` in research/data, found by looking there.

Each is tested as the tiny settings in research/learners use it, save those in made_up.py, which stand for sets that
are not here: tests/test_hardware.py has them.
"""

import dataclasses
import importlib
from pathlib import Path

import jax
import numpy as np
import pytest
from learners import EXPERIMENTS

import research.data
from research.core.errors import UserError

FILES = sorted(Path(research.data.__path__[0]).glob("*.py"))
MODULES = [
    importlib.import_module(f"research.data.{path.stem}") for path in FILES if path.stem not in ("__init__", "made_up")
]
SOURCES = {
    found.__name__: found
    for module in MODULES
    for found in vars(module).values()
    if isinstance(found, type) and hasattr(found, "feeds") and found.__module__ == module.__name__
}
SETTINGS = {
    source: [name for name, experiment in EXPERIMENTS.items() if isinstance(getattr(experiment, "data", None), found)]
    for source, found in SOURCES.items()
}
DIFFERENT = {
    (type(experiment.data), experiment.data): name
    for name, experiment in EXPERIMENTS.items()
    if hasattr(experiment, "data")
}
"""The settings' data, each once: many settings use the same."""


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def examples(batches) -> int:
    return int(sum(batch.mask.sum() for batch in batches))


@pytest.mark.parametrize("source", ["Text", "Sentences", "Pairs", "LargeImages", "Images"])
def test_a_home_directory_that_is_not_there(source):
    data = SOURCES[source](**{"dir" if source == "Images" else "name": "~nobody-here/data.txt"})
    expected = "no home directory ~nobody-here for the path ~nobody-here/data.txt: give it in full"
    with pytest.raises(UserError, match=expected):
        data.spec()


@pytest.mark.parametrize("source", SOURCES)
def test_a_tiny_setting_uses_it(source):
    """Or the source that it inherits from, if it is a new `arrays` of that alone."""
    inherited = [name for kind in SOURCES[source].__mro__[1:] for name in SETTINGS.get(kind.__name__, ())]
    assert SETTINGS[source] or inherited, f"no `tiny` of a file in research/learners uses {source}: add one that does"


@pytest.mark.parametrize(("source", "name"), [(kind.__name__, name) for (kind, _), name in DIFFERENT.items()])
class TestSource:
    def test_a_batch_is_a_function_of_the_step(self, source, name):
        feed, again = (EXPERIMENTS[name].feeds().train for _ in range(2))
        batches = [jax.device_get(feed.batch_at(step)) for step in (0, 1, 5)]
        equal(batches[2], jax.device_get(again.batch_at(5)))
        assert not np.array_equal(batches[0].index, batches[1].index)
        for batch in batches:
            assert batch.index.dtype == np.int32 and batch.mask.dtype == np.float32 and batch.mask.all()
            assert {len(x) for x in jax.tree.leaves(batch)} == {feed.batch}

    def test_rows_are_those_of_the_whole_batch(self, source, name):
        feed = EXPERIMENTS[name].feeds().train
        rows = np.array([1, 4, 5], np.int32)
        whole, part = jax.device_get((feed.batch_at(3), feed.batch_at(3, rows)))
        equal(jax.tree.map(lambda x: x[rows], whole), part)

    def test_evaluation_batches_have_one_size_and_are_masked(self, source, name):
        feeds, size = EXPERIMENTS[name].feeds(), EXPERIMENTS[name].data.evaluation_batch
        for batches in (feeds.validation, feeds.test):
            assert len(batches) and examples(batches)
            for at, batch in enumerate(batches):
                assert {len(x) for x in jax.tree.leaves(batch)} == {size}
                assert set(np.unique(batch.mask)) <= {0, 1} and (np.diff(batch.mask) <= 0).all()
                equal(batch, batches[at])

    def test_its_limit(self, source, name):
        experiment = EXPERIMENTS[name]
        limited = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, limit=100)).feeds()
        assert 0 < examples(limited.test) <= 100 and examples(limited.test) <= examples(experiment.feeds().test)
        batch_at = jax.jit(limited.train.batch_at) if limited.train.resident else limited.train.batch_at
        index = np.concatenate([jax.device_get(batch_at(step).index) for step in range(30)])
        assert index.max() < 100
