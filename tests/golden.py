"""What every config did when it was last recorded, in golden/NAME.json, at a tiny setting with made-up data.

    python tests/golden.py [NAME ...]                 records again: runs at several roundings, and writes the files
    python tests/golden.py --compare [NAME ...]       compares the code with the files strictly, within 1e-5
    python tests/golden.py --compare --rename '^parameters =parameters net/' --rename 'losses loss$=losses net_loss'

A file holds the tree of parameters with the norm of each leaf at the start, the losses of the first 20 steps, one
evaluation on validation data, and the spread: how far the numbers of other roundings are from these, other vector units
and parameters whose last bit is drawn at random among them. `test_golden.py` allows ten times the spread
up to each step. In some GANs rounding grows, from 1e-6 in the first steps to 1e-1 in the last.

`--rename PATTERN=TEXT` is for a change that renames parameters or metrics and changes no number: it is applied, as
`re.sub` does, to the names in the files, which are as --compare prints them: "losses loss".

Mixed precision is left out: a config in bfloat16 is recorded in float32, where 20 steps can be compared closely.
"""

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

import conftest  # noqa: F401  # the suite's settings: devices, XLA's flags, precision
import flax.linen as nn
import jax
import numpy as np

from research.core.errors import NotInstalled
from research.core.metrics import computed
from research.core.state import State
from research.data import boxes, images, masks, pairs, sentences, unpaired
from research.data.boxes import BoxedImages
from research.data.canvases import Canvases
from research.data.encoded import Encoded, Sources
from research.data.images import Images
from research.data.large_images import LargeImages
from research.data.masks import Masks
from research.data.pairs import Pairs
from research.data.sentences import Sentences
from research.data.text import Text
from research.data.unpaired import Unpaired
from research.training import config as configs

FOLDER = Path(__file__).parent / "golden"
STEPS = 20

ROUNDINGS: tuple[dict[str, str], ...] = (
    {},
    {"XLA_FLAGS": "--xla_cpu_max_isa=AVX2"},
    {"XLA_FLAGS": "--xla_cpu_max_isa=SSE4_2"},
    *({"GOLDEN_NUDGE": str(seed)} for seed in range(1, 5)),
)
"""The environments of processes that round differently. The first is that of the tests, whose numbers are recorded. A
nudge draws the last bit of the initial parameters: what one more kind of CPU, or release of XLA, may do."""

FLOOR = 1e-6
"""The least spread."""

STRICT = 1e-5
"""How far from the files --compare lets numbers be."""

# The tiny setting.

AT_MOST = {
    # nets
    **{
        "width": 8,
        "hidden": 12,
        "embedding": 6,
        "channels": 4,
        "layers": 2,
        "levels": 2,
        "tower": 1,
        "stem": 8,
        "heads": 2,
        "bigram_buckets": 64,
    },
    **{"mlp_dim": 12},
    # learners
    **{
        "latent": 6,
        "predicted_tokens": 20,
        "candidates": 50,
        "num_updates": 2,
        "pool": 12,
        "num_envs": 4,
        "rollout_length": 4,
        "buffer_size": 128,
        "epochs": 2,
        "minibatches": 2,
    },
    **{"learning_starts": 64, "updates": 2, "target_update_interval": 3, "episodes": 4},
    # data
    **{
        "crop": 12,
        "hole": 4,
        "size": 48,
        "objects": 3,
        "labels": 20,
        "vocabulary": 300,
        "context": 12,
        "evaluation_context": 20,
        "batch": 8,
        "evaluation_batch": 16,
    },
    # optimizer and run
    **{"warmup": 4, "steps": STEPS, "steps_per_dispatch": 5, "evaluate_every": STEPS, "save_every": STEPS},
}
"""The largest values of fields that are whole numbers, or tuples of them."""

INSTEAD = {
    "widths": lambda widths: tuple(max(2, width * 16 // max(widths[:2])) for width in widths[:2]),
    "blocks": lambda blocks: (1,) * min(len(blocks), 2) if isinstance(blocks, tuple) else 1,
    "attention": lambda where: tuple(min(stage, 1) for stage in where) if isinstance(where, tuple) else where,
    "lengths": lambda lengths: (12, 24),
    "dtype": lambda dtype: "float32",
    "learning_rate": lambda rate: min(rate, 0.02) if rate < 5 else rate,  # larger ones are those of tables
    "eps": lambda eps: 1e-3,
}
"""What replaces other fields. With Adam's own eps, a gradient of nothing but rounding would become a step of full size:
20 steps would be chaos."""


def tiny(name: str, directory: Path) -> Any:
    """The experiment of the config called `name`, small, on made-up data; files of it are in `directory`."""
    experiment = shrunk(configs.load(name))
    if not hasattr(experiment, "data"):
        return experiment
    return dataclasses.replace(experiment, data=made(experiment.data, directory))


def shrunk(config: Any) -> Any:
    """A config with all of its fields, and those of the configs in it, within `AT_MOST`."""
    changes = {}
    for field in configs.fields(config):
        value, most = getattr(config, field.name), AT_MOST.get(field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = shrunk(value)
        elif field.name in INSTEAD:
            changes[field.name] = INSTEAD[field.name](value)
        elif most is not None and value is not None:
            changes[field.name] = tuple(min(x, most) for x in value) if isinstance(value, tuple) else min(value, most)
    return config.clone(**changes) if isinstance(config, nn.Module) else dataclasses.replace(config, **changes)


# Data of the right shapes. The raw numbers of a bit generator are the same in every release of NumPy.


def raw(seed: int, *shape: int) -> np.ndarray:
    """Random bytes, u8[shape]."""
    return (np.random.PCG64(seed).random_raw(shape) >> np.uint64(56)).astype(np.uint8)


def lines(seed: int, count: int, longest: int) -> list[str]:
    """Made-up sentences of 2 to `longest` words, each at most once, for where two words are alike the maximum over the
    words is a matter of rounding."""
    words = [f"{consonant}{vowel}{last}" for consonant in "bdfm" for vowel in "aeiou" for last in "nstx"]
    sizes, order = 2 + raw(seed, count) % (longest - 1), raw(seed + 1, count, len(words)).argsort(1, kind="stable")
    return [" ".join(words[place] for place in row[:size]) for row, size in zip(order, sizes, strict=True)]


class MadeImages(Images):
    """Noise in ten classes."""

    def arrays(self) -> images.Arrays:
        shape = (8, 8, 1) if self.name == "mnist" else (16, 16, 3)
        of = lambda seed, count: (raw(seed, count, *shape), (raw(seed + 1, count) % 10).astype(np.int32))
        return images.Arrays(*of(0, 150), *of(2, 20), tuple("0123456789"))


class MadeLargeImages(LargeImages):
    """Noise in ten classes, whose sizes differ."""

    def sources(self) -> Sources:
        names = tuple("0123456789")
        return Sources(Noise(0, 150), None, Noise(2, 20), names)


class Noise(NamedTuple):
    """A source of images of noise."""

    seed: int
    examples: int

    def __len__(self) -> int:
        return self.examples

    def read(self, places: Sequence[int]) -> list[Encoded]:
        pixels, labels = raw(self.seed, self.examples, 24, 20, 3), raw(self.seed + 1, self.examples) % 10
        return [Encoded(pixels[place, : 24 - place % 4], int(labels[place])) for place in places]

    def name(self, place: int) -> str:
        return str(place)


class MadeMasks(Masks):
    """Noise, each pixel in a class by its brightness."""

    def arrays(self) -> masks.Arrays:
        def of(seed: int, count: int) -> masks.Part:
            pixels = raw(seed, count, 16, 16, 3)
            return pixels, pixels[..., 0] // 64

        return masks.Arrays(of(0, 40), of(1, 20), of(2, 20), tuple("abcd"))


class MadeCanvases(Canvases):
    """Canvases of noise."""

    def arrays(self) -> images.Arrays:
        return MadeImages(name=self.name).arrays()


class MadeBoxes(BoxedImages):
    """Noise with boxes of three classes."""

    def arrays(self) -> boxes.Arrays:
        def part(seed: int, count: int) -> boxes.Annotated:
            low, size = raw(seed + 1, count, 3, 2) / np.float32(512), raw(seed + 2, count, 3, 2) / np.float32(600)
            labels = (raw(seed + 3, count, 3) % 3).astype(np.int32)
            corners = np.concatenate([low, low + size + np.float32(0.05)], -1)
            return boxes.Annotated(raw(seed, count, 64, 64, 3), list(corners), list(labels))

        return boxes.Arrays(part(0, 40), part(4, 20), ("a", "b", "c"))


class MadeUnpaired(Unpaired):
    """Noise, dark and bright."""

    def arrays(self) -> unpaired.Domains:
        side = 16 if self.name == "cifar10" else 24  # the least that the discriminator of either config takes
        of = lambda seed, count: raw(seed, count, side, side, 3) // 2
        return unpaired.Domains(of(0, 40), of(1, 60) + 128, of(2, 20), of(3, 20) + 128)


class MadeSentences(Sentences):
    """Which sentences have the word man; sst2 says what to validate on."""

    def texts(self) -> sentences.Texts:
        def part(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
            texts = lines(seed, count, 30)
            return np.array(texts, object), np.array(["man" in text for text in texts], np.int32)

        return sentences.Texts(("no", "yes"), part(0, 120), part(2, 20) if self.name == "sst2" else None, part(4, 20))


class MadePairs(Pairs):
    """A translation has the words in the opposite order."""

    def texts(self) -> pairs.Texts:
        def part(seed: int, count: int) -> list[list[str]]:
            texts = lines(seed, count, 6)
            return [texts, [" ".join(reversed(text.split())) for text in texts]]

        return pairs.Texts(part(0, 120), part(2, 20), part(4, 20))


MADE: dict[type, type] = {
    Images: MadeImages,
    LargeImages: MadeLargeImages,
    Masks: MadeMasks,
    BoxedImages: MadeBoxes,
    Canvases: MadeCanvases,
    Unpaired: MadeUnpaired,
    Sentences: MadeSentences,
    Pairs: MadePairs,
}
"""What the examples of a source, or of one that inherits from it, are made up by."""


def made(data: Any, directory: Path) -> Any:
    """`data` with what isn't bundled, or isn't the same everywhere, made up; as it is where it inherits from no source
    of `MADE`."""
    if isinstance(data, Text):
        numbers = data.name.endswith(".npy")
        path = directory / ("tokens.npy" if numbers else "text.txt")
        if numbers:
            np.save(path, raw(0, 4000).astype(np.uint16))
        else:
            path.write_text("\n".join(lines(0, 400, 12)))
        return dataclasses.replace(data, name=str(path))
    base = next((base for base in MADE if isinstance(data, base)), None)
    if base is None or data.name == "digits":
        return data
    small = {"size": 32, "resize": 36} if isinstance(data, LargeImages) else {}
    kind = type(MADE[base].__name__, (MADE[base], type(data)), {})  # in all but its examples, what `data` is
    return kind(**{field.name: getattr(data, field.name) for field in dataclasses.fields(data)} | small)


# One run.


def record(name: str) -> dict[str, dict[str, Any]]:
    """{"parameters": {path: [shape, dtype, norm]}, "losses": {metric: [values]}, "evaluation": {metric: value}}."""
    with tempfile.TemporaryDirectory() as directory:
        return run(tiny(name, Path(directory)))


def run(experiment: Any) -> dict[str, dict[str, Any]]:
    """The parameters at the start, the training metrics of `STEPS` steps, and an evaluation after them."""
    learner, feeds = experiment.build(), experiment.feeds()
    start = state = nudged(jax.jit(learner.init)(jax.random.key(experiment.run.seed)))
    if feeds.train.resident:
        step, inputs = (
            jax.jit(lambda state, feed: learner.step(state, feed.batch_at(state.step))),
            lambda at: feeds.train,
        )
    else:
        step, inputs = jax.jit(learner.step), feeds.train.batch_at
    history = []
    for at in range(STEPS):
        state, metrics = step(state, inputs(at))
        history.append(numbers(metrics))
    evaluation = numbers(jax.jit(learner.evaluate)(state, feeds.validation[0]))
    # Of reinforcement learning, which makes its own data, what was played too.
    kept = [metric for metric in history[0] if metric.endswith("loss") or not hasattr(experiment, "data")]
    return {
        "parameters": dict(parameters(start.params)),
        "losses": {metric: [values[metric] for values in history] for metric in kept},
        "evaluation": evaluation,
    }


def nudged(state: State) -> State:
    """The State with the last bit of each parameter drawn at random by the seed GOLDEN_NUDGE; as it is without one."""
    seed = os.environ.get("GOLDEN_NUDGE")
    if seed is None:
        return state
    random = np.random.default_rng(int(seed))
    nudge = lambda x: x * (1 + np.float32(2**-23) * random.integers(-1, 2, x.shape).astype(np.float32))
    return state._replace(params=jax.tree.map(nudge, state.params))


def numbers(metrics: Any) -> dict[str, float]:
    """The value of each metric; 0 where nothing was counted."""
    values = computed(jax.device_get(metrics))
    return {name: rounded(0.0 if value is None else value) for name, value in sorted(values.items())}


def parameters(params: Any) -> Iterator[tuple[str, list[Any]]]:
    """(path, [shape, dtype, norm]) of each leaf."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        norm = np.linalg.norm(np.asarray(leaf, np.float64))
        yield jax.tree_util.keystr(path, simple=True, separator="/"), [list(leaf.shape), str(leaf.dtype), rounded(norm)]


def rounded(number: Any) -> float:
    """To nine digits, which float32 has."""
    return float(f"{float(number):.9g}")


# Comparing.


def apart(old: Any, new: Any) -> np.ndarray:
    """How far each value of two series of a metric is from the other's, relative to the larger of the value and the
    series' mean size; infinite where there is NaN."""
    old, new = np.atleast_1d(np.float64(old)), np.atleast_1d(np.float64(new))
    size = np.maximum(np.maximum(abs(old), abs(new)), abs(old).mean())
    return np.nan_to_num(abs(old - new) / np.where(size == 0, 1, size), nan=np.inf)


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """{"parameters", "losses", "evaluation": {name: relative difference of each value}}; infinite where one lacks the
    name, and where shapes or dtypes differ."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for part in ("parameters", "losses", "evaluation"):
        found[part] = {}
        for name in old[part] | new[part]:
            a, b = old[part].get(name), new[part].get(name)
            same = a is not None and b is not None and (part != "parameters" or a[:2] == b[:2])
            values = (a[2], b[2]) if part == "parameters" and same else (a, b)
            found[part][name] = apart(*values) if same else np.array([np.inf])
    return found


def spread(golden: dict[str, Any], others: list[dict[str, Any]]) -> dict[str, list[float]]:
    """{"PART NAME": how far the others are from `golden`, up to each value}."""
    found = [differences(golden, other) for other in others]
    upto = lambda part, name: np.maximum.accumulate(np.max([other[part][name] for other in found], axis=0))
    return {
        f"{part} {name}": [max(FLOOR, float(f"{value:.2g}")) for value in upto(part, name)]
        for part in ("losses", "evaluation")
        for name in golden[part]
    }


def load(name: str) -> dict[str, dict[str, Any]]:
    """The golden file of the config called `name`. Raises FileNotFoundError where none was recorded."""
    path = FOLDER / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(f"{name} has no golden file yet: record it by python tests/golden.py {name}")
    return json.loads(path.read_text())


def save(name: str, golden: dict[str, dict[str, Any]]) -> None:
    """Writes the golden file, a line an entry."""
    part = lambda entries: ",\n".join(f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in entries.items())
    text = ",\n".join(f"  {json.dumps(name)}: {{\n{part(entries)}\n  }}" for name, entries in golden.items())
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(f"{{\n{text}\n}}\n")


def renamed(golden: dict[str, dict[str, Any]], renames: list[str]) -> dict[str, dict[str, Any]]:
    """The golden file with the names of its entries changed; see `--rename`."""
    found: dict[str, dict[str, Any]] = {}
    for part, entries in golden.items():
        for key, value in entries.items():
            before = "" if part == "spread" else f"{part} "
            name = before + key
            for rename in renames:
                name = re.sub(*rename.split("=", 1), name)
            found.setdefault(part, {})[name.removeprefix(before)] = value
    return found


def compare(names: list[str], renames: list[str]) -> bool:
    """Prints how far each config is from its golden file, and each name that is further than `STRICT`."""
    fine = True
    for name in names:
        old = renamed(load(name), renames)
        try:
            new = record(name)
        except NotInstalled as missing:
            print(f"{name:32}  {missing}")
            continue
        found = differences(old, new)
        print(
            f"{name:32}",
            *(f"{part} {max(map(np.max, values.values())):.1e}" for part, values in found.items()),
            sep="  ",
        )
        for part, values in found.items():
            for key in (key for key, value in values.items() if value.max() > STRICT):
                fine = False
                print(f"    {part} {key}: {described(part, key, values[key], old, new)}")
    return fine


def described(part: str, key: str, values: np.ndarray, old: dict[str, Any], new: dict[str, Any]) -> str:
    """A difference in words. One of the spread's size that begins late is rounding that has grown."""
    if values.max() == np.inf:
        return f"not alike, {old[part].get(key)} before, {new[part].get(key)} now"
    if part == "parameters":
        return f"{values.max():.1e}"
    text = f"{values.max():.1e} (spread {max(old['spread'][f'{part} {key}']):.0e})"
    return text if part == "evaluation" else f"{text}, from step {np.argmax(values > STRICT)} on"


def renew(names: list[str]) -> None:
    """Records the configs at each of `ROUNDINGS`, in processes of their own, and writes their golden files."""
    with tempfile.TemporaryDirectory() as directory:
        records = []
        for number, variables in enumerate(ROUNDINGS):
            file = Path(directory) / f"{number}.json"
            command = [sys.executable, __file__, "--record", str(file), *names]
            subprocess.run(command, env=os.environ | variables, check=True)
            records.append(json.loads(file.read_text()))
            print("recorded with", variables or "the settings of the tests")
    for name in names:
        golden, *others = (found[name] for found in records)
        golden["spread"] = spread(golden, others)
        save(name, golden)
        print(f"{name:32}  spread {max(map(max, golden['spread'].values())):.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="configs; default: all")
    parser.add_argument("--compare", action="store_true", help="compare with the files, and write nothing")
    parser.add_argument("--rename", action="append", default=[], metavar="PATTERN=TEXT", help="of names in the files")
    parser.add_argument("--record", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    names = given.names or configs.names()
    if given.record:
        given.record.write_text(json.dumps({name: record(name) for name in names}))
    elif given.compare:
        sys.exit(0 if compare(names, given.rename) else 1)
    else:
        renew(names)


if __name__ == "__main__":
    main()
