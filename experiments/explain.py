"""Why a trained image classifier decides as it does: python -m experiments.explain DIR [options].

Maps of the pixels that a class's score depends on: saliency, SmoothGrad, integrated gradients, Grad-CAM of a net with a
convolution and attention roll-out of a Vision Transformer; see research/evaluation/explanations.py. How faithful they
are is measured by deletion: the accuracy after the pixels that matter most are removed, beside that after as many at
random. explain.json, explain.png, explain_deletion.png and, of a net with a convolution, explain_filters.png are
written to the run's directory.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.console import print_table, script
from experiments.runs import first_images, image_classifier
from research.core.console import console
from research.core.errors import UserError, positive
from research.core.files import failing, make_directory, write_json
from research.core.state import Batch, example_keys, fold_name
from research.evaluation import explanations as explain
from research.evaluation import plots
from research.evaluation.images import draw_filters
from research.training.config import Directory

SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
"""Shares of the pixels that are removed."""

Method = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(images f32[batch, height, width, channels] in 0 ... 1, classes i32[batch], keys [batch]) -> [batch, height, width],
larger where a pixel matters more."""


@dataclass(frozen=True)
class Options:
    """The options of `experiments.explain`.

    Attributes:
        directory: directory of the run of an image classifier
        output: directory to write to; by default that of the run
        classes: whose score is explained: the predicted or the true class
        baseline: image that stands for nothing, of integrated gradients and of deleted pixels: black, white, or the
            mean colour of the training images
        steps: points of the integral of integrated gradients
        samples: noisy copies of an image in SmoothGrad
        noise: standard deviation of their noise, in units of the difference of the image's extreme pixels
        images: images in the picture, half of them wrong where there are as many
        limit: number of test images that are explained and deleted from
    """

    directory: Annotated[Directory, tyro.conf.Positional]
    output: Annotated[Directory | None, tyro.conf.arg(help_behavior_hint="")] = None
    classes: Literal["predicted", "true"] = "predicted"
    baseline: Literal["black", "mean", "white"] = "black"
    steps: int = 64
    samples: int = 16
    noise: float = 0.15
    images: int = 8
    limit: int = 250

    def __post_init__(self) -> None:
        positive(self, "", "steps", "samples", "images", "limit")
        if not 0 <= self.noise < math.inf:
            raise UserError(f"--noise must be a number of at least 0, not {self.noise}")


def run(options: Options) -> None:
    """Explains the predictions of a run, prints tables, and writes the numbers and the pictures."""
    experiment, state = image_classifier(options.directory)
    directory = options.output or options.directory
    with failing("write", directory):
        make_directory(directory)
    spec = experiment.data.spec()
    logits: explain.Logits = lambda images: experiment.pixel_logits(state, images)
    baseline = jnp.broadcast_to(
        jnp.array({"black": 0.0, "mean": spec.mean, "white": 1.0}[options.baseline], jnp.float32), spec.shape
    )
    images, labels, index = taken(experiment.feeds().test, options.limit)
    methods, missing = suited(logits, images[:1], baseline, options)
    for line in missing:
        console.print(line)

    @jax.jit
    def explained(images: jax.Array, labels: jax.Array, index: jax.Array) -> tuple[Any, ...]:
        outputs = logits(images)
        classes = labels if options.classes == "true" else outputs.argmax(-1)
        keys = example_keys(jax.random.key(0), index)
        found = {name: method(images, classes, fold_name(keys, name)) for name, method in methods.items()}
        # What each map is compared with.
        found["random"] = jax.vmap(lambda key: jax.random.uniform(key, spec.shape[:2]))(fold_name(keys, "random"))
        deleted = {
            name: explain.deletion(logits, images, labels, importance, baseline, SHARES)
            for name, importance in found.items()
        }
        sums = found["integrated gradients"].sum((1, 2))
        differences = explain.score_difference(logits, images, classes, baseline)
        return outputs, found, deleted, sums, differences

    count, size = len(labels), min(len(labels), experiment.data.evaluation_batch)
    # Of one shape, so that one program is compiled: the last image is repeated.
    places = [np.minimum(np.arange(start, start + size), count - 1) for start in range(0, count, size)]
    each = [jax.device_get(explained(images[at], labels[at], index[at])) for at in places]
    joined = lambda k, axis: jax.tree.map(lambda *xs: np.concatenate(xs, axis), *(one[k] for one in each))
    outputs, maps, sums, differences = (jax.tree.map(lambda x: x[:count], joined(k, 0)) for k in (0, 1, 3, 4))
    deleted = jax.tree.map(lambda x: x[:, :count], joined(2, 1))

    names = [*methods, "random"]  # a compiled program sorts them
    found: dict[str, Any] = {
        "about": {
            "classes": options.classes,
            "baseline": options.baseline,
            "steps": options.steps,
            "samples": options.samples,
            "noise": options.noise,
            "images": len(labels),
        },
        "accuracy": float((outputs.argmax(-1) == labels).mean()),
        "completeness": {
            "mean_score_difference": float(np.abs(differences).mean()),
            "mean_error": float(np.abs(sums - differences).mean()),
            "largest_error": float(np.abs(sums - differences).max()),
        },
        "deletion": {"shares": list(SHARES), **{name: curve(deleted[name]) for name in names}},
    }
    write_json(directory / "explain.json", found)
    show(found, f"{options.directory}, {len(labels)} test images")
    draw(found["deletion"], directory / "explain_deletion.png")
    kernel = jax.jit(lambda x: explain.seen(logits, x).kernel)(images[:1])
    if kernel is not None:
        draw_filters(np.asarray(kernel), directory / "explain_filters.png")
    chosen = selected(outputs, labels, options.images)
    predicted = outputs.argmax(-1)
    plots.attributions(
        images[chosen],
        {name: maps[name][chosen] for name in methods},
        [f"is {spec.names[labels[n]]},\npredicted {spec.names[predicted[n]]}" for n in chosen],
        [bool(labels[n] == predicted[n]) for n in chosen],
        directory / "explain.png",
    )


def suited(
    logits: explain.Logits, images: np.ndarray, baseline: jax.Array, options: Options
) -> tuple[dict[str, Method], list[str]]:
    """The methods by name that the net allows, and a line for each that it does not."""
    methods: dict[str, Method] = {
        "saliency": lambda x, classes, keys: explain.saliency(logits, x, classes),
        "SmoothGrad": lambda x, classes, keys: explain.smoothed_saliency(
            logits, x, classes, keys, options.samples, options.noise
        ),
        "integrated gradients": lambda x, classes, keys: explain.integrated_gradients(
            logits, x, classes, baseline, options.steps
        ).sum(-1),
    }
    of_some: dict[str, Method] = {
        "Grad-CAM": lambda x, classes, keys: explain.grad_cam(logits, x, classes),
        "attention roll-out": lambda x, classes, keys: explain.attention_rollout(logits, x),
    }
    missing = []
    classes, keys = jnp.zeros(1, jnp.int32), example_keys(jax.random.key(0), jnp.zeros(1, jnp.int32))
    for name, method in of_some.items():
        try:
            jax.eval_shape(method, images, classes, keys)
        except UserError as error:
            missing.append(f"no {name}: {error}")
        else:
            methods[name] = method
    return methods, missing


def taken(batches: Sequence[Batch], limit: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first `limit` images f32 in 0 ... 1 of batches, their labels and their indices."""
    rows = [
        (batch.inputs[counted], batch.targets[counted], batch.index[counted])
        for batch, counted in first_images(batches, limit)
    ]
    images, labels, index = map(np.concatenate, zip(*rows, strict=True))
    return images.astype(np.float32) / 255, labels, index


def curve(deleted: explain.Deletion) -> dict[str, Any]:
    """The accuracy and the mean probability of the true class at each of `SHARES`, and the mean accuracy over them.

    That mean is the area under the curve, by trapezoids, over the largest share.
    """
    accuracy = deleted.right.mean(1)
    return {
        "accuracy": accuracy.tolist(),
        "probability": deleted.probability.mean(1).tolist(),
        "area": float(np.trapezoid(accuracy, SHARES) / SHARES[-1]),
    }


def selected(outputs: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """The places of images to draw: wrong ones, the surest first, then right ones, of one class after another."""
    predicted = outputs.argmax(-1)
    wrong, right = np.flatnonzero(predicted != labels), np.flatnonzero(predicted == labels)
    wrong = wrong[np.argsort(outputs[wrong, labels[wrong]] - outputs[wrong].max(-1), kind="stable")]
    # How many of its class come before it.
    before = np.array([np.sum(labels[right[:n]] == labels[one]) for n, one in enumerate(right)], int)
    right = right[np.lexsort((labels[right], before))]
    half = max(count // 2, count - len(right))
    return np.concatenate([wrong[:half], right])[:count]


def show(found: Mapping[str, Any], title: str) -> None:
    """Prints the deletion curves as a table, and the completeness of integrated gradients."""
    columns = ("removed first", *(f"{share:.0%}" for share in found["deletion"]["shares"]), "mean")
    methods = [(name, one) for name, one in found["deletion"].items() if name != "shares"]
    rows = [(name, *(f"{x:.3f}" for x in one["accuracy"]), f"{one['area']:.3f}") for name, one in methods]
    print_table(columns, rows, title)
    print("Accuracy after so many of the pixels are removed: by a faithful map it falls sooner than at random.")
    complete = found["completeness"]
    print(
        f"Completeness of integrated gradients: the sum of the attributions differs from the score difference by "
        f"{complete['mean_error']:.2g} in the mean, {complete['largest_error']:.2g} at most; the difference itself is "
        f"{complete['mean_score_difference']:.3g} in the mean."
    )


def draw(deletion: Mapping[str, Any], path: Path) -> None:
    """Draws the deletion curves."""
    shares = deletion["shares"]
    found = {name: (shares, one["accuracy"]) for name, one in deletion.items() if name != "shares"}
    plots.lines(found, "share of pixels removed", "accuracy", path)


main = script("explain", __doc__, Options, run)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
