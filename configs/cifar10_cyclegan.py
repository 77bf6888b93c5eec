"""Automobiles to trucks and back, 32x32 pixels, by a small CycleGAN.

Paper: Zhu, Park, Isola & Efros 2017, "Unpaired image-to-image translation using cycle-consistent adversarial networks"
(arXiv:1703.10593); it has no such images. The nets are narrower, and the patches cover the whole image. There is no
identity loss, and the generators have layer norms: instance norms take away how bright an image is, and after 1,500
steps the cycle error was 0.17 with them, 0.11 without. Adam begins at 0.0006, three times theirs.

    python -m experiments.train cifar10_resnet20
    python -m experiments.train cifar10_cyclegan --judge runs/cifar10_resnet20

With a judge, translated test images are classified; beside them real ones.

Wanted: a cycle error below a quarter of its start; at least half of the translations called the target's class.
Measured: MEASURED
"""

from research.data.augment import Augment
from research.data.unpaired import Unpaired
from research.experiment import Run
from research.learners.cyclegan import CycleGAN
from research.nets.cyclegan import CycleGenerator, PatchDiscriminator
from research.optim import Optimizer

ADAM = Optimizer(learning_rate=6e-4, b1=0.5, schedule="linear")


def config() -> CycleGAN:
    """The experiment."""
    return CycleGAN(
        data=Unpaired(name="cifar10", classes=("automobile", "truck"), batch=16),
        generator=CycleGenerator(width=16, blocks=3, side=3, norm="layer"),
        discriminator=PatchDiscriminator(widths=(32, 64, 128)),
        augment=Augment(flip=True),
        identity=None,
        generator_optimizer=ADAM,
        discriminator_optimizer=ADAM,
        run=Run(steps=6000, chunk=20, evaluate_every=1000, save_every=1000, metric="cycle_error", goal="min"),
    )
