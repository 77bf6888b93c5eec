"""A report on reinforcement learning: pictures of an episode."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from research.core.experiment import Numbers, Report, Split
from research.core.files import failing, replacing
from research.core.state import State
from research.core.transformations import first_seed
from research.core.types import Tree
from research.evaluation import highway
from research.evaluation import plots as plot
from research.rl.environments import Timestep, VectorEnv
from research.rl.evaluation import episode_keys

FRAMES = 12
"""Frames shown in episode.png."""


def episode(name: str, environment: VectorEnv, q: Callable[[Tree, jax.Array], jax.Array]) -> Report:
    """episode.png, pictures of the greedy episode of the first test seed; and episode_return, its return.

    Of a highway also episode.gif, and what `highway.compared` measures on all test seeds.

    q  (params, observations [num_envs, ...]) -> values [num_envs, actions]
    """
    reset = jax.jit(lambda key: environment.reset(key[None]))
    is_highway = name == "highway:Highway"

    @jax.jit
    def step(
        params: Tree, key: jax.Array, time: int, states: Tree, observation: jax.Array
    ) -> tuple[Tree, Timestep, jax.Array]:
        keys, action = jax.random.fold_in(key, time)[None], q(params, observation).argmax(-1)
        # The episode ends before the reset, so what the reset gives is never used.
        return *environment.step(keys, states, action, (states, observation)), action[0]

    def run(state: State, split: Split, directory: Path) -> Numbers:
        params, seed = first_seed(state).params["q"], int(split.batches[0].index[0])
        reset_key, key = episode_keys(seed)
        states, observation = start = reset(reset_key)
        observations, rewards, actions = [np.asarray(observation[0])], [], []
        for time in range(environment.max_steps):
            states, timestep, action = step(params, key, time, states, observation)
            actions.append(int(action))
            observation = timestep.observation
            observations.append(np.asarray(timestep.next_observation[0]))
            rewards.append(float(timestep.reward[0]))
            if timestep.terminated[0] or timestep.truncated[0]:
                break
        title = f"{name}, greedy episode of seed {seed}: return {sum(rewards):g} after {len(rewards)} frames"
        returned = {"episode_return": sum(rewards)}
        if is_highway:
            first = jax.tree.map(lambda x: x[0], start[0])
            highway.pictures(environment.max_steps, first, actions, title, directory)
            seeds = np.concatenate([batch.index[batch.mask > 0] for batch in split.batches])
            policy = lambda observation, uniform: q(params, observation).argmax(-1)
            return returned | highway.compared(environment.max_steps, policy, seeds)
        _draw_episode(name, np.stack(observations), title, directory / "episode.png")
        return returned

    return Report(run, metrics=("episode_return", *(highway.NAMES if is_highway else ())))


def _draw_episode(name: str, observations: np.ndarray, title: str, path: Path) -> None:
    """Draws `FRAMES` frames of environments whose frames can be drawn, and the observations over time of others."""
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
    """Cart and pole, in metres. An episode ends where the cart is 2.4 m off the centre, or the pole 12° off."""
    x, _, angle, _ = observation
    ax.plot([-2.4, 2.4], [0, 0], color="#bbbbbb", lw=1, zorder=0)
    ax.add_patch(Rectangle((x - 0.25, -0.15), 0.5, 0.3, color=plot.COLOURS[0]))
    ax.plot([x, x + np.sin(angle)], [0.15, 0.15 + np.cos(angle)], color=plot.COLOURS[1], lw=3)
    ax.set(xlim=(-3, 3), ylim=(-0.4, 1.4), aspect="equal")


def _draw_channels(ax: Axes, observation: np.ndarray) -> None:
    """An observation [height, width, channels] of zeros and ones, a colour for each channel; the last is on top."""
    channels = observation.shape[-1]
    colours = ListedColormap(["#222222", *(plot.COLOURS[i % 6] for i in range(channels))])
    top = np.where(observation > 0, np.arange(1, channels + 1), 0).max(-1)
    ax.imshow(top, cmap=colours, vmin=0, vmax=channels, interpolation="nearest")
