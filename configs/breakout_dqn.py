"""MinAtar's Breakout by deep Q-learning, from 10x10 images of four objects.

Method: Mnih et al. 2015, doi:10.1038/nature14236, with the net of Young & Tian 2019 (arXiv:1903.03176) and double
Q-learning (van Hasselt, Guez & Silver 2015, arXiv:1509.06461). Published: Young & Tian's DQN reaches a return of about
10 in Breakout after 5,000,000 frames (read off a figure; with sticky actions, which this setting leaves out: add
--environment.sticky-actions 0.1).

    python -m experiments.train breakout_dqn

Expected: the return rises through most of the 1,000,000 frames. Measured, seed 0: 40.7 over 100 episodes, of which only
two differ: the game draws nothing but the ball's start, and the policy is greedy.
Time: 10 minutes on 2 cores that had other work to do.
"""

from research.core.experiment import Run
from research.core.optimizers import Optimizer
from research.learners.dqn import DQN
from research.nets.q import MinAtarNet
from research.rl.environments import Environment


def config() -> DQN:
    """The experiment: 160 frames and 40 updates per step."""
    return DQN(
        environment=Environment("Breakout-MinAtar"),
        net=MinAtarNet(channels=16, hidden=128),
        num_envs=16,
        rollout_length=10,
        buffer_size=100_000,
        buffer_dtype="uint8",
        learning_starts=5_000,
        batch=64,
        updates=40,
        target_update_interval=10,
        gamma=0.99,
        n_step=3,
        double=True,
        loss="huber",
        epsilon_end=0.05,
        epsilon_fraction=0.2,
        optimizer=Optimizer(name="adamw", learning_rate=3e-4, schedule="linear"),
        run=Run(
            steps=6250,
            steps_per_dispatch=125,
            evaluate_every=625,
            save_every=1250,
            metric="return",
            published=(("return", 10.0),),
        ),
    )
