"""How a trained classifier's rates differ between groups: python -m experiments.groups DIR --by COLUMN [options].

Accuracy, expected calibration error and selection, true-positive and false-positive rates of each group of test
examples, and the differences between the groups: equalised odds, demographic parity and the like; see
research/evaluation/groups.py. A group is a value of a column that the data has, or a range of its numbers. Every run
also has the columns label and predicted; images have brightness and contrast, and texts have length, in tokens; where
the data has a column of such a name, that one is taken. groups.json, groups.png and groups_reliability.png are written
to the run's directory.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import tyro

from experiments.console import print_table, script
from experiments.runs import one_seed
from research.core.errors import RunError, UserError, between, positive
from research.core.files import failing, make_directory, write_json
from research.core.metrics import plain
from research.core.special_tokens import PAD
from research.data.columns import column_names, test_column
from research.evaluation import groups as of_groups
from research.evaluation import plots
from research.evaluation.groups import ByGroup
from research.training.config import Directory


@dataclass(frozen=True)
class Options:
    """The options of `experiments.groups`.

    Attributes:
        directory: directory of the run of a classifier
        by: column whose values are the groups
        output: directory to write to; by default that of the run
        pattern: regular expression whose first parentheses match the part of the value to group by, such as '_(.*)_'
        quantiles: number of groups of a column of numbers that has more different ones
        least: smallest number of examples of a group that counts in the differences; a smaller one is marked
        samples: bootstrap samples of the 95 % intervals, and random groupings to compare with; 0: none
    """

    directory: Annotated[Directory, tyro.conf.Positional]
    by: str
    output: Annotated[Directory | None, tyro.conf.arg(help_behavior_hint="")] = None
    pattern: str | None = None
    quantiles: int = 4
    least: int = 30
    samples: int = 500

    def __post_init__(self) -> None:
        positive(self, "", "least")
        between(self, "", 2, of_groups.MOST - 1, "quantiles")  # and a group of NaN
        between(self, "", 0, math.inf, "samples")


class Predictions(NamedTuple):
    """What a classifier says of the test examples, leaves [examples, ...].

    index          places of the examples in the test data
    probabilities  [examples, classes]
    derived        columns by name, made of inputs, labels and predictions, leaves [examples]
    """

    index: np.ndarray  # type: ignore[assignment]  # a field, not tuple's method
    labels: np.ndarray
    probabilities: np.ndarray
    derived: dict[str, np.ndarray]


def run(options: Options) -> None:
    """Compares the groups, prints tables, and writes the numbers and the pictures."""
    experiment, state = one_seed(options.directory)
    inference, test = experiment.inference(state).get("inference"), experiment.feeds().test
    if inference is None or not inference.names or getattr(test[0].targets, "ndim", 0) != 1:
        raise UserError(f"{options.directory} is not the run of a classifier: give one, for example of mnist_cnn")
    directory = options.output or options.directory
    with failing("write", directory):
        make_directory(directory)
    _check(options.by, experiment.data, test[0].inputs)
    made = predictions(inference, test)
    groups = of_groups.grouped(column(options.by, experiment.data, made), options.pattern, options.quantiles)
    found, whole, samples = compared(groups, made, options)
    about = {name: getattr(options, name) for name in ("by", "pattern", "quantiles", "least", "samples")}
    write_json(directory / "groups.json", {"about": about, "classes": list(inference.names), **found})
    show(found, inference.names, f"{options.directory} by {options.by}", options)
    draw(groups.names, whole, samples, directory)


def predictions(inference: Any, test: Any) -> Predictions:
    """The predictions of a classifier's `Inference` on the test batches."""
    function, parts = jax.jit(inference.function), []
    for batch in test:
        valid = np.asarray(batch.mask) > 0
        logits = np.asarray(function(*inference.inputs(batch).values()), np.float64)[valid]
        logits -= logits.max(1, keepdims=True)
        probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        inputs = np.asarray(batch.inputs)[valid]
        derived = {name: make(inputs) for name, make in derivable(inputs).items()}
        parts.append(
            Predictions(np.asarray(batch.index)[valid], np.asarray(batch.targets)[valid], probabilities, derived)
        )
    joined = jax.tree.map(lambda *xs: np.concatenate(xs), *parts)
    names = np.array(inference.names)
    more = {"label": names[joined.labels], "predicted": names[joined.probabilities.argmax(1)]}
    return joined._replace(derived=joined.derived | more)


def derivable(inputs: Any) -> Mapping[str, Callable[[np.ndarray], np.ndarray]]:
    """The columns that can be made of a batch's inputs: images u8[batch, height, width, channels], tokens i32[batch,
    time]."""
    inputs = np.asarray(inputs)
    if inputs.ndim == 4 and inputs.dtype == np.uint8:
        flat = lambda x: x.reshape(len(x), -1) / 255
        return {"brightness": lambda x: flat(x).mean(1), "contrast": lambda x: flat(x).std(1)}
    if inputs.ndim == 2 and inputs.dtype.kind == "i":
        return {"length": lambda x: (x != PAD).sum(1)}
    return {}


def _check(by: str, data: Any, inputs: Any) -> None:
    """Raises UserError, with the columns that there are, unless `by` is one of them."""
    names = [*column_names(data), *derivable(inputs), "label", "predicted"]
    if by not in names:
        raise UserError(f"by: the data has no column {by}; it has {', '.join(dict.fromkeys(names))}")


def column(by: str, data: Any, made: Predictions) -> Any:
    """The values of a column for the examples of `made`. Raises RunError where its rows are not those examples'."""
    if by in made.derived and (by not in column_names(data) or by == data.label_feature):
        return made.derived[by]
    labels, values = test_column(data, by)
    if made.index.max() >= len(labels) or not all(
        labels[place] in (number, name)
        for place, number, name in zip(made.index, made.labels, made.derived["label"], strict=True)
    ):
        raise RunError(f"by: the rows of the column {by} are not those of the test examples: their labels differ")
    return [values[place] for place in made.index]


def compared(groups: of_groups.Groups, made: Predictions, options: Options) -> tuple[dict[str, Any], ByGroup, Any]:
    """The numbers for groups.json, the counts by group, and the rates of the bootstrap samples, None of 0 samples."""
    arrays = (groups.of, len(groups.names), made.labels, made.probabilities)
    whole = of_groups.count(*arrays)
    sizes = np.bincount(groups.of, minlength=len(groups.names))
    kept = np.flatnonzero(sizes >= options.least)
    if len(kept) < 2:
        raise UserError(
            f"fewer than two groups have {options.least} test examples, the largest have "
            f"{', '.join(map(str, np.sort(sizes)[::-1][:3]))}: give a smaller --least, or fewer --quantiles"
        )
    large = lambda rates, axis: of_groups.Rates(*(x.take(kept, axis) for x in rates))
    samples = of_groups.bootstrapped(*arrays, options.samples) if options.samples else None
    chance = of_groups.shuffled(*arrays, options.samples) if options.samples else None

    each = of_groups.rates(whole)
    differences = of_groups.differences(large(each, 0))
    gaps, by_class = differences.overall(), differences._asdict()
    around = {} if samples is None else of_groups.differences(large(samples, 1)).overall()
    by_chance = {} if chance is None else of_groups.differences(large(chance, 1)).overall()
    found: dict[str, Any] = {"groups": {}, "differences": {}}
    for n, name in enumerate(groups.names):
        row: dict[str, Any] = {"examples": int(sizes[n]), "too_few": bool(sizes[n] < options.least)}
        for key, values in each._asdict().items():
            row[key] = plain(values[n])
            if samples is not None and values.ndim == 1:
                row[f"{key}_interval"] = plain(interval(getattr(samples, key)[:, n]))
        found["groups"][name] = row
    for key, value in gaps.items():
        found["differences"][key] = {"value": plain(value)}
        if by_class[key].ndim:
            found["differences"][key]["by_class"] = plain(by_class[key])
        if samples is not None and not np.isnan(value):
            more = {"interval": interval(around[key]), "by_chance": of_groups.mean(by_chance[key])}
            found["differences"][key] |= {name: plain(x) for name, x in more.items()}
    return found, whole, samples


def interval(values: np.ndarray) -> np.ndarray:
    """The 95 % percentile interval of samples [samples, ...], [2, ...]; NaN where a sample has no value."""
    return np.quantile(values, (0.025, 0.975), axis=0)


def show(found: Mapping[str, Any], classes: Sequence[str], title: str, options: Options) -> None:
    """Prints the rates of the groups, and their differences."""
    number = lambda x: "" if x is None else f"{x:.4f}"
    span = lambda pair: "" if pair is None or None in pair else f"{pair[0]:.3f} {pair[1]:.3f}"
    overall = lambda values: number(plain(of_groups.over_classes(np.array(values, float))))
    two = len(classes) == 2
    rates = {"TPR": "true_positive", "FPR": "false_positive"} | ({"selected": "selection"} if two else {})
    rows = [
        (
            f"{name} *" if row["too_few"] else name,
            f"{row['examples']:,}",
            number(row["accuracy"]),
            span(row.get("accuracy_interval")),
            number(row["calibration_error"]),
            *(overall(row[key]) for key in rates.values()),
        )
        for name, row in found["groups"].items()
    ]
    print_table(("group", "examples", "accuracy", "95 %", "ECE", *rates), rows, title)
    if any(row["too_few"] for row in found["groups"].values()):
        print(f"* fewer than {options.least} examples: left out of the differences")
    rows = [
        (name.replace("_", " "), number(row["value"]), span(row.get("interval")), number(row.get("by_chance")))
        for name, row in found["differences"].items()
    ]
    print_table(("difference between groups", "value", "95 %", "by chance"), rows)
    of = f"of the class {classes[1]}" if two else "means over the classes, each against the rest"
    print(f"The rates of predictions (TPR, FPR) and their differences are {of}.")


def draw(names: tuple[str, ...], whole: ByGroup, samples: of_groups.Rates | None, directory: Path) -> None:
    """Writes the pictures."""
    count, confidence, right = np.moveaxis(whole.bins, -1, 0)
    filled = np.maximum(count, 1)
    bins = {name: (confidence[n] / filled[n], right[n] / filled[n], count[n]) for n, name in enumerate(names)}
    plots.reliability(bins, directory / "groups_reliability.png")
    found = of_groups.rates(whole)
    titles = {"accuracy": "accuracy", "calibration_error": "expected calibration error"}
    kinds = {"true_positive": "true-positive rate", "false_positive": "false-positive rate"}
    if whole.confusion.shape[-1] == 2:
        kinds["selection"] = "selection rate"
    bars = {}
    for key, title in (titles | kinds).items():
        single = lambda x, key=key: x if key in titles else of_groups.over_classes(x)
        values = single(getattr(found, key))
        around = np.stack([values, values]) if samples is None else interval(single(getattr(samples, key)))
        bars[title] = values, around
    plots.bars(bars, names, directory / "groups.png")


main = script("groups", __doc__, Options, run)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
