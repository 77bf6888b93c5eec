"""MinAtar's Breakout by Rainbow: six extensions of deep Q-learning at once.

Method: Hessel et al. 2018, arXiv:1710.02298, with the net, the frames and the optimizer of breakout_dqn: Adam at a
rate of 0.00025, where theirs, for Atari, is 0.0000625.

    python -m experiments.train breakout_rainbow

It has not been trained yet.
"""

from configs.breakout_dqn import config as breakout_dqn
from configs.cartpole_rainbow import rainbow
from research.learners.dqn import DQN


def config() -> DQN:
    """The experiment: `breakout_dqn` with Rainbow's extensions."""
    return rainbow(breakout_dqn(), v_max=20.0)
