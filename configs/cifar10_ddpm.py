"""CIFAR-10 by denoising diffusion: for a GPU or TPU.

Paper: Ho, Jain & Abbeel 2020, "Denoising diffusion probabilistic models" (arXiv:2006.11239): a U-Net of its blocks with
attention at 16x16 pixels, half as wide and with three levels. (Theirs has attention in the middle and one block more in
each level on the way up, and its resolutions change by convolutions. Its Adam has a constant rate of 0.0002, this one
0.0005 and a cosine; its average of the weights has a decay of 0.9999.) The cosine schedule (Nichol & Dhariwal 2021,
arXiv:2102.09672); conditioned on the class, with a tenth of the labels hidden, so that --guidance can be tried (Ho &
Salimans 2022, arXiv:2207.12598). Samples are made by DDIM in 50 steps (Song, Meng & Ermon 2021, arXiv:2010.02502).

    python -m experiments.train cifar10_resnet20
    python -m experiments.train cifar10_ddpm --classifier-dir runs/cifar10_resnet20

With --classifier-dir, samples are compared with the data on the features of that classifier. Such an FID is not
Inception's, on which published ones are computed (DDPM's: 3.17, after 800,000 steps of a net of 36 million
parameters): compare it with the FID of the test images, and with that of `cifar10_gan` by the same classifier. The
Inception FID needs the file of Inception's weights, --inception inception.npz (see `research/evaluation/inception.py`).

Expected: not known yet.
Measured: It has not been trained yet.
Time: 6.4 GFLOP for each of 1.3 million training images, and 107 for a sample: not for a CPU.
"""

from research.core.experiment import Run
from research.core.optimizers import Optimizer
from research.core.update import UpdateConfig
from research.data.augment import Augment
from research.data.images import Images
from research.learners.diffusion import Diffusion
from research.nets.unet import UNet


def config() -> Diffusion:
    """The experiment."""
    return Diffusion(
        data=Images(name="cifar10", batch=128, validation=0.02),
        net=UNet(widths=(64, 128, 128), blocks=2, attention=(1,), dropout=0.1),
        augment=Augment(flip=True),
        schedule="cosine",
        conditional=True,
        label_dropout=0.1,
        average=0.999,
        optimizer=Optimizer(learning_rate=5e-4, schedule="cosine", warmup=1000),
        update=UpdateConfig(clip=1.0, dtype="bfloat16"),
        run=Run(
            steps=10_000,
            steps_per_dispatch=100,
            evaluate_every=1000,
            save_every=1000,
            metric="loss",
            mode="min",
        ),
    )
