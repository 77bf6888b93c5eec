"""Acrobot by proximal policy optimisation: swing a double pendulum up; a frame costs 1.

Method: Schulman et al. 2017, arXiv:1707.06347. Published: CleanRL (Huang et al. 2022, arXiv:2111.08819) reports a
return of -82.48 +- 5.93 after 500,000 frames, while training; Stable-Baselines3's zoo -73.5 +- 18.2 by the most likely
actions (one run of 1,000,000 frames; the spread is that of its episodes).

    python -m experiments.train acrobot_ppo --seeds 3

Expected: about -83 over 100 fresh episodes of the most likely actions, by the last State. Measured by the command:
-84.2, -82.3 and -83.5 for seeds 0 to 2, after 245,760 frames; no other setting was tried. It took 171 s on 2 cores that
about thirty processes shared.
"""

from research.core.experiment import Run
from research.core.optimizers import Optimizer
from research.learners.ppo import PPO
from research.nets.actor_critic import ActorCritic
from research.rl.environments import Environment


def config() -> PPO:
    """The experiment: 2,048 frames and 16 updates per step."""
    return PPO(
        environment=Environment("Acrobot-v1"),
        net=ActorCritic(widths=(64, 64)),
        num_envs=16,
        rollout_length=128,
        epochs=4,
        minibatches=4,
        gamma=0.99,
        normalise_observations=True,
        normalise_rewards=True,
        optimizer=Optimizer(name="adamw", learning_rate=1e-3, schedule="linear", eps=1e-5),
        run=Run(
            steps=120,
            steps_per_dispatch=20,
            evaluate_every=40,
            save_every=60,
            metric="return",
            published=(("return", -82.48),),
        ),
    )
