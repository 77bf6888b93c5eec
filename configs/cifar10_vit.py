"""CIFAR-10 by a small Vision Transformer, 1.8 M parameters, on patches of 4x4 pixels.

Dosovitskiy et al. 2021, "An image is worth 16x16 words" (arXiv:2010.11929), in the plain form of Beyer, Zhai &
Kolesnikov 2022, "Better plain ViT baselines for ImageNet-1k" (arXiv:2205.01580). Published: 90.92 % by 6.3 M parameters
in 200 passes with AutoAugment (omihub777/ViT-CIFAR). Here Muon; shift, flip and cutout alone.

    python -m experiments.train cifar10_vit --dtype bfloat16                    for a GPU: 75 passes over the data
    python -m experiments.train cifar10_vit --data.batch 128 --steps 4800       12 passes, for two cores

Expected: a test accuracy of at least 0.88 after 75 passes, and of 0.65 after 12.
Measured after 75 passes in bfloat16: 0.8843; one seed. The 12 passes have not been tried.
Time: 199 s on one H200 beside other trainings. 200 steps of 128 images, at 0.57 steps/s beside much other work on two
cores, ended at a test accuracy of 0.386.
"""

from research.core.experiment import Run
from research.core.optimizers import Optimizer
from research.core.update import UpdateConfig
from research.data.augment import Augment
from research.data.images import Images
from research.learners.classify import Classify
from research.nets.vit import ViT


def config() -> Classify:
    """The experiment."""
    return Classify(
        data=Images(name="cifar10", batch=256, validation=0.02),
        net=ViT(),
        augment=Augment(shift=4, flip=True, cutout=8),
        smoothing=0.1,
        optimizer=Optimizer(name="muon", learning_rate=2e-3, schedule="linear", warmup=400, weight_decay=0.1),
        update=UpdateConfig(clip=1.0),
        run=Run(steps=14_500, steps_per_dispatch=50, evaluate_every=2900, save_every=2900),
    )
