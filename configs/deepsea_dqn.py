"""DeepSea by deep Q-learning: of the 2^8 ways down an 8x8 grid, one ends at the treasure.

Method: Mnih et al. 2015, doi:10.1038/nature14236. The task is bsuite's (Osband et al. 2020, arXiv:1908.03568).

    python -m experiments.train deepsea_dqn --seeds 10

Expected: the best return, 0.99. Measured by the command: 0.99 for 10 of 10 seeds, after 128,000 frames, in 52 s on 2
cores that much other work shared. Random actions find the treasure in one of 256 episodes; on a grid of 20
(--environment.params size 20) it is one in a million, which epsilon does not find: bsuite has the task to tell such
agents from those that explore.
"""

from research.core.experiment import Run
from research.core.optimizers import Optimizer
from research.learners.dqn import DQN
from research.nets.q import MLP
from research.rl.environments import Environment


def config() -> DQN:
    """The experiment: 128 frames and 8 updates per step."""
    return DQN(
        environment=Environment("DeepSea-bsuite", params=(("size", 8),)),
        net=MLP(widths=(64, 64)),
        num_envs=16,
        rollout_length=8,
        buffer_size=25_600,
        learning_starts=2_560,
        batch=64,
        updates=8,
        target_update_interval=8,
        gamma=0.99,
        double=True,
        epsilon_end=0.1,
        optimizer=Optimizer(name="adamw", learning_rate=1e-3, schedule="linear"),
        run=Run(steps=1000, steps_per_dispatch=100, evaluate_every=100, save_every=500, metric="return"),
    )
