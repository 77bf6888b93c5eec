"""Acrobot by deep Q-learning: swing a double pendulum up; a frame costs 1, and an episode has at most 500.

Method: Mnih et al. 2015, doi:10.1038/nature14236, with double Q-learning (van Hasselt, Guez & Silver 2015,
arXiv:1509.06461), 5-step returns, a target net that follows softly and averaged weights for evaluation.
Published: CleanRL (Huang et al. 2022, arXiv:2111.08819) reports -91.54 +- 7.20 while training, after 500,000 frames;
Stable-Baselines3's zoo -76.6 +- 11.8 by greedy actions (one run of 100,000 frames; the spread is that of its episodes).

    python -m experiments.train acrobot_dqn --seeds 3

Expected: about -86 over 100 fresh greedy episodes, by the last State, after 256,000 frames. Measured by the command:
-88.4, -88.4 and -80.8 for seeds 0 to 2. With --net.widths 120 84: -89.3, -91.2 and -88.5. It took
227 s on 2 cores that much other work shared.
"""

from dataclasses import replace

from configs.cartpole_dqn import config as cartpole_dqn
from research.learners.dqn import DQN
from research.nets.q import MLP
from research.rl.environments import Environment


def config() -> DQN:
    """The experiment: `cartpole_dqn` with a wider net."""
    cartpole = cartpole_dqn()
    return replace(
        cartpole,
        environment=Environment("Acrobot-v1"),
        net=MLP(widths=(256, 256)),
        run=replace(cartpole.run, published=(("return", -91.54),)),
    )
