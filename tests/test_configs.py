"""One step of every config, with tiny batches; those of data that is not here skip, saying so."""

import dataclasses

import jax
import numpy as np
import pytest

from research.core.errors import UserError
from research.data.text import Text
from research.training import config

pytestmark = pytest.mark.usefixtures("quickly")


@pytest.mark.parametrize("name", config.names())
def test_one_step(name):
    experiment = config.load(name)
    if hasattr(experiment, "data"):
        few = {"batch": 2, "limit": 20_000 if isinstance(experiment.data, Text) else 300}
        known = {field.name for field in dataclasses.fields(experiment.data)}
        few = {name: value for name, value in few.items() if name in known}
        experiment = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, **few))
    try:
        feeds = experiment.feeds()
    except UserError as missing:
        pytest.skip(str(missing))
    learner = experiment.build()
    before = jax.jit(learner.init)(jax.random.key(0))
    after, metrics = jax.jit(learner.step)(before, feeds.train.batch_at(0))
    assert after.step == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(metrics))
    assert experiment.run.metric in jax.eval_shape(learner.evaluate, after, feeds.validation[0])
