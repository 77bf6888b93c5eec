"""A highway by deep Q-learning: drive fast among 19 other cars on 4 lanes, and hit no one. 40 s, a decision a second.

Method: Mnih et al. 2015, doi:10.1038/nature14236, with 3-step returns and double Q-learning (van Hasselt, Guez & Silver
2015, arXiv:1509.06461). The environment is research/rl/highway.py; there is no published figure for it, and the task is
that of highway-env (Leurent 2018). The squared loss matters: a collision is a rare and large error, of which Huber's
loss, linear beyond 1, learns something like a median. All else equal it drove faster and collided ten times as often.

    python -m experiments.train highway_dqn

Expected, over 1,000 fresh episodes: an upper 95 % Poisson bound of collisions per kilometre of at most 1/20 of what
random actions have, and a mean speed of at least 1.05 of that of IDM and MOBIL. Measured, and beside it other seeds:

    driver                    collisions/km   95 % bound   mean speed, m/s
    highway_dqn               0.0030          0.0077       25.3
    highway_dqn --seed 1      0.0010          0.0045       26.2
    highway_dqn --seed 2      0.0029          0.0074       26.1
    highway_dqn --loss huber  0.0401          0.0515       28.0
    IDM and MOBIL             0               0.0035       21.2
    constant speed            1.093           1.162        25.0
    random actions            1.669           1.775        20.3

Loss and gamma were chosen by looking at the validation of seed 0. Time: 4 minutes on 2 cores that had much other work.
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
        environment=Environment("highway:Highway"),
        net=MLP(widths=(128, 128)),
        num_envs=64,
        rollout_length=2,
        buffer_size=512_000,
        learning_starts=10_000,
        batch=128,
        updates=16,
        target_update_interval=20,
        gamma=0.9,
        n_step=3,
        double=True,
        loss="squared",
        epsilon_fraction=0.4,
        episodes=200,
        test_episodes=1000,
        optimizer=Optimizer(name="adamw", learning_rate=5e-4, schedule="linear"),
        update=UpdateConfig(clip=10.0),
        run=Run(
            steps=4000,
            steps_per_dispatch=100,
            evaluate_every=500,
            save_every=1000,
            metric="return",
        ),
    )
