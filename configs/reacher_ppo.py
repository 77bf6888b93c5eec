"""Reacher by proximal policy optimisation: turn the two joints of an arm until its tip is at the goal.

Method: Schulman et al. 2017, arXiv:1707.06347, with observations and rewards normalised by running statistics. The task
is gymnax's own; there is no published figure for it.

    python -m experiments.train reacher_ppo --seeds 3

Expected: about 64 over 100 fresh episodes of the most likely actions, by the last State. Measured by the command: 62.5,
64.6 and 66.3 for seeds 0 to 2, after 1,966,080 frames. Half as many environments and steps gave 46.7, 53.6 and 58.1.
It took 429 s on 2 cores that much other work shared.
"""

from dataclasses import replace

from configs.pendulum_ppo import config as pendulum_ppo
from research.learners.ppo import PPO
from research.rl.environments import Environment


def config() -> PPO:
    """The experiment: `pendulum_ppo` with twice as many environments, for three times as many steps."""
    pendulum = pendulum_ppo()
    return replace(
        pendulum,
        environment=Environment("Reacher-misc"),
        num_envs=32,
        run=replace(pendulum.run, steps=480, evaluate_every=80, save_every=240, published=()),
    )
