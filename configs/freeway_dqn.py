"""MinAtar's Freeway by deep Q-learning, in the setting of breakout_dqn, with one-step returns and a squared loss.

Adam's rate and eps, and the one-step returns, are those of Obando-Ceron & Castro's code (2021, arXiv:2011.14826); but
here the rate falls linearly to 0.
Published: Young & Tian 2019 (arXiv:1903.03176), about 50, read off their figure. Its episodes terminate after
2,500 frames.

    python -m experiments.train freeway_dqn

Measured, one seed: a training return at epsilon 0.1 of 52.8 over the last million frames, and of 54.7 over the last 104
episodes; and a greedy one of 60.3 on 100 new episodes. At a constant rate, one seed: 47.2, 47.2 and 49.1.
Time: 53 minutes on a core of its own.
What did not work at a constant rate, one seed each: with double Q-learning, 3-step returns and Adam's own eps the
training return rose to 27.6 within 340,000 frames and was back at 16 after 540,000; by the RMSProp of asterix_dqn it
was 0 after 460,000, and with 3 steps 0.4 after 140,000.
"""

from dataclasses import replace

from configs.breakout_dqn import minatar
from research.core.optimizers import Optimizer
from research.learners.dqn import DQN
from research.rl.environments import Environment


def config() -> DQN:
    """The experiment: 32 frames and 32 updates per step."""
    freeway = Environment("Freeway-MinAtar", max_steps=2500, limit_terminates=True)
    adam = Optimizer(learning_rate=2.5e-4, schedule="linear", eps=3.125e-4)
    return replace(minatar(freeway), loss="squared", optimizer=adam)
