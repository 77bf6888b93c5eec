"""Environments by name, many at once. Environments are gymnax's, or classes of this package that follow its interface.

An environment of one's own is one file: a class in research/rl/mine.py, and in the config
`Environment(name="mine:Corridor")`. `probes.py` shows how short it can be.
"""

import ast
import difflib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from research.core.errors import Failure, Mistake
from research.core.types import Tree


@dataclass(frozen=True)
class Environment:
    """Which environment.

    Attributes:
        name: a gymnax id ("CartPole-v1", "Breakout-MinAtar"), or FILE:CLASS for a class in research/rl/FILE.py
        max_steps: frames after which an episode is cut short (truncated), None for the environment's own number
    """

    name: str = "CartPole-v1"
    max_steps: int | None = None

    def __post_init__(self) -> None:
        if self.max_steps is not None and self.max_steps < 1:
            raise Mistake(f"environment.max_steps must be at least 1, not {self.max_steps}")


class Timestep(NamedTuple):
    """What environments answer to actions, leaves [environments, ...].

    observation   f32, what the next action is chosen by: of a new episode, where the old one is over
    final         f32, what the action led to, before any reset
    reward        f32
    terminated    bool, the episode ended: nothing comes after
    truncated     bool, the episode was cut short: what comes after is worth something
    """

    observation: jax.Array
    final: jax.Array
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array


class Vector(NamedTuple):
    """Many environments of one kind, as pure functions. Each draws its luck from its own key.

    reset    keys [environments] -> (states, observations f32[environments, *shape]), the start of episodes
    step     (keys [environments], states, actions i32[environments], starts) -> (states, Timestep); what is over goes
             on with its part of `starts`, which are as from `reset`
    shape    of an observation
    actions  how many there are
    limit    frames of the longest episode
    """

    reset: Callable[[jax.Array], tuple[Tree, jax.Array]]
    step: Callable[[jax.Array, Tree, jax.Array, tuple[Tree, jax.Array]], tuple[Tree, Timestep]]
    shape: tuple[int, ...]
    actions: int
    limit: int


@lru_cache
def make(how: Environment) -> Vector:
    """The environment `how` names, once: gymnax compiles anew for every instance.

    Raises Mistake where there is none of that name or its actions are continuous, Failure where it breaks gymnax's
    contract.
    """
    env = _find(how.name)
    params = env.default_params
    if how.max_steps is not None:
        params = params.replace(max_steps_in_episode=how.max_steps)
    categories = check(how.name, env, params)
    resets = type(env).step is _gymnax().environments.environment.Environment.step

    def observed(x: jax.Array) -> jax.Array:
        return x.astype(jnp.float32) if categories is None else jax.nn.one_hot(x, categories)

    def timestep(observation: Any, final: Any, reward: Any, terminated: Any, truncated: Any) -> Timestep:
        return Timestep(observation, final, reward.astype(jnp.float32), terminated.astype(bool), truncated.astype(bool))

    def reset(keys: jax.Array) -> tuple[Tree, jax.Array]:
        observation, state = jax.vmap(env.reset, (0, None))(keys, params)
        return _strong(state), observed(observation)

    def frame(key: jax.Array, state: Tree, action: jax.Array, start: tuple[Tree, jax.Array]) -> tuple[Tree, Timestep]:
        if not resets:
            after, moved, reward, terminated, truncated, info = env.step(key, state, action, params)
            return moved, timestep(observed(after), observed(info["final_observation"]), reward, terminated, truncated)
        # gymnax's own step, but for the reset: it would draw one at every frame, and here the starts are drawn at once.
        final, moved, reward, terminated, _ = env.step_env(key, state, action, params)
        final, truncated = observed(final), env.is_truncated(moved, params)
        anew = lambda start, moved: jnp.where(terminated | truncated, start, moved)
        return jax.tree.map(anew, start[0], moved), timestep(
            anew(start[1], final), final, reward, terminated, truncated
        )

    def step(
        keys: jax.Array, states: Tree, actions: jax.Array, starts: tuple[Tree, jax.Array]
    ) -> tuple[Tree, Timestep]:
        states, after = jax.vmap(frame)(keys, states, actions, starts)
        return _strong(states), after

    space = env.observation_space(params)
    return Vector(
        reset,
        step,
        shape=tuple(space.shape) if categories is None else (categories,),
        actions=int(env.action_space(params).n),
        limit=int(params.max_steps_in_episode),
    )


def _strong(tree: Tree) -> Tree:
    """Without weak types, which a scan's carry must not gain or lose."""
    return jax.tree.map(lambda x: jnp.asarray(x).astype(jnp.result_type(x)), tree)


def _find(name: str) -> Any:
    """The environment called `name`: gymnax's, or this package's own. It imports gymnax, which takes seconds."""
    file, colon, kind = name.partition(":")
    if not colon and name in _gymnax().registered_envs:
        return _gymnax().make(name)[0]
    here = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.py"))}
    # The files are read, not run, until a class of that name is found: a name may come from a run's config.json.
    own = set() if file not in here else _classes(here[file])
    if colon and kind in own:
        return getattr(importlib.import_module(f"research.rl.{file}"), kind)()
    if colon:
        there = [f"{file}:{kind}" for kind in sorted(own)] or [f"{file}:…" for file in here if file != "__init__"]
    else:
        there = list(_gymnax().registered_envs)
    near = difflib.get_close_matches(name, there, 3, 0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(there)}"
    raise Mistake(f"environment.name: there is no environment {name!r}: {hint}")


def _gymnax() -> Any:
    """The module, imported here: it takes seconds, and only reinforcement learning needs it."""
    import gymnax

    return gymnax


def _classes(path: Path) -> set[str]:
    """The public classes that a file defines."""
    nodes = ast.parse(path.read_text()).body
    return {node.name for node in nodes if isinstance(node, ast.ClassDef) and not node.name.startswith("_")}


def check(name: str, env: Any, params: Any) -> int | None:
    """Raises Failure where `env` breaks the contract. Returns the number of its observations if they are numbers."""

    def broken(what: str) -> Failure:
        return Failure(f"environment {name}: {what}")

    def called(what: str, function: Callable, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception as error:
            raise broken(f"{what} raises {type(error).__name__}: {error}") from error

    def outputs(what: str, values: Any, names: str) -> tuple:
        count = len(names.split(", "))
        if not isinstance(values, tuple) or len(values) != count:
            found = f"{len(values)} values" if isinstance(values, tuple) else "one value"
            raise broken(f"{what} returns {found}, not {count}: let it return ({names})")
        return values

    def array(what: str, value: Any, shape: tuple[int, ...]) -> None:
        if not hasattr(value, "shape"):
            raise broken(f"{what} is a {type(value).__name__}, not one array: flatten it to an array of shape {shape}")
        if value.shape != shape:
            raise broken(f"{what} has shape {value.shape}, not {shape}: mend it, or the observation space")

    actions, space = env.action_space(params), env.observation_space(params)
    if not hasattr(actions, "n"):
        raise Mistake(f"environment.name: the actions of {name} are continuous: choose one whose actions are discrete")
    key = jax.eval_shape(lambda: jax.random.key(0))
    after_reset, after_step = "observation, state", "observation, state, reward, terminated, truncated, info"
    observation, state = outputs("reset", called("reset", jax.eval_shape, env.reset, key, params), after_reset)
    array("the observation of reset", observation, tuple(space.shape))
    action = jax.ShapeDtypeStruct((), jnp.int32)
    values = called("step", jax.eval_shape, env.step, key, state, action, params)
    observation, moved, reward, terminated, truncated, info = outputs("step", values, after_step)
    if "final_observation" not in info:
        raise broken("step's info has no 'final_observation': put the observation before any reset there")
    array("the observation of step", observation, tuple(space.shape))
    array("info['final_observation']", info["final_observation"], tuple(space.shape))
    array("the reward", reward, ())
    array("terminated", terminated, ())
    array("truncated", truncated, ())
    shapes = lambda tree: [(jax.tree_util.keystr(p), x.shape, x.dtype) for p, x in jax.tree.leaves_with_path(tree)]
    for before, after in zip(shapes(state), shapes(moved), strict=False):
        if before != after:
            raise broken(f"state{before[0]} is {before[1:]} after reset and {after[1:]} after step: make them the same")
    if not jax.tree.structure(state) == jax.tree.structure(moved):  # type: ignore[operator]
        raise broken("the states of reset and step differ in structure: make them the same")

    # Once for real, for what shapes don't show; at once, even where `build` is being traced.
    with jax.ensure_compile_time_eval():
        key = jax.random.key(0)
        observation, state = called("reset", env.reset, key, params)
        observation, *_ = called("step", env.step, key, state, jnp.int32(0), params)
        if not bool(jnp.isfinite(observation).all()):
            raise broken(f"an observation isn't finite: {observation}")
    return int(space.n) if hasattr(space, "n") else None
