"""MinAtar's Asterix by deep Q-learning, in Young & Tian's setting (see breakout_dqn), by RMSProp, not centred.

Difference: the learning rate falls linearly to 0; theirs is constant.

Published: Young & Tian 2019 (arXiv:1903.03176), about 17, read off their figure.
gymnax's game differs from theirs: where one slot alone is free it finds it 7 times in 8, and where all are taken it
removes one; theirs then changes nothing.

    python -m experiments.train asterix_dqn

Measured, one seed: a training return at epsilon 0.1 of 18.7 over the last million frames, and of 20.0 over the last 90
episodes; and a greedy one of 27.2 on 100 new episodes. It takes 40 minutes on a core of its own.
At a constant rate, one seed each: 15.8 over the last million frames, and a greedy return of 31.0; by their centred
RMSProp (--optimizer.name rmsprop) 16.7 over the third million, but 13.3 over the last one, and a greedy return of 19.8;
with double Q-learning alone 15.3 over the third million, where it was stopped.
What did not work at a constant rate, one seed each: with double Q-learning and 3-step returns the training return rose
to 4.9 within 560,000 frames and was back at 3.3 after 1,100,000; with Adam besides it rose from 0.5, that of random
actions, to 0.8 and was back at 0.6 after 1,000,000 (at a rate of 6.25e-5: to 2.0, and 0.5 after 2,200,000).
"""

from dataclasses import replace

from configs.breakout_dqn import minatar
from research.learners.dqn import DQN
from research.rl.environments import Environment


def config() -> DQN:
    """The experiment: 32 frames and 32 updates per step."""
    asterix = minatar(Environment("Asterix-MinAtar", max_steps=100_000))
    return replace(asterix, optimizer=replace(asterix.optimizer, schedule="linear"))
