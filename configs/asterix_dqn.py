"""MinAtar's Asterix by deep Q-learning, in the setting of breakout_dqn.

Published: Young & Tian 2019 (arXiv:1903.03176), about 17, read off their figure.
gymnax's game differs from theirs: where one slot alone is free it finds it 7 times in 8, and where all are taken it
replaces one; theirs then adds nothing.

    python -m experiments.train asterix_dqn

It has not been trained yet.
"""

from configs.breakout_dqn import minatar
from research.learners.dqn import DQN
from research.rl.environments import Environment


def config() -> DQN:
    """The experiment: 32 frames and 32 updates per step."""
    return minatar(Environment("Asterix-MinAtar", max_steps=100_000))
