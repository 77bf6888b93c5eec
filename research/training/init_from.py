"""Weights that a run starts from: those that another run evaluates (`--init-from`)."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

import jax

from research.core import console
from research.core.errors import UserError
from research.core.patterns import check_patterns
from research.core.state import State
from research.training.checkpoint import Manifest, Warn, absolute, newest_or_best, read_leaves
from research.training.leaves import check_same, differences, named
from research.training.processes import ProcessGroup

T = TypeVar("T")

AVERAGED = ("params", "collections/average")
"""The average of the parameter params/NAME is collections/average/NAME."""


def init_from(
    directory: Path | str,
    state: State,
    warn: Warn = console.warn,
    best: bool = False,
    group: ProcessGroup | None = None,
    paths: Sequence[str] = (),
    repeated: bool = False,
) -> State:
    """`state` with the weights that another run evaluates, and with that run's collections of equal shapes.

    directory  the other run's checkpoints
    best       take the checkpoint marked as the best where there is one, else the newest
    group      see `restore`
    paths      patterns of the paths of the parameters to take, such as "net/encoder/*"; with a ! in front, of those not
               to take; none: all. Batch statistics and target nets are taken by them too, see `_path`
    repeated   `state` has an axis of seeds, and the other run has none: each seed gets the same

    The weights are the other run's averages where it has them, else its parameters; an average in `state` starts at
    the same values. Parameters that only `state` has (a head for another task) keep their values, with one line to
    `warn`; so do collections, but for a target net, which starts as a copy of its net. Raises UserError where shapes
    differ, no parameter is common to both, a pattern matches none, or nothing was saved.
    """
    check_patterns(state.params, [pattern.removeprefix("!") for pattern in paths], "--init-paths", whole=True)

    def read(path: Path, manifest: Manifest) -> State:
        here, there = named(state), manifest.leaves
        one = lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
        shapes = {name: one(leaf) for name, leaf in here.items()} if repeated else here
        sources = _parameters(path, here, there, paths, warn)
        parameters = {name: there[source] for name, source in sources.items()}
        check_same(path, parameters, {name: shapes[name] for name in sources})
        for collection in _collections(state):
            sources |= _collection(collection, path, shapes, there, sources, paths, warn)
        found = read_leaves(path, {source: shapes[name] for name, source in sources.items()})
        if repeated:
            found = {source: leaf[None].repeat(len(state.key), 0) for source, leaf in found.items()}
        # Copies, because a parameter and its average may have one source and no two leaves may share a buffer.
        taken = {name: found[at] if at == name else found[at].copy() for name, at in sources.items()}
        return jax.tree.unflatten(jax.tree.structure(state), list((here | taken).values()))

    found = newest_or_best(absolute(directory), read, warn, best, group or ProcessGroup())
    if found is None:
        raise UserError(f"{directory} holds no checkpoint to start from")
    return found[1]


def _parameters(
    path: Path, here: Mapping[str, Any], there: Mapping[str, str], paths: Sequence[str], warn: Warn
) -> dict[str, str]:
    """The leaf of the checkpoint at `path` that each parameter and average of `here` is taken from, by name."""
    sources = {name: _source(name, there) for name in here if _wanted(name, paths, here)}
    taken = {name: source for name, source in sources.items() if source is not None and source in there}
    parameters = [name for name in here if name.startswith(f"{AVERAGED[0]}/")]
    wanted = [name for name in parameters if name in sources]
    if paths:
        left = ", ".join(name for name in parameters if name not in sources)
        warn(f"{path} gives {', '.join(wanted)}; --init-paths leaves {left or 'none'}")
    missing = [name for name in wanted if name not in taken]
    if missing == wanted:
        raise UserError(f"checkpoint {path} has none of these parameters: {', '.join(wanted[:3])}, …")
    if missing:
        warn(f"{path} does not have {', '.join(missing)}: they start afresh")
    return taken


def _collections(state: State) -> Iterator[str]:
    """The names of what is taken whole or not at all: each kind of a net's own collections, and the others; averages
    aside."""
    for name, own in state.collections.items():
        kinds = own if name in state.params else ()
        yield from (f"collections/{name}/{kind}" for kind in kinds)
        if not kinds and f"collections/{name}" != AVERAGED[1]:
            yield f"collections/{name}"


def _collection(
    collection: str,
    path: Path,
    here: Mapping[str, Any],
    there: Mapping[str, str],
    sources: Mapping[str, str],
    paths: Sequence[str],
    warn: Warn,
) -> dict[str, str]:
    """The leaf of the checkpoint at `path` that each leaf of one collection is taken from, by name; `sources` has those
    of the parameters."""
    ours = {name: leaf for name, leaf in _under(collection, here).items() if _wanted(name, paths, here)}
    theirs = _under(collection, there)
    if paths:
        theirs = {name: leaf for name, leaf in theirs.items() if name in ours}
    if not differences(theirs, ours):
        return {name: name for name in ours}
    copied = {name: sources.get(f"{AVERAGED[0]}/{_path(name, here)}") for name in ours}
    if not theirs and any(copied.values()):  # a target net starts as the net of which it is a copy
        return {name: source for name, source in copied.items() if source is not None}
    if ours:
        warn(f"{path} does not have {collection}, or has it of other shapes: it starts afresh")
    return {}


def _wanted(name: str, paths: Sequence[str], leaves: Collection[str]) -> bool:
    """Whether one of the `leaves` of a State is to be taken: what goes with no parameter is."""
    path = _path(name, leaves)
    hit = lambda patterns: any(fnmatchcase(path, pattern) for pattern in patterns)
    given = [pattern for pattern in paths if not pattern.startswith("!")]
    return path is None or ((not given or hit(given)) and not hit(p[1:] for p in paths if p.startswith("!")))


def _path(name: str, leaves: Collection[str]) -> str | None:
    """The path by which one of the `leaves` of a State is taken or not: of a parameter, of its average and of its copy
    in a target net, the parameter's; of a net's own collections, such as net/norm/mean of its batch statistics; else
    None. A target net is one whose paths are those of a net; of the first such net, where several are alike."""
    if (parameter := _parameter(name)) is not None:
        return parameter
    owner, _, rest = name.removeprefix("collections/").partition("/")
    nets = dict.fromkeys(leaf.split("/")[1] for leaf in leaves if leaf.startswith(f"{AVERAGED[0]}/"))
    if owner in nets:
        return f"{owner}/{rest.partition('/')[2]}"
    whole = [leaf.removeprefix("collections/") for leaf in _under(f"collections/{owner}", dict.fromkeys(leaves))]
    copied = lambda net: {f"{AVERAGED[0]}/{net}{leaf.removeprefix(owner)}" for leaf in whole} <= set(leaves)
    return next((f"{net}/{rest}" for net in nets if whole and copied(net)), None)


def _parameter(name: str) -> str | None:
    """The path of the parameter that a leaf is, or is the average of; else None."""
    return next((name.removeprefix(f"{prefix}/") for prefix in AVERAGED if name.startswith(f"{prefix}/")), None)


def _source(name: str, there: Collection[str]) -> str | None:
    """The leaf of a checkpoint with the leaves `there` that a parameter or an average is taken from."""
    if (path := _parameter(name)) is None:
        return None
    parameter, average = (f"{prefix}/{path}" for prefix in AVERAGED)
    return average if average in there else parameter


def _under(prefix: str, leaves: Mapping[str, T]) -> dict[str, T]:
    return {name: leaf for name, leaf in leaves.items() if f"{name}/".startswith(f"{prefix}/")}
