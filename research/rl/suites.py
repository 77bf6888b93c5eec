"""Environments of other suites by name, SUITE:NAME: `brax:ant`, `jumanji:Snake-v1`, `craftax:Craftax-Symbolic-v1`.

A function for each suite imports its package and gives a `Suite`: the names of its environments, and what makes one of
them a `Task`, a few pure functions. `Adapter` gives a task gymnax's interface, so that everything else works with it.

Observations are one array f32: where a suite's are a dictionary or a tuple, all of its arrays are flattened and joined.
Nothing masks actions that a state does not allow; what they do is up to the environment.
"""

import inspect
import subprocess
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces

from research.core.errors import NotInstalled, UserError, nearest
from research.core.types import Tree

NO_LIMIT = 2**30
"""A number of frames that no episode reaches: of suites whose limit of frames `Adapter` replaces."""

UNSTATED = 10_000
"""The limit of frames of environments that state none."""


class Step(NamedTuple):
    """What one action led to, before any reset.

    Attributes:
        state: the suite's own
        observation: an array, or a tree of arrays
        reward: a number
        terminated: whether the episode ended
        truncated: whether the suite itself cut the episode short
    """

    state: Tree
    observation: Tree
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array | bool = False


class Task(NamedTuple):
    """An environment of a suite.

    Attributes:
        reset: key -> (state, observation), the start of an episode
        step: (key, state, action) -> Step
        actions: gymnax's space of its actions
        max_steps: number of frames after which an episode is truncated, by default
        arguments: its own parameters by name, with their defaults
        costly_reset: see `VectorEnv`
    """

    reset: Callable[[jax.Array], tuple[Tree, Tree]]
    step: Callable[[jax.Array, Tree, jax.Array], Step]
    actions: spaces.Space
    max_steps: int
    arguments: Mapping[str, Any] = MappingProxyType({})
    costly_reset: bool = False


class Suite(NamedTuple):
    """The environments of a suite.

    Attributes:
        names: their names
        task: (name, parameters that differ from their defaults) -> Task
    """

    names: tuple[str, ...]
    task: Callable[..., Task]


@struct.dataclass
class SuiteState(environment.EnvState):
    """time i32[], the number of frames of this episode; inner, the suite's state; truncated bool[], by the suite."""

    inner: Tree
    truncated: jax.Array


@struct.dataclass
class SuiteParams(environment.EnvParams):
    """max_steps_in_episode: frames after which an episode is truncated. Limits that a suite has besides stay."""


class Adapter(environment.Environment[SuiteState, SuiteParams]):
    """A task with gymnax's interface."""

    def __init__(self, task: Task) -> None:
        self.task, self.arguments, self.costly_reset = task, task.arguments, task.costly_reset

    @property
    def default_params(self) -> SuiteParams:
        """The suite's limit of frames."""
        return SuiteParams(max_steps_in_episode=self.task.max_steps)

    def reset_env(self, key: jax.Array, params: SuiteParams) -> tuple[jax.Array, SuiteState]:
        """A new episode."""
        inner, observation = self.task.reset(key)
        return flat(observation), SuiteState(time=jnp.int32(0), inner=inner, truncated=jnp.bool_(False))

    def step_env(
        self, key: jax.Array, state: SuiteState, action: jax.Array, params: SuiteParams
    ) -> tuple[jax.Array, SuiteState, jax.Array, jax.Array, dict[str, Any]]:
        """One frame, without the reset that gymnax adds."""
        step = self.task.step(key, state.inner, action)
        next_state = SuiteState(time=state.time + 1, inner=step.state, truncated=jnp.asarray(step.truncated, bool))
        return flat(step.observation), next_state, jnp.float32(step.reward), jnp.asarray(step.terminated, bool), {}

    def is_truncated(self, state: SuiteState, params: SuiteParams) -> jax.Array:
        """By the suite, or at the limit of frames."""
        return state.truncated | super().is_truncated(state, params)

    def action_space(self, params: SuiteParams | None = None) -> spaces.Space:
        """The task's."""
        return self.task.actions

    def observation_space(self, params: SuiteParams | None = None) -> spaces.Box:
        """Numbers; the suites do not all state their bounds."""
        key = jax.eval_shape(lambda: jax.random.key(0))
        observation = jax.eval_shape(lambda key: flat(self.task.reset(key)[1]), key)
        return spaces.Box(-jnp.inf, jnp.inf, observation.shape, jnp.float32)


def flat(observation: Tree) -> jax.Array:
    """One array f32: an array keeps its shape, and a tree of several becomes f32[features]."""
    leaves = [jnp.atleast_1d(x).astype(jnp.float32) for x in jax.tree.leaves(observation)]
    return leaves[0] if len(leaves) == 1 else jnp.concatenate([x.ravel() for x in leaves])


# The suites. Their packages are imported where a name asks for one.


def brax() -> Suite:
    """Rigid-body physics for locomotion (Freeman et al. 2021, arXiv:2106.13281)."""
    from brax import envs

    def task(name: str, **arguments: Any) -> Task:
        return _physics(envs.get_environment(name, **arguments), 1000, _defaults(envs._envs[name]))

    return Suite(tuple(envs._envs), task)


def playground() -> Suite:
    """MuJoCo Playground: the DeepMind Control Suite and robots, in MJX (Zakka et al. 2025, arXiv:2502.08844).

    By default the physics is MJX's in JAX, which runs on any device; `--environment.params impl warp` is that of Warp.
    """
    from mujoco_playground import registry

    def task(name: str, **arguments: Any) -> Task:
        config = registry.get_default_config(name).to_dict()
        if "impl" in config:
            config["impl"] = "jax"
        changed = {key: value for key, value in config.items() if key == "impl"} | arguments
        try:
            env = registry.load(name, config_overrides=changed)
        except subprocess.CalledProcessError as error:  # robots are cloned from MuJoCo Menagerie by git
            raise OSError(error) from None
        return _physics(env, (config | arguments)["episode_length"], config)

    return Suite(tuple(registry.ALL_ENVS), task)


def _physics(env: Any, max_steps: int, arguments: Mapping[str, Any]) -> Task:
    """An environment with Brax's interface. Its actions are between -1 and 1."""

    def observed(state: Any) -> Tree:
        # Privileged observations are for critics alone; no learner here has one that sees more than its policy.
        return state.obs["state"] if isinstance(state.obs, Mapping) else state.obs

    def reset(key: jax.Array) -> tuple[Tree, Tree]:
        state = env.reset(key)
        return state, observed(state)

    def step(key: jax.Array, state: Any, action: jax.Array) -> Step:
        state = env.step(state, action)
        return Step(state, observed(state), state.reward, state.done)

    actions = spaces.Box(-1.0, 1.0, (env.action_size,))
    return Task(reset, step, actions, max_steps, arguments, costly_reset=True)


def craftax() -> Suite:
    """Open worlds after Minecraft and NetHack (Matthews et al. 2024, arXiv:2402.16801)."""
    from craftax.craftax_env import make_craftax_env_from_name

    def task(name: str, **arguments: Any) -> Task:
        env = make_craftax_env_from_name(name, auto_reset=False)
        defaults = {field: getattr(env.default_params, field) for field in env.default_params.__dataclass_fields__}
        max_steps = int(defaults.pop("max_timesteps"))
        # Its own limit of frames would terminate an episode, not truncate it.
        params = env.default_params.replace(max_timesteps=NO_LIMIT, **arguments)

        def reset(key: jax.Array) -> tuple[Tree, Tree]:
            observation, state = env.reset_env(key, params)
            return state, observation

        def step(key: jax.Array, state: Tree, action: jax.Array) -> Step:
            observation, state, reward, terminated, _ = env.step_env(key, state, action, params)
            return Step(state, observation, reward, terminated)

        return Task(reset, step, spaces.Discrete(env.action_space(params).n), max_steps, defaults, costly_reset=True)

    kinds = ("Symbolic", "Pixels", "Classic-Symbolic", "Classic-Pixels")
    return Suite(tuple(f"Craftax-{kind}-v1" for kind in kinds), task)


def jumanji() -> Suite:
    """Games, packing and routing (Bonnet et al. 2024, arXiv:2306.09884)."""
    import jumanji
    from jumanji import specs

    def task(name: str, **arguments: Any) -> Task:
        env = jumanji.make(name, **arguments)
        spec = env.action_spec
        if not isinstance(spec, specs.DiscreteArray):
            raise UserError(
                f"environment.name: an action of jumanji:{name} is {spec.shape} numbers, and learners here take one "
                "discrete action: choose another environment"
            )

        def reset(key: jax.Array) -> tuple[Tree, Tree]:
            state, timestep = env.reset(key)
            return state, timestep.observation

        def step(key: jax.Array, state: Tree, action: jax.Array) -> Step:
            state, timestep = env.step(state, action)
            ended, last = timestep.discount == 0, timestep.last()
            return Step(state, timestep.observation, timestep.reward, last & ended, last & ~ended)

        max_steps = int(getattr(env, "time_limit", None) or UNSTATED)
        return Task(reset, step, spaces.Discrete(int(spec.num_values)), max_steps, _defaults(type(env)))

    return Suite(tuple(sorted(jumanji.registered_environments())), task)


def navix() -> Suite:
    """MiniGrid's grid worlds (Pignatelli et al. 2024, arXiv:2407.19396), with the whole grid in symbols."""
    import navix

    def task(name: str) -> Task:
        env = navix.make(name)
        max_steps, env = env.max_steps, env.replace(max_steps=NO_LIMIT)

        def reset(key: jax.Array) -> tuple[Tree, Tree]:
            timestep = env.reset(key)
            return timestep, timestep.observation

        def step(key: jax.Array, state: Any, action: jax.Array) -> Step:
            timestep = env._step(state, action)  # its `step` would reset
            return Step(timestep, timestep.observation, timestep.reward, timestep.is_termination())

        return Task(reset, step, spaces.Discrete(int(env.action_space.maximum) + 1), int(max_steps))

    return Suite(tuple(navix.registry()), task)


def pgx() -> Suite:
    """Board games (Koyama et al. 2023, arXiv:2303.17503), of which learners here can play those for one player.

    An action that the rules forbid ends the episode at a reward of -1. MinAtar's games are gymnax's.
    """
    import pgx

    def task(name: str) -> Task:
        env = pgx.make(name)
        if env.num_players > 1:
            raise UserError(
                f"environment.name: pgx:{name} is for {env.num_players} players, and learners here are for one: choose "
                "another environment, such as pgx:2048"
            )

        def reset(key: jax.Array) -> tuple[Tree, Tree]:
            state = env.init(key)
            return state, state.observation

        def step(key: jax.Array, state: Tree, action: jax.Array) -> Step:
            state = env.step(state, action, key)
            return Step(state, state.observation, state.rewards[0], state.terminated, state.truncated)

        return Task(reset, step, spaces.Discrete(env.num_actions), UNSTATED)

    return Suite(tuple(name for name in pgx.available_envs() if not name.startswith("minatar")), task)


def _defaults(kind: Callable[..., Any]) -> dict[str, Any]:
    """The arguments of a constructor, with their defaults."""
    return {name: parameter.default for name, parameter in inspect.signature(kind).parameters.items()}


class Source(NamedTuple):
    """Where a suite comes from.

    Attributes:
        title: what it is called
        extra: the extra of this package that installs it
        suite: what imports it
    """

    title: str
    extra: str
    suite: Callable[[], Suite]


SUITES: Mapping[str, Source] = MappingProxyType(
    {
        "brax": Source("Brax", "rl", brax),
        "craftax": Source("Craftax", "rl", craftax),
        "jumanji": Source("Jumanji", "rl", jumanji),
        "navix": Source("NAVIX", "navix", navix),
        "pgx": Source("Pgx", "rl", pgx),
        "playground": Source("MuJoCo Playground", "rl", playground),
    }
)
"""The suites that names may ask for. A name may come from a run's config.json: no other package is imported."""


def find(suite: str, name: str) -> Callable[..., Adapter]:
    """What makes the environment `name` of a suite. Raises UserError where there is none."""
    source = SUITES[suite]
    try:
        with jax.ensure_compile_time_eval():  # also where `build` is being traced: packages keep the arrays they make
            found = source.suite()
    except ModuleNotFoundError:
        raise NotInstalled(
            f"environment.name: {suite}:{name} needs {source.title}: pip install 'samestep[{source.extra}]'"
        ) from None
    if name not in found.names:
        hint = nearest(f"{suite}:{name}", [f"{suite}:{known}" for known in found.names])
        raise UserError(f"environment.name: there is no environment '{suite}:{name}': {hint}")

    def make(**arguments: Any) -> Adapter:
        with jax.ensure_compile_time_eval():
            return Adapter(found.task(name, **arguments))

    return make
