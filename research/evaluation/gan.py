"""Reports of what generators make: sample grids, interpolations, translations, and how a classifier judges samples.

Of several seeds, they are of the first.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

import research
from research.core.console import console
from research.core.errors import Mistake
from research.core.experiment import Feeds, Report
from research.core.files import failing, replacing, write_json
from research.core.state import State, Tree
from research.core.transformations import first
from research.data.images import Images
from research.data.unpaired import Unpaired
from research.evaluation import inception
from research.evaluation import plots as plot
from research.evaluation.sample_metrics import fid, kid, precision_recall

Samples = Callable[[Tree, dict[str, Tree], jax.Array, jax.Array], jax.Array]
"""(params, collections, noise f32[batch, latent], labels i32[batch]) -> images [batch, h, w, c] in [-1, 1]."""

Translate = Callable[[Tree, jax.Array, bool], jax.Array]
"""(params, u8[batch, h, w, c], whether from X to Y) -> images in [-1, 1]."""

ROWS, COLUMNS = 8, 10
"""Of samples.png and interpolations.png."""

BATCH = 250
"""Images that are computed at a time."""


def pixels(images: jax.Array) -> np.ndarray:
    """Images in [-1, 1] -> u8."""
    return np.asarray(jnp.round((images + 1) * 127.5).clip(0, 255).astype(jnp.uint8))


def samples(generate: Samples, latent: int, classes: int) -> Report:
    """samples.png: the same noise and, where the generator reads them, the same labels, whatever run it is."""
    generate = jax.jit(generate)

    def report(state: State, feeds: Feeds, directory: Path) -> dict[str, float]:
        weights = first(state, (state.params, state.collections))
        made = pixels(generate(*weights, *drawn(0, ROWS * COLUMNS, latent, classes)))
        plot.image_grid(made, None, directory / "samples.png", columns=COLUMNS)
        return {}

    return report


def film(state: State, feeds: Feeds, directory: Path) -> dict[str, float]:
    """samples.gif: samples.png as it was at each evaluation, in turn; half the size."""
    frames = [Image.open(path) for path in sorted((directory / "history").glob("*/samples.png"))]
    halves = [frame.convert("RGB").reduce(2) for frame in frames]
    if halves:
        with failing("write", directory / "samples.gif"), replacing(directory / "samples.gif") as temporary:
            halves[0].save(temporary, save_all=True, append_images=halves[1:], duration=400, loop=0)
    return {}


def interpolations(generate: Samples, latent: int, classes: int) -> Report:
    """interpolations.png: in each row the noise goes along a circle from one draw to another; the label stays."""
    generate = jax.jit(generate)

    def report(state: State, feeds: Feeds, directory: Path) -> dict[str, float]:
        start, labels = drawn(1, ROWS, latent, classes)
        end, _ = drawn(2, ROWS, latent, classes)
        angle = jnp.linspace(0, jnp.pi / 2, COLUMNS)[None, :, None]
        # As normal all the way: cos² + sin² = 1.
        noise = jnp.cos(angle) * start[:, None] + jnp.sin(angle) * end[:, None]
        weights = first(state, (state.params, state.collections))
        made = pixels(generate(*weights, noise.reshape(-1, latent), jnp.repeat(labels, COLUMNS)))
        plot.image_grid(made, None, directory / "interpolations.png", columns=COLUMNS)
        return {}

    return report


def drawn(seed: int, count: int, latent: int, classes: int) -> tuple[jax.Array, jax.Array]:
    """Noise f32[count, latent] and labels i32[count], which take turns."""
    return jax.random.normal(jax.random.key(seed), (count, latent)), jnp.arange(count) % classes


class Judge(NamedTuple):
    """A trained classifier that judges images.

    read        u8[images, h, w, c] -> features f32[images, dimensions], probabilities f32[images, classes]
    layer       the one whose input the features are: its last
    dimensions  of the features
    names       of its classes
    sha256      of its weights, in hexadecimal
    """

    read: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    layer: str
    dimensions: int
    names: tuple[str, ...]
    sha256: str


def judge(directory: str, sha256: str | None, shape: tuple[int, ...]) -> Judge:
    """The classifier of the finished run in `directory`, for images of `shape` (height, width, channels).

    sha256: of its weights, or as many of its first digits as one likes; None for any. Raises Mistake where they are
    others, or the run is not of a classifier of such images.
    """
    experiment, _, state = research.load(directory)
    logits = getattr(experiment, "logits", None)
    if logits is None:
        raise Mistake(f"judge: {directory} is not a run of a classifier: give one that is, say of mnist_cnn")
    expected, names = experiment.data.spec().shape, experiment.data.spec().names
    if expected != shape:
        sides = ["x".join(map(str, s)) for s in (expected, shape)]
        raise Mistake(f"judge: {directory} was trained on images of {sides[0]}, and these are {sides[1]}")
    weights = first(state, (state.params, state.collections))
    found = digest(weights)
    if sha256 is not None and not found.startswith(sha256):
        raise Mistake(
            f"judge: the weights in {directory} have the hash {found[:16]}, and judge_hash is {sha256}: give the run "
            "that it is of, or that hash"
        )
    layers: list[str] = []

    @jax.jit
    def read(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        inputs: list[tuple[str, jax.Array]] = []

        def watch(call: Callable, arguments: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
            if isinstance(context.module, nn.Dense) and context.method_name == "__call__":
                inputs.append(("/".join(context.module.path), arguments[0]))
            return call(*arguments, **options)

        with nn.intercept_methods(watch):
            outputs = logits(*weights, images)
        layer, features = inputs[-1]
        layers.append(layer)
        return features, jax.nn.softmax(outputs)

    dimensions = jax.eval_shape(read, jax.ShapeDtypeStruct((1, *shape), jnp.uint8))[0].shape[1]

    def whole(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = [read(part) for part in batches(images)]
        features, probabilities = (np.concatenate([np.asarray(x) for x in xs]) for xs in zip(*parts, strict=True))
        return features, probabilities

    return Judge(whole, layers[-1], dimensions, names, found)


def batches(images: Any) -> Iterator[Any]:
    """An array of images, or of what images are made from, some at a time."""
    return (images[start : start + BATCH] for start in range(0, len(images), BATCH))


def digest(tree: Tree) -> str:
    """The sha256 of the arrays of a tree and of their names, in hexadecimal."""
    total = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        total.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def judged(
    generate: Samples, latent: int, data: Images, directory: str, sha256: str | None, count: int, conditional: bool
) -> Report:
    """How `count` samples compare with data, on the features of a classifier; judged.json says of which.

    FID and KID are to the training images; those of the test images, the floor, stand beside them (FID falls with the
    number of images: the two compare where there are as many samples as test images). Precision and recall take as many
    training images as samples. confidence is the mean probability of the class that the classifier gives; rarest and
    commonest are the least and the greatest share of a class among the samples. Where the generator reads labels
    (`conditional`), which take turns, obeyed is the share of samples in which the classifier sees theirs.
    """
    generate = jax.jit(generate)

    def report(state: State, feeds: Feeds, where: Path) -> dict[str, float]:
        arrays = data.arrays()
        classifier = judge(directory, sha256, arrays.train_images.shape[1:])
        features, probabilities = classifier.read(sampled(generate, state, latent, len(arrays.names), count))
        train, _ = classifier.read(arrays.train_images)
        test, sure = classifier.read(arrays.test_images)
        some = train[np.linspace(0, len(train) - 1, min(count, len(train))).round().astype(int)]
        manifold = precision_recall(some, features[: len(some)])
        seen, classes = probabilities.argmax(1), len(arrays.names)
        shares = np.bincount(seen, minlength=classes) / count
        values = {
            "fid": fid(features, train),
            "fid_of_test_images": fid(test, train),
            "kid": kid(features, train).mean,
            "kid_of_test_images": kid(test, train).mean,
            "precision": manifold.precision,
            "recall": manifold.recall,
            "confidence": float(probabilities.max(1).mean()),
            "confidence_of_test_images": float(sure.max(1).mean()),
            "rarest": float(np.min(shares)),
            "commonest": float(np.max(shares)),
        }
        if conditional:
            values["obeyed"] = float((seen == np.arange(count) % classes).mean())
        about = {"judge": directory, "sha256": classifier.sha256, "features": f"the input of {classifier.layer}"}
        write_json(where / "judged.json", {**about, "samples": count, **values})
        tell(f"judged by {directory} ({classifier.sha256[:16]}, {about['features']})", values)
        return values

    return report


def judged_by_inception(generate: Samples, latent: int, data: Images, path: str, count: int) -> Report:
    """Inception FID of `count` samples to the training images, and that of the test images, the floor (see `judged`).

    path: of the weights, see `nets/inception.py`; inception.json has their file's hash.
    """
    generate = jax.jit(generate)

    def report(state: State, feeds: Feeds, where: Path) -> dict[str, float]:
        arrays, reader = data.arrays(), inception.reader(path)
        train = reader.read(arrays.train_images)
        values = {
            "inception_fid": fid(reader.read(sampled(generate, state, latent, len(arrays.names), count)), train),
            "inception_fid_of_test_images": fid(reader.read(arrays.test_images), train),
        }
        write_json(where / "inception.json", {"inception": path, "sha256": reader.sha256, "samples": count, **values})
        tell(f"judged by Inception with the weights {path} (sha256 {reader.sha256})", values)
        return values

    return report


def check_inception(path: str, data: Images, count: int) -> None:
    """Raises Mistake where `path` holds no weights, or there are too few samples or images for Inception FID."""
    arrays = data.arrays()
    channels, least = arrays.train_images.shape[-1], inception.FEATURES + 1
    if channels not in (1, 3):
        raise Mistake(f"inception: images of 1 or 3 channels expected, not {channels}: leave it out")
    if count < least:
        raise Mistake(f"inception: judge_samples={count} are too few for FID: {least} or more")
    for split, images in (("training", arrays.train_images), ("test", arrays.test_images)):
        if len(images) < least:
            raise Mistake(
                f"inception: {len(images)} {split} images are too few for FID, {least} are needed: leave it out"
            )
    inception.reader(path)


def sampled(generate: Samples, state: State, latent: int, classes: int, count: int) -> np.ndarray:
    """`count` samples u8[count, h, w, c], always of the same noise; their labels take turns."""
    weights = first(state, (state.params, state.collections))
    parts = zip(*(batches(x) for x in drawn(3, count, latent, classes)), strict=True)
    return np.concatenate([pixels(generate(*weights, *part)) for part in parts])


def tell(by: str, values: dict[str, float]) -> None:
    """One line for people: who judged, and what was found."""
    console.print(f"{by}: {', '.join(f'{name} {value:.4g}' for name, value in values.items())}", markup=False)


def translations(translate: Translate) -> Report:
    """translations.png: test images of X, translated to Y, and back; beside them those of Y, to X, and back."""
    translate = jax.jit(translate, static_argnums=2)

    def report(state: State, feeds: Feeds, directory: Path) -> dict[str, float]:
        params, batch = first(state, state.params), feeds.test[0]
        columns = []
        for images, there, back in zip(batch.inputs, (True, False), (False, True), strict=True):
            translated = translate(params, images[:ROWS], there)
            columns += [images[:ROWS], pixels(translated), pixels(translate(params, pixels(translated), back))]
        plot.image_grid(
            np.stack(columns, 1).reshape(-1, *columns[0].shape[1:]), None, directory / "translations.png", columns=6
        )
        return {}

    return report


def recognised(translate: Translate, data: Unpaired, directory: str, sha256: str | None) -> Report:
    """The shares of translated test images that a classifier calls the class they should be; judged.json says which.

    Beside them stand the shares of real test images that it calls what they are.
    """
    translate = jax.jit(translate, static_argnums=2)

    def report(state: State, feeds: Feeds, where: Path) -> dict[str, float]:
        domains = data.arrays()
        classifier = judge(directory, sha256, domains.test_x.shape[1:])
        x, y = targets(classifier, data, directory)
        params = first(state, state.params)
        called = lambda images, label: float((classifier.read(images)[1].argmax(1) == label).mean())
        translated = lambda images, forth: np.concatenate(
            [pixels(translate(params, part, forth)) for part in batches(images)]
        )
        values = {
            "translated_to_y": called(translated(domains.test_x, True), y),
            "translated_to_x": called(translated(domains.test_y, False), x),
            "real_y": called(domains.test_y, y),
            "real_x": called(domains.test_x, x),
        }
        write_json(where / "judged.json", {"judge": directory, "sha256": classifier.sha256, **values})
        tell(f"judged by {directory} ({classifier.sha256[:16]})", values)
        return values

    return report


def targets(classifier: Judge, data: Unpaired, directory: str) -> tuple[int, int]:
    """The places of the two classes among the classifier's. Raises Mistake where it does not know them."""
    missing = set(data.classes) - set(classifier.names)
    if missing:
        raise Mistake(f"judge: the classifier in {directory} knows no class {min(missing)}: give another, or none")
    x, y = (classifier.names.index(name) for name in data.classes)
    return x, y
