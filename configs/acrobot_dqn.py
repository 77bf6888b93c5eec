"""Acrobot by deep Q-learning: swing a double pendulum up; a frame costs 1, and an episode has at most 500.

Method: Mnih et al. 2015, doi:10.1038/nature14236, with double Q-learning (van Hasselt, Guez & Silver 2015,
arXiv:1509.06461), 5-step returns, a target net that follows softly and averaged weights for evaluation.
Published: CleanRL (Huang et al. 2022, arXiv:2111.08819) reports -91.54 +- 7.20 while training, after 500,000 frames;
Stable-Baselines3's zoo -76.6 +- 11.8 by greedy actions (one run of 100,000 frames; the spread is that of its episodes).

    python -m experiments.train acrobot_dqn --seeds 3

Expected: about -86 over 100 fresh greedy episodes, by the last State, after 256,000 frames. Measured by the command:
-88.4, -88.4 and -80.8 for seeds 0 to 2. With --net.widths 120 84: -89.3, -91.2 and -88.5.
"""

from research.core.experiment import Run
from research.core.optimizers import Optimizer
from research.core.update import UpdateConfig
from research.learners.dqn import DQN
from research.nets.q import MLP
from research.rl.environments import Environment


def config() -> DQN:
    """The experiment: 128 frames and 16 updates per step."""
    return DQN(
        environment=Environment("Acrobot-v1"),
        net=MLP(widths=(256, 256)),
        num_envs=8,
        rollout_length=16,
        buffer_size=102_400,
        learning_starts=10_240,
        batch=64,
        updates=16,
        target_update_interval=1,
        tau=0.05,
        gamma=0.99,
        n_step=5,
        double=True,
        average=0.998,
        epsilon_fraction=0.3,
        optimizer=Optimizer(name="adamw", learning_rate=1e-3, schedule="linear"),
        update=UpdateConfig(clip=10.0),
        run=Run(
            steps=2000,
            steps_per_dispatch=200,
            evaluate_every=200,
            save_every=1000,
            metric="return",
            published=(("return", -91.54),),
        ),
    )
