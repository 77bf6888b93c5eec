"""What fewer bits and fewer weights cost a trained image classifier: python -m experiments.compress DIR.

Its size, its accuracy on the test images and its speed are measured in float32, in bfloat16 and with products of int8,
for which the ranges of the layers' inputs are calibrated on training images (a run that was trained with --quantization
int8 has its own). A size is that of the weights and batch statistics as an array of bytes, and of that array after
zlib; "sparse" are a bit for each weight and those that are not 0. Speeds are the medians of calls in turns, on this
machine. Zeros make no product faster here: a pruned net is as fast as it was.

The numbers are written to compress.json in the run's directory, and the accuracy after pruning at once, without any
training, to the picture compress_sparsity.png.
"""

import sys
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax.traverse_util import flatten_dict

from experiments.console import check_output, print_table, script
from experiments.results import command_of, provenance
from experiments.runs import first_images, image_classifier
from research.core.errors import positive
from research.core.files import write_json
from research.core.int8 import RANGES, integers, scale_of
from research.core.modules import cast
from research.core.muon import OUTPUTS
from research.core.pruning import Pruning, largest, sparsity_of
from research.core.state import Batch, State, evaluated, owned
from research.core.types import Tree
from research.evaluation import plots
from research.learners.classify import Classify
from research.training.config import Directory

SPARSITIES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)


@dataclass(frozen=True)
class Options:
    """The options of `experiments.compress`.

    Attributes:
        directory: directory of the run of an image classifier
        output: file for the numbers; by default compress.json in the run's directory
        calibration: training batches that ranges are calibrated on
        rounds: timed calls of each program
        curves: test images of the accuracy by sparsity
    """

    directory: Annotated[Directory, tyro.conf.Positional]
    output: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    calibration: int = 10
    rounds: int = 15
    curves: int = 2000

    def __post_init__(self) -> None:
        positive(self, "", "calibration", "rounds", "curves")
        check_output(self.output)


def compress(options: Options) -> None:
    """Measures the run, prints a table, and writes the numbers and the picture."""
    experiment, state = image_classifier(options.directory)
    feeds = experiment.feeds()
    plain = replace(experiment, quantization=None, update=replace(experiment.update, dtype="float32"))
    half = replace(plain, update=replace(plain.update, dtype="bfloat16"))
    if experiment.quantization is None:
        batches = [feeds.train.batch_at(step).inputs for step in range(options.calibration)]
        ranges = calibrated(plain, state, batches)
    else:
        ranges = {RANGES: owned(state, "net")[RANGES]}
    own = {name: x for name, x in owned(state, "net").items() if name != RANGES}
    with_net = lambda own: state._replace(collections=state.collections | {"net": own})
    programs = {
        "float32": (jax.jit(plain.logits), with_net(own)),
        "bfloat16": (jax.jit(half.logits), with_net(own)),
        "int8": (jax.jit(replace(plain, quantization="int8").logits), with_net(own | ranges)),
    }
    weights = evaluated(state, "net")
    stored = {
        "float32": (weights, own),
        "bfloat16": cast((weights, own), jnp.bfloat16),
        "int8": (in_int8(weights, ranges[RANGES]), own, ranges),
    }
    images = feeds.test[0].inputs
    calls = {name: partial(logits, state, images) for name, (logits, state) in programs.items()}
    speeds = measured(calls, options.rounds)
    rows: dict[str, dict[str, Any]] = {
        name: {
            **sizes(stored[name]),
            "accuracy": accuracy(*programs[name], feeds.test),
            "examples_per_second": len(images) / speeds[name],
        }
        for name in programs
    }
    config = experiment.update.pruning
    sparsity = float(sparsity_of(weights, config.pruned(weights)))
    if sparsity > 0.01:
        rows["float32, sparse"] = {**rows["float32"], **sizes((sparse(weights), own))}
        rows["int8, sparse"] = {**rows["int8"], **sizes((sparse(in_int8(weights, ranges[RANGES])), own, ranges))}
    found = {
        "about": provenance(command_of("compress", options), jax.devices()[0].device_kind),
        "sparsity": sparsity,
        "compressed": rows,
        "images_of_the_curves": sum(int(counted.sum()) for _, counted in first_images(feeds.test, options.curves)),
        "accuracy_by_sparsity": {
            {"layer": "by layer", "global": "all together"}[scope]: dict(
                zip(SPARSITIES, one_shot(programs["float32"], config, scope, feeds.test, options.curves), strict=True)
            )
            for scope in ("layer", "global")
        },
    }
    write_json(options.output or options.directory / "compress.json", found)
    draw(found, options.directory)
    show(options.directory, found)


def calibrated(experiment: Classify, state: State, batches: Sequence[Any]) -> dict[str, Tree]:
    """The collection of the largest magnitudes of the layers' inputs on images u8[batch, height, width, channels]."""
    each = [jax.jit(experiment.input_ranges)(state, images) for images in batches]
    return jax.tree.map(lambda *x: jnp.stack(x).max(0), *each)


def accuracy(logits: Callable[..., jax.Array], state: State, test: Sequence[Batch], limit: int | None = None) -> float:
    """The share of the test images, of the first `limit`, whose largest logit is that of their class."""
    right = [
        (np.asarray(logits(state, batch.inputs)).argmax(-1) == batch.targets)[counted]
        for batch, counted in first_images(test, limit)
    ]
    return float(np.concatenate(right).mean())


def one_shot(
    program: tuple[Callable[..., jax.Array], State], config: Pruning, scope: Any, test: Sequence[Batch], limit: int
) -> list[float]:
    """The accuracies after the smallest weights have been set to 0, one for each of `SPARSITIES`."""
    logits, state = program
    weights = evaluated(state, "net")
    marked = config.pruned(weights)

    @jax.jit
    def pruned(weights: Tree, sparsity: jax.Array) -> Tree:
        kept = largest(jax.tree.map(lambda x, hit: jnp.abs(x) if hit else None, weights, marked), sparsity, scope)
        keep = lambda x, stays: x if stays is None else jnp.where(stays, x, 0)
        return jax.tree.map(keep, weights, kept)

    with_weights = lambda sparsity: state._replace(
        params={"net": pruned(weights, sparsity)},
        collections={name: x for name, x in state.collections.items() if name != "average"},
    )
    return [accuracy(logits, with_weights(sparsity), test, limit) for sparsity in SPARSITIES]


def in_int8(weights: Tree, ranges: Tree) -> tuple[Tree, Tree]:
    """The weights, by path, in which the kernels of the layers that have a range are integers; and their scales."""
    flat, stacked = flatten_dict(weights), {path[:-1]: x.ndim for path, x in flatten_dict(ranges).items()}
    scales = {
        path: scale_of(jnp.abs(x).max(_inputs(path, x, stacked[path[:-1]]), keepdims=True))
        for path, x in flat.items()
        if path[-1] == "kernel" and path[:-1] in stacked
    }
    return {path: integers(x, scales[path]) if path in scales else x for path, x in flat.items()}, scales


def _inputs(path: tuple[str, ...], kernel: jax.Array, stacked: int) -> tuple[int, ...]:
    """The axes of a kernel that are inputs; of `stacked` layers the first axis counts layers."""
    return tuple(range(stacked, kernel.ndim - OUTPUTS.get(path[-2], 1)))


def sparse(weights: Tree) -> Tree:
    """The weights as a bit for each, whether it is 0, and those that are not; arrays with hardly a 0 stay whole."""

    def each(x: jax.Array) -> Any:
        whole = np.asarray(x)
        return (np.packbits(whole != 0), whole[whole != 0]) if (whole == 0).mean() > 0.05 else whole

    return jax.tree.map(each, weights)


def sizes(tree: Tree) -> dict[str, int]:
    """The bytes of the leaves of a tree, as they are and after zlib."""
    content = b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(tree))
    return {"bytes": len(content), "zlib_bytes": len(zlib.compress(content, 9))}


def measured(calls: Mapping[str, Callable[[], jax.Array]], rounds: int) -> dict[str, float]:
    """The median seconds of each call; they are timed in turns, after one that compiles."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            call().block_until_ready()
            seconds[name] += [time.perf_counter() - begin] if turn else []
    return {name: median(found) for name, found in seconds.items()}


def draw(found: dict[str, Any], directory: Path) -> None:
    """Writes the picture."""
    lines = {scope: (list(each), list(each.values())) for scope, each in found["accuracy_by_sparsity"].items()}
    plots.lines(lines, "sparsity", "accuracy", directory / "compress_sparsity.png")


def show(directory: Path, found: dict[str, Any]) -> None:
    """Prints the table."""
    rows, title = found["compressed"], f"{directory}: {found['sparsity']:.1%} of the weights are 0"
    cells = [
        (
            name,
            f"{row['bytes']:,}",
            f"{row['bytes'] / rows['float32']['bytes']:.3f}",
            f"{row['zlib_bytes']:,}",
            f"{row['accuracy']:.4f}",
            f"{row['examples_per_second']:.0f}",
        )
        for name, row in rows.items()
    ]
    print_table(("stored as", "bytes", "of float32", "zlib", "accuracy", "examples/s"), cells, title)


main = script("compress", __doc__, Options, compress)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
