"""MNIST by a convolutional net that withstands changes of every pixel by up to 0.3 of its range.

Paper: Madry, Makelov, Schmidt, Tsipras & Vladu 2018, "Towards deep learning models resistant to adversarial attacks"
(arXiv:1706.06083), table 1: 93.2 % under 40 steps of 0.01 from a random start; 98.8 % of the images as they are. Their
challenge (MadryLab/mnist_challenge): 92.5 % under 100 steps, 89.6 % under 50 restarts.

Differences: their two convolutions of 5x5 and a dense layer of 1,024 are four of 3x3, as in TRADES (Zhang et al. 2019),
and one dense layer of 200 here, where TRADES has two and dropout between them; the training attack has 10 steps of
0.075 in place of 40 of 0.01; the radius grows over the first 2,000 steps; there are 17 passes over the data in place of
83.

    python -m experiments.train mnist_adversarial
    python -m experiments.attack runs/mnist_adversarial --step-size 0.01 --queries 2000

Expected: 92 % or more under that attack.
Measured: 97.2 %, and 99.4 % of the images as they are; of 1,000 images 94.8 % under 100 steps and 20 restarts, and
93.6 % under a search of 2,000 queries without gradients, which should not find more: gradients are masked to some
extent. One seed. The search went by the cross-entropy then; by the margin of the logits, as it goes now, it may find
more.
Time: 140 s on one H200 beside other trainings.
"""

from research.core.experiment import Run
from research.core.optimizers import Optimizer
from research.data.images import Images
from research.learners.classify import Classify
from research.learners.robust import AdversarialTraining
from research.nets.cnn import CNN


def config() -> Classify:
    """The experiment."""
    return Classify(
        data=Images(name="mnist", batch=128, validation=0.05),
        net=CNN(widths=(32, 64), depth=2, norm=False, hidden=200),
        adversarial=AdversarialTraining(steps=10, radius=0.3, step_size=0.075, ramp=2000),
        optimizer=Optimizer(learning_rate=1e-3, schedule="linear", warmup=200),
        run=Run(
            steps=7500,
            steps_per_dispatch=50,
            evaluate_every=750,
            save_every=750,
            metric="attacked_accuracy",
            published=(("accuracy", 0.988),),
        ),
    )
