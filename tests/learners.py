"""Every learner there is, tiny, for the laws: SGD, no dropout, so that what is equal is equal to float tolerance."""

import dataclasses
from typing import Any

from research.data.augment import Augment
from research.data.images import Images
from research.descend import Descent
from research.envs.vector import Environment
from research.experiment import Experiment, Run
from research.learners.classify import Classify
from research.learners.dqn import DQN
from research.nets.cnn import CNN, ResNet
from research.nets.q import MLP
from research.optim import Optimizer

SGD = Optimizer(name="sgd", learning_rate=0.05, momentum=0.9)
RUN = Run(steps=12, chunk=3, evaluate_every=6, save_every=6)


def classify(**changes: Any) -> Classify:
    """A tiny classifier of digits."""
    config = Classify(
        data=Images(name="digits", batch=32, evaluation_batch=40),
        net=CNN(widths=(8,), depth=1),
        augment=Augment(shift=1, flip=True, cutout=2, noise=0.05),
        smoothing=0.1,
        optimizer=SGD,
        run=RUN,
    )
    return dataclasses.replace(config, **changes)


def dqn(**changes: Any) -> DQN:
    """A tiny DQN that learns from its second step on."""
    config = DQN(
        environment=Environment("CartPole-v1"),
        net=MLP(widths=(16,)),
        environments=8,
        rollout=2,
        ring=8 * 16,
        start=32,
        batch=32,
        updates=2,
        target_every=2,
        n_step=2,
        double=True,
        episodes=16,
        optimizer=SGD,
        run=dataclasses.replace(RUN, metric="return"),
    )
    return dataclasses.replace(config, **changes)


EXPERIMENTS: dict[str, Experiment] = {
    "cnn": classify(),
    "plain cnn": classify(net=CNN(widths=(8,), depth=1, norm=False, hidden=8)),
    "resnet": classify(net=ResNet(widths=(4, 8), blocks=(1, 1), shortcut="project")),
    "averaged": classify(average=0.9),
    "clipped": classify(descent=Descent(clip=0.5), optimizer=dataclasses.replace(SGD, schedule="cosine", warmup=2)),
    "dqn": dqn(),
}
