"""MinAtar's Asterix by deep Q-learning, in the setting of breakout_dqn, by RMSProp.

Published: Young & Tian 2019 (arXiv:1903.03176), about 17, read off their figure.
gymnax's game differs from theirs: where one slot alone is free it finds it 7 times in 8, and where all are taken it
replaces one; theirs then adds nothing.

    python -m experiments.train asterix_dqn

Not trained to its end yet, and the published return not reached. One seed, stopped after 1,100,000 frames: the training
return rose to 4.9 within 560,000 (greedy, 6.4 at 800,000) and was back at 3.3. By the Adam of breakout_dqn it is worse:
at its rate the return rose from 0.5, that of random actions, to 0.8 within 300,000 frames and was back at 0.6 after
1,000,000; at 6.25e-5 it rose to 2.0 and was back at 0.5 after 2,200,000. Layer normalisation did not help in 340,000
frames of Adam.
"""

from configs.breakout_dqn import minatar
from research.learners.dqn import DQN
from research.rl.environments import Environment


def config() -> DQN:
    """The experiment: 32 frames and 32 updates per step."""
    return minatar(Environment("Asterix-MinAtar", max_steps=100_000))
