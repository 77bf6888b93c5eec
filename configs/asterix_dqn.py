"""MinAtar's Asterix by deep Q-learning, in the setting of breakout_dqn, with the Adam of Rainbow.

At the learning rate of breakout_dqn the net learns nothing lasting here: over a million frames the training return went
up from 0.5, that of random actions, to 0.8, and down again to 0.6. This is a quarter of it (Hessel et al. 2018,
arXiv:1710.02298, table 1).
Published: Young & Tian 2019 (arXiv:1903.03176), about 17, read off their figure.
gymnax's game differs from theirs: where one slot alone is free it finds it 7 times in 8, and where all are taken it
replaces one; theirs then adds nothing.

    python -m experiments.train asterix_dqn

It has not been trained yet.
"""

from dataclasses import replace

from configs.breakout_dqn import minatar
from research.core.optimizers import Optimizer
from research.learners.dqn import DQN
from research.rl.environments import Environment


def config() -> DQN:
    """The experiment: 32 frames and 32 updates per step."""
    adam = Optimizer(name="adamw", learning_rate=6.25e-5, eps=1.5e-4)
    return replace(minatar(Environment("Asterix-MinAtar", max_steps=100_000)), optimizer=adam)
