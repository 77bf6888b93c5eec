"""CIFAR-10 in ten passes over the data, by a net whose first layer whitens patches.

Paper: Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (arXiv:2404.00498), airbench94: 94.01 % on average
of 1,000 runs, in 0.36 PFLOPs and 3.29 s on an A100. As there: frozen whitening of 2x2 patches, whose bias is trained in
the first three passes; convolutions that start as the identity; batch normalisation without a scale and with short
averages; alternating flips, shifts by 2 with reflected edges, label smoothing; Nesterov's momentum with a learning rate
and a weight decay that are those of whole steps, 64 times the learning rate for the norms' biases; lookahead; six views
of each test image. Here lookahead averages the parameters alone, not the batch statistics; 200 training images are held
out.

    python -m experiments.train cifar10_airbench

Data: CIFAR-10, see `cifar10_resnet20`.

Expected: a test accuracy of at least 0.9385.
Measured: 0.9401; one seed. Its products and convolutions are 0.348 PFLOPs, as `research/training/flops.py` counts them.
Time: 56 minutes on two cores that other work shared, 57 minutes of CPU time in all (`--place shard_map`, see
docs/results.md).
"""

from research.core.experiment import Run
from research.core.lookahead import Lookahead
from research.core.optimizers import Optimizer
from research.core.update import UpdateConfig
from research.data.augment import Augment
from research.data.images import Images
from research.learners.classify import Classify
from research.nets.whitened import WhitenedCNN

STEPS, PASS = 480, 48
MOMENTUM, BIASES = 0.85, 64.0
RATE = 11.5 / (1 + 1 / (1 - MOMENTUM))
"""Of the mean loss; the paper's 11.5 per 1,024 examples is the size of a whole step, momentum included."""

DECAY = 0.0153 / 11.5
"""The paper's 0.0153 is the share by which a step shrinks the parameters, at a relative learning rate of 1."""


def config() -> Classify:
    """The experiment."""
    return Classify(
        data=Images(name="cifar10", batch=1024, evaluation_batch=200, validation=0.004),
        net=WhitenedCNN(widths=(64, 256, 256), patch=2, scale=1 / 9, momentum=0.6),
        augment=Augment(flip=True, alternate=True, shift=2, edge="reflect"),
        views="mirror_shift",
        smoothing=0.2,
        optimizer=Optimizer(
            name="sgd",
            learning_rate=RATE,
            schedule="linear",
            warmup=110,
            initial_ratio=0.2,
            final_ratio=0.07,
            momentum=MOMENTUM,
            nesterov=True,
            weight_decay=DECAY,
            decays=(("stem/bias", DECAY), ("BatchNorm_*/bias", DECAY / BIASES)),
            lookahead=Lookahead(every=5, decay=0.95, power=3),
        ),
        update=UpdateConfig(
            freeze=("stem/kernel",),
            freeze_after=(("stem/bias", 3 * PASS),),
            rates=(("BatchNorm_*/bias", BIASES),),
        ),
        run=Run(
            steps=STEPS, steps_per_dispatch=10, evaluate_every=80, save_every=20, published=(("accuracy", 0.9401),)
        ),
    )
