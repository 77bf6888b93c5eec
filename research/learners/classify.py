"""Image classification: cross-entropy, with augmentation and adversarial training inside the compiled step."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.core.devices import position
from research.core.errors import UserError, between
from research.core.experiment import Experiment, Inference, Load, Report, Run
from research.core.lookahead import Lookahead
from research.core.losses import classification, criterion_loss, criterion_metrics
from research.core.metrics import Metrics
from research.core.modules import Network, bind, input_ranges
from research.core.optimizers import Optimizer
from research.core.pruning import Pruning
from research.core.state import Batch, Learner, State, evaluated, example_keys, fold_name, learner, owned, rng
from research.core.types import Tree
from research.core.update import UpdateConfig
from research.data.augment import Augment, Views, alternating, augment, views
from research.data.few_labels import FewLabels
from research.data.images import Images, LabelledImages
from research.data.mixing import Mixing, criterion_of_mixed, mixed
from research.data.order import positions
from research.data.pixels import scaled, standardised
from research.data.randaugment import RandAugment, randaugment
from research.data.toy_large_images import ToyLargeImages
from research.evaluation import images as reports
from research.learners.robust import AdversarialTraining, changed, trades_loss
from research.learners.supervised import Supervised, pixel_inference
from research.nets.bottleneck import BottleneckResNet
from research.nets.cnn import CNN
from research.nets.whitened import WhitenedCNN


@dataclass(frozen=True, kw_only=True)
class Classify(Supervised):
    """An experiment in image classification.

    Attributes:
        data: the images
        net: a Flax module: images -> logits, with a field `outputs` for the number of classes
        augment: augmentation of training images
        randaugment: RandAugment of training images, before `augment`
        mixing: mixup and CutMix of training images, after `augment`
        views: what the net sees of an image in evaluation: the image itself; it and its mirror image, whose logits are
            averaged; or both of them as they are and moved by a pixel (mirror_shift, with six times the computation)
        smoothing: label-smoothing factor
        adversarial: attack on the training images; 0 steps: none. With it `attacked_accuracy` is evaluated too, under
            the same attack on the cross-entropy of the label, also where training is TRADES
    """

    data: LabelledImages = field(default_factory=Images)
    net: nn.Module = field(default_factory=CNN)
    augment: Augment = field(default_factory=Augment)
    randaugment: RandAugment = field(default_factory=RandAugment)
    mixing: Mixing = field(default_factory=Mixing)
    views: Views = "one"
    smoothing: float = 0.0
    adversarial: AdversarialTraining = field(default_factory=AdversarialTraining)

    def __post_init__(self) -> None:
        super().__post_init__()
        between(self, "", 0, 1, "smoothing")
        if self.mixing.on and self.adversarial.steps:
            raise UserError("mixing and adversarial.steps: mixed images have no one label that an attack could raise")
        if self.adversarial.steps and self.update.dtype == "float16":
            raise UserError("adversarial.steps: float16 rounds gradients of attacks to 0: choose --dtype bfloat16")
        if self.mixing.on and self.data.batch % 2:
            raise UserError(f"mixing takes pairs of images: data.batch must be even, not {self.data.batch}")

    def build(self) -> Learner:
        """See `Experiment`."""
        spec = self.data.spec()
        net = self.network(self.module())
        plain = super().network(self.module())  # of one view: what training attacks
        init_state, update = self.updater()
        attack, criterion = self.adversarial, classification(self.smoothing)
        if self.mixing.on:
            criterion = criterion_of_mixed(criterion)
        loss = trades_loss(net, attack.trades, criterion) if attack.paired else criterion_loss(net, "net", criterion)

        def init(key: jax.Array) -> State:
            return init_state(key, {"net": net.init(key, jnp.zeros((1, *spec.shape)))})

        def logits(net: Network, params: Tree, state: State) -> Callable[[jax.Array], jax.Array]:
            """Of images in 0 ... 1, what an attack goes by."""
            return lambda images: net.apply(params, owned(state, "net"), standardised(images, spec))[0]

        def step(state: State, batch: Batch) -> tuple[State, Metrics]:
            keys = example_keys(rng(state, "augment"), batch.index)
            seen = randaugment(self.randaugment, fold_name(keys, "randaugment"), scaled(batch.inputs))
            augmented = augment(self.augment, keys, seen, self.mirrored(state, batch))
            batch = batch._replace(inputs=augmented)
            if self.mixing.on:
                own = mixed(self.mixing, fold_name(keys, "mixing"), batch.inputs, batch.targets)
                batch = batch._replace(inputs=own[0], targets=own[1])
            images: Any = standardised(batch.inputs, spec)
            if attack.steps:
                keys, radius = fold_name(keys, "attack"), attack.radius_at(state.step)
                attacked = logits(plain, state.params["net"], state)
                others = standardised(changed(attack, attacked, batch, keys, radius), spec)
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
                attacked, by_label = logits(net, evaluated(state, "net"), state), replace(attack, trades=None)
                metrics["attacked_accuracy"] = seen(changed(by_label, attacked, batch, keys))["accuracy"]
            return metrics

        return learner(init, step, evaluate)

    def network(self, module: nn.Module) -> Network:
        """`module`, computing in the config's dtype, in evaluation on all views of an image."""
        return averaged(super().network(module), self.views)

    def module(self) -> nn.Module:
        """See `Supervised`."""
        moments = {"moments": self.data.patch_moments(self.net.patch)} if hasattr(self.net, "moments") else {}
        return bind(self.net, outputs=self.data.spec().classes, **moments)

    def mirrored(self, state: State, batch: Batch) -> jax.Array | None:
        """The images of a batch that are flipped, bool[batch], where it alternates by passes over the data."""
        if not self.augment.alternate:
            return None
        rows, size = position(len(batch.index)), self.data.feeds().train.size
        epoch, _ = positions(state.step, self.data.batch, size, rows=rows)
        return alternating(example_keys(fold_name(state.key, "flip"), batch.index), epoch)

    def divisible(self) -> dict[str, int]:
        """See `Experiment`."""
        found = super().divisible()
        return {**found, "half of data.batch, which mixing takes": self.data.batch // 2} if self.mixing.on else found

    def logits(self, state: State, images: jax.Array) -> jax.Array:
        """What the net makes of u8[batch, height, width, channels], as it is evaluated: [batch, classes]."""
        return self.pixel_logits(state, scaled(images))

    def pixel_logits(self, state: State, images: jax.Array) -> jax.Array:
        """The same of images f32 in 0 ... 1."""
        return self.outputs(state, standardised(images, self.data.spec()))

    def input_ranges(self, state: State, images: jax.Array) -> dict[str, Tree]:
        """The ranges of the layers' inputs, as they are evaluated on u8[batch, height, width, channels]: what
        `quantization` reads of the collections."""
        params, own = evaluated(state, "net"), owned(state, "net")
        images = standardised(scaled(images), self.data.spec())
        return input_ranges(self.module(), self.update.dtype, params, own, images)

    def reports(self, load: Load) -> Iterable[Report]:
        """See `Experiment`."""
        return reports.classification(self.logits, self.data.spec().names), reports.filters()

    def inference(self, state: State) -> dict[str, Inference]:
        """See `Experiment`."""
        about = "The largest logit is that of the predicted class."
        return pixel_inference(lambda images: self.logits(state, images), "logits", about, self.data.spec().names)


def averaged(net: Network, kind: Views) -> Network:
    """`net`, whose outputs are in evaluation the weighted mean of those of the views of its inputs, see `views`."""
    if kind == "one":
        return net

    def apply(
        params: Tree,
        collections: dict[str, Tree],
        *inputs: Any,
        rng: jax.Array | None = None,
        method: str | None = None,
    ) -> tuple[Any, dict[str, Tree]]:
        if rng is not None:
            return net.apply(params, collections, *inputs, rng=rng, method=method)
        found = [(weight, net.apply(params, collections, view)[0]) for weight, view in views(kind, *inputs)]
        return sum(weight * outputs for weight, outputs in found), collections

    return net._replace(apply=apply)


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
        "whitened": Classify(
            data=Images(name="digits", batch=32, evaluation_batch=40),
            net=WhitenedCNN(widths=(8,)),
            # Flat parts of an image would have equal maxima, up to rounding.
            augment=Augment(flip=True, alternate=True, shift=1, edge="reflect", noise=0.05),
            views="mirror",
            optimizer=Optimizer(
                name="sgd", learning_rate=0.05, decays=(("*/bias", 0.01),), lookahead=Lookahead(every=2)
            ),
            update=UpdateConfig(freeze_after=(("stem/bias", 5),), rates=(("*Norm*", 2.0),)),
            run=Run(steps=12, steps_per_dispatch=3, evaluate_every=6, save_every=6),
        ),
        "pruned": Classify(
            data=Images(name="digits", batch=32, evaluation_batch=40),
            net=CNN(widths=(8,), depth=1, dropout=0.2),
            augment=Augment(noise=0.05),  # as above
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
            adversarial=AdversarialTraining(steps=2, radius=0.002, ramp=4),
            optimizer=Optimizer(name="sgd", learning_rate=0.05),
            run=Run(steps=12, steps_per_dispatch=3, evaluate_every=6, save_every=6),
        ),
        "large_images": Classify(
            data=ToyLargeImages(batch=32, evaluation_batch=40, workers=1),
            net=BottleneckResNet(widths=(2, 4), blocks=(1, 1), stem=4),
            mixing=Mixing(mixup=0.2, cutmix=1.0),
            smoothing=0.1,
            optimizer=Optimizer(name="sgd", learning_rate=0.003),
            run=Run(steps=12, steps_per_dispatch=3, evaluate_every=6, save_every=6),
        ),
    }
