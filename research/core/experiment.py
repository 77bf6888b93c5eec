"""What a config is: one typed value that can build its learner and its feeds. The host loop knows no more."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Protocol

import jax
import tyro

from research.core.errors import UserError, between, positive
from research.core.metrics import Numbers
from research.core.state import Batch, Learner, State
from research.core.update import Dtype, UpdateConfig


class Feed(Protocol):
    """Training data, a pure function of the step.

    batch     the size of the global batch, and 0 where a learner makes its own data
    size      the number of training examples, and 0 likewise
    resident  True: a pytree whose arrays live on the device; `batch_at` is traced inside the step.
              False: it lives on the host, which puts the batches of the next dispatch on the device while one runs
    """

    batch: int
    resident: bool

    @property
    def size(self) -> int: ...

    def batch_at(self, step: Any, rows: Any = None) -> Batch:
        """The global batch of a step; with `rows` (i32[rows], positions within it), these examples of it alone."""
        ...


class Feeds(NamedTuple):
    """What a run reads.

    train             the training data
    validation, test  batches of one shape (of a few, one a bucket, where lengths differ), padding masked
    kept              files needed to interpret the State, e.g. the tokenizer: their texts by file name
    """

    train: Feed
    validation: Sequence[Batch]
    test: Sequence[Batch]
    kept: Mapping[str, str] = MappingProxyType({})


class Split(NamedTuple):
    """The data that a report runs on.

    name     "validation" during training, "test" at the end
    batches  all batches of that split, as in `Feeds`
    """

    name: Literal["validation", "test"]
    batches: Sequence[Batch]


class Report(NamedTuple):
    """A host-side evaluation that is not an average over examples: BLEU, FID, pictures.

    Every report runs once at the end, on the test split.

    run      (state, split, directory) -> numbers by name; it may also write files to the directory
    every    steps between runs on the validation split during training (the last step is always included), or None;
             these numbers are logged with the validation metrics
    metrics  names of the numbers that `run` returns, those that `run.metric` can name; it needs an interval
    """

    run: Callable[[State, Split, Path], Numbers]
    every: int | None = None
    metrics: tuple[str, ...] = ()


class Inference(NamedTuple):
    """A function of a trained model for use outside of this package: `experiments.export` writes it.

    function  arrays [batch, ...] -> one array [batch, ...]. It has the weights, and works for any size of the batch
    inputs    batch of validation data -> {name: array [batch, ...]}, examples of what `function` takes, in this order
    output    name of the array that it returns
    about     whole sentences: what the arrays are, and how inputs are prepared
    names     names of the classes, in the order of the output's last axis; () where it has none
    """

    function: Callable[..., jax.Array]
    inputs: Callable[[Batch], Mapping[str, Any]]
    output: str
    about: str
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Run:
    """How long, how often, and what counts.

    Attributes:
        steps: number of training steps; more steps than the run in the workdir has extend that run
        seed: seed of the run: initial weights, dropout, augmentation, noise and exploration; the order of the data
            has its own seed
        steps_per_dispatch: training steps per compiled call, and per line of training metrics; it divides `steps` and
            the intervals
        evaluate_every: steps between evaluations on validation data
        save_every: steps between checkpoints
        keep: number of newest checkpoints that are kept, at least 2; the best one is kept besides
        metric: validation metric that decides which checkpoint is the best and when to stop early; with another one
            than the config's, say --run.mode too
        mode: whether the metric is maximised or minimised
        patience: number of evaluations without a new best after which the run stops early; None for no early stopping.
            Several seeds stop together, by the mean of the metric over them
        checkpoint_for_test: checkpoint that is evaluated on the test data. Several seeds have one best step, by the
            mean of the metric over them
        published: published results to compare with, by test metric
    """

    steps: Annotated[int, tyro.conf.arg(aliases=("--steps",))] = 1000
    seed: Annotated[int, tyro.conf.arg(aliases=("--seed",))] = 0
    steps_per_dispatch: int = 100
    evaluate_every: int = 1000
    save_every: int = 1000
    keep: int = 2
    metric: str = "accuracy"
    mode: Literal["max", "min"] = "max"
    patience: int | None = None
    checkpoint_for_test: Literal["last", "best"] = "last"
    published: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        positive(self, "run", "steps_per_dispatch", "patience")
        between(self, "run", -(2**31), 2**31 - 1, "seed")
        if self.keep < 2:
            raise UserError(f"run.keep must be at least 2, not {self.keep}: a damaged checkpoint needs one before it")
        for name in ("evaluate_every", "save_every", "steps"):
            self.check_interval(f"run.{name}", getattr(self, name))

    @property
    def by_scores(self) -> bool:
        """Whether scores on validation data decide which step is evaluated, or where the run stops."""
        return self.checkpoint_for_test == "best" or self.patience is not None

    def check_interval(self, name: str, interval: int | None) -> None:
        """Raises UserError unless `interval`, option `name`, is None or a positive multiple of `steps_per_dispatch`."""
        unit = self.steps_per_dispatch
        if interval is not None and interval < 1:
            raise UserError(f"{name} must be at least 1, not {interval}")
        if interval is not None and interval % unit:
            raise UserError(
                f"{name}={interval} is not a multiple of run.steps_per_dispatch={unit}: the nearest are "
                f"{multiples(interval, unit)} (or choose a number of steps that divides it, such as "
                f"{divisor(interval, unit)})"
            )


@dataclass(frozen=True, kw_only=True)
class Experiment(ABC):
    """The typed value that a file of configs/ makes: frozen dataclasses in one another, one class for each algorithm.

    Its fields are the options of the command line. A subclass adds its own (data, nets, optimizers), and defines
    `build`, and `feeds` where it has no field `data`.

    Attributes:
        update: how gradient steps are computed
        run: how long, how often, and what counts
    """

    update: UpdateConfig = field(default_factory=UpdateConfig)
    run: Run = field(default_factory=Run)

    adversaries: ClassVar[tuple[str, ...]] = ()
    """Names whose losses play against each other: a run in which all of them have stopped is ended."""

    dtypes: ClassVar[tuple[Dtype, ...]] = ("float32", "bfloat16")
    """The values of `update.dtype` that it takes. Those that have been tried with the loss scale of float16 add it."""

    def __post_init__(self) -> None:
        if self.update.dtype not in self.dtypes:
            found = " or ".join(self.dtypes)
            raise UserError(f"{type(self).__name__} does not train in {self.update.dtype}: choose --dtype {found}")
        for name, size in self.divisible().items():
            if not size:
                parts = self.update.grad_accum_steps
                raise UserError(f"update.grad_accum_steps={parts} does not divide {name}")

    @abstractmethod
    def build(self) -> Learner:
        """The learner; pure, and without a branch on a float field, so that a sweep can vmap it."""

    def feeds(self) -> Feeds:
        """The data, by default that of the field `data`; for reinforcement learning the empty feed and the seeds of the
        episodes to evaluate on."""
        return self.data.feeds()  # type: ignore[attr-defined]

    def warnings(self) -> tuple[str, ...]:
        """What is probably not meant in the values of the fields; the lines are printed before training begins."""
        return ()

    def divisible(self) -> dict[str, int]:
        """The sizes, by field name, that the number of devices must divide."""
        data = getattr(self, "data", None)
        if data is None:
            return {}
        return {
            "data.batch": microbatch(data.batch, self.update),
            "data.evaluation_batch": data.evaluation_batch,
        }

    def tensor_axes(self) -> Mapping[str, int]:
        """The axes of parameters that `--shard tensor` splits, see `core.layout.Layout`; by default of none."""
        return {}

    def units_per_step(self, batch: int) -> dict[str, int]:
        """How much a step trains on, by unit, for the run's speed: {"examples": 128}.

        batch: the size of the global batch of `Feeds.train`
        """
        return {"examples": batch} if batch else {}

    def reports(self, load: "Load") -> Iterable[Report]:
        """The host-side evaluations of a run. It is called before training begins.

        load: reads the finished run that a report needs, for example a trained classifier

        Raises UserError where such a run is missing or does not fit.
        """
        return ()

    def inference(self, state: State) -> Mapping[str, Inference]:
        """What the trained model computes for its users, by name: usually one function, called "inference".

        state: of one seed; what is evaluated is exported
        """
        return {}


def microbatch(batch: int, update: UpdateConfig) -> int:
    """The examples of one microbatch of a batch; 0 where the batch can't be cut into equal ones."""
    return 0 if batch % update.grad_accum_steps else batch // update.grad_accum_steps


Load = Callable[[str | Path], tuple[Experiment, Learner, State]]
"""The config, learner and evaluated State of the run in a directory. Raises UserError where there is no such run."""


def multiples(number: int, unit: int) -> str:
    """The nearest multiples of `unit` below and above `number`, as text: "8 or 16"; only the one above 0."""
    below = number // unit * unit
    return f"{below} or {below + unit}" if below else f"{unit}"


def divisor(number: int, near: int) -> int:
    """The largest divisor of `number` that is at most `near`."""
    return next(d for d in range(min(near, number), 0, -1) if number % d == 0)
