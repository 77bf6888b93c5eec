"""MinAtar's Breakout by deep Q-learning, from 10x10 images of four objects, as Young & Tian have the game.

Method: Mnih et al. 2015, doi:10.1038/nature14236; in this game with double Q-learning (van Hasselt, Guez & Silver 2015,
arXiv:1509.06461), 3-step returns, and a squared loss with Adam (Obando-Ceron & Castro 2021, arXiv:2011.14826). In
Asterix and Freeway 3-step returns rise and fall back (see asterix_dqn and freeway_dqn).
Published: Young & Tian 2019 (arXiv:1903.03176), whose net and setting these are: 5,000,000 frames, one update of 32
samples a frame, sticky actions of 0.1, all 6 actions, no limit of frames (gymnax has 1,000), epsilon 0.1 after 100,000
frames (it falls from the first one on, theirs from the 5,000th); the target net is copied every 992 frames, theirs
every 1,000. Read off their figure, the return of the last 100 episodes of training is about 10, as a mean of 30 runs.

    python -m experiments.train breakout_dqn

Measured, --seed 0, 1 and 2: training returns of 17.8, 19.1 and 21.0 at epsilon 0.1 over the last 20,000 frames (the
last line of metrics.jsonl), and greedy ones of 39.4, 30.9 and 32.8 on 100 new episodes. It takes 52 minutes on a core
of its own.
"""

from dataclasses import replace

from research.core.experiment import Run
from research.core.optimizers import Optimizer
from research.learners.dqn import DQN
from research.nets.q import MinAtarNet
from research.rl.environments import Environment


def config() -> DQN:
    """The experiment: 32 frames and 32 updates per step."""
    return by_adam(minatar(Environment("Breakout-MinAtar", max_steps=100_000)))


def by_adam(config: DQN) -> DQN:
    """The experiment with double Q-learning, 3-step returns, and a squared loss with Adam."""
    return replace(config, double=True, n_step=3, loss="squared", optimizer=Optimizer(learning_rate=2.5e-4))


def minatar(game: Environment) -> DQN:
    """The experiment in any of MinAtar's games, by the loss and the RMSProp of Young & Tian's own code, but that theirs
    is centred (--optimizer.name rmsprop)."""
    return DQN(
        environment=replace(game, params=(("use_minimal_action_set", False),), sticky_actions=0.1),
        net=MinAtarNet(channels=16, hidden=128),
        num_envs=8,
        rollout_length=4,
        buffer_size=100_000,
        buffer_dtype="uint8",
        learning_starts=5_000,
        batch=32,
        updates=32,
        target_update_interval=31,
        gamma=0.99,
        loss="huber",
        epsilon_end=0.1,
        epsilon_fraction=0.02,
        optimizer=Optimizer(learning_rate=2.5e-4, b1=0.0, b2=0.95, eps=0.01),
        run=Run(
            steps=156_250,
            steps_per_dispatch=625,
            evaluate_every=12_500,
            save_every=12_500,
            metric="return",
        ),
    )
