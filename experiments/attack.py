"""How well a trained image classifier withstands attacks and corruptions: python -m experiments.attack DIR [options].

Attacks are by the gradient (Madry et al. 2018) and, to see whether gradients are masked, by a random search without it
(Andriushchenko et al. 2020); see research/evaluation/attacks.py. Corruptions are those of research/evaluation/
corruptions.py. The numbers and pictures are written to the run's directory: attack.json, attack_radius.png,
attack_steps.png and corruptions.png.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.console import print_table, script
from experiments.runs import first_images, image_classifier
from research.core.errors import UserError, between, positive
from research.core.files import write_json
from research.core.losses import cross_entropy
from research.core.state import Batch, example_keys
from research.evaluation import plots
from research.evaluation.attacks import Attack, Loss, margin_loss, square_search, strongest
from research.evaluation.corruptions import CORRUPTIONS, Corruption, corrupted
from research.training.config import Directory

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
"""Radii that are tried, of the one that was asked for."""

STEPS = (1, 5, 20, 100)

Right = Callable[[jax.Array], jax.Array]
"""Images -> whether the classifier is right about each, bool[batch]."""

LogitLoss = Callable[[jax.Array, jax.Array], jax.Array]
"""(logits [batch, classes], labels i32[batch]) -> f32[batch]."""

Stands = Callable[[Loss, Right, jax.Array, jax.Array, jax.Array], jax.Array]
"""(loss, right, images f32[batch, height, width, channels] in 0 ... 1, index i32[batch], a radius or a severity) ->
whether each image withstands, bool[batch]."""


@dataclass(frozen=True)
class Options:
    """The options of `experiments.attack`.

    Attributes:
        directory: directory of the run of an image classifier
        steps: steps of projected gradient ascent
        radius: largest change of a pixel, whose range is 0 ... 1; by default that of the run's training, else 8 / 255
        step_size: change of a pixel in one step; by default 2.5 times the radius, divided by the number of steps
        restarts: attacks on each image, from random starts; an image counts as withstanding if it withstands all
        queries: evaluations of the random search without a gradient
        limit: number of test images; by default all
        curves: images of the curves by radius and by steps, and of the search and the corruptions
    """

    directory: Annotated[Directory, tyro.conf.Positional]
    steps: int = 40
    radius: float | None = None
    step_size: float | None = None
    restarts: int = 1
    queries: int = 1000
    limit: int | None = None
    curves: int = 1000

    def __post_init__(self) -> None:
        positive(self, "", "steps", "restarts", "queries", "limit", "curves")
        between(self, "", 0, 1, "radius", "step_size")
        for name in ("radius", "step_size"):
            if getattr(self, name) == 0:
                raise UserError(f"{name} must be above 0: an attack of 0 changes nothing")


def attack(options: Options) -> None:
    """Attacks the run, prints a table, and writes the numbers and the pictures."""
    experiment, state = image_classifier(options.directory)
    if experiment.update.dtype == "float16":  # which rounds most gradients of a sure classifier's loss to 0
        experiment = replace(experiment, update=replace(experiment.update, dtype="float32"))
    radius = options.radius
    if radius is None:
        radius = experiment.adversarial.radius if experiment.adversarial.steps else 8 / 255
    asked = Attack(options.steps, radius, options.step_size)
    test = experiment.feeds().test
    logits = lambda images: experiment.pixel_logits(state, images)

    def accuracies(
        stands: Stands, values: Sequence[Any], limit: int | None = options.curves, loss: LogitLoss = cross_entropy
    ) -> list[float]:
        return shares(logits, stands, values, test, limit, loss)

    def attacked(how: Attack, restarts: int = 1) -> Stands:
        return lambda loss, right, images, index, at: strongest(how, loss, right, images, index, restarts, at)

    def searched(loss: Loss, right: Right, images: jax.Array, index: jax.Array, at: jax.Array) -> jax.Array:
        keys = example_keys(jax.random.key(0), index)
        return right(images) & right(square_search(at, options.queries, loss, images, keys))

    images = sum(int(counted.sum()) for _, counted in first_images(test, options.curves))
    natural: Stands = lambda loss, right, images, index, _: right(images)
    radii = [radius * part for part in SHARES]
    found: dict[str, Any] = {
        "about": {
            "steps": asked.steps,
            "radius": radius,
            "step_size": asked.step_size,
            "restarts": options.restarts,
            "by_steps": {"step_size": "2.5 radius / steps", "restarts": 1},
            "by_corruption": "severities 1 to 5 of CIFAR-10-C",
        },
        "accuracy": accuracies(natural, [0.0], options.limit)[0],
        "attacked_accuracy": accuracies(attacked(asked, options.restarts), [radius], options.limit)[0],
        "images_of_the_rest": images,
        "attacked_accuracy_of_these": accuracies(attacked(asked, options.restarts), [radius])[0],
        "searched_accuracy_of_these": accuracies(searched, [radius], loss=margin_loss)[0],
        "by_radius": dict(zip(radii, accuracies(attacked(asked, options.restarts), radii), strict=True)),
        "by_steps": {steps: accuracies(attacked(Attack(steps, radius)), [radius])[0] for steps in STEPS},
        "by_corruption": {each.__name__: accuracies(_under(each), range(5)) for each in CORRUPTIONS},
    }
    write_json(options.directory / "attack.json", found)
    draw(found, options.directory)
    rows = [
        ("as they are", f"{found['accuracy']:.4f}"),
        (_words(found["about"]), f"{found['attacked_accuracy']:.4f}"),
        (f"the same, {images} images", f"{found['attacked_accuracy_of_these']:.4f}"),
        (f"{options.queries} queries without gradient", f"{found['searched_accuracy_of_these']:.4f}"),
    ]
    print_table(("images", "accuracy"), rows, f"{options.directory}, radius {radius:.4g}")


def _under(corruption: Corruption) -> Stands:
    """Whether the classifier is right about images under a corruption of a severity from 0 to 4."""
    change = lambda images, index, at: corrupted(corruption, example_keys(jax.random.key(0), index), images, at)
    return lambda loss, right, images, index, at: right(change(images, index, at))


def shares(
    logits: Callable[[jax.Array], jax.Array],
    stands: Stands,
    values: Sequence[Any],
    test: Sequence[Batch],
    limit: int | None,
    loss: LogitLoss = cross_entropy,
) -> list[float]:
    """The share of test images, of the first `limit`, that withstand: one for each of `values`, by one program.

    loss  what an attack raises
    """

    @jax.jit
    def kept(batch: Batch, value: jax.Array) -> jax.Array:
        raised = lambda images: loss(logits(images), batch.targets)
        right = lambda images: logits(images).argmax(-1) == batch.targets
        return stands(raised, right, batch.inputs.astype(jnp.float32) / 255, batch.index, value)

    found = [
        [np.asarray(kept(batch, jnp.asarray(value)))[counted] for value in values]
        for batch, counted in first_images(test, limit)
    ]
    return [float(np.concatenate(each).mean()) for each in zip(*found, strict=True)]


def _words(about: dict[str, Any]) -> str:
    return f"{about['steps']} steps, {about['restarts']} restart{'s' if about['restarts'] > 1 else ''}"


def draw(found: dict[str, Any], directory: Path) -> None:
    """Writes the pictures."""
    about = found["about"]
    radii = list(found["by_radius"]), list(found["by_radius"].values())
    plots.lines({_words(about): radii}, "radius", "accuracy", directory / "attack_radius.png")
    steps = list(found["by_steps"]), list(found["by_steps"].values())
    how = f"radius {about['radius']:.3g}, 1 restart, a step 2.5 radius / steps"
    plots.lines({how: steps}, "steps", "accuracy", directory / "attack_steps.png")
    levels = {name.replace("_", " "): (range(1, 6), each) for name, each in found["by_corruption"].items()}
    plots.lines(levels, "severity", "accuracy", directory / "corruptions.png")


main = script("attack", __doc__, Options, attack)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
