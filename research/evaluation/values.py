"""A report on Q-learning in a grid: a map of the values of its cells."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from research.core.experiment import Report, Split
from research.core.metrics import Numbers
from research.core.state import State
from research.evaluation import plots
from research.evaluation.episodes import agent
from research.rl.environments import Environment, make, unwrapped

Q = Callable[[State, jax.Array], jax.Array]
"""(state, observations [n, ...]) -> the actions' values [n, actions]."""


class Grid(NamedTuple):
    """A grid of cells, each the observation that is 1 there and 0 elsewhere.

    Attributes:
        moves: f32[rows, columns, actions, 2], where each action leads: how far to the right, and how far down
        marks: str[rows, columns], a word for what ends an episode there or is never seen, and "" for all other cells
    """

    moves: np.ndarray
    marks: np.ndarray


def value_map(config: Environment, q: Q) -> Iterator[Report]:
    """The report values.png where the environment is a grid: each cell's greatest value, and the action that has it.

    There is none of stacked frames, nor of DeepSea where every episode samples which way its actions lead.
    """
    make_grid = _GRIDS.get(config.name)
    if make_grid is None or config.frame_stack > 1 or dict(config.params).get("sample_action_map"):
        return

    def run(state: State, split: Split, directory: Path) -> Numbers:
        grid, shape = make_grid(*unwrapped(config)), make(config).observation_shape
        cells = jnp.eye(math.prod(shape)).reshape(-1, *shape)
        found = np.asarray(jax.jit(q)(agent(state), cells)).reshape(grid.moves.shape[:3])
        draw(found, grid, f"{config.name}: the greatest value of each cell", directory / "values.png")
        return {}

    yield Report(run)


def draw(values: np.ndarray, grid: Grid, title: str, path: Path) -> None:
    """A map of values f32[rows, columns, actions], with an arrow for the best action of each cell."""
    rows, columns, _ = values.shape
    best, chosen = np.where(grid.marks == "", values.max(-1), np.nan), values.argmax(-1)
    figure = Figure(figsize=(1.2 + 0.8 * columns, 0.8 + 0.8 * rows), dpi=110, layout="constrained")
    ax = figure.subplots()
    ax.set_facecolor("#dddddd")
    figure.colorbar(ax.imshow(best, cmap="viridis"), ax=ax, shrink=0.8)
    middle = (np.nanmin(best) + np.nanmax(best)) / 2
    for row, column in np.ndindex(rows, columns):
        if grid.marks[row, column]:
            ax.text(column, row, str(grid.marks[row, column]), ha="center", va="center")
            continue
        colour = "white" if best[row, column] < middle else "black"
        ax.text(column, row + 0.32, f"{best[row, column]:z.2f}", ha="center", va="center", color=colour, fontsize=8)
        x, y = 0.3 * grid.moves[row, column, chosen[row, column]]
        head, tail = (column + x, row - 0.1 + y), (column - x, row - 0.1 - y)
        ax.annotate("", head, tail, arrowprops={"arrowstyle": "->", "color": colour, "lw": 1.5})
    ax.set(xticks=[], yticks=[])
    ax.set_title(title, fontsize=10)
    plots.write(figure, path)


def _frozen_lake(env: Any, _: Any) -> Grid:
    """The actions are left, down, right and up; on slippery ice one may lead to its sides as well."""
    moves = np.array([[-1, 0], [0, 1], [1, 0], [0, -1]], float)
    desc = np.asarray(env.desc)
    return Grid(np.broadcast_to(moves, (*desc.shape, 4, 2)), np.array(["", "", "hole", "goal"])[desc])


def _deep_sea(env: Any, params: Any) -> Grid:
    """One action leads down to the right and the other down to the left.

    Which one leads to the right differs from cell to cell; where randomize_actions is False it is action 1.
    """
    mapping = np.asarray(env.action_mapping) if params.randomize_actions else np.ones((env.size, env.size))
    right = np.arange(2) == mapping[..., None]
    moves = np.stack([np.where(right, 1.0, -1.0), np.ones(right.shape)], -1)
    rows, columns = np.indices(right.shape[:2])
    return Grid(moves, np.where(columns > rows, "·", ""))  # no way leads there


_GRIDS: dict[str, Callable[[Any, Any], Grid]] = {"FrozenLake-misc": _frozen_lake, "DeepSea-bsuite": _deep_sea}
