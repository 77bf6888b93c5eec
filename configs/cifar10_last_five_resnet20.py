"""CIFAR-10's last five classes by 50 images of each: ResNet-20 from scratch, or fine-tuned from the first five classes.

Yosinski, Clune, Bengio & Lipson 2014, "How transferable are features in deep neural networks?" (arXiv:1411.1792) split
the classes of ImageNet likewise.

    python -m experiments.train cifar10_last_five_resnet20
    python -m experiments.train cifar10_last_five_resnet20 --workdir runs/whole \
        --init-from runs/cifar10_first_five_resnet20 --init-paths '!net/head/*'

`python -m experiments.transfer` trains both, and the head alone, by 10, 50 and 250 images of each class.

Data: 250 training images of dogs, frogs, horses, ships and trucks, 5,000 test images; see `cifar10_resnet20`.

Expected: more by fine-tuning than from scratch, and least between them by 250 images of each class.
Measured: by 50 images of each class 0.654 (0.639 to 0.672) from scratch, and 0.827 (0.816 to 0.837) fine-tuned; by 10
images 0.455 and 0.721, by 250 images 0.734 and 0.879. 3 seeds each, by `python -m experiments.transfer`
(docs/results/transfer.json).
Time: about a minute on one core.
"""

from research.core.experiment import Run
from research.core.optimizers import Optimizer
from research.data.augment import Augment
from research.data.few_labels import FewLabels
from research.learners.classify import Classify
from research.nets.cnn import ResNet


def config() -> Classify:
    """The experiment."""
    return Classify(
        data=FewLabels(
            name="cifar10", labels=250, batch=64, evaluation_batch=500, validation=0.02, classes=(5, 6, 7, 8, 9)
        ),
        net=ResNet(widths=(16, 32, 64), blocks=(3, 3, 3)),
        augment=Augment(shift=4, flip=True),
        optimizer=Optimizer(name="adamw", learning_rate=2e-3, schedule="one_cycle", weight_decay=0.05),
        run=Run(steps=200, steps_per_dispatch=20, evaluate_every=200, save_every=100),
    )
