"""One step of every config, traced, with tiny batches; those whose data or environment is not here skip, saying so.

What is computed by them, test_golden.py has.
"""

import dataclasses
import re
from importlib import import_module

import jax
import pytest

from research.core.errors import NotInstalled, UserError
from research.data.text import Text
from research.training import config
from research.training.checks import check_contract
from research.training.run import load


def test_what_a_config_says_of_its_step_is_so():
    stated = {}
    for name in config.names():
        of_step = re.search(
            r"([\d,]+) frames and ([\d,]+) updates per step", import_module(f"configs.{name}").config.__doc__ or ""
        )
        if of_step is not None:
            experiment = config.load(name)
            updates = (
                experiment.updates if hasattr(experiment, "updates") else experiment.epochs * experiment.minibatches
            )
            stated[name] = [int(number.replace(",", "")) for number in of_step.groups()]
            assert stated[name] == [experiment.frames, updates], name
    assert len(stated) > 10


@pytest.mark.parametrize("name", config.names())
def test_one_step(name):
    """Of the net's real size: it fits the data, and keeps the contract of a learner."""
    experiment = config.load(name)
    if hasattr(experiment, "data"):
        few = {"batch": 2, "labels": 20, "limit": 20_000 if isinstance(experiment.data, Text) else 300}
        known = {field.name for field in dataclasses.fields(experiment.data)}
        few = {name: value for name, value in few.items() if name in known}
        experiment = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, **few))
    if hasattr(experiment, "probe_labels"):
        experiment = dataclasses.replace(experiment, probe_labels=(20,))
    if hasattr(experiment, "minibatches"):
        experiment = dataclasses.replace(experiment, num_envs=2, epochs=1)
    try:
        feeds = experiment.feeds()
    except UserError as missing:
        pytest.skip(str(missing))
    try:
        learner, key, batch = experiment.build(), jax.random.key(0), feeds.train.batch_at(0)
        reports = tuple(experiment.reports(load))
    except NotInstalled as missing:
        pytest.skip(str(missing))
    state = check_contract(learner, key, batch, feeds.validation[0], experiment, reports)
    assert state.step.shape == () and jax.tree.leaves(state.params)
