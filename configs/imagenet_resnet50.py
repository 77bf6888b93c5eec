"""ImageNet by ResNet-50, decoded as it is read: for GPUs or TPUs.

Paper: He, Zhang, Ren & Sun 2016, "Deep residual learning for image recognition" (arXiv:1512.03385), in the 90 passes of
Goyal et al. 2017 (arXiv:1706.02677): large batches, a learning rate of 0.1 for each 256 images, 5 passes of warm-up,
from 0.1, the last scales of the blocks from zero, a weight decay of 1e-4. (Their last layer starts from a normal
distribution of 0.01, here from Flax's default.) Besides a cosine and label smoothing, as in the recipe of He et al.
2019, "Bag of tricks" (arXiv:1812.01187).

    python -m experiments.train imagenet_resnet50
    python -m experiments.train imagenet_resnet50 --data.name ~/imagenet      # train/CLASS/*.JPEG and val/CLASS/*.JPEG

Data: imagenet2012 of TensorFlow Datasets, prepared as array_record, or a folder; 1 % of the training images is held out
for validation, and the 50,000 images of the split validation are tested on. A host has to decode as many images as its
devices train on: `data_share` in summary.json tells whether it does, and docs/vision.md how many a core decodes.

Expected: torchvision's ResNet-50, the same net in 90 passes with steps instead of the cosine and without smoothing:
76.13 % (weights IMAGENET1K_V1); Goyal et al.: 76.3 %.
Measured: It has not been trained yet.
"""

from research.core.experiment import Run
from research.core.optimizers import Optimizer
from research.core.update import UpdateConfig
from research.data.large_images import LargeImages
from research.learners.classify import Classify
from research.nets.bottleneck import BottleneckResNet

BATCH, EPOCH = 1024, 1240
"""The size of a batch, and the steps of a pass over 99 % of 1,281,167 images, rounded up to whole dispatches."""


def config() -> Classify:
    """The experiment."""
    return Classify(
        data=LargeImages(name="imagenet2012", batch=BATCH, evaluation_batch=BATCH, test_split="validation"),
        net=BottleneckResNet(),
        smoothing=0.1,
        optimizer=Optimizer(
            name="sgd",
            learning_rate=0.1 * BATCH / 256,
            schedule="cosine",
            warmup=5 * EPOCH,
            initial_ratio=256 / BATCH,
            weight_decay=1e-4,
            momentum=0.9,
        ),
        update=UpdateConfig(dtype="bfloat16"),
        run=Run(
            steps=90 * EPOCH,
            steps_per_dispatch=5,
            evaluate_every=EPOCH,
            save_every=EPOCH,
            published=(("accuracy", 0.7613),),
        ),
    )
