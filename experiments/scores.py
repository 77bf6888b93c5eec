"""Scores that returns are normalised by, for environments of the configs: python -m experiments.scores.

The score of random actions is measured; the one to reach is published, or the best that there is, as `REACH` says. An
environment that `REACH` has no score of is named and left out.
`experiments.compare --reference FILE` reads the file.
"""

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.console import check_output, number, script
from research.core.errors import UserError
from research.core.files import write_json
from research.core.state import Batch
from research.core.types import Tree
from research.learners.reinforcement import Reinforcement
from research.rl.environments import Environment, make
from research.rl.evaluation import play
from research.rl.vector import Box, Timestep, VectorEnv
from research.training import config


class Score(NamedTuple):
    """A score to reach, and where it is from."""

    value: float
    source: str


_ZOO = "Stable-Baselines3's zoo, the best of its agents"
_YOUNG = "Young & Tian 2019, DQN, read off their figure"
_A = "use_minimal_action_set=False max_steps=100000 sticky_actions=0.1"

REACH: Mapping[str, Score] = MappingProxyType(
    {
        "CartPole-v1": Score(500.0, "the most there is"),
        "Acrobot-v1": Score(-69.1, _ZOO),
        "MountainCar-v0": Score(-100.8, _ZOO),
        "Pendulum-v1": Score(-151.3, _ZOO),
        "FrozenLake-misc": Score(0.740, "value iteration for a discount of 0.99"),
        "DeepSea-bsuite size=8": Score(0.99, "the most there is"),
        "MemoryChain-bsuite memory_length=5": Score(1.0, "the most there is"),
        "Reacher-misc": Score(64.5, "reacher_ppo; nothing is published"),
        "highway:Highway": Score(37.0, "highway_ppo; nothing is published"),
        f"Asterix-MinAtar {_A}": Score(17.0, _YOUNG),
        f"Breakout-MinAtar {_A}": Score(10.0, _YOUNG),
        f"Freeway-MinAtar {_A.replace('100000', '2500')} limit_terminates=True": Score(50.0, _YOUNG),
        f"Seaquest-MinAtar {_A}": Score(20.0, _YOUNG),
        f"SpaceInvaders-MinAtar {_A}": Score(44.0, _YOUNG),
    }
)
"""The scores to reach, by task; `task` names them."""


def task(environment: Mapping[str, Any]) -> str:
    """The name of an environment's fields, as in config.json: its id, its parameters in alphabetical order, and
    what differs from the defaults.

    How rewards are scaled in training is left out, since returns are reported in the environment's own.
    """
    plain, apart = dataclasses.asdict(Environment()), ("name", "params", "reward_scale", "reward_clip")
    # A config.json that was written before a field was added has its default.
    given = {name: environment.get(name, default) for name, default in plain.items()}
    changed = [(name, given[name]) for name, default in plain.items() if name not in apart and given[name] != default]
    fields = [f"{name}={value}" for name, value in [*sorted(map(tuple, given["params"])), *changed]]
    return " ".join([environment["name"], *fields])


def randomly(environment: VectorEnv) -> VectorEnv:
    """The environments with actions of their own, drawn uniformly, in place of those that they are given."""

    def step(keys: jax.Array, states: Tree, actions: jax.Array, starts: Any) -> tuple[Tree, Timestep]:
        keys, draws = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        uniform = jax.vmap(lambda key: jax.random.uniform(key, environment.action_shape))(draws)
        if isinstance(environment.actions, Box):
            low, high = environment.actions
            actions = low + uniform * (high - low)
        else:
            actions = (uniform * environment.actions).astype(jnp.int32)
        return environment.step(keys, states, actions, starts)

    return environment._replace(step=step)


def random_score(environment: Environment, episodes: int) -> float:
    """The mean return of random actions."""
    vector = randomly(make(environment.unscaled))
    none = jnp.zeros((episodes, *vector.action_shape))
    batch = Batch(np.arange(episodes), np.ones(episodes, np.float32), (), ())
    return float(jax.jit(lambda batch: play(vector, lambda _: none, batch)["return"])(batch).value)


def environments() -> dict[str, Environment]:
    """The environments of all configs, by task."""
    experiments = (config.load(name) for name in config.names())
    used = [x.environment for x in experiments if isinstance(x, Reinforcement)]
    return {task(dataclasses.asdict(environment)): environment for environment in used}


def scores(
    output: Annotated[Path, tyro.conf.arg(metavar="FILE.json")] = Path("docs/scores.json"), episodes: int = 1000
) -> None:
    """Measure the scores of random actions, and write {task: {random, reach, source}}.

    Args:
        output: file to write
        episodes: number of episodes of random actions in each environment
    """
    if episodes < 1:
        raise UserError(f"--episodes must be at least 1, not {episodes}")
    check_output(output)
    found: dict[str, dict[str, Any]] = {}
    for name, environment in sorted(environments().items()):
        reach = REACH.get(name)
        if reach is None:
            print(f"{name}: no score to reach is known")
            continue
        found[name] = {"random": random_score(environment, episodes), "reach": reach.value, "source": reach.source}
        print(f"{name}: {number(found[name]['random'])}, {number(reach.value)} ({reach.source})")
        write_json(output, found)


main = script("scores", __doc__, scores)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
