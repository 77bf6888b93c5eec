"""FrozenLake by tabular Q-learning: a table of values of 16 states and 4 actions on slippery ice.

Method: Watkins & Dayan 1992. By value iteration, the optimal policy for a discount of 0.99 reaches the goal in 0.740 of
the episodes of at most 100 frames.

    python -m experiments.train frozenlake_q --seeds 10

Expected: near that. Measured by the command, over 10,240 fresh episodes: 0.729 +- 0.002 (0.727 to 0.730), in 14 s.
"""

from research.core.experiment import Run
from research.core.optimizers import Optimizer
from research.learners.pqn import PQN
from research.nets.q import Table
from research.rl.environments import Environment


def config() -> PQN:
    """The experiment: 64 environments, each step one frame of all and one update of the table."""
    return PQN(
        environment=Environment("FrozenLake-misc"),
        net=Table(),
        num_envs=64,
        rollout_length=1,
        epochs=1,
        minibatches=1,
        gamma=0.99,
        q_lambda=0.0,
        epsilon_start=1.0,
        epsilon_end=0.1,
        epsilon_fraction=0.5,
        episodes=1024,
        test_episodes=10_240,
        # A frame moves its entry by learning_rate / num_envs of the temporal difference.
        optimizer=Optimizer(name="sgd", learning_rate=6.4, schedule="linear", momentum=0.0, nesterov=False),
        run=Run(steps=4000, steps_per_dispatch=200, evaluate_every=400, save_every=2000, metric="return"),
    )
