"""A report on reinforcement learning: an episode in pictures."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from research.core.experiment import Feeds, Report
from research.core.files import failing, replacing
from research.core.state import State, Tree
from research.core.transformations import first
from research.evaluation import plots as plot
from research.rl.environments import Timestep, VectorEnv
from research.rl.evaluation import episode_keys

FRAMES = 12
"""Frames in episode.png."""


def episode(name: str, environment: VectorEnv, q: Callable[[Tree, jax.Array], jax.Array]) -> Report:
    """The greedy episode of the first test seed, in pictures: episode.png; and its return.

    q  (params, observations [1, ...]) -> [1, actions]
    """
    reset = jax.jit(lambda key: environment.reset(key[None]))

    @jax.jit
    def step(params: Tree, key: jax.Array, time: int, states: Tree, observation: jax.Array) -> tuple[Tree, Timestep]:
        luck, action = jax.random.fold_in(key, time)[None], q(params, observation).argmax(-1)
        return environment.step(luck, states, action, (states, observation))  # it is over before it starts anew

    def report(state: State, feeds: Feeds, directory: Path) -> dict[str, float]:
        params, seed = first(state, state.params), int(feeds.test[0].index[0])
        reset_key, key = episode_keys(seed)
        states, observation = reset(reset_key)
        seen, rewards = [np.asarray(observation[0])], []
        for time in range(environment.max_steps):
            states, after = step(params, key, time, states, observation)
            observation = after.observation
            seen.append(np.asarray(after.next_observation[0]))
            rewards.append(float(after.reward[0]))
            if after.terminated[0] or after.truncated[0]:
                break
        title = f"{name}, greedy episode of seed {seed}: return {sum(rewards):g} after {len(rewards)} frames"
        _draw_episode(name, np.stack(seen), title, directory / "episode.png")
        return {"episode_return": sum(rewards)}

    return report


def _draw_episode(name: str, observations: np.ndarray, title: str, path: Path) -> None:
    """A strip of frames where a frame can be drawn, else the observations over time."""
    drawers: dict[str, Callable[[Axes, np.ndarray], None]] = {"CartPole-v1": _draw_cartpole}
    draw = drawers.get(name, _draw_channels if observations.ndim == 4 else None)
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
    with failing("write", path), replacing(path) as temporary:
        figure.savefig(temporary)


def _draw_cartpole(ax: Axes, observation: np.ndarray) -> None:
    """Cart and pole, in metres; the episode ends at 2.4 from the middle, or with the pole 12° off."""
    x, _, angle, _ = observation
    ax.plot([-2.4, 2.4], [0, 0], color="#bbbbbb", lw=1, zorder=0)
    ax.add_patch(Rectangle((x - 0.25, -0.15), 0.5, 0.3, color=plot.COLOURS[0]))
    ax.plot([x, x + np.sin(angle)], [0.15, 0.15 + np.cos(angle)], color=plot.COLOURS[1], lw=3)
    ax.set(xlim=(-3, 3), ylim=(-0.4, 1.4), aspect="equal")


def _draw_channels(ax: Axes, observation: np.ndarray) -> None:
    """[height, width, channels] of zeros and ones: a colour for each channel, the last one on top."""
    channels = observation.shape[-1]
    colours = ListedColormap(["#222222", *(plot.COLOURS[i % 6] for i in range(channels))])
    top = np.where(observation > 0, np.arange(1, channels + 1), 0).max(-1)
    ax.imshow(top, cmap=colours, vmin=0, vmax=channels, interpolation="nearest")
