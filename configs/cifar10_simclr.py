"""CIFAR-10 without labels: features learned by SimCLR, and a linear classifier on them with 500 labels.

Chen, Kornblith, Norouzi & Hinton 2020, "A simple framework for contrastive learning of visual representations"
(arXiv:2002.05709), appendix B.9: its augmentation for CIFAR-10 and its temperature of 0.5; of the sizes of batches that
it tries, 512. Published for a linear classifier on all labels: 94.0 % by a ResNet-50 in 1,000 passes, by LARS. Here a
residual net of 8 layers and 1.2 M parameters, 40 passes, and Muon.

    python -m experiments.train cifar10_simclr --dtype bfloat16        for a GPU
    python -m experiments.train cifar10_simclr --net.widths 16 32 64 --data.batch 128 --steps 19000        for two cores

The figures are `probe_accuracy_500`, the mean over three draws of 500 balanced labels, each in probes.json, and
`knn_accuracy`; --probe-labels 500 5000 50000 adds others. The same net from scratch on the same labels is
`cifar10_500_resnet`, which also fine-tunes it:

    python -m experiments.train cifar10_500_resnet --data.draw 0
    python -m experiments.train cifar10_500_resnet --data.draw 0 --init-from runs/cifar10_simclr --workdir runs/tuned

Expected: the linear classifier is at least 8 points above training from scratch.
Measured, in bfloat16: a probe_accuracy_500 of 0.658, where the net from scratch has 0.476 (two draws), and a
knn_accuracy of 0.699; one seed.
Time: 153 s on one H200 beside other trainings. 300 steps with the options for two cores, 0.8 passes at 1.1 steps/s
beside much other work, ended at a probe_accuracy_500 of 0.366 and a knn_accuracy of 0.434.
"""

from research.core.experiment import Run
from research.core.optimizers import Optimizer
from research.data.images import Images
from research.learners.simclr import SimCLR
from research.nets.cnn import ResNet
from research.nets.projection import Projection

NET = ResNet(widths=(64, 128, 256), blocks=(1, 1, 1), shortcut="project")


def config() -> SimCLR:
    """The experiment."""
    return SimCLR(
        data=Images(name="cifar10", batch=512, evaluation_batch=500, validation=0.02),
        net=NET,
        projection=Projection(hidden=512, width=128),
        temperature=0.5,
        optimizer=Optimizer(name="muon", learning_rate=3e-3, schedule="cosine", warmup=200, weight_decay=0.05),
        probe_labels=(500,),
        run=Run(steps=3800, steps_per_dispatch=50, evaluate_every=950, save_every=950, metric="loss", mode="min"),
    )
