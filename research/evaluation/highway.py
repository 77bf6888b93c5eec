"""A report on driving a highway: pictures of an episode, and collisions and speed beside those of other drivers."""

import math
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw
from scipy.special import gammaincinv

from research.core.experiment import Report, Split
from research.core.files import failing, replacing
from research.core.metrics import Numbers
from research.core.state import State
from research.core.transformations import each_seed
from research.evaluation import plots
from research.evaluation.episodes import Act, Episode, agent, episode, player
from research.evaluation.plots import COLOURS
from research.evaluation.seeds import by_seed
from research.rl.environments import Environment, VectorEnv, unwrapped
from research.rl.evaluation import episode_keys
from research.rl.highway import DT, IDM_MOBIL, KEEP, LANE, LENGTH, WIDTH, Highway, HighwayParams, HighwayState
from research.rl.rollout import Policy

BASELINES: dict[str, Policy] = {
    "idm_mobil": lambda observation, uniform: jnp.full(uniform.shape, IDM_MOBIL),
    "constant": lambda observation, uniform: jnp.full(uniform.shape, KEEP),
    "random": lambda observation, uniform: (uniform * 5).astype(jnp.int32),
}
"""Drivers to compare with: IDM and MOBIL, whose desired speed is the greatest that there is; one that keeps its lane
and its speed; and random actions."""

METRICS = ("collisions_per_km", "collisions_per_km_bound", "speed")
"""What is measured of every driver; see `Drives`."""

PIXELS, SHOWN, ROWS = 5, 100, 10
"""Pixels of a metre, metres shown ahead and behind, and moments in episode.png."""


class Drives(NamedTuple):
    """How some episodes went, [episodes].

    Attributes:
        distance: f32, in metres
        seconds: f32, until the end or a collision
        collided: bool
    """

    distance: jax.Array
    seconds: jax.Array
    collided: jax.Array

    def numbers(self) -> dict[str, float]:
        """Collisions per kilometre, their upper 95 % Poisson bound, and the mean speed in m/s."""
        metres, seconds, collisions = (float(np.asarray(x).sum(dtype=np.float64)) for x in self)
        of_km = lambda count: count / (metres / 1000)
        return dict(
            zip(METRICS, (of_km(collisions), of_km(poisson_bound(int(collisions))), metres / seconds), strict=True)
        )


def poisson_bound(count: int) -> float:
    """The mean of which a Poisson variable exceeds `count` with probability 0.95: its exact upper bound.

    Garwood 1936, doi:10.1093/biomet/28.3-4.437; one-sided.
    """
    return float(gammaincinv(count + 1, 0.95))


def drives(env: Highway, params: HighwayParams, policy: Policy, seeds: jax.Array) -> Drives:
    """An episode of each seed i32[episodes], driven by `policy`."""
    reset_keys, frame_keys = jax.vmap(episode_keys)(seeds)

    def frame(carry: tuple[jax.Array, HighwayState], time: jax.Array) -> tuple[tuple[jax.Array, HighwayState], None]:
        observation, state = carry
        keys = jax.vmap(jax.random.fold_in, (0, None))(frame_keys, time)
        action = policy(observation, jax.vmap(jax.random.uniform)(keys))
        observation, state, *_ = jax.vmap(env.step_env, (0, 0, 0, None))(keys, state, action, params)
        return (observation, state), None  # nothing moves after a crash, and no time passes

    start = jax.vmap(env.reset_env, (0, None))(reset_keys, params)
    times = jnp.arange(params.max_steps_in_episode)
    (_, state), _ = jax.lax.scan(frame, start, times)
    return Drives(state.distance, state.seconds, state.crashed)


def report(config: Environment, environment: VectorEnv, act: Act) -> Report:
    """episode.png and episode.gif, of the greedy episode of the first test seed; its return; and `compared`, of all.

    In wrappers that change what an agent sees or does, `episode` alone.
    """
    plain = Environment(config.name, config.max_steps, config.params)
    if config.unscaled != plain:
        return episode(config, environment, act)
    play, (env, params) = player(environment, act), unwrapped(plain)

    def run(state: State, split: Split, directory: Path) -> Numbers:
        driver = agent(state)
        found = play(driver, int(split.batches[0].index[0]))
        pictures(env, params, found, directory)
        seeds = np.concatenate([batch.index[batch.mask > 0] for batch in split.batches])
        return {"episode_return": float(found.rewards.sum()), **compared(env, params, act, state, seeds)}

    return Report(run)


def compared(env: Highway, params: HighwayParams, act: Act, state: State, seeds: np.ndarray) -> Numbers:
    """What is measured of each seed of an agent by the names of `METRICS`, and of each baseline by NAME_METRIC, in the
    episodes of `seeds`."""

    @jax.jit
    def measured(driver: State, which: jax.Array) -> Drives:
        policies = (lambda observation, uniform: act(driver, observation), *BASELINES.values())
        chosen = lambda observation, uniform: jnp.stack([of(observation, uniform) for of in policies])[which]
        return drives(env, params, chosen, jnp.asarray(seeds))

    drivers = [one._replace(world=()) for one in each_seed(state)]
    own = by_seed([measured(driver, jnp.int32(0)).numbers() for driver in drivers])
    others = {name: measured(drivers[0], jnp.int32(n)).numbers() for n, name in enumerate(BASELINES, 1)}
    return own | {f"{name}_{metric}": x for name, of in others.items() for metric, x in of.items()}


def pictures(env: Highway, params: HighwayParams, found: Episode, directory: Path) -> None:
    """episode.png and episode.gif, of an episode."""
    states = jax.jit(lambda *given: replayed(env, params, *given))(found.start, jnp.array(found.actions))
    states = jax.device_get(states)
    sheet(states, params.ring, env.lanes, found.title("highway"), directory / "episode.png")
    film(states, params.ring, env.lanes, directory / "episode.gif")


def replayed(env: Highway, params: HighwayParams, start: HighwayState, actions: jax.Array) -> HighwayState:
    """The start of an episode and every sub-step of its decisions i32[decisions]; leaves [1 + sub-steps, ...]."""
    slow = Highway(env.cars, env.lanes, 1, env.observation)
    later = jnp.full((len(actions), env.substeps - 1), KEEP, jnp.int32)
    later = jnp.where(actions[:, None] == IDM_MOBIL, IDM_MOBIL, later)
    each = jnp.concatenate([actions[:, None], later], 1).reshape(-1)

    def substep(state: HighwayState, action: jax.Array) -> tuple[HighwayState, HighwayState]:
        _, state, *_ = slow.step_env(jax.random.key(0), state, action, params)
        return state, state

    _, states = jax.lax.scan(substep, start, each)
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), start, states)


def draw(state: HighwayState, ring: float, lanes: int) -> Image.Image:
    """The road around the agent's car, seen from above; it drives to the right, and is orange."""
    cars = jax.tree.map(np.asarray, state.cars)
    height = round((lanes * LANE + 2) * PIXELS)
    picture = Image.new("RGB", (2 * SHOWN * PIXELS, height), "#9a9a9a")
    pen = ImageDraw.Draw(picture)
    place = lambda x, y: ((x + SHOWN) * PIXELS, height - (y + LANE / 2 + 1) * PIXELS)
    pen.rectangle([place(-SHOWN, (lanes - 0.5) * LANE), place(SHOWN, -LANE / 2)], fill="#555555")
    for lane in range(1, lanes):
        for x in np.arange(-SHOWN - float(cars.x[0]) % 12, SHOWN, 12):
            pen.line([place(x, (lane - 0.5) * LANE), place(x + 4, (lane - 0.5) * LANE)], fill="white", width=2)
    away = (cars.x - cars.x[0] + ring / 2) % ring - ring / 2
    for i in reversed(range(len(away))):
        forward, left = (
            np.array([math.cos(cars.heading[i]), math.sin(cars.heading[i])]) / 2,
            np.array([[0, -1], [1, 0]]),
        )
        corners = [LENGTH * a * forward + WIDTH * b * (left @ forward) for a, b in ((1, 1), (1, -1), (-1, -1), (-1, 1))]
        colour = COLOURS[1] if i == 0 else COLOURS[5]
        outline = "#ff0000" if i == 0 and state.crashed else "black"
        pen.polygon([place(away[i] + x, cars.y[i] + y) for x, y in corners], fill=colour, outline=outline)
        pen.text(place(away[i] - 6.5, cars.y[i] + 1), f"{cars.speed[i]:.0f}", fill="white", font_size=10)
    return picture


def sheet(states: HighwayState, ring: float, lanes: int, title: str, path: Path) -> None:
    """`ROWS` moments of an episode, one below another."""
    frames = len(states.time)
    moments = np.unique(np.linspace(0, frames - 1, ROWS).round().astype(int))
    rows = [draw(jax.tree.map(lambda x, t=t: x[t], states), ring, lanes) for t in moments]
    width, height = rows[0].size
    page = Image.new("RGB", (width + 60, 24 + len(rows) * (height + 6)), "white")
    pen = ImageDraw.Draw(page)
    pen.text((60, 4), title, fill="black", font_size=14)
    for i, (t, row) in enumerate(zip(moments, rows, strict=True)):
        top = 24 + i * (height + 6)
        page.paste(row, (60, top))
        pen.text((6, top + height // 2 - 8), f"{t * DT:.1f} s", fill="black", font_size=14)
    with failing("write", path), replacing(path) as temporary:
        page.save(temporary)


def film(states: HighwayState, ring: float, lanes: int, path: Path) -> None:
    """A GIF of every sub-step, at the speed of time."""
    frames = [draw(jax.tree.map(lambda x, t=t: x[t], states), ring, lanes) for t in range(len(states.time))]
    plots.film(frames, round(1000 * DT), path)
