"""CamVid's road scenes, 240x180 pixels in eleven classes, by a residual U-Net.

Paper: Ronneberger, Fischer & Brox 2015, "U-Net: convolutional networks for biomedical image segmentation"
(arXiv:1505.04597), of the residual blocks of Ho, Jain & Abbeel 2020. Data: Brostow, Fauqueur & Cipolla 2009, in the
split and the classes of SegNet (Badrinarayanan, Kendall & Cipolla 2017, arXiv:1511.00561). From scratch, on 367 images:
random crops of random scale, flips and colours; rarer classes count more, and half of a Dice loss is added.

    python -m experiments.train camvid_unet

On a GPU: --dtype bfloat16. Void is neither trained on nor scored. `mean_iou` is that of one confusion matrix over all
pixels of the 233 test images. Validation images are of the clip that training images are of: their IoU is much higher.

Data: `camvid_small`, of half the usual resolution. Published, at 480x360 and so not the same task: ENet 0.513 (Paszke
et al. 2016, arXiv:1606.02147), SegNet without pre-training 0.464 to 0.502, FC-DenseNet56 0.589 (Jégou et al. 2017,
arXiv:1611.09326).

Expected: a test mean_iou above 0.48.
Measured, by --dtype bfloat16: 0.531, and 0.862 of the pixels; one seed.
Time: 250 s on one H200 beside other trainings. Not tried on two cores: 20 GFLOP for
each image of full size, 13 for a crop, 48,000 crops.
"""

from research.core.experiment import Run
from research.core.optimizers import Optimizer
from research.core.update import UpdateConfig
from research.data.augment_masks import AugmentMasks
from research.data.masks import Masks
from research.learners.segment import Segment
from research.nets.unet import UNet


def config() -> Segment:
    """The experiment."""
    return Segment(
        data=Masks(name="camvid_small", batch=8, evaluation_batch=16),
        net=UNet(widths=(16, 32, 64, 128, 256), blocks=1, dropout=0.1),
        augment=AugmentMasks(crop=(144, 192), scaling=(0.75, 1.5), flip=True, colour=0.3),
        balance=0.3,
        dice=0.5,
        average=0.999,
        optimizer=Optimizer(learning_rate=1e-3, schedule="one_cycle", weight_decay=0.05),
        update=UpdateConfig(clip=1.0),
        run=Run(
            steps=6000,
            steps_per_dispatch=50,
            evaluate_every=1000,
            save_every=1000,
            metric="mean_iou",
        ),
    )
