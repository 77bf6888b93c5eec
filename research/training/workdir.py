"""A run's directory: its config.json, and whether a command may resume the run in it."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from research.core.bucket import check_bucket, errors, in_bucket, located
from research.core.console import say, warn
from research.core.errors import RunError, UserError
from research.core.experiment import Experiment, Run
from research.core.files import delete_tree, entries, failing, reason, rename, replacing, write_json
from research.training import checkpoint, config, log, provenance
from research.training.evaluate import exhausted, scores
from research.training.locks import locked

FORMAT = 3
"""The format of a run's directory. Directories of other formats are refused."""


@contextlib.contextmanager
def owned(directory: Path, name: str, command: config.Command[Experiment]) -> Iterator[None]:
    """Within this context, `directory` belongs to this run, and no other process may train in it.

    Where nothing is saved in it yet (see `saved`), its config.json is written; where the run there has fewer steps
    and is the same otherwise, it is extended. Raises UserError where another config or version saved something in it,
    or where it holds anything but a run; RunError where it can't be written. A directory in a bucket has no lock.
    """
    _check_name(directory)
    with contextlib.ExitStack() as stack:
        if in_bucket(directory):
            check_bucket(directory)
        else:
            stack.enter_context(locked(directory))
        with failing("write to", directory):
            extended = _begin(directory, name, command)
        newest = 0 if extended is None else checkpoint.newest(directory / "checkpoints")
        try:
            yield
        except BaseException:
            if extended is not None and checkpoint.newest(directory / "checkpoints") == newest:
                _withdraw(directory, extended)
            raise


def _check_name(directory: Path) -> None:
    """Raise UserError where orbax could not read checkpoints from a directory of this name."""
    name = str(resolved(directory))
    if "[" in name or name.encode(errors="ignore").decode() != name:
        raise UserError(f"no checkpoint can be read from {name!r}: choose a --workdir without [, in UTF-8")


def _begin(directory: Path, name: str, command: config.Command[Experiment]) -> dict[str, Any] | None:
    """Make `directory` that of this run, see `owned`. Returns what config.json was before, where it was extended."""
    begun = (".lock", ".config.tmp.json")  # what a run that is killed as it begins leaves
    if _read(directory) is None and any(path.name not in begun for path in entries(directory)):
        raise UserError(f"{directory} holds something other than a run: choose another --workdir")
    checkpoints = directory / "checkpoints"
    if not in_bucket(directory) and os.path.lexists(checkpoints) and not checkpoints.is_dir():
        raise UserError(f"{checkpoints} is no directory, or a link to nothing: restore it, or choose another --workdir")
    if command.overwrite:
        _clear(directory)
    there = about(directory)
    if there is not None and saved(directory):
        longer = _check_same(directory, name, command, there)
        provenance.check_code(directory, there["code"])
        if longer:
            _extend(directory, command.config, there)
            return there
    else:
        write_json(directory / "config.json", _describe(name, command))
    return None


def finished(directory: Path, command: config.Command[Experiment]) -> bool:
    """Whether the run in `directory` has a summary, and trained for as many steps as `command` says."""
    there = about(directory) if (directory / "summary.json").exists() else None
    return there is not None and there["config"]["run"]["steps"] >= command.config.run.steps


def saved(directory: Path) -> bool:
    """Whether a run has saved anything in `directory`: a checkpoint, even a damaged one, or a summary."""
    summary = any(path.name == "summary.json" for path in entries(directory))
    return summary or checkpoint.any_saved(directory / "checkpoints")


def about(directory: Path) -> dict[str, Any] | None:
    """The content of config.json, or None where there is no such file.

    Raises UserError where it was not written by a run, or by a run of another version.
    """
    content = _read(located(directory))
    if content is not None and content["format"] != FORMAT:
        raise UserError(
            f"{directory} was made by another version of samestep (format {content['format']}; this version has "
            f"{FORMAT}): use that version, or train anew with --overwrite or in another --workdir"
        )
    return content


def run_in(directory: Path) -> dict[str, Any]:
    """`about` the run in `directory`. Raises UserError where there is none, too."""
    there = about(directory)
    if there is None:
        raise UserError(f"{directory} holds no run: it has no config.json")
    return there


def check_source(source: Path, directory: Path) -> None:
    """Raise UserError where `source` holds no run, or one that --overwrite would delete with that in `directory`."""
    there, here = resolved(source), resolved(directory)
    if here in (there, *there.parents):
        raise UserError(f"--overwrite would delete {source}, which --init-from names: choose another --workdir")
    run_in(source)


def repeated(source: Path, command: config.Command[Experiment]) -> bool:
    """Whether each seed of `command` starts from the weights of the run in `source`, which was trained without --seeds.

    Raises UserError where both have seeds, and they are not as many.
    """
    there = run_in(source)
    if there["seeds"] is None:
        return command.seeds is not None
    held = there["seeds"] * len(config.settings(config.as_over(there)))
    asked = (command.seeds or 0) * len(config.settings(command.over))
    if held != asked:
        raise UserError(
            f"{source} has {held} seeds, and this command asks for {asked or 'one without --seeds'}: "
            f"give --seeds {held}, or name in --init-from a run without --seeds, from which every seed starts"
        )
    return False


def evaluates_best(directory: Path) -> bool:
    """Whether the run in `directory` evaluates its best checkpoint, not its last (`Run.checkpoint_for_test`)."""
    return run_in(directory)["config"]["run"].get("checkpoint_for_test", Run.checkpoint_for_test) == "best"


def summary(directory: Path) -> dict[str, Any]:
    """The content of summary.json. Raises UserError where it is damaged, RunError where it can't be read."""
    path = directory / "summary.json"
    content: Any = None
    with failing("read", path), contextlib.suppress(ValueError, RecursionError):
        content = json.loads(path.read_text())
    match content:
        case {"test": dict(test), "state": str(), "step": int(), "published": dict(), "seconds": int() | float()}:
            complete = {"steps_per_second", "device"} <= content.keys() and all(map(_over_seeds, test.values()))
            if complete and isinstance(content.get("reports", {}), dict):
                return content
    raise UserError(f"{path} is damaged: delete it, and the command that began the run makes it anew")


def _over_seeds(value: Any) -> bool:
    """Whether `value` is as `evaluate.over_seeds` makes it."""
    return isinstance(value, dict) and {"mean", "spread"} <= value.keys() and isinstance(value.get("each"), list)


def _read(directory: Path) -> dict[str, Any] | None:
    """config.json as a run of any version wrote it; None where there is no such file."""
    path = directory / "config.json"
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except errors(path, ValueError, RecursionError) as error:
        if in_bucket(path) and not isinstance(error, ValueError | RecursionError):
            raise RunError(f"could not read {path}: {reason(error, path)}") from error
        raise UserError(f"{path} can't be read ({error}): restore it, or choose another --workdir") from None
    if not _written(content):
        raise UserError(f"{path} was not written by a run, or is damaged: choose another --workdir")
    return content


def _written(content: Any) -> bool:
    """Whether `content` is that of a config.json: one of another version, or one with the types of `_describe`.

    Of the config, only what is read without building it is looked at; `config.from_json` checks the rest.
    """
    match content:
        case {"format": version, "name": _, "config": _, "seeds": _} if version != FORMAT:
            return True
        case {
            "format": _,
            "name": str(),
            "config": {"run": {"steps": int(), "metric": str(), "mode": "max" | "min"}},
            "seeds": seeds,
            "init_from": None | str(),
            "code": str(),
            **more,
        }:
            over, paths = more.get("over", []), more.get("init_paths", [])
            return (
                (seeds is None or (type(seeds) is int and 0 < seeds < 2**31))
                and (isinstance(over, list) and all(map(_varied, over)))
                and (isinstance(paths, list) and all(isinstance(path, str) for path in paths))
                and isinstance(more.get("extended_from", []), list)
                and isinstance(more.get("topology", {}), dict)
            )
    return False


def _varied(value: Any) -> bool:
    """Whether `value` is one of the fields that a sweep varies, and its values."""
    match value:
        case [str(), [_, *_] as values]:
            return all(isinstance(x, int | float) for x in values)
    return False


def keep(directory: Path, texts: Mapping[str, str], run: Path | None = None) -> None:
    """Write the files needed to interpret the State (`Feeds.kept`), e.g. the tokenizer, to `directory`.

    texts  contents by file name
    run    the run's directory, where `directory` is a copy of it

    Raises UserError where the checkpoints of the run were made with other contents, hence from other data.
    """
    resumed = saved(run or directory)
    if resumed:
        check_kept(directory, texts, "--workdir")
    for name, text in texts.items():
        if not resumed or not (directory / name).exists():
            with failing("write", directory / name), replacing(directory / name) as temporary:
                temporary.write_text(text)


def check_data(directory: Path, data: str, run: Path) -> None:
    """Warn where the checkpoints of the run in `run` were made with other data; else note in config.json what it is.

    directory  where its files are written
    data       the hash of the data, see `provenance.data`
    """
    there = run_in(directory)
    if not saved(run) or "data" not in there:
        write_json(directory / "config.json", {**there, "data": data})
    elif there["data"] != data:
        warn(f"the data of {run} has changed since it was started: it goes on with other examples")


def check_kept(directory: Path, texts: Mapping[str, str], option: str = "run") -> None:
    """Raise UserError where the run in `directory` keeps a file of one of these names with another content.

    option  what to choose another of, for the message
    """
    for name, text in texts.items():
        path = directory / name
        with failing("read", path):
            there = path.read_bytes() if any(path.name == other.name for other in entries(directory)) else None
        if there is not None and there != text.encode():
            raise UserError(
                f"{path} is not the {path.stem} that this data makes, and the checkpoints in {directory} fit that one "
                f"alone: use the data and the version of samestep that the run was made with, or another {option}"
            )


def _describe(name: str, command: config.Command[Experiment]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "name": name,
        "config": config.to_json(command.config),
        "seeds": command.seeds,
        **({"over": config.to_json(command.over)} if command.over else {}),
        "topology": _topology(command),
        "init_from": None if command.init_from is None else str(command.init_from),
        **({"init_paths": command.init_paths} if command.init_paths else {}),
        **provenance.describe(),
    }


def _topology(command: config.Command[Experiment]) -> dict[str, Any]:
    return {
        "devices": len(jax.devices()),
        "place": command.place,
        "mesh": command.mesh or "data",
        "shard": command.shard,
    }


def moved(directory: Path, command: config.Command[Experiment], run: Path) -> None:
    """Say where the run in `run` ran before, if elsewhere; from now on it is known to run here.

    directory  where its files are written
    """
    there = about(directory)
    assert there is not None, "it is this run's"
    before, now = there.get("topology"), _topology(command)
    if before is not None and before != now:
        words = lambda topology: ", ".join(f"{name} {value}" for name, value in topology.items())
        say(f"{run}: Restored on another topology: {words(now)}; before, {words(before)}")
        write_json(directory / "config.json", {**there, "topology": now})


def _check_same(directory: Path, name: str, command: config.Command[Experiment], there: dict[str, Any]) -> bool:
    """Whether this command is the run in `directory`, whose config.json is `there`, with more steps.

    Raises UserError where it is another run.
    """
    longer, differ = False, []
    if there["name"] != name:
        differ = [f"it is a run of {there['name']}, not of {name}"]
    else:
        try:
            found = config.differences(command.config, there["config"])
            longer = set(found) == {"run.steps"} and found["run.steps"][0] < command.config.run.steps
            differ = [] if longer else [f"{path}: {a!r} there, {b!r} now" for path, (a, b) in found.items()]
        except UserError as error:
            differ = [str(error)]
        if there["seeds"] != command.seeds:
            differ.append(f"seeds: {there['seeds']} there, {command.seeds} now")
        if config.as_over(there) != command.over:
            differ.append(f"swept over: {there.get('over', [])} there, {config.to_json(command.over)} now")
        if _source(there["init_from"]) != _source(command.init_from):
            differ.append(f"init_from: {there['init_from']} there, {command.init_from} now")
        if tuple(there.get("init_paths", ())) != command.init_paths:
            differ.append(f"init_paths: {there.get('init_paths', [])} there, {list(command.init_paths)} now")
    if differ:
        raise UserError(
            f"{directory} was made by another config ({'; '.join(differ)}): "
            "choose another --workdir, or train anew with --overwrite"
        )
    return longer


def _extend(directory: Path, experiment: Experiment, there: dict[str, Any]) -> None:
    """Make the run in `directory` one of `experiment.run.steps`. Its summary.json is renamed to summary_STEPS.json."""
    before, after = there["config"]["run"]["steps"], experiment.run.steps
    summary, lines = directory / "summary.json", log.read(directory)
    if exhausted(scores(lines, experiment.run), experiment.run):
        raise UserError(
            f"the run in {directory} stopped early, at step {max(line['step'] for line in lines)} of {before}, by "
            "--run.patience: more steps would not change it; choose another --workdir"
        )
    if summary.exists():
        with failing("rename", summary):
            rename(summary, directory / f"summary_{before}.json")
    values = {**there["config"], "run": {**there["config"]["run"], "steps": after}}
    extended = [*there.get("extended_from", ()), before]
    write_json(directory / "config.json", {**there, "config": values, "extended_from": extended})
    say(f"{directory}: extended from {before} to {after} steps")
    evaluated = [line["step"] for line in lines if line["split"] == "validation" and experiment.run.metric in line]
    if before in evaluated and before % evaluated[0]:
        warn(
            f"step {before} was evaluated as the last one: this counts for the best step and --run.patience, "
            f"and a run of {after} steps from its start does without it"
        )
    if scheduled := config.scheduled(experiment):
        warn(
            f"schedules are now computed for {after} steps ({', '.join(scheduled)}): the result is not that of a run "
            f"of {after} steps from its start"
        )


def _withdraw(directory: Path, there: dict[str, Any]) -> None:
    """Undo `_extend` after an error, where the longer run has saved nothing: the run is as it was, `there`."""
    before = there["config"]["run"]["steps"]
    with failing("write to", directory):
        summary = directory / f"summary_{before}.json"
        if summary.exists():
            rename(summary, directory / "summary.json")
        write_json(directory / "config.json", there)
        log.cut(directory, before)
        if not in_bucket(directory):
            with log.Log(directory):  # TensorBoard's events are made anew from these lines
                pass


def resolved(path: Path | str) -> Path:
    """The path of a directory, which is the same by whatever name it is given."""
    found = located(path)
    return found if in_bucket(found) else found.resolve()


def _source(path: Path | str | None) -> Path | None:
    return None if path is None else resolved(path)


def _clear(directory: Path) -> None:
    """Delete the run in `directory`, config.json last: after a deletion that failed, it still counts as a run."""
    for part in ("checkpoints", "tensorboard", ".tensorboard.tmp", "history", "profile", "export", "wandb"):
        delete_tree(directory / part)
    patterns = ("*.json", "metrics.jsonl", "*.png", "*.gif", "*.txt")
    found = [path for pattern in patterns for path in directory.glob(pattern)]
    for path in sorted(found, key=lambda path: path.name == "config.json"):
        path.unlink()
