"""What a net pre-trained on other classes saves in labelled images: python -m experiments.transfer [options].

ResNet-20 is trained on CIFAR-10's first five classes (`cifar10_first_five_resnet20`), and then on few images of the
other five (`cifar10_last_five_resnet20`), in three ways: all of it fine-tuned, its head alone trained, and all of it
from scratch. Each way has the same steps and as many learning rates to choose from, of which the first seed takes the
one that is best on validation data; seed and draw of the images change together. The runs are in directories of their
own: the same command resumes. Accuracies on test data are written to the output and to transfer.png in the directory.
"""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.console import check_output, measured, print_table, script
from experiments.results import command_of, provenance
from research.core.errors import UserError, positive
from research.core.files import write_json
from research.evaluation import plots
from research.training import config, log
from research.training.run import train

PRETRAINED, TUNED = "cifar10_first_five_resnet20", "cifar10_last_five_resnet20"

RESERVED = {
    "pretraining": ("workdir", "seeds", "data.classes"),
    "tuning": (
        *("workdir", "seeds", "data.classes", "data.labels", "data.draw", "seed", "run.seed"),
        *("freeze", "update.freeze", "init-from", "init-paths", "optimizer.learning-rate"),
    ),
}
"""Options that --pretraining and --tuning can't have: the script sets them itself, or compares them."""


class Way(NamedTuple):
    """A way to train on few images: its options, whether it starts from the pre-trained net, and learning rates."""

    options: tuple[str, ...]
    pretrained: bool
    rates: tuple[float, ...]


WAYS = {
    "whole": Way((), True, (5e-4, 2e-3)),
    "head only": Way(("--freeze", "stem/*", "*Norm_*", "*Block_*"), True, (3e-3, 2e-2)),
    "from scratch": Way((), False, (1e-3, 4e-3)),
}


@dataclass(frozen=True)
class Options:
    """The options of `experiments.transfer`.

    Attributes:
        directory: directory of the runs
        images: numbers of images of each class
        seeds: number of seeds, each with other images
        output: file for the numbers; by default transfer.json in the directory
        pretraining: further options of the pre-training, in one text after =, such as --pretraining="--steps 1000"
        tuning: further options of all other runs, likewise
    """

    directory: config.Directory = Path("runs/transfer")
    images: tuple[int, ...] = (10, 50, 250)
    seeds: int = 3
    output: Path | None = None
    pretraining: str = ""
    tuning: str = ""

    def __post_init__(self) -> None:
        positive(self, "", "images", "seeds")
        if self.output is None or self.output.parent != self.directory:  # which is made
            check_output(self.output)
        if len(set(self.images)) < len(self.images):
            raise UserError("--images has a number twice")
        for name, reserved in RESERVED.items():
            try:
                words = shlex.split(getattr(self, name))
            except ValueError as error:
                raise UserError(f"--{name}: {error}") from error
            for word in words:
                if word.partition("=")[0] in {f"--{option}" for option in reserved}:
                    raise UserError(f"--{name}: this script sets {word.partition('=')[0]} itself: leave it out")


def transfer(options: Options) -> None:
    """Trains what is not trained yet, prints a table, and writes the numbers and the picture."""
    source = options.directory / "pretrained"
    pretraining = config.parse(PRETRAINED, [*shlex.split(options.pretraining), "--workdir", str(source)])
    commands = {
        (name, images, rate, seed): _command(options, name, images, rate, seed)
        for name, way in WAYS.items()
        for images in options.images
        for rate in way.rates
        for seed in range(options.seeds)
    }
    # What can't be trained is said before the pre-training.
    for data in dict.fromkeys(command.config.data for command in commands.values()):
        data.feeds()
    pretrained = train(PRETRAINED, pretraining)
    found: dict[str, dict[str, Any]] = {}
    for name, way in WAYS.items():
        found[name] = {}
        for images in options.images:
            validated = {rate: _validated(commands[name, images, rate, 0]) for rate in way.rates}
            rate = max(validated, key=lambda rate: validated[rate])
            each = [train(TUNED, commands[name, images, rate, seed]) for seed in range(options.seeds)]
            found[name][str(images)] = {
                "accuracy": [measured(result)["accuracy"]["mean"] for result in each],
                "learning_rate": rate,
                "validation_accuracy": {str(rate): value for rate, value in validated.items()},
                "seconds": sum(result["seconds"] for result in each),
            }
    record = {
        "about": provenance(command_of("transfer", options), jax.devices()[0].device_kind),
        "pretrained": pretrained,
        "transfer": found,
    }
    write_json(options.output or options.directory / "transfer.json", record)
    draw(found, options.directory / "transfer.png")
    shown = lambda cell: " ".join(f"{x:.3f}" for x in cell["accuracy"])
    rows = [(key, *(shown(cells[key]) for cells in found.values())) for key in map(str, options.images)]
    print_table(("images a class", *found), rows, "accuracy on test data, each seed")


def draw(found: dict[str, dict[str, Any]], path: Path) -> None:
    """Draws the accuracy of each way by the images of each class: the mean, and each seed."""
    ways = {
        name: ([int(images) for images in cells], [cell["accuracy"] for cell in cells.values()])
        for name, cells in found.items()
    }
    plots.by_size(ways, "images of each class", "test accuracy", path)


def _command(options: Options, name: str, images: int, rate: float, seed: int) -> config.Command:
    """The command that trains in one way on so many images of each class. Raises UserError where it can't be run."""
    way, classes = WAYS[name], len(config.load(TUNED).data.classes)  # type: ignore[attr-defined]
    arguments = ["--data.labels", str(images * classes), *way.options, *shlex.split(options.tuning)]
    if way.pretrained:
        arguments += ["--init-from", str(options.directory / "pretrained"), "--init-paths", "!net/head/*"]
    arguments += ["--optimizer.learning-rate", str(rate), "--seed", str(seed), "--data.draw", str(seed)]
    workdir = options.directory / f"{name.replace(' ', '_')}_{images}" / f"rate_{rate:g}_seed_{seed}"
    return config.parse(TUNED, [*arguments, "--workdir", str(workdir)])


def _validated(command: config.Command) -> float:
    """The last accuracy on validation data of a run, which is trained unless it is there."""
    assert command.workdir is not None, "each has its own"
    train(TUNED, command)
    history = log.read(command.workdir)
    return next(line["accuracy"] for line in reversed(history) if line["split"] == "validation")


main = script("transfer", __doc__, Options, transfer)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
