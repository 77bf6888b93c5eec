"""Reports: what is made of a finished run besides its test metrics. Of several seeds, of the first."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from research import plot
from research.envs.vector import Timestep, Vector
from research.experiment import Feeds, Report
from research.files import failing, replacing
from research.state import State, Tree

EXAMPLES = 48
"""Images in predictions.png."""

FRAMES = 12
"""Frames in episode.png."""


def first(state: State, tree: Tree) -> Tree:
    """`tree`, of `state`, on one device; where the State has the axis of `lift.seeds`, the first seed's."""
    return jax.device_put(jax.tree.map(lambda x: x[0] if state.key.ndim else x, jax.device_get(tree)))


def classification(logits: Callable[[Tree, dict[str, Tree], jax.Array], jax.Array], names: Sequence[str]) -> Report:
    """Test images, those classified wrongly first, in predictions.png; all of them counted in confusion.png.

    logits  (params, collections, images u8[batch, h, w, c]) -> [batch, classes], as they are evaluated
    names   of the classes
    """
    logits = jax.jit(logits)

    def report(state: State, feeds: Feeds, directory: Path) -> dict[str, float]:
        weights = first(state, (state.params, state.collections))
        there = np.concatenate([batch.mask for batch in feeds.test]) > 0
        gathered = lambda values: np.concatenate([np.asarray(x) for x in values])[there]
        outputs = gathered(logits(*weights, batch.inputs) for batch in feeds.test)
        truth = gathered(batch.targets for batch in feeds.test)
        images = gathered(batch.inputs for batch in feeds.test)

        predicted, rows = outputs.argmax(1), np.arange(len(truth))
        wrong = predicted != truth
        # By how much the right answer leads the best other one: below 0 where it is wrong.
        others = outputs.copy()
        others[rows, truth] = -np.inf
        shown = np.argsort(outputs[rows, truth] - others.max(1))[:EXAMPLES]
        captions = [
            f"says {names[predicted[i]]},\nis {names[truth[i]]}" if wrong[i] else names[truth[i]] for i in shown
        ]
        plot.image_grid(images[shown], captions, directory / "predictions.png", columns=8)

        matrix = np.zeros((len(names), len(names)), int)
        np.add.at(matrix, (truth, predicted), 1)
        plot.confusion(matrix, names, directory / "confusion.png")
        return {"mistakes": int(wrong.sum())}

    return report


def filters(state: State, feeds: Feeds, directory: Path) -> dict[str, float]:
    """The kernels of the first convolution as images in filters.png; of several channels, red, green and blue."""
    params: Tree = state.collections.get("average", state.params)
    if "Conv_0" not in params:
        return {}
    kernel = np.asarray(first(state, params["Conv_0"]["kernel"]))  # [height, width, channels, filters]
    if kernel.shape[2] in (1, 3):
        scaled = 0.5 + kernel / (2 * np.abs(kernel).max())  # 0 is in the middle
        plot.image_grid(scaled.transpose(3, 0, 1, 2), None, directory / "filters.png")
    return {}


def episode(name: str, environment: Vector, q: Callable[[Tree, jax.Array], jax.Array]) -> Report:
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
        key = jax.random.key(seed)
        states, observation = reset(key)
        seen, rewards = [np.asarray(observation[0])], []
        for time in range(environment.limit):
            states, after = step(params, key, time, states, observation)
            observation = after.observation
            seen.append(np.asarray(after.final[0]))
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
