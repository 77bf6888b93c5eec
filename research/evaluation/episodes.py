"""A report on reinforcement learning: pictures and a film of an episode."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from research.core.experiment import Report, Split
from research.core.metrics import Numbers
from research.core.state import State
from research.core.transformations import first_seed
from research.core.types import Tree
from research.evaluation import plots as plot
from research.rl.environments import Environment, Timestep, VectorEnv
from research.rl.evaluation import episode_keys

FRAMES = 12
"""Frames shown in episode.png."""

FILM = 100
"""Frames that episode.gif has at most; of longer episodes it has every second one, every third one, ..."""

Draw = Callable[[Axes, np.ndarray], None]
"""Draws an observation on axes."""

Act = Callable[[State, jax.Array], jax.Array]
"""(state, observations [n, ...]) -> actions [n, ...]; the state is that of one seed, without its world."""


class Episode(NamedTuple):
    """A greedy episode.

    Attributes:
        seed: its seed
        start: the environment's state at its start
        observations: [frames + 1, ...]
        actions: [frames, ...]
        rewards: f32[frames]
    """

    seed: int
    start: Tree
    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray

    def title(self, name: str) -> str:
        """A line about it."""
        frames = len(self.rewards)
        return f"{name}, greedy episode of seed {self.seed}: return {self.rewards.sum():g} after {frames} frames"


def player(environment: VectorEnv, act: Act) -> Callable[[State, int], Episode]:
    """(state, seed) -> the episode of that seed."""
    reset = jax.jit(lambda key: environment.reset(key[None]))

    @jax.jit
    def step(
        state: State, key: jax.Array, time: int, states: Tree, observation: jax.Array
    ) -> tuple[Tree, Timestep, jax.Array]:
        keys, action = jax.random.fold_in(key, time)[None], act(state, observation)
        # The episode ends before the reset, so what the reset gives is never used.
        return *environment.step(keys, states, action, (states, observation)), action[0]

    def played(state: State, seed: int) -> Episode:
        reset_key, key = episode_keys(seed)
        states, observation = start = reset(reset_key)
        observations, rewards, actions = [np.asarray(observation[0])], [], []
        for time in range(environment.max_steps):
            states, timestep, action = step(state, key, time, states, observation)
            observation = timestep.observation
            actions.append(np.asarray(action))
            observations.append(np.asarray(timestep.next_observation[0]))
            rewards.append(np.asarray(timestep.reward[0]))
            if timestep.terminated[0] or timestep.truncated[0]:
                break
        first = jax.tree.map(lambda x: x[0], start[0])
        return Episode(seed, first, np.stack(observations), np.stack(actions), np.stack(rewards))

    return played


def agent(state: State) -> State:
    """What acts: the first seed's State, without its world."""
    return first_seed(state)._replace(world=())


def episode(config: Environment, environment: VectorEnv, act: Act) -> Report:
    """episode.png, pictures of the greedy episode of the first test seed; and episode_return, its return.

    Where frames can be drawn there is episode.gif besides, a film of it.
    """
    play = player(environment, act)

    def run(state: State, split: Split, directory: Path) -> Numbers:
        found = play(agent(state), int(split.batches[0].index[0]))
        size = found.observations.shape[-1] // config.frame_stack
        frames = found.observations[..., -size:]  # the newest of those that an observation stacks
        draw = drawer(config.name, frames)
        _sheet(draw, frames, found.title(config.name), directory / "episode.png")
        if draw is not None:
            _film(draw, frames, directory / "episode.gif")
        return {"episode_return": float(found.rewards.sum())}

    return Report(run)


def drawer(name: str, observations: np.ndarray) -> Draw | None:
    """What draws a frame of the environment `name`, whose observations are [frames, ...]; None where nothing does."""
    drawers: dict[str, Draw] = {
        "CartPole-v1": _draw_cartpole,
        "Pendulum-v1": _draw_pendulum,
        "Acrobot-v1": _draw_acrobot,
        "MountainCar-v0": _draw_mountain_car,
        "Reacher-misc": _draw_reacher,
    }
    return drawers.get(name, _draw_channels if observations.ndim == 4 else None)


def _sheet(draw: Draw | None, observations: np.ndarray, title: str, path: Path) -> None:
    """Draws `FRAMES` frames, or the observations over time where frames can't be drawn."""
    figure = Figure(figsize=(10, 2.5 if draw is _draw_cartpole else 4), dpi=130, layout="constrained")
    figure.suptitle(title, fontsize=11)
    if draw is None:
        ax = figure.subplots()
        ax.plot(observations.reshape(len(observations), -1), lw=1)
        ax.set(xlabel="frame", ylabel="observation")
    else:
        times = np.unique(np.linspace(0, len(observations) - 1, FRAMES).round().astype(int))
        for i, time in enumerate(times):
            ax = figure.add_subplot(2, FRAMES // 2, i + 1)
            draw(ax, observations[time])
            ax.set(xticks=[], yticks=[])
            ax.set_title(f"frame {time}", fontsize=8)
    plot.write(figure, path)


def _film(draw: Draw, observations: np.ndarray, path: Path) -> None:
    """A GIF of an episode, ten frames a second, which ends with its last frame and stays there for a second."""
    figure = Figure(figsize=(3, 3), dpi=80)
    canvas, ax = FigureCanvasAgg(figure), figure.add_axes((0.02, 0.02, 0.96, 0.9))
    pictures, last = [], len(observations) - 1
    for time in (*range(0, last, -(-last // (FILM - 1)) or 1), last):
        ax.clear()
        draw(ax, observations[time])
        ax.set(xticks=[], yticks=[])
        ax.set_title(f"frame {time}", fontsize=9)
        canvas.draw()
        pictures.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("P", palette=Image.Palette.ADAPTIVE))
    durations = [100] * (len(pictures) - 1) + [1000]
    plot.film(pictures, durations, path)


def _draw_cartpole(ax: Axes, observation: np.ndarray) -> None:
    """Cart and pole, in metres. An episode ends where the cart is 2.4 m off the centre, or the pole 12° off."""
    x, _, angle, _ = observation
    ax.plot([-2.4, 2.4], [0, 0], color="#bbbbbb", lw=1, zorder=0)
    ax.add_patch(Rectangle((x - 0.25, -0.15), 0.5, 0.3, color=plot.COLOURS[0]))
    ax.plot([x, x + np.sin(angle)], [0.15, 0.15 + np.cos(angle)], color=plot.COLOURS[1], lw=3)
    ax.set(xlim=(-3, 3), ylim=(-0.4, 1.4), aspect="equal")


def _draw_pendulum(ax: Axes, observation: np.ndarray) -> None:
    """The pendulum, of length 1. Its angle is 0 where it stands upright, which costs nothing."""
    cos, sin, _ = observation
    _draw_arm(ax, [(0, 0), (sin, cos)])


def _draw_acrobot(ax: Axes, observation: np.ndarray) -> None:
    """Two links of length 1, both angles 0 where they hang; the episode ends where the tip is above the line."""
    first = np.arctan2(observation[1], observation[0])
    second = first + np.arctan2(observation[3], observation[2])
    joint = np.array([np.sin(first), -np.cos(first)])
    ax.plot([-2, 2], [1, 1], color="#bbbbbb", lw=1, zorder=0)
    tip = joint + np.array([np.sin(second), -np.cos(second)])
    _draw_arm(ax, [(0, 0), joint, tip])


def _draw_mountain_car(ax: Axes, observation: np.ndarray) -> None:
    """The car on its hill, whose height is sin(3 x); the flag is at 0.5."""
    x = np.linspace(-1.2, 0.6, 100)
    ax.plot(x, np.sin(3 * x), color="#bbbbbb", lw=1, zorder=0)
    ax.plot([0.5, 0.5], [np.sin(1.5), np.sin(1.5) + 0.3], color=plot.COLOURS[2], lw=3)
    ax.plot(observation[0], np.sin(3 * observation[0]), "o", color=plot.COLOURS[0])
    ax.set(xlim=(-1.25, 0.65), ylim=(-1.2, 1.5))


def _draw_reacher(ax: Axes, observation: np.ndarray) -> None:
    """The arm, whose links have length 1, and its goal. Angles are not relative to the link before."""
    cos, sin, _ = observation[:-2].reshape(3, -1)
    steps = np.stack([cos, sin], -1)
    ax.plot(*observation[-2:], "o", color=plot.COLOURS[2])
    _draw_arm(ax, [(0, 0), *np.cumsum(steps, 0)])


def _draw_arm(ax: Axes, points: Sequence[Any]) -> None:
    """Links between points, the first of them fixed."""
    x, y = np.array(points).T
    ax.plot(x, y, "-", color=plot.COLOURS[1], lw=3, solid_capstyle="round")
    ax.plot(x[:-1], y[:-1], "o", color=plot.COLOURS[0])
    reach = 1.2 * (len(x) - 1)
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")


def _draw_channels(ax: Axes, observation: np.ndarray) -> None:
    """An observation [height, width, channels] of zeros and ones, a colour for each channel; the last is on top."""
    channels = observation.shape[-1]
    own = plot.palette(channels if channels < 7 else max(channels, 8))  # the palette's seventh is black
    colours = ListedColormap(["#222222", *own[:channels]])
    top = np.where(observation > 0, np.arange(1, channels + 1), 0).max(-1)
    ax.imshow(top, cmap=colours, vmin=0, vmax=channels, interpolation="nearest")
