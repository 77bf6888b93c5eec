"""MNIST's digits on canvases of 96x96 by an FCOS; the canvases are made on the device, inside the compiled step.

Paper: Tian, Shen, Chen & He 2019, "FCOS: Fully convolutional one-stage object detection" (arXiv:1904.01355).

    python -m experiments.train digits_detector

Data: one to six digits a canvas, 0.75 to 1.5 times their size, at random places. The 1,000 test canvases are drawn from
the test digits, the same ones in every run.

Expected: an AP50 of at least 0.95 on the test canvases.
Measured: 0.996, an AP50:95 of 0.907; one seed.
Time: 32 minutes on a core that had other work besides.
"""

from research.core.experiment import Run
from research.core.optimizers import Optimizer
from research.core.update import UpdateConfig
from research.data.canvases import Canvases
from research.learners.detect import Detect
from research.nets.detector import Detector


def config() -> Detect:
    """The experiment."""
    return Detect(
        data=Canvases(name="mnist", size=96, objects=6, scales=(0.75, 1.5), batch=32, validation=0.1),
        net=Detector(stem=16, widths=(32, 64, 96), blocks=(1, 1, 1), levels=3, channels=64, tower=2),
        reach=6.0,
        average=0.998,
        optimizer=Optimizer(learning_rate=2e-3, schedule="cosine", warmup=200, weight_decay=0.05),
        update=UpdateConfig(clip=10.0),
        ap_every=500,
        run=Run(steps=2000, steps_per_dispatch=50, evaluate_every=500, save_every=500, metric="ap50"),
    )
