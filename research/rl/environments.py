"""Vectors of environments by name: gymnax's, those of other suites, or classes that follow gymnax's interface.

A new environment is one file: a class in research/rl/mine.py, and in the config `Environment(name="mine:Corridor")`.
`probes.py` has short examples.
"""

import dataclasses
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.core.errors import RunError, UserError, nearest, positive
from research.core.types import Tree
from research.rl import wrappers
from research.rl.vector import Box as Box
from research.rl.vector import Timestep as Timestep
from research.rl.vector import VectorEnv as VectorEnv

Value = int | float | bool | str


@dataclass(frozen=True)
class Environment:
    """The environment of an experiment.

    Attributes:
        name: a gymnax id ("CartPole-v1", "Breakout-MinAtar"), SUITE:NAME for an environment of another suite
            ("brax:ant"; the suites are in research/rl/suites.py), or FILE:CLASS for a class in research/rl/FILE.py
        max_steps: number of frames after which an episode is truncated; None for the environment's own limit
        params: names and values of the environment's parameters and of its constructor's arguments that differ from
            their defaults, such as: size 20
        sticky_actions: probability that a frame repeats the action of the frame before (Machado et al. 2018,
            arXiv:1709.06009, have 0.25; MinAtar has 0.1)
        frame_stack: number of the last frames that an observation has, joined along its last axis, the newest last
        time_limit: number of frames after which an episode is truncated besides; unlike max_steps it is none of the
            environment's own parameters, which some observations are scaled by
        limit_terminates: whether episodes that reach their limit of frames terminate, so that targets do not bootstrap
            there; else they are truncated
        reward_scale: factor of rewards in training
        reward_clip: magnitude that rewards are clipped to in training, after they are scaled (1 in Mnih et al. 2015);
            None for no clipping
    """

    name: str = "CartPole-v1"
    max_steps: int | None = None
    params: tuple[tuple[str, Value], ...] = ()
    sticky_actions: float = 0.0
    frame_stack: int = 1
    time_limit: int | None = None
    limit_terminates: bool = False
    reward_scale: float = 1.0
    reward_clip: float | None = None

    def __post_init__(self) -> None:
        positive(self, "environment", "max_steps", "frame_stack", "time_limit")
        given = [name for name, _ in self.params]
        if twice := [name for name in dict.fromkeys(given) if given.count(name) > 1]:
            raise UserError(f"environment.params names {twice[0]} twice: give it one value")
        if not 0 <= self.sticky_actions < 1:
            raise UserError(f"environment.sticky_actions is a probability below 1, not {self.sticky_actions}")
        if self.reward_clip is not None and self.reward_clip <= 0:
            raise UserError(f"environment.reward_clip must be above 0, not {self.reward_clip}")

    @property
    def unscaled(self) -> "Environment":
        """The same, with the rewards that the environment gives: to report returns by."""
        return dataclasses.replace(self, reward_scale=1.0, reward_clip=None)

    def training_reward(self, reward: jax.Array) -> jax.Array:
        """Rewards as they are in training: scaled, and then clipped."""
        scaled = reward * self.reward_scale
        return scaled if self.reward_clip is None else jnp.clip(scaled, -self.reward_clip, self.reward_clip)


@lru_cache
def make(config: Environment) -> VectorEnv:
    """The environments that `config` names, in its wrappers.

    The result is cached, because gymnax compiles anew for every instance.

    Raises UserError if there is none of that name or it has no such parameter, and RunError if it breaks gymnax's
    interface.
    """
    environment = _vector(config.name, config.max_steps, config.params)
    if config.reward_scale != 1 or config.reward_clip is not None:
        environment = wrappers.rewards(environment, config.training_reward)
    if config.sticky_actions:
        environment = wrappers.sticky_actions(environment, config.sticky_actions)
    if config.time_limit is not None:
        environment = wrappers.time_limit(environment, config.time_limit)
    if config.limit_terminates:
        environment = wrappers.terminal_limit(environment)
    if config.frame_stack > 1:
        environment = wrappers.frame_stack(environment, config.frame_stack)
    return environment


def unwrapped(config: Environment) -> tuple[Any, Any]:
    """The environment that `config` names, as an object with gymnax's interface, and its parameters."""
    return _made(config.name, config.max_steps, dict(config.params))


@lru_cache
def _vector(name: str, max_steps: int | None, given: tuple[tuple[str, Value], ...]) -> VectorEnv:
    """The environments called `name`, without wrappers."""
    with jax.ensure_compile_time_eval():  # also where a learner is being traced: what is cached here has no tracers
        env, params = _made(name, max_steps, dict(given))
        categories = check(name, env, params)
        box, space = _actions(env.action_space(params)), env.observation_space(params)
    default_step = _default_step(env)
    at_limit = type(env).is_truncated is _gymnax().environments.environment.Environment.is_truncated

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
        if default_step:  # without its reset, which would draw a start at every frame: `starts` are drawn beforehand
            observation, state, reward, terminated, _ = env.step_env(key, state, action, params)
            truncated = env.is_truncated(state, params)
            next_observation = observation = encoded(observation)
        else:  # it resets too, but wrappers know the start that is given, not its own
            observation, state, reward, terminated, truncated, info = env.step(key, state, action, params)
            observation, next_observation = encoded(observation), encoded(info["final_observation"])
        restarted = lambda start, x: jnp.where(terminated | truncated, start, x)
        observation = restarted(start[1], observation)
        state = jax.tree.map(restarted, start[0], state)
        return state, timestep(observation, next_observation, reward, terminated, truncated)

    def step(
        keys: jax.Array, states: Tree, actions: jax.Array, starts: tuple[Tree, jax.Array]
    ) -> tuple[Tree, Timestep]:
        if isinstance(box, Box):
            actions = jnp.clip(actions, box.low, box.high)
        states, timesteps = jax.vmap(step_one)(keys, states, actions, starts)
        return _strong(states), timesteps

    return VectorEnv(
        reset,
        step,
        observation_shape=tuple(space.shape) if categories is None else (categories,),
        actions=box,
        max_steps=int(params.max_steps_in_episode),
        name=name,
        least_truncated=int(params.max_steps_in_episode) if default_step and at_limit else 1,
        costly_reset=getattr(env, "costly_reset", False),
    )


def _default_step(env: Any) -> bool:
    """Whether its `step` is gymnax's own, of `step_env` and `is_truncated`."""
    return type(env).step is _gymnax().environments.environment.Environment.step


def _actions(space: Any) -> int | Box:
    """gymnax's action space as ours."""
    if hasattr(space, "n"):
        return int(space.n)
    bound = lambda x: np.broadcast_to(np.asarray(x, np.float32), space.shape)
    return Box(bound(space.low), bound(space.high))


def _strong(tree: Tree) -> Tree:
    """The tree without weak types: the carry of a scan must keep its types."""

    def strong(x: Any) -> jax.Array:
        x = jnp.asarray(x)
        return x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x.astype(x.dtype)

    return jax.tree.map(strong, tree)


def _made(kind: str, max_steps: int | None, given: dict[str, Value]) -> tuple[Any, Any]:
    """The environment of the name `kind` and its parameters."""
    constructor = _find(kind)
    try:
        env = constructor()
    except OSError as error:
        raise UserError(f"environment.name: {kind} downloads its data when it is made: {error}") from None
    except TypeError as error:
        raise UserError(f"environment.name: {kind}: {error}: give each argument of its constructor a default") from None
    # Those whose default says of what type they are.
    simple = lambda values: {name: x for name, x in values.items() if isinstance(x, Value)}
    # Those of another suite's constructor are not the adapter's.
    signature = inspect.signature(type(env)).parameters.items()
    arguments = simple(getattr(env, "arguments", None) or {name: x.default for name, x in signature})
    changed = {name: _typed(name, given.pop(name), arguments[name]) for name in arguments if name in given}
    if changed:
        try:
            env = constructor(**changed)
        except (ValueError, TypeError, ArithmeticError, IndexError) as error:
            raise UserError(f"environment.params: {kind}: {error}") from None
    params = env.default_params
    defaults = simple({field.name: getattr(params, field.name) for field in dataclasses.fields(params)})
    defaults.pop("max_steps_in_episode", None)
    for name in given:
        if name == "max_steps_in_episode":
            raise UserError("environment.params: max_steps_in_episode is the option environment.max_steps")
        if name not in defaults:
            hint = nearest(name, {**arguments, **defaults})
            raise UserError(f"environment.params: {kind} has no parameter {name!r}: {hint}")
    params = params.replace(**{name: _typed(name, value, defaults[name]) for name, value in given.items()})
    getattr(env, "check_params", lambda params: None)(params)
    return env, params if max_steps is None else params.replace(max_steps_in_episode=max_steps)


def _typed(name: str, value: Value, default: Value) -> Value:
    """`value`, as the type of `default`. Raises UserError where it is of another."""
    kind = type(default)
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise UserError(f"environment.params: {name} is {_KINDS[kind]} (by default {default}), not {value!r}")
    return kind(value)


_KINDS = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}


def _find(name: str) -> Callable[..., Any]:
    """What makes the environment called `name`: a class of gymnax, of another suite or of this package."""
    file, colon, kind = name.partition(":")
    if colon and file in _suites().SUITES:
        return _suites().find(file, kind)
    if not colon and name in _gymnax().registered_envs:
        return lambda **arguments: _gymnax().make(name, **arguments)[0]
    # A name may come from a run's config.json: none but these files are imported.
    files = sorted({path.stem for path in Path(__file__).parent.glob("*.py")} - {"__init__", "suites"})
    classes = _classes(file) if colon and file in files else {}
    if kind in classes:
        return classes[kind]
    if colon:
        others = [*_suites().SUITES, *(file for file in files if _classes(file))]
        names = [f"{file}:{kind}" for kind in sorted(classes)] or [f"{other}:…" for other in others]
    else:
        names = list(_gymnax().registered_envs)
    raise UserError(f"environment.name: there is no environment {name!r}: {nearest(name, names)}")


def _gymnax() -> Any:
    """The module. It is imported late because that takes seconds, and only reinforcement learning needs it."""
    import gymnax

    return gymnax


def _suites() -> Any:
    """The module of other suites. It is imported late for the same reason."""
    from research.rl import suites

    return suites


def _classes(file: str) -> dict[str, type]:
    """The public classes with gymnax's interface that research/rl/FILE.py defines, by name."""
    module = importlib.import_module(f"research.rl.{file}")
    own = {name: x for name, x in vars(module).items() if isinstance(x, type) and x.__module__ == module.__name__}
    interface = ("reset_env", "step_env", "default_params")
    public = {name: x for name, x in own.items() if not name.startswith("_")}
    return {name: x for name, x in public.items() if all(hasattr(x, member) for member in interface)}


def check(name: str, env: Any, params: Any) -> int | None:
    """Check that `env` follows gymnax's interface. Returns the number of its observations if they are whole numbers.

    Raises UserError if its actions are neither numbers nor arrays, and RunError if it breaks the interface.
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

    def array(what: str, value: Any, shape: tuple[int, ...], remedy: str = "change it") -> None:
        if not hasattr(value, "shape"):
            raise broken(f"{what} is a {type(value).__name__}, not one array: flatten it to an array of shape {shape}")
        if value.shape != shape:
            raise broken(f"{what} has shape {value.shape}, not {shape}: {remedy}")

    def check_observation(what: str, observation: Any) -> None:
        array(what, observation, tuple(space.shape), "change it or the observation space")

    def check_step(what: str, next_state: Any, reward: Any, **flags: Any) -> None:
        shapes = lambda tree: [(jax.tree_util.keystr(p), x.shape, x.dtype) for p, x in jax.tree.leaves_with_path(tree)]
        for old, new in zip(shapes(state), shapes(next_state), strict=False):
            if old != new:
                raise broken(f"state{old[0]} is {old[1:]} after reset and {new[1:]} after {what}: make them the same")
        if not jax.tree.structure(state) == jax.tree.structure(next_state):  # type: ignore[operator]
            raise broken(f"the states of reset and {what} differ in structure: make them the same")
        for name, value in {"the reward": reward, **flags}.items():
            array(name, value, ())

    actions = called("action_space", env.action_space, params)
    space = called("observation_space", env.observation_space, params)
    if not hasattr(actions, "n") and not hasattr(actions, "low"):
        raise UserError(f"environment.name: the actions of {name} are a {type(actions).__name__}: choose another one")
    if not hasattr(space, "shape"):
        raise broken(f"the observation space is a {type(space).__name__}, not one array: flatten what is observed")
    key = jax.eval_shape(lambda: jax.random.key(0))
    observation, state = outputs("reset", called("reset", jax.eval_shape, env.reset, key, params), "observation, state")
    check_observation("the observation of reset", observation)
    some_action = np.int32(0) if hasattr(actions, "n") else np.zeros(actions.shape, np.float32)
    action = jax.ShapeDtypeStruct(some_action.shape, some_action.dtype)
    if _default_step(env):  # gymnax's own step calls it, and would say less well what is wrong with it
        values = called("step_env", jax.eval_shape, env.step_env, key, state, action, params)
        values = outputs("step_env", values, "observation, state, reward, terminated, info")
        observation, next_state, reward, terminated, _ = values
        check_observation("the observation of step_env", observation)
        check_step("step_env", next_state, reward, terminated=terminated)
    values = called("step", jax.eval_shape, env.step, key, state, action, params)
    values = outputs("step", values, "observation, state, reward, terminated, truncated, info")
    observation, next_state, reward, terminated, truncated, info = values
    if "final_observation" not in info:
        raise broken("step's info has no 'final_observation': put the observation before any reset there")
    check_observation("the observation of step", observation)
    check_observation("info['final_observation']", info["final_observation"])
    check_step("step", next_state, reward, terminated=terminated, truncated=truncated)

    if not getattr(env, "costly_reset", False):  # those of physics would compile for a minute
        observation, reward = called("a frame", _first_frame, env, params, some_action)
        if not np.isfinite(observation).all():
            raise broken(f"an observation isn't finite: {observation}")
        if not np.isfinite(reward):
            raise broken(f"a reward isn't finite: {reward}")
    return int(space.n) if hasattr(space, "n") else None


def _first_frame(env: Any, params: Any, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The observation and the reward of the first frame, for what shapes don't show."""

    @jax.jit  # one program: as many small ones as it has operations would take seconds to compile
    def frame(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        _, state = env.reset(key, params)
        observation, _, reward, *_ = env.step(key, state, jnp.asarray(action), params)
        return observation, reward

    observation, reward = frame(jax.random.key(0))
    return np.asarray(observation), np.asarray(reward)
