"""Pendulum by proximal policy optimisation: swing it up by a torque, which is continuous, and hold it there.

Method: Schulman et al. 2017, arXiv:1707.06347, with observations and rewards normalised by running statistics.
Published: Stable-Baselines3's zoo has -172 +- 104 (one run of 100,000 frames; the spread is that of its episodes).

    python -m experiments.train pendulum_ppo --seeds 3

Expected: about -150 over 100 fresh episodes of the most likely actions, by the last State. Measured by the command:
-147.3, -150.0 and -143.4 for seeds 0 to 2, after 327,680 frames; no other setting was tried. It took 460 s on 2 cores
that about thirty processes shared.
"""

from research.core.experiment import Run
from research.core.optimizers import Optimizer
from research.learners.ppo import PPO
from research.nets.actor_critic import ActorCritic
from research.rl.environments import Environment


def config() -> PPO:
    """The experiment: 2,048 frames and 40 updates per step."""
    return PPO(
        environment=Environment("Pendulum-v1"),
        net=ActorCritic(widths=(64, 64)),
        num_envs=16,
        rollout_length=128,
        epochs=10,
        minibatches=4,
        gamma=0.95,
        normalise_observations=True,
        normalise_rewards=True,
        optimizer=Optimizer(name="adamw", learning_rate=1e-3, schedule="linear", eps=1e-5),
        run=Run(
            steps=160,
            steps_per_dispatch=20,
            evaluate_every=40,
            save_every=80,
            metric="return",
            published=(("return", -172.2),),
        ),
    )
