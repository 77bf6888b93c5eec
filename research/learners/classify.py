"""Image classification: cross-entropy, with augmentation and adversarial training inside the compiled step."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core.experiment import Experiment, Feeds, Inference, Load, Report, Run
from research.core.losses import classification, criterion_loss, criterion_metrics
from research.core.metrics import Metrics
from research.core.modules import input_ranges
from research.core.optimizers import Optimizer
from research.core.pruning import Pruning
from research.core.state import Batch, Learner, State, evaluated, example_keys, fold_name, learner, owned, rng
from research.core.types import Tree
from research.core.update import UpdateConfig
from research.data.augment import Augment, augment
from research.data.few_labels import FewLabels
from research.data.images import Images, ImageSpec
from research.evaluation import images as reports
from research.learners.robust import Adversarial, changed, trades_loss
from research.learners.supervised import Supervised
from research.nets.cnn import CNN


@dataclass(frozen=True, kw_only=True)
class Classify(Supervised):
    """An experiment in image classification.

    Attributes:
        data: the images
        net: a Flax module: images -> logits, with a field `outputs` for the number of classes
        augment: augmentation of training images
        smoothing: label-smoothing factor
        adversarial: attack on the training images; 0 steps: none. With it `attacked_accuracy` is evaluated too
    """

    data: Images = field(default_factory=Images)
    net: nn.Module = field(default_factory=CNN)
    augment: Augment = field(default_factory=Augment)
    smoothing: float = 0.0
    adversarial: Adversarial = field(default_factory=Adversarial)

    def build(self) -> Learner:
        """See `Experiment`."""
        spec = self.data.spec()
        net = self.network(self.net.clone(outputs=spec.classes))
        init_state, update = self.updater()
        attack, criterion = self.adversarial, classification(self.smoothing)
        loss = trades_loss(net, attack.trades, criterion) if attack.paired else criterion_loss(net, "net", criterion)

        def init(key: jax.Array) -> State:
            return init_state(key, {"net": net.init(key, jnp.zeros((1, *spec.shape)))})

        def attacked(params: Tree, state: State, batch: Batch, keys: jax.Array, radius: Any = None) -> jax.Array:
            logits = lambda images: net.apply(params, owned(state, "net"), standardised(images, spec))[0]
            return changed(attack, logits, batch, keys, radius)

        def step(state: State, batch: Batch) -> tuple[State, Metrics]:
            keys = example_keys(rng(state, "augment"), batch.index)
            batch = batch._replace(inputs=augment(self.augment, keys, scaled(batch.inputs)))
            images: Any = standardised(batch.inputs, spec)
            if attack.steps:
                keys, radius = fold_name(keys, "attack"), attack.radius_at(state.step)
                others = standardised(attacked(state.params["net"], state, batch, keys, radius), spec)
                images = (images, others) if attack.paired else others
            state, aux = update(state, "net", loss, batch._replace(inputs=images))
            return state, dict(aux.metrics)

        def evaluate(state: State, batch: Batch) -> Metrics:
            batch = batch._replace(inputs=scaled(batch.inputs))
            seen = lambda images: criterion_metrics(
                net, "net", classification(), state, batch._replace(inputs=standardised(images, spec))
            )
            metrics = seen(batch.inputs)
            if attack.steps:
                keys = example_keys(fold_name(state.key, "attack"), batch.index)
                metrics["attacked_accuracy"] = seen(attacked(evaluated(state, "net"), state, batch, keys))["accuracy"]
            return metrics

        return learner(init, step, evaluate)

    def feeds(self) -> Feeds:
        """See `Experiment`."""
        return self.data.feeds()

    def logits(self, state: State, images: jax.Array) -> jax.Array:
        """What the net makes of u8[batch, height, width, channels], as it is evaluated: [batch, classes]."""
        return self.pixel_logits(state, scaled(images))

    def pixel_logits(self, state: State, images: jax.Array) -> jax.Array:
        """The same of images f32 in 0 ... 1."""
        spec = self.data.spec()
        return self.outputs(self.net.clone(outputs=spec.classes), state, standardised(images, spec))

    def input_ranges(self, state: State, images: jax.Array) -> dict[str, Tree]:
        """The ranges of the layers' inputs, as they are evaluated on u8[batch, height, width, channels]: what
        `quantization` reads of the collections."""
        spec = self.data.spec()
        params, own = evaluated(state, "net"), owned(state, "net")
        images = standardised(scaled(images), spec)
        return input_ranges(self.net.clone(outputs=spec.classes), self.update.dtype, params, own, images)

    def reports(self, load: Load) -> Iterable[Report]:
        """See `Experiment`."""
        return reports.classification(self.logits, self.data.spec().names), reports.filters()

    def inference(self, state: State) -> dict[str, Inference]:
        """See `Experiment`."""
        return {
            "inference": Inference(
                lambda images: self.logits(state, images),
                lambda batch: {"images": batch.inputs},
                "logits",
                "Images are pixels from 0 to 255, [batch, height, width, channels], which the program scales and "
                "standardises. The largest logit is that of the predicted class.",
                self.data.spec().names,
            )
        }


def scaled(pixels: jax.Array) -> jax.Array:
    """u8 [...] -> f32 [...] in [0, 1]."""
    return pixels.astype(jnp.float32) / 255


def standardised(images: jax.Array, spec: ImageSpec) -> jax.Array:
    """Images [..., channels] less each channel's mean, over its standard deviation."""
    return (images - jnp.array(spec.mean)) / jnp.array(spec.std)


def tiny() -> dict[str, Experiment]:
    """Tiny settings, for the tests of what holds for every learner: SGD, dropout on."""
    return {
        "cnn": Classify(
            data=Images(name="digits", batch=32, evaluation_batch=40),
            net=CNN(widths=(8,), depth=1, dropout=0.2),
            augment=Augment(shift=1, flip=True, cutout=2, noise=0.05),
            smoothing=0.1,
            optimizer=Optimizer(name="sgd", learning_rate=0.05),
            run=Run(steps=12, steps_per_dispatch=3, evaluate_every=6, save_every=6),
        ),
        "pruned": Classify(
            data=Images(name="digits", batch=32, evaluation_batch=40),
            net=CNN(widths=(8,), depth=1, dropout=0.2),
            augment=Augment(noise=0.05),  # as below
            average=0.9,
            optimizer=Optimizer(name="sgd", learning_rate=0.05),
            update=UpdateConfig(pruning=Pruning(sparsity=0.5, every=2, scope="global")),
            run=Run(steps=12, steps_per_dispatch=3, evaluate_every=6, save_every=6),
        ),
        "adversarial": Classify(
            data=FewLabels(name="digits", labels=40, batch=32, evaluation_batch=40),
            net=CNN(widths=(8,), depth=1, dropout=0.2),
            augment=Augment(noise=0.05),  # flat parts of an image would have equal maxima, up to rounding
            # A small radius: rounding decides the signs of small gradients, and so the attacks' last steps.
            adversarial=Adversarial(steps=2, radius=0.002, ramp=4),
            optimizer=Optimizer(name="sgd", learning_rate=0.05),
            run=Run(steps=12, steps_per_dispatch=3, evaluate_every=6, save_every=6),
        ),
    }
