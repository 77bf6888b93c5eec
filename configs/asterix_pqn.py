"""MinAtar's Asterix by parallelised Q-learning, in the setting of breakout_pqn.

Method: Gallici et al. 2025, arXiv:2407.04811.

    python -m experiments.train asterix_pqn

Measured by the command, seeds 0 to 2: 71.6, 71.8 and 71.8, in episodes of which nearly all last for the 1,000 frames.
What differs between gymnax's game and the original one: see asterix_dqn.
"""

from configs.breakout_pqn import minatar
from research.learners.pqn import PQN


def config() -> PQN:
    """The experiment: 4,096 frames and 64 updates per step."""
    return minatar("Asterix-MinAtar")
