"""One step of every config, with tiny batches; those of data that is not here skip, saying so."""

import dataclasses

import jax
import numpy as np
import pytest

from research.core.errors import UserError
from research.data.images import Images
from research.data.pairs import Pairs
from research.data.sentences import Sentences
from research.data.text import Text
from research.data.unpaired import Unpaired
from research.training import config

pytestmark = pytest.mark.usefixtures("quickly")
LIMITS = {Text: 20_000, Sentences: 300, Pairs: 300, Images: 300, Unpaired: 300}


@pytest.mark.parametrize("name", config.names())
def test_one_step(name):
    experiment = config.load(name)
    if hasattr(experiment, "data"):
        few = {"batch": 2} | ({"limit": LIMITS[type(experiment.data)]} if type(experiment.data) in LIMITS else {})
        experiment = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, **few))
    try:
        feeds = experiment.feeds()
    except UserError as missing:
        pytest.skip(str(missing))
    learner = experiment.build()
    before = jax.jit(learner.init)(jax.random.key(0))
    after, metrics = jax.jit(learner.step)(before, feeds.train.batch_at(0))
    assert after.step == 1
    assert all(np.isfinite(mean.total) for mean in metrics.values())
    assert experiment.run.metric in jax.eval_shape(learner.evaluate, after, feeds.validation[0])
