"""Reports on reinforcement learning: an episode's pictures and its film, and maps of values."""

import dataclasses
import itertools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments.bsuite.deep_sea import DeepSea
from gymnax.environments.misc.frozen_lake import _DIRECTIONS as DIRECTIONS
from gymnax.environments.misc.frozen_lake import FrozenLake
from learners import EXPERIMENTS
from matplotlib.image import imread
from PIL import Image

from research.core.experiment import Split
from research.core.state import Batch, State
from research.evaluation import episodes, values
from research.rl.environments import Environment, make

EMPTY = State(jnp.int32(0), jax.random.key(0), {"q": {}}, {}, {}, ())
"""For what does not read a net's parameters."""


@pytest.mark.parametrize(
    ("name", "environment"),
    [
        ("dqn", Environment("CartPole-v1", 60, frame_stack=2)),
        ("ppo_continuous", Environment("Pendulum-v1", 20, reward_scale=0.1)),
    ],
)
def test_the_episode_is_the_one_that_is_judged(name, environment, tmp_path):
    experiment = dataclasses.replace(EXPERIMENTS[name], environment=environment)
    learner, feeds = experiment.build(), experiment.feeds()
    state = jax.jit(learner.init)(jax.random.key(0))
    first = Batch(feeds.test[0].index[:1], np.ones(1, np.float32), (), ())
    (report,) = experiment.reports(None)
    returned = float(jax.jit(learner.evaluate)(state, first)["return"].value)
    assert report.run(state, Split("test", feeds.test), tmp_path) == {"episode_return": pytest.approx(returned)}
    if name == "ppo_continuous":  # the rewards of evaluation are the environment's own
        assert -20 * 16.3 < returned < -20
    assert imread(tmp_path / "episode.png").std() > 0.01
    film = Image.open(tmp_path / "episode.gif")
    assert film.n_frames == frames_of(returned, name)


def frames_of(returned: float, name: str) -> int:
    """The frames of the film: the start, and one after each action; CartPole gives 1 for each."""
    return 1 + (int(returned) if name == "dqn" else 20)


VECTORS = {"CartPole-v1": 4, "Pendulum-v1": 3, "Acrobot-v1": 6, "Reacher-misc": 8, "MountainCar-v0": 2}


@pytest.mark.parametrize(
    ("name", "shape", "frames"),
    [
        ("mine:", (6,), 2),
        ("mine:", (10, 10, 4), 2),
        ("mine:", (10, 10, 7), 2),
        *((name, (size,), 9) for name, size in VECTORS.items()),
    ],
)
def test_episodes_of_every_kind_can_be_drawn(name, shape, frames, tmp_path):
    seen = np.random.default_rng(0).integers(0, 2, (frames, *shape)).astype(np.float32)
    draw = episodes.drawer(name, seen)
    assert (draw is None) == (shape == (6,) and name == "mine:")
    episodes._sheet(draw, seen, "title", tmp_path / "episode.png")
    assert imread(tmp_path / "episode.png").std() > 0.01


@pytest.mark.parametrize("channels", [4, 6, 7, 10])
def test_every_channel_has_a_colour_of_its_own(channels):
    ax = mock.Mock()
    episodes._draw_channels(ax, np.eye(channels)[None])  # one pixel a channel
    _, options = ax.imshow.call_args
    colours = [options["cmap"](n / options["vmax"])[:3] for n in range(channels + 1)]
    apart = [np.abs(np.subtract(a, b)).sum() for a, b in itertools.combinations(colours, 2)]
    assert min(apart) > 0.15


def test_of_stacked_frames_the_newest_is_drawn(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(episodes, "_sheet", lambda draw, observations, *_: drawn.append(observations))
    config, seeds = Environment("probes:Counting", frame_stack=3), EXPERIMENTS["dqn"].feeds().test
    report = episodes.episode(config, make(config), lambda state, x: jnp.zeros(len(x), jnp.int32))
    assert report.run(EMPTY, Split("test", seeds), tmp_path) == {"episode_return": 21}
    np.testing.assert_array_equal(drawn[0], np.arange(8)[:, None])


def test_a_film_has_every_few_frames_of_a_long_episode(tmp_path):
    seen = np.zeros((201, 2, 2, 1), np.float32)
    seen[200] = 1  # the last frame, which is none of 0, 3, 6, ...
    episodes._film(episodes.drawer("mine:", seen), seen, tmp_path / "episode.gif")
    film = Image.open(tmp_path / "episode.gif")
    # Frames that look alike would be merged, but each has its number.
    assert film.n_frames == 68 and film.info["duration"] == 100
    film.seek(67)
    assert film.info["duration"] == 1000
    middle = film.convert("RGB").getpixel((120, 130))
    film.seek(66)
    assert film.convert("RGB").getpixel((120, 130)) != middle


def test_a_map_of_values_has_an_arrow_for_the_best_action():
    lake = FrozenLake()
    grid = values._frozen_lake(lake, lake.default_params)
    assert [*grid.marks[3]] == ["hole", "", "", "goal"]
    for action, direction in enumerate(np.asarray(DIRECTIONS)):  # gymnax's are (rows, columns)
        np.testing.assert_array_equal(grid.moves[1, 2, action], direction[::-1])


@pytest.mark.parametrize("randomize_actions", [True, False])
def test_the_arrows_of_deep_sea_lead_where_its_actions_lead(randomize_actions):
    sea = DeepSea(3)
    key, params = jax.random.key(0), sea.default_params.replace(randomize_actions=randomize_actions)
    grid = values._deep_sea(sea, params)
    np.testing.assert_array_equal(grid.marks == "", np.tri(3, dtype=bool))
    _, start = sea.reset_env(key, params)
    step = jax.jit(lambda row, column, action: sea.step_env(key, start.replace(row=row, column=column), action, params))
    for row, column, action in np.ndindex(3, 3, 2):
        _, after, *_ = step(row, column, action)
        right, down = grid.moves[row, column, action]
        assert (after.row, after.column) == (row + down, np.clip(column + right, 0, 2))


def test_values_of_a_grid_are_drawn(tmp_path):
    config = Environment("DeepSea-bsuite", params=(("size", 3),))
    given = np.arange(18, dtype=np.float32).reshape(9, 2)  # of each cell, by its observation
    q = lambda state, observation: observation.reshape(-1, 9) @ given
    (report,) = values.value_map(config, q)
    drawn = {}
    with mock.patch.object(values, "draw", lambda found, grid, title, path: drawn.update(found=found, path=path)):
        assert report.run(EMPTY, None, tmp_path) == {}
    np.testing.assert_array_equal(drawn["found"], given.reshape(3, 3, 2))
    values.draw(drawn["found"], values._deep_sea(DeepSea(3), DeepSea(3).default_params), "title", drawn["path"])
    assert imread(tmp_path / "values.png").std() > 0.01
    sampled = dataclasses.replace(config, params=(*config.params, ("sample_action_map", True)))
    for none in (Environment("CartPole-v1"), sampled):
        assert not [*values.value_map(none, q)]
