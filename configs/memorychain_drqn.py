"""MemoryChain by recurrent Q-learning: a bit is shown in the first two frames and asked for in the last.

Method: Hausknecht & Stone 2015, arXiv:1507.06527, with the stored states of Kapturowski et al. 2019. The task is
bsuite's (Osband et al. 2020, arXiv:1908.03568); nothing but a memory solves it.

    python -m experiments.train memorychain_drqn --seeds 10

Expected: the best return, 1; without a memory it is 0. Measured by the command: 1 for 10 of 10 seeds, after 256,000
frames, in 677 s on 1 core that much other work shared. The bit is 4 frames back; --environment.params memory_length
100 makes it 99.
"""

from research.core.experiment import Run
from research.core.optimizers import Optimizer
from research.core.update import UpdateConfig
from research.learners.drqn import DRQN
from research.nets.recurrent_q import RecurrentQ
from research.rl.environments import Environment


def config() -> DRQN:
    """The experiment: 128 frames and 4 updates per step."""
    return DRQN(
        environment=Environment("MemoryChain-bsuite", params=(("memory_length", 5),)),
        net=RecurrentQ(width=32),
        num_envs=16,
        rollout_length=8,
        buffer_size=25_600,
        learning_starts=2_560,
        batch=32,
        sequence=8,
        burn_in=4,
        updates=4,
        target_update_interval=10,
        gamma=0.99,
        epsilon_fraction=0.3,
        optimizer=Optimizer(name="adamw", learning_rate=1e-3, schedule="linear"),
        update=UpdateConfig(clip=10.0),
        run=Run(steps=2000, steps_per_dispatch=100, evaluate_every=200, save_every=1000, metric="return"),
    )
