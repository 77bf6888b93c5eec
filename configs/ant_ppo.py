"""Ant by proximal policy optimisation: a body on four legs runs as fast as it can, by the torques of its eight joints.

The environment is Brax's: pip install 'samestep[rl]'. Method: Schulman et al. 2017, arXiv:1707.06347, in the setting
of Brax (Freeman et al. 2021, arXiv:2106.13281), notebooks/training.ipynb: its positional physics, 50 million frames of
4,096 environments, 32 minibatches, 4 epochs, a discount of 0.97, rewards times 10 and an entropy bonus of 0.01.
Published: the curve in that notebook ends at a return of about 5,850, read off the picture, after 25 million frames.

    python -m experiments.train ant_ppo

Differences from the notebook: a rollout has 64 frames of each environment, not 80 in segments of 5, so that advantages
look further ahead; the policy is a Gaussian whose actions are clipped, not squashed by tanh, and its standard deviation
does not depend on the observation; both nets have two layers of 256 with tanh, where Brax has four of 32 for the policy
and five of 256 for the value, with swish; an episode starts anew each time, where Brax goes back to one start.

Expected: a return of about 5,850, as published.
Measured: not yet. It is for a GPU.
Time: not measured on a GPU; days on 2 CPU cores. There it compiles and makes a few small steps, in 204 s beside much
other work, by

    python -m experiments.train ant_ppo --num-envs 8 --episodes 4 --test-episodes 4 --steps 4 --run.steps-per-dispatch 2
"""

from research.core.experiment import Run
from research.core.optimizers import Optimizer
from research.core.update import UpdateConfig
from research.learners.ppo import PPO
from research.nets.actor_critic import ActorCritic
from research.rl.environments import Environment


def config() -> PPO:
    """The experiment: 262,144 frames and 128 updates per step."""
    return PPO(
        environment=Environment("brax:ant", params=(("backend", "positional"),), reward_scale=10.0),
        net=ActorCritic(widths=(256, 256)),
        num_envs=4096,
        rollout_length=64,
        epochs=4,
        minibatches=32,
        gamma=0.97,
        gae_lambda=0.95,
        clip_epsilon=0.3,
        entropy_coef=0.01,
        normalise_observations=True,
        episodes=128,
        optimizer=Optimizer(name="adamw", learning_rate=3e-4),
        update=UpdateConfig(clip=None),
        run=Run(
            steps=190,
            steps_per_dispatch=10,
            evaluate_every=50,
            save_every=50,
            metric="return",
            published=(("return", 5850.0),),
        ),
    )
