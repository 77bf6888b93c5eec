"""MinAtar's Breakout by Rainbow: six extensions of deep Q-learning at once.

Method: Hessel et al. 2018, arXiv:1710.02298, with the net, the frames and the optimizer of breakout_dqn: Adam at a
rate of 0.00025, where theirs, for Atari, is 0.0000625.

    python -m experiments.train breakout_rainbow

It has not been trained yet.
"""

from dataclasses import replace

from configs.breakout_dqn import config as breakout_dqn
from research.learners.dqn import DQN
from research.nets.q import MinAtarNet


def config() -> DQN:
    """The experiment: `breakout_dqn` with Rainbow's extensions."""
    return replace(
        breakout_dqn(),
        net=MinAtarNet(channels=16, hidden=128, dueling=True, noisy=True),
        returns="categorical",
        atoms=51,
        v_min=0.0,
        v_max=20.0,
        n_step=3,
        priority_exponent=0.5,
        importance_exponent=0.4,
        epsilon_start=0.0,
        epsilon_end=0.0,
    )
