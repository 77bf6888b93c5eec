"""CIFAR-10 by residual nets with spectral normalisation and the hinge loss: for a GPU or TPU.

Paper: Miyato, Kataoka, Koyama & Yoshida 2018, "Spectral normalization for generative adversarial networks"
(arXiv:1802.05957), its residual nets: five critic updates a step, Adam at 0.0002 falling to 0. The generator's batch is
the discriminator's here, 64, where the paper doubles it, and samples are judged by a moving average of the generator's
weights, which the paper does not have.

    python -m experiments.train cifar10_resnet20
    python -m experiments.train cifar10_gan --classifier-dir runs/cifar10_resnet20

With --classifier-dir, samples are compared with the data on the features of that classifier. Such an FID is not
Inception's, on which published ones are computed: compare it with the FID of the test images. The Inception FID needs
the file of Inception's weights, --inception inception.npz (see `research/evaluation/inception.py`). With --conditional
both nets read the label: the discriminator by a projection (Miyato & Koyama 2018, arXiv:1802.05637), the generator
beside the noise, where theirs has conditional batch normalisation.

Data: measured on a copy of CIFAR-10 rebuilt from several repositories, in which 77 training and 21 test images are
decoded JPEGs.

Expected: not trained in full by us yet, for want of a device.
Measured: a short run, `--generator.widths 64 64 64 --discriminator.widths 32 32 32 32 --average 0.99 --run.steps 300
--run.steps-per-dispatch 10 --run.evaluate-every 100 --run.save-every 100 --generator-optimizer.learning-rate 0.001
--discriminator-optimizer.learning-rate 0.001`: FID 19.6 (of test images 0.034), confidence 0.644 (of test images
0.899), classes 0.03 to 33.5 % of 10,000 samples; one seed. Colours, and no objects yet.
Time: of that, 11 minutes on one core, beside other work.
"""

from research.core.experiment import Run
from research.core.optimizers import Optimizer
from research.data.images import Images
from research.learners.gan import GAN
from research.nets.residual import ResidualDiscriminator, ResidualGenerator

ADAM = Optimizer(learning_rate=2e-4, b1=0.0, b2=0.9, schedule="linear")


def config() -> GAN:
    """The experiment."""
    return GAN(
        data=Images(name="cifar10", batch=64, validation=0.02),
        generator=ResidualGenerator(widths=(256, 256, 256)),
        discriminator=ResidualDiscriminator(widths=(128, 128, 128, 128)),
        latent=128,
        loss="hinge",
        num_updates=5,
        average=0.9999,
        generator_optimizer=ADAM,
        discriminator_optimizer=ADAM,
        run=Run(
            steps=100_000,
            steps_per_dispatch=100,
            evaluate_every=5000,
            save_every=5000,
            metric="discriminator_loss",
            mode="min",
        ),
    )
