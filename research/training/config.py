"""Configs by name, on the command line, and as JSON."""

import contextlib
import dataclasses
import difflib
import importlib
import io
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import flax.linen as nn
import tyro

from research.core.errors import Mistake
from research.core.experiment import Experiment
from research.core.placement import PlaceName

Config = TypeVar("Config")

MAY_CHANGE = ("run.keep",)
"""The fields that may differ when a run is resumed."""


@dataclasses.dataclass(frozen=True)
class Command(Generic[Config]):
    """What `experiments.train` is told.

    Attributes:
        config: the config of the run
        seeds: train the seeds seed ... seed+N-1 together, each equal to that --seed alone
        workdir: where the run is kept (default: runs/NAME); starting again in it resumes it
        overwrite: start afresh, and delete the run that is there
        place: where steps run: one device, or all of them by pmap or by shard_map
        debug: turn jit off and NaN checks on
        init_from: start from the parameters of the run in this directory
    """

    config: Annotated[Config, tyro.conf.arg(name="")]
    seeds: int | None = None
    workdir: Path | None = None
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    place: PlaceName = "jit"
    debug: tyro.conf.FlagCreatePairsOff[bool] = False
    init_from: Path | None = None

    def __post_init__(self) -> None:
        if self.seeds is not None and self.seeds < 1:
            raise Mistake(f"--seeds must be at least 1, not {self.seeds}")


def names() -> list[str]:
    """The names of the configs there are: the files of configs/."""
    (directory,) = importlib.import_module("configs").__path__
    return sorted(path.stem for path in Path(directory).glob("*.py") if not path.stem.startswith("_"))


def load(name: str) -> Experiment:
    """The config called `name`. Raises Mistake where there is none."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), 3, 0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names())}"
        raise Mistake(f"there is no config {name!r}: {hint}")
    return importlib.import_module(f"configs.{name}").config()


def header(name: str) -> str:
    """The docstring of the config called `name`."""
    return importlib.import_module(f"configs.{name}").__doc__ or ""


def parse(name: str, arguments: list[str], command: Any = Command, script: str = "train") -> Any:
    """The command line after NAME: a `Command`, or another such class of the script that asks.

    Exits with status 2, and a message, on what is not of the config's fields.
    """
    default = load(name)
    typed = command[type(default)]
    return tyro.cli(
        typed,
        default=typed(default),
        args=arguments,
        prog=f"python -m experiments.{script} {name}",
        description=header(name),
        config=(tyro.conf.AvoidSubcommands,),
    )


def leaves(config: Any, values: Any = None, prefix: str = "") -> dict[str, Any]:
    """{"net.widths": [32, 64], ...}: the fields of nested dataclasses by dotted name, as JSON holds them.

    values: what `to_json` made of another config of this kind, to be read in this config's stead. Raises Mistake
    where its fields are not this config's.
    """
    found: dict[str, Any] = {}
    for field in fields(config):
        name = f"{prefix}{field.name}"
        if values is not None and (not isinstance(values, dict) or field.name not in values):
            raise Mistake(f"the field {name} is missing")
        value, other = getattr(config, field.name), None if values is None else values[field.name]
        if dataclasses.is_dataclass(value):
            found |= leaves(value, other, f"{name}.")
        else:
            found[name] = to_json(value) if values is None else other
    unknown = set(values or ()) - {field.name for field in fields(config)}
    if unknown:
        raise Mistake(f"there is no field {prefix}{min(unknown)}")
    return found


def fields(config: Any) -> list[dataclasses.Field]:
    """The fields of a config; of a Flax module, without the two that Flax adds."""
    added = ("parent", "name") if isinstance(config, nn.Module) else ()
    return [field for field in dataclasses.fields(config) if field.name not in added]


def to_json(config: Any) -> Any:
    """A config as JSON holds it: nested dicts, lists and scalars."""
    if dataclasses.is_dataclass(config):
        return {field.name: to_json(getattr(config, field.name)) for field in fields(config)}
    return [to_json(x) for x in config] if isinstance(config, tuple | list) else config


def from_json(name: str, values: Any) -> Experiment:
    """The config called `name` with the values that `to_json` gave; they go through the command line's parser."""
    default = load(name)
    before, after = leaves(default), leaves(default, values)
    arguments = [a for path, value in after.items() if value != before[path] for a in _argument(path, value)]
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message), contextlib.redirect_stdout(message):
            return parse(name, arguments).config
    except SystemExit:
        raise Mistake(f"these are no values of the config {name}: {' '.join(arguments)}") from None


def _argument(path: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        parent, _, last = path.rpartition(".")
        return [f"--{path}" if value else f"--{parent}{'.' if parent else ''}no-{last}"]
    items = value if isinstance(value, list) else [value]
    return [f"--{path}", *(str(x) for item in items for x in (item if isinstance(item, list) else [item]))]


def differences(config: Experiment, values: Any) -> list[str]:
    """The fields in which `config` differs from `to_json`'s `values`, as text; those of `MAY_CHANGE` are left out."""
    try:
        differ = _differing(config, values)
    except Mistake as mistake:
        return [str(mistake)]
    return [f"{path}: {there!r} there, {now!r} now" for path, (there, now) in differ.items()]


def extends(config: Experiment, values: Any) -> bool:
    """Whether `config` differs from `to_json`'s `values` in nothing but a larger run.steps."""
    try:
        differ = _differing(config, values)
    except Mistake:
        return False
    return set(differ) == {"run.steps"} and differ["run.steps"][0] < config.run.steps


def scheduled(config: Experiment) -> list[str]:
    """The fields that vary something over the course of run.steps, as text: schedules, fractions of the training."""
    return [
        f"{path}={value}"
        for path, value in leaves(config).items()
        if (path.endswith("schedule") and value != "constant") or path.endswith("_fraction")
    ]


def _differing(config: Experiment, values: Any) -> dict[str, tuple[Any, Any]]:
    """{path: (the value there, the value now)}. Raises Mistake where the fields are not the same."""
    now, there = leaves(config), leaves(config, values)
    return {path: (there[path], now[path]) for path in now if there[path] != now[path] and path not in MAY_CHANGE}
