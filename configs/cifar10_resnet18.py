"""CIFAR-10 by a residual net of 18 layers and 11.2 M parameters: for a GPU or TPU.

Paper: He, Zhang, Ren & Sun 2016, "Deep residual learning for image recognition" (arXiv:1512.03385), its ResNet-18 with
the first layers made for small images. Published: 93.02 % in kuangliu/pytorch-cifar.

    python -m experiments.train cifar10_resnet18 --place shard_map --update.dtype bfloat16

Expected: not trained by us yet, for want of a device; on two CPU cores it would take days.
"""

import dataclasses

from configs import cifar10_resnet20
from research.data.images import Images
from research.learners.classify import Classify
from research.nets.cnn import ResNet


def config() -> Classify:
    """The experiment: cifar10_resnet20's, with a wider net and larger batches."""
    small = cifar10_resnet20.config()
    return dataclasses.replace(
        small,
        data=Images(name="cifar10", batch=512, validation=0.02),
        net=ResNet(widths=(64, 128, 256, 512), blocks=(2, 2, 2, 2), shortcut="project"),
        run=dataclasses.replace(small.run, steps=6000, steps_per_dispatch=100, published=(("accuracy", 0.9302),)),
    )
