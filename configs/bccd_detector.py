"""Blood cells (BCCD) by an FCOS with a small residual net, trained from scratch.

Paper: Tian, Shen, Chen & He 2019, "FCOS: Fully convolutional one-stage object detection" (arXiv:1904.01355). Here two
levels of the pyramid, group normalisation, half the images' size, and AdamW.

    python -m experiments.train bccd_detector

Data: https://github.com/Shenggan/BCCD_Dataset as a data set of TensorFlow Datasets with the features image and objects
(bbox, label). Its splits train and validation, 292 images, are trained on, less 15 held out; the split test has 72. Red
cells are not labelled completely, which limits the precision that can be measured for them.

Expected: an AP50 of at least 0.85 on the test images. Pre-trained YOLOv5x and YOLOv7 have 0.923 and 0.896 on splits of
their own.
Measured: 0.918 (red cells 0.871, white cells 0.978, platelets 0.906), an AP50:95 of 0.610; one seed, before shrunk
images lost their faint bands.
Time: 173 s on one H200 beside other trainings; a step of the 16 images takes 4 to 7 seconds on two cores that are busy
with other work besides.
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
            name="bccd",
            resize=(240, 320),
            train_splits=("train", "validation"),
            batch=16,
            evaluation_batch=24,
            validation=0.05,
        ),
        net=Detector(stem=32, widths=(64, 128, 192), blocks=(1, 2, 2), levels=2, channels=96, tower=2),
        augment=BoxAugment(
            flip=True,
            flip_vertical=True,
            scaling=0.3,
            stretch=0.15,
            shift=0.15,
            brightness=0.08,
            contrast=0.25,
            colour=0.08,
        ),
        average=0.998,
        optimizer=Optimizer(learning_rate=1e-3, schedule="cosine", warmup=200, weight_decay=0.05),
        update=UpdateConfig(clip=10.0),
        ap_every=500,
        run=Run(steps=2500, steps_per_dispatch=50, evaluate_every=500, save_every=500, metric="ap50"),
    )
