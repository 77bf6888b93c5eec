"""CIFAR-10's images at twice their resolution, without noise, or without a hole, by a residual U-Net.

Papers: Ronneberger, Fischer & Brox 2015 (arXiv:1505.04597) for the net, of the residual blocks of Ho, Jain & Abbeel
2020; Ledig et al. 2017 (SRGAN, arXiv:1609.04802) for the adversarial loss.

    python -m experiments.train cifar10_repair                                      # super-resolution, 16x16 to 32x32
    python -m experiments.train cifar10_repair --task denoising --noise 0.1 --workdir runs/cifar10_denoising
    python -m experiments.train cifar10_repair --task inpainting --hole 8 --workdir runs/cifar10_inpainting
    python -m experiments.train cifar10_repair --adversarial 0.01 --workdir runs/cifar10_repair_adversarial

On a GPU: --dtype bfloat16. `psnr` (decibels) and `ssim` are means over the 10,000 test images. Beside them stand those
of the damaged images, identity_psnr, in which for super-resolution each pixel is repeated, and of bicubic
interpolation, bicubic_psnr. An adversarial loss makes sharper images, and lowers both measures.

Expected: a psnr 1.5 dB or more above bicubic_psnr.
Measured with --net.widths 16 32 64, half of the widths here: a psnr of 28.48 and an ssim of 0.915, where bicubic
interpolation has 26.35 and 0.868; 41 minutes of one core that had other work. At its own size it has not been trained.
Time: about an hour and a quarter on two cores: 1.2 GFLOP for each of 384,000 training images.
"""

from research.core.experiment import Run
from research.core.optimizers import Optimizer
from research.core.update import UpdateConfig
from research.data.augment import Augment
from research.data.images import Images
from research.learners.restore import Restore
from research.nets.dcgan import DCGANDiscriminator
from research.nets.unet import UNet


def config() -> Restore:
    """The experiment."""
    return Restore(
        data=Images(name="cifar10", batch=64, validation=0.02),
        net=UNet(widths=(32, 64, 128), blocks=1),
        augment=Augment(flip=True),
        task="super_resolution",
        discriminator=DCGANDiscriminator(widths=(32, 64, 128), norm="none", spectral=True),
        average=0.999,
        optimizer=Optimizer(learning_rate=1e-3, schedule="cosine", warmup=200),
        update=UpdateConfig(clip=1.0),
        run=Run(
            steps=6000,
            steps_per_dispatch=50,
            evaluate_every=1000,
            save_every=1000,
            metric="psnr",
        ),
    )
