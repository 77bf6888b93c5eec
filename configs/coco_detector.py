"""COCO by an FCOS with a ResNet-50-sized net of basic blocks, trained from scratch at 256x256.

Paper: Tian, Shen, Chen & He 2019, "FCOS: Fully convolutional one-stage object detection" (arXiv:1904.01355): AP 38.7 by
a pre-trained ResNet-50 at 800 pixels. At 256 pixels and from scratch (He, Girshick & Dollar 2019, arXiv:1811.08883,
which takes 6 times as many steps), much less is to be expected.

    python -m experiments.train coco_detector --dtype bfloat16

Data: coco/2017 of TensorFlow Datasets; its 118,287 training images, resized without regard to their proportions, take
23 GB of the host's memory. The 5,000 images of its split validation are tested on. Boxes of crowds are left out, so
that what is detected within one counts as wrong, which COCO ignores.

Measured: It has not been trained yet.
"""

from research.core.experiment import Run
from research.core.optimizers import Optimizer
from research.core.update import UpdateConfig
from research.data.box_augment import BoxAugment
from research.data.boxes import BoxedImages
from research.learners.detect import Detect
from research.nets.detector import Detector


def config() -> Detect:
    """The experiment."""
    return Detect(
        data=BoxedImages(
            name="coco/2017",
            resize=(256, 256),
            test_split="validation",
            batch=64,
            evaluation_batch=64,
            validation=0.02,
            feed="host",
            invalid="drop",
            allow_empty=True,
        ),
        net=Detector(
            stem=64, widths=(64, 128, 256, 512), blocks=(3, 4, 6, 3), levels=3, channels=256, tower=4, groups=32
        ),
        augment=BoxAugment(flip=True, scaling=0.5, stretch=0.2, shift=0.2, brightness=0.1, contrast=0.2, colour=0.1),
        reach=4.0,
        average=0.9998,
        optimizer=Optimizer(learning_rate=1e-3, schedule="cosine", warmup=2000, weight_decay=0.05),
        update=UpdateConfig(clip=10.0),
        ap_every=10_000,
        run=Run(steps=180_000, steps_per_dispatch=50, evaluate_every=10_000, save_every=5000, metric="ap50"),
    )
