"""MinAtar's Asterix by deep Q-learning, in the setting of breakout_dqn, by RMSProp.

Published: Young & Tian 2019 (arXiv:1903.03176), about 17, read off their figure.
gymnax's game differs from theirs: where one slot alone is free it finds it 7 times in 8, and where all are taken it
replaces one; theirs then adds nothing.

    python -m experiments.train asterix_dqn

By the Adam of breakout_dqn nothing lasting is learned here: at its rate the training return rose from 0.5, that of
random actions, to 0.8 within 300,000 frames and was back at 0.6 after 1,000,000; at 6.25e-5 it rose to 2.0 and was back
at 0.5 after 2,200,000. The noise of the gradient, most of whose samples have no reward, is as large as a step of Adam
there; the eps of 0.01 that RMSProp has here makes it small.
"""

from configs.breakout_dqn import minatar
from research.learners.dqn import DQN
from research.rl.environments import Environment


def config() -> DQN:
    """The experiment: 32 frames and 32 updates per step."""
    return minatar(Environment("Asterix-MinAtar", max_steps=100_000))
