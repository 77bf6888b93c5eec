"""CartPole by parallelised Q-learning: no replay buffer, no target net.

Method: Gallici et al. 2025, arXiv:2407.04811, whose own code reports a return of 500 within 500,000 frames (their
setting: 32 environments, 64 frames a step, 4 epochs of 16 minibatches, RAdam).

    python -m experiments.train cartpole_pqn --seeds 10

Expected: a mean greedy return of 475 or more over 100 fresh episodes, by the last State.
"""

from research.core.experiment import Run
from research.core.optimizers import Optimizer
from research.core.update import UpdateConfig
from research.learners.pqn import PQN
from research.nets.q import MLP
from research.rl.environments import Environment


def config() -> PQN:
    """The experiment: 2,048 frames and 64 updates per step."""
    return PQN(
        environment=Environment("CartPole-v1"),
        net=MLP(widths=(128, 128), layer_norm=True),
        num_envs=32,
        rollout_length=64,
        epochs=4,
        minibatches=16,
        gamma=0.99,
        q_lambda=0.95,
        average=0.998,
        epsilon_end=0.1,
        epsilon_fraction=0.3,
        optimizer=Optimizer(name="adamw", learning_rate=1e-3, schedule="linear"),
        update=UpdateConfig(clip=10.0),
        run=Run(
            steps=200,
            steps_per_dispatch=20,
            evaluate_every=20,
            save_every=100,
            metric="return",
            published=(("return", 500.0),),
        ),
    )
