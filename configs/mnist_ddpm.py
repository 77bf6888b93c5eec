"""MNIST by denoising diffusion, conditioned on the label.

Paper: Ho, Jain & Abbeel 2020, "Denoising diffusion probabilistic models" (arXiv:2006.11239), with the cosine schedule
(Nichol & Dhariwal 2021, arXiv:2102.09672), and a U-Net that is small and has its attention at 7x7 pixels. Adam's rate
is 0.001 and falls by a cosine within 10,000 steps, where theirs, for CIFAR-10, stays at 0.0002; the decay of the
average of the weights is 0.999, where theirs is 0.9999. Samples are made by DDIM in 50 steps (Song, Meng & Ermon 2021,
arXiv:2010.02502), with averaged weights and without guidance.

    python -m experiments.train mnist_cnn --smoothing 0
    python -m experiments.train mnist_ddpm --classifier-dir runs/mnist_cnn

On a GPU: --dtype bfloat16. With --classifier-dir, samples are compared with the data on the features of that
classifier. Such an FID is not Inception's, and another classifier's is another: compare it with that of the test images
and with that of `mnist_wgan_gp` by the same classifier. By the GANs' own, with which the test images have 0.47, it has
1.49. The labels take turns, so class balance is guaranteed; matching the requested digit is not, and `label_accuracy`
is the share of samples that are classified as the requested digit. Without labels: --no-conditional, where
`mnist_wgan_gp` has an FID of 2.10.

Expected: an FID of 10,000 samples below 1.49, by the GANs' classifier.
Measured: 8,000 steps in bfloat16 ended at a validation loss of 0.0382; their samples have not been judged. A twentieth
of the work, `--net.widths 16 32 64 --data.batch 64 --steps 4000`: a validation loss of 0.044, an FID of 40.2 (of test
images 1.81, by that classifier) and a label accuracy of 0.71, in 45 minutes of a core and about as long for the
samples; one seed. These are digits, many of them with parts too many.
Time: three hours on two cores: 0.9 GFLOP for each of 1.3 million training images, 15 for a sample.
"""

from research.core.experiment import Run
from research.core.optimizers import Optimizer
from research.core.update import UpdateConfig
from research.data.images import Images
from research.learners.diffusion import Diffusion
from research.nets.unet import UNet


def config() -> Diffusion:
    """The experiment."""
    return Diffusion(
        data=Images(name="mnist", batch=128, validation=0.05),
        net=UNet(widths=(32, 64, 128), blocks=1, attention=(2,)),
        schedule="cosine",
        conditional=True,
        average=0.999,
        optimizer=Optimizer(learning_rate=1e-3, schedule="cosine", warmup=500),
        update=UpdateConfig(clip=1.0),
        run=Run(
            steps=10_000,
            steps_per_dispatch=100,
            evaluate_every=1000,
            save_every=1000,
            metric="loss",
            mode="min",
        ),
    )
