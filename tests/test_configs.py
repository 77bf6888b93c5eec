"""One step of every config, with small batches; those of data that is not here skip, saying so."""

import dataclasses

import jax
import numpy as np
import pytest

from research import config
from research.experiment import Mistake


@pytest.fixture(autouse=True, scope="module")
def quickly():
    """Compiling takes most of the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.parametrize("name", config.names())
def test_one_step(name):
    experiment = config.load(name)
    if hasattr(experiment, "data"):
        experiment = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, batch=8))
    try:
        feeds = experiment.feeds()
    except Mistake as missing:
        pytest.skip(str(missing))
    learner = experiment.build()
    before = jax.jit(learner.init)(jax.random.key(0))
    after, metrics = jax.jit(learner.step)(before, feeds.train.batch_at(0))
    assert after.step == 1
    assert all(np.isfinite(mean.total) for mean in metrics.values())
    assert experiment.run.metric in jax.eval_shape(learner.evaluate, after, feeds.validation[0])
