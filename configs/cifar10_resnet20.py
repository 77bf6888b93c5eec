"""CIFAR-10 by a residual net of 20 layers and 0.27 M parameters.

Paper: He, Zhang, Ren & Sun 2016, "Deep residual learning for image recognition" (arXiv:1512.03385), table 6:
ResNet-20, 91.25 % (8.75 % error), 64,000 iterations of SGD; their augmentation, shift by 4 and flip. Here Muon, cutout
and label smoothing besides, and 36 passes over the data instead of 182.

    python -m experiments.train cifar10_resnet20

Data: measured on a copy of CIFAR-10 rebuilt from several repositories, in which 77 training and 21 test images are
decoded JPEGs.

Expected: a test accuracy of at least 0.9125.
Measured: 0.9166; one seed. Without cutout and smoothing, after 9,200 steps: 0.9063, with 0.967 on training batches.
Time: 124 minutes on one core, beside other work; those 9,200 steps were 55 minutes on two (`--place shard_map`).
"""

from research.core.experiment import Run
from research.core.optimizers import Optimizer
from research.data.augment import Augment
from research.data.images import Images
from research.learners.classify import Classify
from research.nets.cnn import ResNet


def config() -> Classify:
    """The experiment."""
    return Classify(
        data=Images(name="cifar10", batch=128, validation=0.02),
        net=ResNet(widths=(16, 32, 64), blocks=(3, 3, 3), shortcut="pad"),
        augment=Augment(shift=4, flip=True, cutout=8),
        smoothing=0.05,
        optimizer=Optimizer(
            name="muon", learning_rate=5e-3, schedule="linear", warmup=400, weight_decay=0.1, momentum=0.95
        ),
        run=Run(
            steps=13800, steps_per_dispatch=50, evaluate_every=600, save_every=200, published=(("accuracy", 0.9125),)
        ),
    )
