"""A trained image classifier that evaluates generated images, by its features and by its predictions."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from research.core.errors import UserError
from research.core.experiment import Load
from research.core.state import State
from research.core.transformations import first_seed
from research.core.types import Tree
from research.data.images import LabelledImages

BATCH = 250
"""Images that are computed at a time."""


class Classifier(NamedTuple):
    """A trained image classifier; made by `load_classifier`.

    predict        u8[images, height, width, channels] -> features f32[images, num_features] and
                   probabilities f32[images, classes]
    feature_layer  path of the module whose input the features are: the last dense layer. They are those of the image
                   as it is, also where its predictions are of several views
    num_features   numbers in the features of an image
    names          of the classes
    directory      of the classifier's run
    sha256         of its weights, in hexadecimal
    """

    predict: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    feature_layer: str
    num_features: int
    names: tuple[str, ...]
    directory: str
    sha256: str


def load_classifier(load: Load, directory: str, sha256: str | None, shape: tuple[int, ...]) -> Classifier:
    """The classifier of the finished run in `directory`, for images of `shape` (height, width, channels).

    sha256: the expected hash of its weights, or the first digits of it; None accepts any weights.

    Raises UserError where the run is not one of an image classifier, its images or weights are others, or its net has
    no dense layer.
    """
    experiment: Any
    experiment, _, state = load(directory)
    logits = getattr(experiment, "logits", None)
    if logits is None or not isinstance(experiment.data, LabelledImages):
        raise UserError(
            f"classifier_dir: {directory} is not the run of an image classifier: give one, for example of mnist_cnn"
        )
    spec = experiment.data.spec()
    if spec.shape != shape:
        expected, given = ("x".join(map(str, sides)) for sides in (spec.shape, shape))
        raise UserError(f"classifier_dir: {directory} was trained on images of {expected}, and these are {given}")
    state = first_seed(state)
    found = digest((state.params, state.collections))
    if sha256 is not None and not found.startswith(sha256):
        raise UserError(
            f"classifier_dir: the weights in {directory} have the hash {found[:16]}, and classifier_hash is {sha256}: "
            "give the run that has this hash, or the hash of that run"
        )
    layers: list[str] = []

    @jax.jit
    def predict(state: State, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        inputs: list[tuple[str, jax.Array]] = []

        def record(call: Callable, arguments: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
            if isinstance(context.module, nn.Dense) and context.method_name == "__call__":
                inputs.append(("/".join(context.module.path), arguments[0]))
            return call(*arguments, **options)

        with nn.intercept_methods(record):
            outputs = logits(state, images)
        if not inputs:
            raise UserError(
                f"classifier_dir: the net in {directory} has no nn.Dense, whose input would be an image's features: "
                "give another classifier, for example of mnist_cnn"
            )
        layer, _ = inputs[-1]
        features = next(own for path, own in inputs if path == layer)  # of the first view, the image as it is
        layers.append(layer)
        return features.astype(jnp.float32), jax.nn.softmax(outputs)

    num_features = jax.eval_shape(predict, state, jax.ShapeDtypeStruct((1, *shape), jnp.uint8))[0].shape[1]

    def predict_all(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = [predict(state, part) for part in batches(images)]
        features, probabilities = (np.concatenate([np.asarray(x) for x in xs]) for xs in zip(*parts, strict=True))
        return features, probabilities

    return Classifier(predict_all, layers[-1], num_features, spec.names, directory, found)


def batches(images: Any) -> Iterator[Any]:
    """An array [images, ...] in parts of at most `BATCH` images."""
    return (images[start : start + BATCH] for start in range(0, len(images), BATCH))


def digest(tree: Tree) -> str:
    """The sha256 of the arrays of a tree and of their paths, in hexadecimal."""
    total = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        total.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        total.update(array.tobytes())
    return total.hexdigest()
