"""One step of every config, with tiny batches; those whose data or environment is not here skip, saying so."""

import dataclasses

import jax
import numpy as np
import pytest

from research.core.errors import NotInstalled, UserError
from research.data.text import Text
from research.training import config


@pytest.mark.parametrize("name", config.names())
def test_one_step(name):
    experiment = config.load(name)
    if hasattr(experiment, "data"):
        few = {"batch": 2, "limit": 20_000 if isinstance(experiment.data, Text) else 300}
        known = {field.name for field in dataclasses.fields(experiment.data)}
        few = {name: value for name, value in few.items() if name in known}
        experiment = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, **few))
    if hasattr(experiment, "minibatches"):
        experiment = dataclasses.replace(experiment, num_envs=2, epochs=1)
    try:
        feeds = experiment.feeds()
    except UserError as missing:
        pytest.skip(str(missing))
    try:
        learner, feed = experiment.build(), feeds.train
    except NotInstalled as missing:
        pytest.skip(str(missing))

    @jax.jit
    def metrics_of_a_step(key, data):
        """In one program, without the new weights: nobody reads them."""
        after, metrics = learner.step(learner.init(key), data.batch_at(0) if feed.resident else data)
        return after.step, metrics

    step, metrics = metrics_of_a_step(jax.random.key(0), feed if feed.resident else feed.batch_at(0))
    assert step == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(metrics))
    state = jax.eval_shape(learner.init, jax.random.key(0))
    assert experiment.run.metric in jax.eval_shape(learner.evaluate, state, feeds.validation[0])
