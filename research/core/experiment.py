"""What a config is: one typed value that can build its learner and its feeds. The host loop knows no more."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import tyro

from research.core.errors import Mistake
from research.core.state import Batch, Learner, State


class Feed(Protocol):
    """Training data, a pure function of the step.

    resident  True: a pytree whose arrays live on the device; `batch_at` is traced inside the step.
              False: it lives on the host, which puts a chunk's batches on the device while the one before runs
    """

    resident: bool

    def batch_at(self, step: Any, share: tuple[Any, int] = (0, 1)) -> Batch:
        """The global batch of a step, or the part `share[0]` of its `share[1]` equal parts."""
        ...


class Feeds(NamedTuple):
    """What a run reads.

    train             the training data
    validation, test  batches of one shape (of a few, one a bucket, where lengths differ), padding masked
    kept              texts kept in the run's directory by file name, without which its State says nothing: a tokenizer
    """

    train: Feed
    validation: Sequence[Batch]
    test: Sequence[Batch]
    kept: Mapping[str, str] = MappingProxyType({})


Report = Callable[[State, Feeds, Path], dict[str, float]]
"""What is no mean, on the host: it may leave pictures in the directory, and gives numbers by name."""


@dataclass(frozen=True)
class Snapshot:
    """A report that is made at each evaluation too, in history/STEP of the run's directory."""

    report: Report

    def __call__(self, state: State, feeds: Feeds, directory: Path) -> dict[str, float]:
        return self.report(state, feeds, directory)


@dataclass(frozen=True)
class Run:
    """How long, how often, and what counts.

    Attributes:
        steps: number of training steps; more steps than the run in the workdir has extend that run
        seed: of the run: initial weights, and everything drawn on the way
        chunk: steps a dispatch and a line of training metrics; it divides the intervals and `steps`
        evaluate_every: steps between evaluations on validation data
        save_every: steps between checkpoints
        keep: newest checkpoints kept, at least 2; the best one is kept besides
        metric: the validation metric that "best" and early stopping go by
        goal: its good direction
        patience: evaluations without a new best before the run stops early, or None
        final: the State that the test data judges
        published: the results to reproduce, by test metric
    """

    steps: Annotated[int, tyro.conf.arg(aliases=("--steps",))] = 1000
    seed: Annotated[int, tyro.conf.arg(aliases=("--seed",))] = 0
    chunk: int = 100
    evaluate_every: int = 1000
    save_every: int = 1000
    keep: int = 2
    metric: str = "accuracy"
    goal: Literal["max", "min"] = "max"
    patience: int | None = None
    final: Literal["last", "best"] = "last"
    published: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        positive(self, "run", "steps", "chunk", "evaluate_every", "save_every", "patience")
        if self.keep < 2:
            raise Mistake(f"run.keep must be at least 2, not {self.keep}: a damaged checkpoint needs one before it")
        for name in ("evaluate_every", "save_every", "steps"):
            interval = getattr(self, name)
            if interval % self.chunk:
                below, above = interval // self.chunk * self.chunk, -(-interval // self.chunk) * self.chunk
                nearest = f"{below} or {above}" if below else f"{above}"
                raise Mistake(
                    f"run.{name}={interval} is not a multiple of run.chunk={self.chunk}: the nearest are {nearest} "
                    f"(or choose a chunk that divides it, say {divisor(interval, self.chunk)})"
                )


class Experiment(Protocol):
    """The typed value that a file of configs/ makes: nested frozen dataclasses, one class for each algorithm."""

    @property
    def run(self) -> Run: ...

    def build(self, axis: str | None = None) -> Learner:
        """The learner; pure, and without a branch on a float field, so that a sweep can vmap it.

        axis: the mapped axis over devices that its batch and world are split over, if any.
        """
        ...

    def feeds(self) -> Feeds:
        """The data, or for reinforcement learning the empty feed and the seeds of the episodes to judge by."""
        ...

    def divisible(self) -> dict[str, int]:
        """The sizes, by field name, that devices must divide: batch, environments."""
        ...

    def reports(self) -> Iterable[Report]:
        """What is made of the final State besides its test metrics."""
        ...


def positive(config: Any, prefix: str, *names: str) -> None:
    """Raises Mistake unless the fields `names` of `config` are None, or whole numbers (or tuples) of at least 1."""
    for name in names:
        value = getattr(config, name)
        sizes = value if isinstance(value, tuple) else (value,)
        if value is not None and min(sizes, default=0) < 1:
            shown = f"{prefix}.{name}" if prefix else name
            raise Mistake(f"{shown} must be at least 1, not {value}")


def divisor(number: int, near: int) -> int:
    """The largest divisor of `number` that is at most `near`."""
    return next(d for d in range(min(near, number), 0, -1) if number % d == 0)
