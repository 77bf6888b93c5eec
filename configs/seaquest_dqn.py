"""MinAtar's Seaquest by deep Q-learning, in Young & Tian's setting (see breakout_dqn), by RMSProp, not centred.

Published: Young & Tian 2019 (arXiv:1903.03176), about 20, read off their figure.

    python -m experiments.train seaquest_dqn

It has not been trained yet.
"""

from configs.breakout_dqn import minatar
from research.learners.dqn import DQN
from research.rl.environments import Environment


def config() -> DQN:
    """The experiment: 32 frames and 32 updates per step."""
    return minatar(Environment("Seaquest-MinAtar", max_steps=100_000))
