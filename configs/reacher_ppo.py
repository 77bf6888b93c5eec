"""Reacher by proximal policy optimisation: turn the two joints of an arm until its tip is at the goal.

Method: Schulman et al. 2017, arXiv:1707.06347, with observations and rewards normalised by running statistics. The task
is gymnax's own; there is no published figure for it.

    python -m experiments.train reacher_ppo --seeds 3

Expected: about 64 over 100 fresh episodes of the most likely actions, by the last State. Measured by the command: 62.5,
64.6 and 66.3 for seeds 0 to 2, after 1,966,080 frames. Half as many environments and steps gave 46.7, 53.6 and 58.1.
"""

from research.core.experiment import Run
from research.core.optimizers import Optimizer
from research.learners.ppo import PPO
from research.nets.actor_critic import ActorCritic
from research.rl.environments import Environment


def config() -> PPO:
    """The experiment: 4,096 frames and 40 updates per step."""
    return PPO(
        environment=Environment("Reacher-misc"),
        net=ActorCritic(widths=(64, 64)),
        num_envs=32,
        rollout_length=128,
        epochs=10,
        minibatches=4,
        gamma=0.95,
        normalise_observations=True,
        normalise_rewards=True,
        optimizer=Optimizer(name="adamw", learning_rate=1e-3, schedule="linear", eps=1e-5),
        run=Run(steps=480, steps_per_dispatch=20, evaluate_every=80, save_every=240, metric="return"),
    )
