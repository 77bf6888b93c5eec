"""Horses to zebras and back, 256x256 pixels, by CycleGAN: for a GPU, and for prepared data.

Paper: Zhu, Park, Isola & Efros 2017, "Unpaired image-to-image translation using cycle-consistent adversarial networks"
(arXiv:1703.10593): its nets, losses, pool and batch of 1. Its 200 epochs, passes over the 1,334 zebras, are 266,800
steps. Differences: 5 % of the images are held out for validation, so that these 268,000 steps are 211 passes; images
are flipped, but not enlarged and cropped; there is an identity loss, which the paper has for paintings and photographs
alone (its authors' code has it by default); and the learning rate decays from the first step on, not from the middle of
training.

    tfds build cycle_gan/horse2zebra --file_format=array_record
    python -m experiments.train horse2zebra_cyclegan

Expected: not trained by us yet, for want of the data and a device; the paper evaluates it by pictures alone.
Measured: not measured yet.
"""

from research.core.experiment import Run
from research.core.optimizers import Optimizer
from research.data.augment import Augment
from research.data.unpaired import Unpaired
from research.learners.cyclegan import CycleGAN
from research.nets.cyclegan import CycleGenerator, PatchDiscriminator

ADAM = Optimizer(learning_rate=2e-4, b1=0.5, schedule="linear")


def config() -> CycleGAN:
    """The experiment."""
    return CycleGAN(
        data=Unpaired(name="cycle_gan/horse2zebra", classes=("A", "B"), batch=1, evaluation_batch=4, feed="host"),
        generator=CycleGenerator(width=64, blocks=9),
        discriminator=PatchDiscriminator(widths=(64, 128, 256, 512)),
        augment=Augment(flip=True),
        generator_optimizer=ADAM,
        discriminator_optimizer=ADAM,
        run=Run(
            steps=268_000,
            steps_per_dispatch=100,
            evaluate_every=6700,
            save_every=6700,
            metric="cycle_error",
            mode="min",
        ),
    )
