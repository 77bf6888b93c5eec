"""MNIST by a Wasserstein GAN with gradient penalty.

Paper: Gulrajani, Ahmed, Arjovsky, Dumoulin & Courville 2017, "Improved training of Wasserstein GANs"
(arXiv:1704.00028): its Algorithm 1, with a penalty of 10, five critic updates a step, and Adam at 0.0001.

    python -m experiments.train mnist_cnn
    python -m experiments.train mnist_wgan_gp --judge runs/mnist_cnn

With a judge, samples are compared with the data on the features of that classifier. Such an FID is not Inception's: it
is to be read beside that of the test images, the floor.

Expected: the judge's mean confidence at 0.95 or more, each digit 6 to 14 % of the samples.
Measured: not measured yet.
"""

from research.data.images import Images
from research.experiment import Run
from research.learners.gan import GAN
from research.nets.dcgan import DCGANDiscriminator, DCGANGenerator
from research.optim import Optimizer

ADAM = Optimizer(learning_rate=1e-4, b1=0.0, b2=0.9)


def config() -> GAN:
    """The experiment."""
    return GAN(
        data=Images(name="mnist", batch=64, validation=0.05),
        generator=DCGANGenerator(widths=(128, 64)),
        discriminator=DCGANDiscriminator(widths=(64, 128), norm="layer"),
        latent=100,
        loss="wasserstein",
        critic_updates=5,
        gradient_penalty=10.0,
        average=0.999,
        generator_optimizer=ADAM,
        discriminator_optimizer=ADAM,
        run=Run(steps=10_000, chunk=50, evaluate_every=1000, save_every=1000, metric="discriminator_loss", goal="min"),
    )
