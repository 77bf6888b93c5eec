"""What reinforcement learners have in common: environments that act in parallel, and greedy episodes to evaluate by."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import jax

from research.core.errors import UserError, between, positive
from research.core.experiment import Experiment, Feeds, Inference, Report, Run, multiples
from research.core.optimizers import Optimizer
from research.data.feed import Empty, episodes
from research.evaluation.episodes import Act, episode
from research.rl.environments import Environment, make
from research.rl.evaluation import episode_keys
from research.rl.vector import VectorEnv
from research.rl.wrappers import rescaled_actions


@dataclass(frozen=True, kw_only=True)
class Reinforcement(Experiment):
    """An experiment in reinforcement learning; each algorithm adds its nets.

    Attributes:
        environment: the environment to learn
        num_envs: number of environments that act in parallel
        rollout_length: number of frames of each environment per step
        gamma: discount factor
        average: decay of the moving average of the weights that plays the episodes of evaluation; None to evaluate the
            last weights
        episodes: number of greedy episodes per evaluation
        test_episodes: number of greedy episodes of the final test, with seeds that evaluation does not use
        optimizer: optimizer of the net
    """

    environment: Environment = field(default_factory=Environment)
    num_envs: int = 8
    rollout_length: int = 16
    gamma: float = 0.99
    average: float | None = None
    episodes: int = 32
    test_episodes: int = 100
    optimizer: Optimizer = field(default_factory=Optimizer)
    run: Run = field(default_factory=lambda: Run(metric="return"))

    def __post_init__(self) -> None:
        positive(self, "", "num_envs", "rollout_length", "episodes", "test_episodes")
        between(self, "", 0, 1, "gamma", "average")
        super().__post_init__()

    @property
    def frames(self) -> int:
        """Number of frames per step, of all environments together."""
        return self.num_envs * self.rollout_length

    def units_per_step(self, batch: int) -> dict[str, int]:
        """See `Experiment`."""
        return {"frames": self.frames}

    def feeds(self) -> Feeds:
        """The seeds of episodes: 0, 1, ... for evaluation, and from 1,000,000 on for the test."""
        plays = lambda first, count: episodes(first, count, self.episodes)
        return Feeds(Empty(), plays(0, self.episodes), plays(10**6, self.test_episodes))

    def divisible(self) -> dict[str, int]:
        """See `Experiment`."""
        return {"num_envs": self.num_envs, "episodes": self.episodes}


def evaluation_environment(config: Reinforcement) -> VectorEnv:
    """The environments that episodes of evaluation are played in: their rewards are neither scaled nor clipped, and
    continuous actions are between -1 and 1."""
    return rescaled_actions(make(config.environment.unscaled))


def observation_inference(
    config: Reinforcement, function: Callable[[jax.Array], jax.Array], output: str, about: str
) -> dict[str, Inference]:
    """The `Experiment.inference` of an agent: a function of observations, of which starts of episodes are examples."""
    environment = evaluation_environment(config)
    starts = lambda batch: {"observation": environment.reset(jax.vmap(episode_keys)(batch.index)[0])[1]}
    about = f"Observations are those of {config.environment.name}. {about}"
    return {"inference": Inference(function, starts, output, about)}


def _highway(config: Environment, environment: VectorEnv, act: Act) -> Report:
    # Its environment imports gymnax, which puts arrays on a device: too early for several processes to connect.
    from research.evaluation import highway

    return highway.report(config, environment, act)


REPORTS: Mapping[str, Callable[[Environment, VectorEnv, Act], Report]] = MappingProxyType({"highway:Highway": _highway})
"""The reports of environments that have one of their own."""


def episode_reports(config: Environment, environment: VectorEnv, act: Act) -> tuple[Report, ...]:
    """The report on an agent in an environment: pictures of an episode, or what `REPORTS` has for it."""
    return (REPORTS.get(config.name, episode)(config, environment, act),)


def multiple(config: Reinforcement, name: str, unit: int, units: str) -> None:
    """Raises UserError, with the nearest valid values, unless the field `name` is a multiple of `unit`."""
    value = getattr(config, name)
    if value % unit:
        nearest = multiples(value, unit)
        raise UserError(f"{name}={value} is not a multiple of {units}={unit}: the nearest are {nearest}")
