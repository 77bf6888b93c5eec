"""What reinforcement learners have in common: environments that act in parallel, and greedy episodes to evaluate by."""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import jax

from research.core.errors import UserError, positive
from research.core.experiment import Experiment, Feeds, Inference, Load, Report, Run, multiples
from research.core.optimizers import Optimizer
from research.core.state import State
from research.data.feed import Empty, episodes
from research.evaluation.episodes import episode
from research.rl.environments import Environment, make
from research.rl.evaluation import episode_keys


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
        super().__post_init__()

    @property
    def frames(self) -> int:
        """Number of frames per step, of all environments together."""
        return self.num_envs * self.rollout_length

    @abstractmethod
    def outputs(self) -> tuple[Callable[[State, jax.Array], jax.Array], str, str]:
        """What the trained net makes of observations [batch, ...], for reports and for export.

        The function (State, observations) -> [batch, actions] whose largest one is the greedy action; its name; and a
        sentence about it.
        """

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

    def reports(self, load: Load) -> Iterable[Report]:
        """See `Experiment`."""
        outputs, _, _ = self.outputs()
        return (episode(self.environment.name, make(self.environment.unscaled), outputs),)

    def inference(self, state: State) -> dict[str, Inference]:
        """See `Experiment`."""
        outputs, name, about = self.outputs()
        starts = lambda seeds: make(self.environment.unscaled).reset(jax.vmap(episode_keys)(seeds)[0])[1]
        return {
            "inference": Inference(
                lambda observation: outputs(state, observation),
                lambda batch: {"observation": starts(batch.index)},
                name,
                f"Observations are those of {self.environment.name}. {about}",
            )
        }


def multiple(config: Reinforcement, name: str, unit: int, units: str) -> None:
    """Raises UserError, with the nearest valid values, unless the field `name` is a multiple of `unit`."""
    value = getattr(config, name)
    if value % unit:
        nearest = multiples(value, unit)
        raise UserError(f"{name}={value} is not a multiple of {units}={unit}: the nearest are {nearest}")
