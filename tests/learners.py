"""Every learner there is, tiny, for the laws: SGD, no dropout, so that what is equal is equal to float tolerance."""

import dataclasses
from typing import Any

import flax.linen as nn
import numpy as np

from research.core.experiment import Experiment, Run
from research.core.optimizers import Optimizer
from research.core.update import Descent
from research.data import pairs, sentences
from research.data.augment import Augment
from research.data.images import Images
from research.data.pairs import Pairs
from research.data.sentences import Sentences
from research.data.text import Text
from research.data.unpaired import Unpaired
from research.learners.classify import Classify
from research.learners.cyclegan import CycleGAN
from research.learners.dqn import DQN
from research.learners.gan import GAN
from research.learners.language import Language
from research.learners.masked import Masked
from research.learners.sentences import ClassifyText
from research.learners.translate import Translate
from research.nets import lstm, transformer
from research.nets.cnn import CNN
from research.nets.cyclegan import PatchDiscriminator
from research.nets.dcgan import DCGANDiscriminator, DCGANGenerator
from research.nets.gan import Conv, DenseGenerator
from research.nets.q import MLP
from research.rl.environments import Environment

SGD = Optimizer(name="sgd", learning_rate=0.05, momentum=0.9)
RUN = Run(steps=12, chunk=3, evaluate_every=6, save_every=6)


def classify(**changes: Any) -> Classify:
    """A tiny classifier of digits."""
    config = Classify(
        data=Images(name="digits", batch=32, evaluation_batch=40),
        net=CNN(widths=(8,), depth=1),
        augment=Augment(shift=1, flip=True, cutout=2, noise=0.05),
        smoothing=0.1,
        optimizer=SGD,
        run=RUN,
    )
    return dataclasses.replace(config, **changes)


def dqn(**changes: Any) -> DQN:
    """A tiny DQN that learns from its second step on."""
    config = DQN(
        environment=Environment("CartPole-v1"),
        net=MLP(widths=(16,)),
        num_envs=8,
        rollout_length=2,
        buffer_size=8 * 16,
        learning_starts=32,
        batch=32,
        updates=2,
        target_update_interval=2,
        n_step=2,
        double=True,
        episodes=16,
        optimizer=SGD,
        run=dataclasses.replace(RUN, metric="return"),
    )
    return dataclasses.replace(config, **changes)


def gan(**changes: Any) -> GAN:
    """A tiny GAN of digits."""
    config = GAN(
        data=Images(name="digits", batch=32, evaluation_batch=40),
        generator=DCGANGenerator(widths=(8, 4)),
        discriminator=DCGANDiscriminator(widths=(4, 8), spectral=True),
        latent=4,
        average=0.9,
        generator_optimizer=SGD,
        discriminator_optimizer=SGD,
        run=dataclasses.replace(RUN, metric="discriminator_loss"),
    )
    return dataclasses.replace(config, **changes)


class Translator(nn.Module):
    """One convolution: CycleGAN's own generator takes a minute to compile, and the laws compile it eight times."""

    @nn.compact
    def __call__(self, images, train: bool = False):
        """Images -> images, as `CycleGenerator`."""
        return nn.tanh(Conv(images.shape[-1], 3)(images.transpose(3, 1, 2, 0), train)).transpose(3, 1, 2, 0)


RANDOM = np.random.default_rng(0)
WORDS = [" ".join(RANDOM.choice(["red", "blue", "sun", "moon", "is", "not"], n)) for n in RANDOM.integers(2, 9, 80)]


@dataclasses.dataclass(frozen=True)
class Moons(Sentences):
    """Which sentences speak of the moon."""

    def texts(self) -> sentences.Texts:
        part = lambda some: (np.array(some, object), np.array(["moon" in text for text in some], np.int32))
        return sentences.Texts(("no", "yes"), part(WORDS[:60]), None, part(WORDS[60:]))


@dataclasses.dataclass(frozen=True)
class Backwards(Pairs):
    """The translation of a sentence has its words in the opposite order."""

    def texts(self) -> pairs.Texts:
        part = lambda some: [some, [" ".join(reversed(text.split())) for text in some]]
        return pairs.Texts(part(WORDS[:60]), None, part(WORDS[60:]))


TEXT = Text(name=__file__, context=8, batch=32, evaluation_batch=40)
MOONS = Moons(vocabulary=40, lengths=(4, 8), batch=32, evaluation_batch=40)
BACKWARDS = Backwards(vocabulary=290, lengths=(16, 32), batch=32, evaluation_batch=40)
STACK = transformer.Stack(layers=2, width=8, heads=2)
TEXT_RUN = Run(steps=12, chunk=4, evaluate_every=4, save_every=4, metric="loss", goal="min")
SEQUENCES: dict[str, Experiment] = {
    "transformer": Language(data=TEXT, net=transformer.LanguageModel(STACK), optimizer=SGD, run=TEXT_RUN),
    "lstm": Language(
        data=TEXT,
        net=lstm.LanguageModel(width=8),
        optimizer=dataclasses.replace(SGD, schedule="cosine", warmup=2),
        descent=Descent(clip=0.5),
        run=TEXT_RUN,
    ),
    "masked": Masked(
        data=MOONS,
        net=transformer.MaskedModel(dataclasses.replace(STACK, positions="rotary", groups=1)),
        optimizer=SGD,
        run=TEXT_RUN,
    ),
    "sentences": ClassifyText(
        data=MOONS, net=lstm.Classifier(width=8, embedding=8, pairs=16), average=0.9, optimizer=SGD, run=TEXT_RUN
    ),
    "translator": Translate(
        data=BACKWARDS,
        net=transformer.Translator(dataclasses.replace(STACK, positions="sinusoidal", remat=True, unroll=1)),
        optimizer=dataclasses.replace(SGD, learning_rate=0.5),  # below, the first norms move by less than rounding
        run=TEXT_RUN,
    ),
}
EXPERIMENTS: dict[str, Experiment] = {
    **SEQUENCES,
    "cnn": classify(),
    "dqn": dqn(),
    "gan": gan(),
    "wgan_gp": gan(
        generator=DenseGenerator(widths=(8,)),
        discriminator=DCGANDiscriminator(widths=(4,), hidden=6, norm="none"),
        conditional=True,
        loss="wasserstein",
        critic_updates=2,
        gradient_penalty=10.0,
        average=None,
        discriminator_optimizer=dataclasses.replace(SGD, learning_rate=0.002),  # the penalty is steep
    ),
    "cyclegan": CycleGAN(
        data=Unpaired(name="digits", classes=("3", "8"), batch=8, evaluation_batch=16),
        generator=Translator(),
        discriminator=PatchDiscriminator(widths=(4,)),
        augment=Augment(flip=True),
        pool=12,
        generator_optimizer=SGD,
        discriminator_optimizer=SGD,
        run=dataclasses.replace(RUN, metric="cycle_error"),
    ),
}
