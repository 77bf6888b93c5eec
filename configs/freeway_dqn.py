"""MinAtar's Freeway by deep Q-learning, in the setting of breakout_dqn, by its Adam.

Published: Young & Tian 2019 (arXiv:1903.03176), about 50, read off their figure. Its episodes terminate after
2,500 frames.

    python -m experiments.train freeway_dqn

Not trained to its end yet. One seed: the training return rose to 27.6 within 340,000 frames, half of it within 80,000,
and was back at 16 after 540,000, as Asterix' did by these 3 steps; by RMSProp with 3 steps it had not begun to rise
after 140,000. One-step returns were not tried.
"""

from dataclasses import replace

from configs.breakout_dqn import minatar
from research.core.optimizers import Optimizer
from research.learners.dqn import DQN
from research.rl.environments import Environment


def config() -> DQN:
    """The experiment: 32 frames and 32 updates per step."""
    freeway = Environment("Freeway-MinAtar", max_steps=2500, limit_terminates=True)
    return replace(minatar(freeway), loss="squared", optimizer=Optimizer(learning_rate=2.5e-4, eps=3.125e-4))
