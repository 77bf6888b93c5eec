"""CIFAR-10's first five classes by ResNet-20: the net that `experiments.transfer` fine-tunes on the other five.

    python -m experiments.train cifar10_first_five_resnet20

Data: 24,500 training images and 5,000 test images of airplanes, automobiles, birds, cats and deer; see
`cifar10_resnet20`.

Expected: a test accuracy above 0.9.
Measured: 0.9268, one seed, by `python -m experiments.transfer` (docs/results/transfer.json).
Time: 83 minutes on one core that other trainings shared.
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
        data=Images(name="cifar10", batch=128, validation=0.02, classes=(0, 1, 2, 3, 4)),
        net=ResNet(widths=(16, 32, 64), blocks=(3, 3, 3)),
        augment=Augment(shift=4, flip=True),
        optimizer=Optimizer(
            name="muon", learning_rate=5e-3, schedule="linear", warmup=200, weight_decay=0.1, momentum=0.95
        ),
        run=Run(steps=3800, steps_per_dispatch=50, evaluate_every=950, save_every=50),
    )
