"""MinAtar's Breakout by proximal policy optimisation, from 10x10 images of four objects.

Method: Schulman et al. 2017, arXiv:1707.06347, in the setting of breakout_pqn: as gymnax has the game, 10,000,000
frames; the figure is the return of the most likely actions in the first whole episode of each of 128 environments.

    python -m experiments.train breakout_ppo

It has not been trained yet.
"""

from research.core.experiment import Run
from research.core.optimizers import Optimizer
from research.learners.ppo import PPO
from research.nets.actor_critic import MinAtarActorCritic
from research.rl.environments import Environment


def config() -> PPO:
    """The experiment: 8,192 frames and 32 updates per step."""
    return PPO(
        environment=Environment("Breakout-MinAtar"),
        net=MinAtarActorCritic(channels=16, hidden=128),
        num_envs=64,
        rollout_length=128,
        epochs=4,
        minibatches=8,
        gamma=0.99,
        entropy_coef=0.01,
        episodes=128,
        test_episodes=128,
        optimizer=Optimizer(name="adamw", learning_rate=5e-3, schedule="linear", eps=1e-5),
        run=Run(steps=1220, steps_per_dispatch=61, evaluate_every=61, save_every=122, metric="return"),
    )
