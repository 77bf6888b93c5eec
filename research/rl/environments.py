"""Vectors of environments by name: gymnax's environments, or classes of this package that follow gymnax's interface.

A new environment is one file: a class in research/rl/mine.py, and in the config `Environment(name="mine:Corridor")`.
`probes.py` has short examples.
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

from research.core.errors import RunError, UserError
from research.core.types import Tree


@dataclass(frozen=True)
class Environment:
    """The environment of an experiment.

    Attributes:
        name: a gymnax id ("CartPole-v1", "Breakout-MinAtar"), or FILE:CLASS for a class in research/rl/FILE.py
        max_steps: number of frames after which an episode is truncated; None for the environment's own limit
    """

    name: str = "CartPole-v1"
    max_steps: int | None = None

    def __post_init__(self) -> None:
        if self.max_steps is not None and self.max_steps < 1:
            raise UserError(f"environment.max_steps must be at least 1, not {self.max_steps}")


class Timestep(NamedTuple):
    """What environments return for their actions. Leaves [num_envs, ...].

    Attributes:
        observation: f32, what the next action is chosen by; the first of a new episode where the old one is done
        next_observation: f32, what the action led to, before any reset
        reward: f32
        terminated: bool, the episode ended: nothing follows it
        truncated: bool, the episode was cut short: what would have followed still has a value
    """

    observation: jax.Array
    next_observation: jax.Array
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array


class VectorEnv(NamedTuple):
    """Many environments of one kind, as pure functions. Each environment has its own key.

    Attributes:
        reset: keys [num_envs] -> (states, observations f32[num_envs, *observation_shape]), the start of episodes
        step: (keys [num_envs], states, actions i32[num_envs], starts) -> (states, Timestep). `starts` are as from
            `reset`; an environment whose episode is done continues from its part of them
        observation_shape: the shape of one observation
        num_actions: the number of actions
        max_steps: number of frames of the longest episode
    """

    reset: Callable[[jax.Array], tuple[Tree, jax.Array]]
    step: Callable[[jax.Array, Tree, jax.Array, tuple[Tree, jax.Array]], tuple[Tree, Timestep]]
    observation_shape: tuple[int, ...]
    num_actions: int
    max_steps: int


@lru_cache
def make(config: Environment) -> VectorEnv:
    """The environments that `config` names. The result is cached, because gymnax compiles anew for every instance.

    Raises UserError if there is none of that name or if its actions are continuous, and RunError if it breaks gymnax's
    interface.
    """
    env = _find(config.name)
    params = env.default_params
    if config.max_steps is not None:
        params = params.replace(max_steps_in_episode=config.max_steps)
    categories = check(config.name, env, params)
    default_step = type(env).step is _gymnax().environments.environment.Environment.step

    def encoded(x: jax.Array) -> jax.Array:
        return x.astype(jnp.float32) if categories is None else jax.nn.one_hot(x, categories)

    def timestep(observation: Any, next_observation: Any, reward: Any, terminated: Any, truncated: Any) -> Timestep:
        flags = terminated.astype(bool), truncated.astype(bool)
        return Timestep(observation, next_observation, reward.astype(jnp.float32), *flags)

    def reset(keys: jax.Array) -> tuple[Tree, jax.Array]:
        observation, state = jax.vmap(env.reset, (0, None))(keys, params)
        return _strong(state), encoded(observation)

    def step_one(
        key: jax.Array, state: Tree, action: jax.Array, start: tuple[Tree, jax.Array]
    ) -> tuple[Tree, Timestep]:
        if not default_step:
            observation, state, reward, terminated, truncated, info = env.step(key, state, action, params)
            next_observation = encoded(info["final_observation"])
            return state, timestep(encoded(observation), next_observation, reward, terminated, truncated)
        # gymnax's own step without its reset, which would draw a start at every frame: `starts` are drawn beforehand.
        next_observation, state, reward, terminated, _ = env.step_env(key, state, action, params)
        next_observation, truncated = encoded(next_observation), env.is_truncated(state, params)
        restarted = lambda start, x: jnp.where(terminated | truncated, start, x)
        observation = restarted(start[1], next_observation)
        state = jax.tree.map(restarted, start[0], state)
        return state, timestep(observation, next_observation, reward, terminated, truncated)

    def step(
        keys: jax.Array, states: Tree, actions: jax.Array, starts: tuple[Tree, jax.Array]
    ) -> tuple[Tree, Timestep]:
        states, timesteps = jax.vmap(step_one)(keys, states, actions, starts)
        return _strong(states), timesteps

    space = env.observation_space(params)
    return VectorEnv(
        reset,
        step,
        observation_shape=tuple(space.shape) if categories is None else (categories,),
        num_actions=int(env.action_space(params).n),
        max_steps=int(params.max_steps_in_episode),
    )


def _strong(tree: Tree) -> Tree:
    """The tree without weak types: the carry of a scan must keep its types."""
    return jax.tree.map(lambda x: jnp.asarray(x).astype(jnp.result_type(x)), tree)


def _find(name: str) -> Any:
    """The environment called `name`, of gymnax or of this package."""
    file, colon, kind = name.partition(":")
    if not colon and name in _gymnax().registered_envs:
        return _gymnax().make(name)[0]
    paths = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.py"))}
    # A file is read, not run, until it is known to define the class: a name may come from a run's config.json.
    classes = set() if file not in paths else _classes(paths[file])
    if colon and kind in classes:
        return getattr(importlib.import_module(f"research.rl.{file}"), kind)()
    if colon:
        names = [f"{file}:{kind}" for kind in sorted(classes)] or [f"{file}:…" for file in paths if file != "__init__"]
    else:
        names = list(_gymnax().registered_envs)
    near = difflib.get_close_matches(name, names, 3, 0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}"
    raise UserError(f"environment.name: there is no environment {name!r}: {hint}")


def _gymnax() -> Any:
    """The module. It is imported late because that takes seconds, and only reinforcement learning needs it."""
    import gymnax

    return gymnax


def _classes(path: Path) -> set[str]:
    """The names of the public classes that a file defines."""
    nodes = ast.parse(path.read_text()).body
    return {node.name for node in nodes if isinstance(node, ast.ClassDef) and not node.name.startswith("_")}


def check(name: str, env: Any, params: Any) -> int | None:
    """Check that `env` follows gymnax's interface. Returns the number of its observations if they are whole numbers.

    Raises UserError if its actions are continuous, and RunError if it breaks the interface.
    """

    def broken(what: str) -> RunError:
        return RunError(f"environment {name}: {what}")

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
            raise broken(f"{what} has shape {value.shape}, not {shape}: change it or the observation space")

    actions, space = env.action_space(params), env.observation_space(params)
    if not hasattr(actions, "n"):
        raise UserError(
            f"environment.name: the actions of {name} are continuous: choose one whose actions are discrete"
        )
    key = jax.eval_shape(lambda: jax.random.key(0))
    after_reset, after_step = "observation, state", "observation, state, reward, terminated, truncated, info"
    observation, state = outputs("reset", called("reset", jax.eval_shape, env.reset, key, params), after_reset)
    array("the observation of reset", observation, tuple(space.shape))
    action = jax.ShapeDtypeStruct((), jnp.int32)
    values = called("step", jax.eval_shape, env.step, key, state, action, params)
    observation, next_state, reward, terminated, truncated, info = outputs("step", values, after_step)
    if "final_observation" not in info:
        raise broken("step's info has no 'final_observation': put the observation before any reset there")
    array("the observation of step", observation, tuple(space.shape))
    array("info['final_observation']", info["final_observation"], tuple(space.shape))
    array("the reward", reward, ())
    array("terminated", terminated, ())
    array("truncated", truncated, ())
    shapes = lambda tree: [(jax.tree_util.keystr(p), x.shape, x.dtype) for p, x in jax.tree.leaves_with_path(tree)]
    for old, new in zip(shapes(state), shapes(next_state), strict=False):
        if old != new:
            raise broken(f"state{old[0]} is {old[1:]} after reset and {new[1:]} after step: make them the same")
    if not jax.tree.structure(state) == jax.tree.structure(next_state):  # type: ignore[operator]
        raise broken("the states of reset and step differ in structure: make them the same")

    # Run one frame, for what shapes don't show; eagerly, also where `build` is being traced.
    with jax.ensure_compile_time_eval():
        key = jax.random.key(0)
        observation, state = called("reset", env.reset, key, params)
        observation, *_ = called("step", env.step, key, state, jnp.int32(0), params)
        if not bool(jnp.isfinite(observation).all()):
            raise broken(f"an observation isn't finite: {observation}")
    return int(space.n) if hasattr(space, "n") else None
