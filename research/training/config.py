"""Configs by name, from the command line, and as JSON."""

import contextlib
import copy
import dataclasses
import importlib
import io
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Annotated, Any, Generic, TypeVar

import flax.linen as nn
import jax
import tyro

from research.core.bucket import located
from research.core.errors import UserError, nearest
from research.core.experiment import Experiment
from research.core.layout import Shard
from research.core.placement import PlaceName
from research.training.processes import check as check_processes

T = TypeVar("T")
Config = TypeVar("Config", bound=Experiment)

MAY_CHANGE = ("run.keep", "run.save_every", "run.published")
"""Fields that may differ when a run is resumed."""


def _directory(text: str) -> Path:
    """`located`, and where that is an error the path as typed: what uses it reports the error, in one line."""
    with contextlib.suppress(UserError):
        return located(text)
    return Path(text)


Directory = Annotated[
    Path,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="DIR",
        instance_from_str=lambda texts: _directory(*texts),
        is_instance=lambda value: isinstance(value, PurePath),
        str_from_instance=lambda path: [str(path)],
    ),
]
"""An option that is a directory, a local one or one in a bucket."""

Mesh = Annotated[str | None, tyro.conf.arg(metavar="AXIS=N,…", help_behavior_hint="(default: data, all devices)")]
"""The option --mesh, see `core.layout.mesh_shape`."""


Over = tuple[tuple[str, tuple[float, ...]], ...]
"""Fields by dotted name, and the values that a sweep gives them."""


@dataclasses.dataclass(frozen=True)
class LogOptions:
    """Where the metrics of a run go, besides metrics.jsonl and TensorBoard.

    Attributes:
        wandb: log to Weights & Biases too (pip install -e .[wandb]); its environment variables hold, such as
            WANDB_PROJECT and WANDB_MODE=offline
    """

    wandb: tyro.conf.FlagCreatePairsOff[bool] = False


@dataclasses.dataclass(frozen=True)
class Command(Generic[Config]):
    """The options of `experiments.train`.

    Attributes:
        config: the config to train
        seeds: train this many seeds in one program, from --seed on; each gives the same result as it does alone, but
            that all share one best step and one early stop, by the mean over them, where the config has these
        workdir: directory of the run, or gs://BUCKET/DIR in Google Cloud Storage; if it holds an unfinished run of the
            same command, that run is resumed
        overwrite: delete the run in the workdir and train anew
        place: how steps run on all devices: as one global program (jit), or by pmap or shard_map; jit runs microbatches
            by shard_map where the batch alone is split
        mesh: sizes of the axes that all devices are laid out by, outermost first: replica and data share the batch,
            seed shares the seeds of --seeds, model splits weights by --shard tensor, such as replica=2,data=4
        shard: where the weights and the state of the optimizer are: whole on every device (replicated), split over the
            axis data of the mesh (fsdp), or over its axes data and model (tensor), for Transformers
        debug: turn jit off, and stop at the first operation that gives NaN
        processes: train in several processes, each of which is given the same command: their number, or auto, as
            Slurm, Open MPI, Kubernetes or Cloud TPU tell. They share the workdir
        coordinator: with a number of processes, the host of the first one and a port there that is free
        process: with a number of processes, the number of this one, from 0
        profile: write a trace of the second to fourth dispatch to the directory `profile` of the workdir, to open with
            TensorBoard or Perfetto
        log: where the metrics go, besides metrics.jsonl and TensorBoard
        init_from: directory of a run to take the initial weights from: the weights which that run evaluates, i.e. its
            averaged ones if it has them, and those of its best checkpoint if its config says so. Those of a run without
            --seeds are what each of several seeds starts from
        init_paths: patterns of the paths of the parameters that --init-from gives, such as 'net/encoder/*'; with a ! in
            front, of those that it does not, such as '!net/head/*'
        over: what `experiments.sweep` varies within one program: every combination of the values is trained, each with
            all seeds
    """

    config: Annotated[Config, tyro.conf.arg(name="")]
    seeds: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: one seed)")] = None
    workdir: Annotated[Directory | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: runs/NAME)")] = None
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    place: PlaceName = "jit"
    mesh: Mesh = None
    shard: Shard = "replicated"
    debug: tyro.conf.FlagCreatePairsOff[bool] = False
    processes: Annotated[str | None, tyro.conf.arg(metavar="auto|N", help_behavior_hint="(default: one)")] = None
    coordinator: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT", help_behavior_hint="")] = None
    process: Annotated[int | None, tyro.conf.arg(metavar="I", help_behavior_hint="")] = None
    profile: tyro.conf.FlagCreatePairsOff[bool] = False
    log: LogOptions = LogOptions()
    init_from: Annotated[Directory | None, tyro.conf.arg(metavar="DIR")] = None
    init_paths: Annotated[tuple[str, ...], tyro.conf.arg(help_behavior_hint="(default: all)")] = ()
    over: tyro.conf.Suppress[Over] = ()

    def __post_init__(self) -> None:
        if self.seeds is not None and self.seeds < 1:
            raise UserError(f"--seeds must be at least 1, not {self.seeds}")
        if self.seeds is not None and (last := self.config.run.seed + self.seeds - 1) >= 2**31:
            raise UserError(f"--seeds {self.seeds}: the last seed is {last}, more than 2^31 - 1: give a smaller --seed")
        if self.init_paths and self.init_from is None:
            raise UserError("--init-paths says what --init-from gives: name the run")
        check_processes(self.processes, self.coordinator, self.process)
        if self.processes is not None and self.debug:
            raise UserError("--debug is for one process: leave --processes out")


def names() -> list[str]:
    """The names of all configs, which are those of the files in configs/."""
    (directory,) = importlib.import_module("configs").__path__
    return sorted(path.stem for path in Path(directory).glob("*.py") if not path.stem.startswith("_"))


def load(name: str) -> Experiment:
    """The config called `name`. Raises UserError where it does not exist."""
    if name not in names():
        raise UserError(f"there is no config {name!r}: {nearest(name, names())}")
    return importlib.import_module(f"configs.{name}").config()


def header(name: str) -> str:
    """The docstring of the config called `name`."""
    return importlib.import_module(f"configs.{name}").__doc__ or ""


def parse(name: str, arguments: list[str], command: Any = Command, script: str = "train") -> Any:
    """Parse the command line after NAME.

    command  the class to parse into: `Command`, or a script's own class with a field `config`
    script   the name of the script, for messages

    Exits with status 2 and a message where an option or a value is wrong; raises UserError where a number of the config
    is not finite, or --run.metric names another metric without --run.mode.
    """
    default = load(name)
    typed = command[type(default)]
    found = tyro.cli(
        typed,
        default=typed(default),
        args=arguments,
        prog=f"python -m experiments.{script} {name}",
        description=header(name),
        config=(tyro.conf.AvoidSubcommands,),
    )
    for path, value in leaves(found.config).items():
        if any(isinstance(x, float) and not math.isfinite(x) for x in jax.tree.leaves(value)):
            raise UserError(f"{path} must be finite, not {value}")
    metric = found.config.run.metric
    if metric != default.run.metric and not any(x.split("=")[0] == "--run.mode" for x in arguments):
        raise UserError(
            f"say whether {metric} is maximised or minimised: give --run.mode max or --run.mode min as well"
        )
    if _task(found.config) != _task(default):  # what was published is of another one
        run = dataclasses.replace(found.config.run, published=())
        found = dataclasses.replace(found, config=dataclasses.replace(found.config, run=run))
    return found


def _task(experiment: Experiment) -> Any:
    """The name of the data, or the environment as returns are reported of it."""
    environment = getattr(experiment, "environment", None)
    return getattr(getattr(experiment, "data", None), "name", None) if environment is None else environment.unscaled


def leaves(config: Any, values: Any = None, prefix: str = "") -> dict[str, Any]:
    """The fields of nested dataclasses by dotted name, as JSON values: {"net.widths": [32, 64], ...}.

    values  the `to_json` of another config of the same class, to take the values from instead. A field that it lacks
            is newer than it: its class's default is what was done before

    Raises UserError where `values` has other fields, or lacks one that has no default.
    """
    found: dict[str, Any] = {}
    for field in fields(config):
        name = f"{prefix}{field.name}"
        value, other = getattr(config, field.name), None if values is None else _value(field, name, values)
        if not dataclasses.is_dataclass(value):
            found[name] = to_json(value) if values is None else other
        elif values is None or isinstance(other, dict):
            found |= leaves(value, other, f"{name}.")
        else:
            raise UserError(f"{name} has fields, and is {other!r} there")
    unknown = set(values or ()) - {field.name for field in fields(config)}
    if unknown:
        raise UserError(f"there is no field {prefix}{min(unknown)}")
    return found


def _value(field: dataclasses.Field, name: str, values: Any) -> Any:
    """The JSON value of a field in the `to_json` of a config; see `leaves`."""
    if isinstance(values, dict) and field.name in values:
        return values[field.name]
    if isinstance(values, dict) and field.default is not dataclasses.MISSING:
        return to_json(field.default)
    if isinstance(values, dict) and field.default_factory is not dataclasses.MISSING:
        return to_json(field.default_factory())
    raise UserError(f"the field {name} is missing")


def with_values(config: Any, values: Mapping[str, Any]) -> Any:
    """`config` with other values of fields by dotted name. They are not checked, and so may be traced."""
    changed = copy.copy(config)
    for name, value in values.items():
        first, _, rest = name.partition(".")
        inner = with_values(getattr(changed, first), {rest: value}) if rest else value
        object.__setattr__(changed, first, inner)
    return changed


def as_over(about: Mapping[str, Any]) -> Over:
    """What a run varies, from the content of its config.json; () where it is no sweep."""
    return tuple((name, tuple(found)) for name, found in about.get("over", ()))


def check_over(config: Any, over: Over) -> None:
    """Raise UserError for a field in `over` that `config` lacks, or that holds neither a number nor None."""
    numbers = {name for name, value in leaves(config).items() if type(value) in (int, float, type(None))}
    for name, _ in over:
        if name not in numbers:
            raise UserError(f"it varies {name}, which is no number of its config")


def settings(over: Iterable[tuple[str, Sequence[T]]]) -> list[dict[str, T]]:
    """Every combination of the values of fields, by field; the last field changes first."""
    each = [[(name, value) for value in values] for name, values in over]
    return [dict(found) for found in itertools.product(*each)]


def fields(config: Any) -> list[dataclasses.Field]:
    """The fields of a config, without the two that Flax adds to a module."""
    added = ("parent", "name") if isinstance(config, nn.Module) else ()
    return [field for field in dataclasses.fields(config) if field.name not in added]


def to_json(config: Any) -> Any:
    """A config as nested dicts, lists and scalars."""
    if dataclasses.is_dataclass(config):
        return {field.name: to_json(getattr(config, field.name)) for field in fields(config)}
    return [to_json(x) for x in config] if isinstance(config, tuple | list) else config


def from_json(name: str, values: Any) -> Experiment:
    """The config called `name` with the values of `to_json`, which go through the command line's parser.

    Raises UserError where they are not valid.
    """
    default = load(name)
    before, after = leaves(default), leaves(default, values)
    arguments = [
        a for path, value in after.items() if value != before[path] or path == "run.mode" for a in argument(path, value)
    ]
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message), contextlib.redirect_stdout(message):
            return parse(name, arguments).config
    except SystemExit:
        raise UserError(f"these are no values of the config {name}: {' '.join(arguments)}") from None


def argument(path: str, value: Any) -> list[str]:
    """What the command line says for a field that has this value, as `to_json` has it."""
    if isinstance(value, bool):
        parent, _, last = path.rpartition(".")
        return [f"--{path}" if value else f"--{parent}{'.' if parent else ''}no-{last}"]
    items = value if isinstance(value, list) else [value]
    return [f"--{path}", *(str(x) for item in items for x in (item if isinstance(item, list) else [item]))]


def differences(config: Experiment, values: Any) -> dict[str, tuple[Any, Any]]:
    """{field: (its value there, its value now)} where `config` differs from `to_json`'s `values`.

    Those of `MAY_CHANGE` are left out. Raises UserError where the fields are not the same.
    """
    now, there = leaves(config), leaves(config, values)
    return {path: (there[path], now[path]) for path in now if there[path] != now[path] and path not in MAY_CHANGE}


def scheduled(config: Experiment) -> list[str]:
    """The fields that vary something over the course of run.steps, as text: schedules, fractions of the training; and
    lookahead, whose average the parameters are set to after the last update."""
    values = leaves(config)
    return [
        f"{path}={value}"
        for path, value in values.items()
        if (path.endswith("optimizer.schedule") and value != "constant")
        or (path == "epsilon_fraction" and values["epsilon_start"] != values["epsilon_end"])
        or (path == "update.pruning.sparsity" and value is not None)
        or (path.endswith("lookahead.every") and value)
        or (path == "importance_exponent" and values["priority_exponent"])
    ]
