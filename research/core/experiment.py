"""What a config is: one typed value that can build its learner and its feeds. The host loop knows no more."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Protocol

import tyro

from research.core.errors import UserError
from research.core.state import Batch, Learner, State
from research.core.update import UpdateConfig


class Feed(Protocol):
    """Training data, a pure function of the step.

    resident  True: a pytree whose arrays live on the device; `batch_at` is traced inside the step.
              False: it lives on the host, which puts a chunk's batches on the device while the one before runs
    """

    resident: bool

    def batch_at(self, step: Any, rows: Any = None) -> Batch:
        """The global batch of a step, or its examples at the positions `rows`, i32[n]."""
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
        steps: in all
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
            raise UserError(f"run.keep must be at least 2, not {self.keep}: a damaged checkpoint needs one before it")
        for name in ("evaluate_every", "save_every", "steps"):
            interval = getattr(self, name)
            if interval % self.chunk:
                below, above = interval // self.chunk * self.chunk, -(-interval // self.chunk) * self.chunk
                nearest = f"{below} or {above}" if below else f"{above}"
                raise UserError(
                    f"run.{name}={interval} is not a multiple of run.chunk={self.chunk}: the nearest are {nearest} "
                    f"(or choose a chunk that divides it, say {divisor(interval, self.chunk)})"
                )


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The typed value that a file of configs/ makes: frozen dataclasses in one another, one class for each algorithm.

    Its fields are the options of the command line. A subclass adds its own (data, nets, optimizers), and defines
    `build` and `feeds`.

    Attributes:
        update: how gradient steps are computed
        run: how long, how often, and what counts
    """

    update: UpdateConfig = field(default_factory=UpdateConfig)
    run: Run = field(default_factory=Run)

    adversaries: ClassVar[tuple[str, ...]] = ()
    """Names whose losses play against each other: a run in which all of them have stopped is ended."""

    def __post_init__(self) -> None:
        for name, size in self.divisible().items():
            if not size:
                parts = self.update.grad_accum_steps
                raise UserError(f"update.grad_accum_steps={parts} does not divide {name}")

    def build(self) -> Learner:
        """The learner; pure, and without a branch on a float field, so that a sweep can vmap it."""
        raise NotImplementedError

    def feeds(self) -> Feeds:
        """The data; for reinforcement learning the empty feed and the seeds of the episodes to evaluate on."""
        raise NotImplementedError

    def divisible(self) -> dict[str, int]:
        """The sizes, by field name, that the number of devices must divide."""
        data = getattr(self, "data", None)
        if data is None:
            return {}
        return {
            "data.batch": microbatch(data.batch, self.update),
            "data.evaluation_batch": data.evaluation_batch,
        }

    def reports(self) -> Iterable[Report]:
        """What is made of the final State besides its test metrics."""
        return ()


def microbatch(batch: int, update: UpdateConfig) -> int:
    """The examples of one microbatch of a batch; 0 where the batch can't be cut into equal ones."""
    return 0 if batch % update.grad_accum_steps else batch // update.grad_accum_steps


def positive(config: Any, prefix: str, *names: str) -> None:
    """Raises Mistake unless the fields `names` of `config` are None, or whole numbers (or tuples) of at least 1."""
    for name in names:
        value = getattr(config, name)
        sizes = value if isinstance(value, tuple) else (value,)
        if value is not None and min(sizes, default=0) < 1:
            shown = f"{prefix}.{name}" if prefix else name
            raise UserError(f"{shown} must be at least 1, not {value}")


def divisor(number: int, near: int) -> int:
    """The largest divisor of `number` that is at most `near`."""
    return next(d for d in range(min(near, number), 0, -1) if number % d == 0)
