"""MinAtar's Breakout by parallelised Q-learning, from 10x10 images of four objects.

Method: Gallici et al. 2025, arXiv:2407.04811, in the setting of their own code (10,000,000 frames) but for the
optimizer (Adam with a warm-up in place of RAdam), the inputs (0 and 1; they divide them by 255 besides) and the initial
weights (Flax's default, of the convolution He-normal by its outputs; theirs are He-normal by the inputs, but for the
last layer), and for the limit of 1,000 frames, where targets bootstrap (theirs do not: --environment.limit-terminates).
As gymnax has the game: minimal actions, at most 1,000 frames, no sticky actions; the figure is the greedy return of the
first whole episode of each of 128 environments.

    python -m experiments.train breakout_pqn

Measured by the command, seeds 0 to 2: 88.9, 91.6 and 95.5, by episodes of 929, 1,000 and 1,000 frames. No other
setting was tried. It takes 8 minutes a seed on 2 cores that do nothing else.
"""

from research.core.experiment import Run
from research.core.optimizers import Optimizer
from research.core.update import UpdateConfig
from research.learners.pqn import PQN
from research.nets.q import MinAtarNet
from research.rl.environments import Environment


def config() -> PQN:
    """The experiment: 4,096 frames and 64 updates per step."""
    return minatar("Breakout-MinAtar")


def minatar(name: str) -> PQN:
    """The experiment in any of MinAtar's games."""
    return PQN(
        environment=Environment(name),
        net=MinAtarNet(channels=16, hidden=128, layer_norm=True),
        num_envs=128,
        rollout_length=32,
        epochs=2,
        minibatches=32,
        gamma=0.99,
        q_lambda=0.65,
        epsilon_end=0.05,
        epsilon_fraction=0.1,
        episodes=128,
        test_episodes=128,
        optimizer=Optimizer(name="adamw", learning_rate=5e-4, schedule="linear", warmup=1000),
        update=UpdateConfig(clip=10.0),
        run=Run(steps=2440, steps_per_dispatch=61, evaluate_every=122, save_every=122, metric="return"),
    )
